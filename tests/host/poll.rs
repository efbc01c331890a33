//! Waiting for a state with a deadline, never for a number of seconds.

use std::thread;
use std::time::{Duration, Instant};

/// Asks until there is an answer; `None` when the deadline passed without one.
pub fn poll_until<T>(deadline: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(Duration::from_millis(30));
    }
}
