//! Waiting for a state with a deadline, never for a number of seconds.

use std::thread;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(30);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Asks until there is an answer; `None` when the deadline passed without one. Pauses twice as long as an answer took, and longer
/// the longer it waits: what asks is not to be the load of a computer that is busy.
pub fn poll_until<T>(deadline: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    let end = began + deadline;
    loop {
        let asked = Instant::now();
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() >= end {
            return None;
        }
        let pause = asked.elapsed().mul_f64(2.0 + began.elapsed().as_secs_f64());
        thread::sleep(pause.clamp(PAUSE, LONGEST_PAUSE));
    }
}
