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
            // Made now, so that it knows how long the work has taken, and shown later.
            let bar = bar(what);
            let mut wait = PATIENCE;
            while is_done.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                let (position, length) = meter.read();
                bar.set_length(length.max(position));
                bar.set_position(position);
                if bar.is_hidden() {
                    bar.set_draw_target(ProgressDrawTarget::stderr());
                }
                wait = TICK;
            }
            bar.finish_and_clear();
        });
        let result = work(meter);
        drop(done);
        (result, begin.elapsed())
    })
}

/// A bar of one line, hidden.
fn bar(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
    let template = "{msg} [{wide_bar}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what);
    bar
}
