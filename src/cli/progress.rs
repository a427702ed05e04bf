//! A progress bar on a terminal, while long work goes on.

use std::io::IsTerminal;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use walkeep_store::Meter;

const TICK: Duration = Duration::from_millis(100);
/// Short work shows no bar.
const PATIENCE: Duration = Duration::from_millis(400);

/// Runs `work` with a meter, drawing a bar on standard error if that is a terminal. Returns the
/// result and the time it took.
pub fn with_progress<T>(what: &'static str, work: impl FnOnce(&Meter) -> T) -> (T, Duration) {
    let meter = Meter::default();
    let begin = Instant::now();
    if !std::io::stderr().is_terminal() {
        let result = work(&meter);
        return (result, begin.elapsed());
    }
    thread::scope(|scope| {
        let (done, is_done) = channel::<()>();
        let meter = &meter;
        scope.spawn(move || {
            if is_done.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            let bar = bar(what, meter);
            loop {
                let (position, length) = meter.read();
                bar.set_length(length.max(position));
                bar.set_position(position);
                if is_done.recv_timeout(TICK) != Err(RecvTimeoutError::Timeout) {
                    bar.finish_and_clear();
                    return;
                }
            }
        });
        let result = work(meter);
        drop(done);
        (result, begin.elapsed())
    })
}

/// A bar of one line, made complete before it is drawn for the first time.
fn bar(what: &'static str, meter: &Meter) -> ProgressBar {
    let (position, length) = meter.read();
    let target = ProgressDrawTarget::stderr();
    let bar = ProgressBar::with_draw_target(Some(length.max(position)), target)
        .with_position(position)
        .with_message(what);
    let template = "{msg} [{wide_bar}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}
