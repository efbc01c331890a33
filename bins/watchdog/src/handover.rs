//! Starting pg-recovery.service for what a restart does not mend: at once, then with growing spacing while it stays.

use std::time::{Duration, Instant};

const UNIT: &str = "pg-recovery.service";
const FIRST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(60);
/// Once a person has been told that only they can help.
const WAITING: Duration = Duration::from_secs(600);

/// What is left alone is looked at again after this time: it costs two calls of systemctl.
const LEFT: Duration = Duration::from_secs(5);

/// When pg-recovery.service was last started for the present fault.
#[derive(Debug, Default)]
pub struct Handover {
    last: Option<(Instant, Duration)>,
    not_before: Option<Instant>,
}

impl Handover {
    pub fn is_due(&self, now: Instant) -> bool {
        self.last.is_none_or(|(at, spacing)| now >= at + spacing) && self.not_before.is_none_or(|at| now >= at)
    }

    pub fn postpone(&mut self, now: Instant) {
        self.not_before = Some(now + LEFT);
    }

    /// Queues the start; `Err` counts as a try too, so that a missing unit is not asked for each second.
    pub fn start(&mut self, now: Instant, waits_for_a_person: bool) -> shared::Result<()> {
        let spacing = self.last.map_or(FIRST, |(_, spacing)| longer(spacing));
        self.last = Some((now, if waits_for_a_person { WAITING } else { spacing }));
        shared::unit::start(UNIT)
    }

    /// The fault is gone.
    pub fn forget(&mut self) {
        *self = Handover::default();
    }

    /// It was handed over at least once.
    pub fn is_pending(&self) -> bool {
        self.last.is_some()
    }
}

fn longer(spacing: Duration) -> Duration {
    (spacing * 2).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_alone_is_asked_about_later_and_a_new_fault_at_once() {
        let (mut handover, now) = (Handover::default(), Instant::now());
        assert!(handover.is_due(now));
        handover.postpone(now);
        assert!(!handover.is_due(now) && handover.is_due(now + LEFT));
        handover.forget();
        assert!(handover.is_due(now));
    }

    #[test]
    fn spacing_grows_to_a_minute() {
        let now = Instant::now();
        let mut handover = Handover { last: Some((now, FIRST)), not_before: None };
        assert!(!handover.is_due(now) && handover.is_due(now + FIRST));
        for seconds in [4, 8, 16, 32, 60, 60] {
            handover.last = handover.last.map(|(_, spacing)| (now, longer(spacing)));
            let spacing = Duration::from_secs(seconds);
            assert!(!handover.is_due(now + spacing - Duration::from_millis(1)) && handover.is_due(now + spacing));
        }
    }
}
