//! "n times within t", kept in a state file; survives reboots and a clock that was set.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Stamp;

/// The moments at which something happened. No more than `LIMIT` are kept.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Counter {
    times: Vec<Stamp>,
}

const LIMIT: usize = 100;

impl Counter {
    pub fn add(&mut self, now: Stamp) {
        self.times.push(now);
        let surplus = self.times.len().saturating_sub(LIMIT);
        self.times.drain(..surplus);
    }

    pub fn within(&self, window: Duration, now: &Stamp) -> u32 {
        self.times.iter().filter(|time| now.since(time) <= window).count() as u32
    }

    /// Time since it last happened.
    pub fn quiet(&self, now: &Stamp) -> Option<Duration> {
        self.times.last().map(|last| now.since(last))
    }

    pub fn clear(&mut self) {
        self.times.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(wall: f64, boot: f64, boot_id: &str) -> Stamp {
        Stamp { wall, boot, boot_id: boot_id.into() }
    }

    #[test]
    fn only_what_is_within_the_window_counts() {
        let mut counter = Counter::default();
        for second in [0.0, 100.0, 550.0] {
            counter.add(at(1e9 + second, second, "a"));
        }
        let now = at(1e9 + 660.0, 660.0, "a");
        assert_eq!(counter.within(Duration::from_secs(600), &now), 2);
        assert_eq!(counter.quiet(&now), Some(Duration::from_secs(110)));
    }

    #[test]
    fn a_reboot_or_a_clock_set_back_does_not_give_new_budget() {
        let mut counter = Counter::default();
        counter.add(at(1e9, 500.0, "a"));
        assert_eq!(counter.within(Duration::from_secs(600), &at(1e9 + 30.0, 3.0, "b")), 1);
        assert_eq!(counter.within(Duration::from_secs(600), &at(5e8, 3.0, "b")), 1);
    }
}
