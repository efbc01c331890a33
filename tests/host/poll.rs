//! Waiting for a state with a deadline, never for a number of seconds.

use std::thread;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(30);
const LONGEST_PAUSE: Duration = Duration::from_millis(300);

/// Asks until there is an answer; `None` when the deadline passed without one. Pauses twice as long as an answer took: what asks
/// is not to be the load of a computer that is busy.
pub fn poll_until<T>(deadline: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        let asked = Instant::now();
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep((2 * asked.elapsed()).clamp(PAUSE, LONGEST_PAUSE));
    }
}
