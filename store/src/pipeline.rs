//! Work on many cores whose results come out in order (read → work → write).
//!
//! The calling thread makes jobs and consumes results; workers do what lies between. Jobs and
//! results in flight are bounded by bytes, so memory follows neither the input nor the number of
//! workers. Results, and the first error, do not depend on the number of workers.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

/// Bytes of jobs and results in flight.
const WINDOW: u64 = 12 << 20;
/// Capacity of the buffers that wait for the next job: those of a whole window, each with room to
/// spare.
const KEPT_BYTES: usize = 18 << 20;
/// Capacities are multiples of this, so that a buffer fits the next job too.
const CAPACITY_STEP: usize = 256 << 10;
/// Jobs in flight, however small they are: each holds more than its bytes.
const JOBS: usize = 128;

/// How many threads work, and how much they may hold.
#[derive(Clone, Copy, Debug)]
pub struct Workers {
    /// Threads that work, as far as the window has jobs for them; 1 works on the calling thread.
    pub threads: usize,
    /// Bytes of jobs and results in flight; one job may pass it alone.
    pub window: u64,
}

impl Workers {
    /// `threads` workers with the customary window.
    pub fn new(threads: usize) -> Self {
        Self {
            threads: threads.clamp(1, 255),
            window: WINDOW,
        }
    }
}

impl Default for Workers {
    fn default() -> Self {
        Self::new(thread::available_parallelism().map_or(1, usize::from))
    }
}

/// A job with the bytes it will hold until its result is consumed.
pub struct Job<J> {
    /// What is to be done.
    pub work: J,
    /// Bytes it stands for.
    pub weight: u64,
}

/// Empty buffers on their way from the thread that consumed a result back to the workers.
///
/// Memory that one thread allocates and another frees goes back to the system each time, and the
/// page faults of the next allocation cost more than most work. So as many buffers are kept as a
/// window needs; what is beyond is freed.
#[derive(Default)]
pub struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    /// An empty buffer for at least so many bytes: the one that came back last, whose memory is
    /// warm, or a new one where that is too small. To let it grow would copy what nobody needs.
    pub fn take(&self, bytes: usize) -> Buffer<'_> {
        let last = self.free.lock().pop();
        let fitting = last.filter(|buffer| buffer.capacity() >= bytes);
        let new = || Vec::with_capacity(bytes.next_multiple_of(CAPACITY_STEP));
        Buffer {
            bytes: fitting.unwrap_or_else(new),
            home: self,
        }
    }

    fn give_back(&self, mut bytes: Vec<u8>) {
        bytes.clear();
        let mut free = self.free.lock();
        let kept: usize = free.iter().map(Vec::capacity).sum();
        if kept + bytes.capacity() <= KEPT_BYTES {
            free.push(bytes);
        }
    }
}

/// A buffer that goes back to its [`Buffers`] when it is dropped.
pub struct Buffer<'a> {
    bytes: Vec<u8>,
    home: &'a Buffers,
}

impl Deref for Buffer<'_> {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        self.home.give_back(std::mem::take(&mut self.bytes));
    }
}

type Answer<R, E> = (u64, Option<Result<R, E>>);

/// Tells the caller that a worker panicked, so that it does not wait for the lost result.
struct PanicGuard<R, E> {
    answers: Sender<Answer<R, E>>,
}

impl<R, E> Drop for PanicGuard<R, E> {
    fn drop(&mut self) {
        if thread::panicking() {
            // Nobody listens any more if the caller failed first.
            let _ = self.answers.send((0, None));
        }
    }
}

/// Runs `next_job` → `work` → `consume`. Each worker has a state of its own, made by `state`.
///
/// # Errors
/// The first error in the order of the jobs. Nothing after it is consumed.
pub fn ordered<J: Send, R: Send, E: Send, S>(
    workers: Workers,
    mut next_job: impl FnMut() -> Result<Option<Job<J>>, E>,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, J) -> Result<R, E> + Sync,
    mut consume: impl FnMut(R) -> Result<(), E>,
) -> Result<(), E> {
    if workers.threads <= 1 {
        let mut state = state();
        while let Some(job) = next_job()? {
            consume(work(&mut state, job.work)?)?;
        }
        return Ok(());
    }
    thread::scope(|scope| {
        let (jobs, todo) = unbounded::<(u64, J)>();
        let (answers, done) = unbounded::<Answer<R, E>>();
        let mut spawned = 0;
        let mut flight = Flight {
            first: 0,
            weights: VecDeque::new(),
            bytes: 0,
            landed: VecDeque::new(),
        };
        let mut last: Option<Result<(), E>> = None;
        loop {
            while last.is_none() && flight.has_room(&workers) {
                match next_job() {
                    Ok(Some(job)) => {
                        let number = flight.launch(job.weight);
                        // Only fails without a receiver, and one is here.
                        let _ = jobs.send((number, job.work));
                        if spawned < workers.threads.min(flight.weights.len()) {
                            spawned += 1;
                            let (todo, answers) = (todo.clone(), answers.clone());
                            let (state, work) = (&state, &work);
                            scope.spawn(move || run_worker(&todo, answers, state, work));
                        }
                    }
                    Ok(None) => last = Some(Ok(())),
                    // What was begun before the error comes first.
                    Err(e) => last = Some(Err(e)),
                }
            }
            if flight.weights.is_empty() {
                return last.unwrap_or(Ok(()));
            }
            // `None` is a panic: the scope passes it on once the other workers are done.
            let Ok((number, Some(answer))) = done.recv() else {
                return Ok(());
            };
            flight.land(number, answer);
            while let Some(answer) = flight.next_in_order() {
                consume(answer?)?;
            }
        }
    })
}

