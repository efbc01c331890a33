//! Starting pg-recovery.service for what a restart does not mend: at once, then with growing spacing while it stays.

use std::time::{Duration, Instant};

const UNIT: &str = "pg-recovery.service";
const FIRST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(60);

/// When pg-recovery.service was last started for the present fault.
#[derive(Debug, Default)]
pub struct Handover {
    last: Option<(Instant, Duration)>,
}

impl Handover {
    pub fn is_due(&self, now: Instant) -> bool {
        self.last.is_none_or(|(at, spacing)| now >= at + spacing)
    }

    /// Queues the start; `Err` counts as a try too, so that a missing unit is not asked for each second.
    pub fn start(&mut self, now: Instant) -> shared::Result<()> {
        let spacing = self.last.map_or(FIRST, |(_, spacing)| (spacing * 2).min(LONGEST));
        self.last = Some((now, spacing));
        shared::unit::start(UNIT)
    }

    /// The fault is gone.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// It was handed over at least once.
    pub fn is_pending(&self) -> bool {
        self.last.is_some()
    }
}