fn run_worker<J, R, E, S>(
    todo: &Receiver<(u64, J)>,
    answers: Sender<Answer<R, E>>,
    state: impl Fn() -> S,
    work: impl Fn(&mut S, J) -> Result<R, E>,
) {
    let guard = PanicGuard { answers };
    let mut state = state();
    for (number, job) in todo {
        let answer = work(&mut state, job);
        if guard.answers.send((number, Some(answer))).is_err() {
            return;
        }
    }
}

/// Jobs between launch and consumption, by number.
struct Flight<R> {
    first: u64,
    weights: VecDeque<u64>,
    bytes: u64,
    landed: VecDeque<Option<R>>,
}

impl<R> Flight<R> {
    fn has_room(&self, workers: &Workers) -> bool {
        self.weights.is_empty()
            || (self.bytes < workers.window && self.weights.len() < JOBS.min(workers.threads * 16))
    }

    fn launch(&mut self, weight: u64) -> u64 {
        self.weights.push_back(weight);
        self.landed.push_back(None);
        self.bytes += weight;
        self.first + self.weights.len() as u64 - 1
    }

    fn land(&mut self, number: u64, result: R) {
        let slot = (number - self.first) as usize;
        if let Some(slot) = self.landed.get_mut(slot) {
            *slot = Some(result);
        }
    }

    fn next_in_order(&mut self) -> Option<R> {
        let result = self.landed.front_mut()?.take()?;
        self.landed.pop_front();
        self.bytes -= self.weights.pop_front().unwrap_or(0);
        self.first += 1;
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn run(threads: usize, count: u64, bad: Option<u64>) -> (Vec<u64>, Result<(), u64>) {
        let mut next = 0;
        let mut seen = Vec::new();
        let result = ordered(
            Workers {
                threads,
                window: 10,
            },
            || {
                next += 1;
                Ok((next <= count).then_some(Job {
                    work: next,
                    weight: next % 4,
                }))
            },
            || (),
            |(), n| {
                // Later jobs finish first.
                std::thread::yield_now();
                if bad.is_some_and(|bad| n >= bad) {
                    Err(n)
                } else {
                    Ok(n * n)
                }
            },
            |r| {
                seen.push(r);
                Ok(())
            },
        );
        (seen, result)
    }

    #[test]
    fn results_and_first_error_do_not_depend_on_the_threads() {
        for threads in [1, 2, 5] {
            let squares: Vec<u64> = (1..=500).map(|n| n * n).collect();
            assert_eq!(run(threads, 500, None), (squares.clone(), Ok(())));
            assert_eq!(
                run(threads, 500, Some(77)),
                (squares[..76].to_vec(), Err(77))
            );
        }
    }

    #[test]
    fn there_are_no_more_workers_than_the_window_has_jobs_for() {
        let made = AtomicUsize::new(0);
        let mut left = 100;
        ordered(
            Workers {
                threads: 255,
                window: 10,
            },
            || {
                left -= 1;
                Ok::<_, ()>((left > 0).then_some(Job {
                    work: (),
                    weight: 3,
                }))
            },
            || made.fetch_add(1, Ordering::Relaxed),
            |_, ()| Ok(()),
            |()| Ok(()),
        )
        .unwrap();
        let made = made.into_inner();
        assert!((1..=4).contains(&made), "{made}");
    }

    #[test]
    fn buffers_come_back_empty_and_only_so_many_are_kept() {
        let buffers = Buffers::default();
        let mut first = buffers.take(5000);
        first.extend_from_slice(&[1; 5000]);
        let place = first.as_ptr();
        drop(first);
        let again = buffers.take(CAPACITY_STEP);
        assert!(again.is_empty());
        assert_eq!(again.as_ptr(), place);
        drop(again);
        assert!(buffers.take(CAPACITY_STEP + 1).capacity() > CAPACITY_STEP);
        let buffers = Buffers::default();
        let many: Vec<_> = (0..4).map(|_| buffers.take(KEPT_BYTES / 2)).collect();
        drop(many);
        assert_eq!(buffers.free.lock().len(), 2);
    }

    #[test]
    fn a_panic_of_a_worker_reaches_the_caller() {
        let caught = std::panic::catch_unwind(|| {
            let mut left = 100;
            ordered(
                Workers {
                    threads: 3,
                    window: 10,
                },
                || {
                    left -= 1;
                    Ok::<_, ()>((left > 0).then_some(Job {
                        work: left,
                        weight: 1,
                    }))
                },
                || (),
                |(), n| {
                    assert_ne!(n, 50, "planted");
                    Ok(n)
                },
                |_| Ok(()),
            )
        });
        assert!(caught.is_err());
    }
}
