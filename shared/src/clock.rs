//! Moments that can be compared after a reboot and after the wall clock was set.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A moment: seconds since boot within one boot, wall clock (seconds since 1970) across boots.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Stamp {
    pub wall: f64,
    pub boot: f64,
    pub boot_id: String,
}

impl Stamp {
    pub fn now() -> Self {
        // CLOCK_BOOTTIME goes on during suspend and is never set (clock_gettime(2)).
        let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0.0, |t| Duration::from(t).as_secs_f64());
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Stamp { wall, boot, boot_id: boot_id.trim().to_string() }
    }

    /// Time from `earlier` to this moment; never negative, so a clock set back makes things younger, not newer.
    pub fn since(&self, earlier: &Stamp) -> Duration {
        let seconds = if self.is_same_boot(earlier) { self.boot - earlier.boot } else { self.wall - earlier.wall };
        Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default()
    }

    /// Later than `other`, as far as that can be told `now`.
    pub fn is_after(&self, other: &Stamp, now: &Stamp) -> bool {
        match (self.is_same_boot(now), other.is_same_boot(now)) {
            (true, false) => true,
            (false, true) => false,
            _ if self.is_same_boot(other) => self.boot > other.boot,
            _ => self.wall > other.wall,
        }
    }

    /// The same, and what was before a boot is at least as old as that, which was `up` ago: nothing lasts for ever because
    /// the clock was behind after a reboot.
    pub fn since_with(&self, earlier: &Stamp, up: Duration) -> Duration {
        let since = self.since(earlier);
        if self.is_same_boot(earlier) { since } else { since.max(up) }
    }

    /// Also when as much time has gone by on both clocks: in a container two programs may be shown two names of the same
    /// boot (systemd 252 does that with ProtectKernelTunables=).
    fn is_same_boot(&self, other: &Stamp) -> bool {
        let is_named_so = !self.boot_id.is_empty() && self.boot_id == other.boot_id;
        is_named_so || ((self.wall - other.wall) - (self.boot - other.boot)).abs() < 1.0
    }

    /// `2026-11-22T01:57:32Z`
    pub fn rfc3339(&self) -> String {
        OffsetDateTime::from_unix_timestamp(self.wall as i64)
            .ok()
            .and_then(|t| t.format(&Rfc3339).ok())
            .unwrap_or_default()
    }

    /// `20261122T015732Z`, for names of files that sort by age.
    pub fn compact(&self) -> String {
        self.rfc3339().replace(['-', ':'], "")
    }
}

/// How long ago this host, or this container, was booted: the age of its first process, zero where that is hidden. A
/// container has a boot of its own, and CLOCK_BOOTTIME of its host.
pub fn uptime() -> Duration {
    let age = || {
        let stat = std::fs::read_to_string("/proc/1/stat").ok()?;
        // Field 22, in hundredths of seconds since boot (proc_pid_stat(5); USER_HZ).
        let ticks: u64 = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()?;
        let now = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?);
        Some(now.saturating_sub(Duration::from_millis(10 * ticks)))
    };
    age().unwrap_or_default()
}

/// Seconds since 1970 of `2026-11-22T01:57:32Z`.
pub fn seconds_of(rfc3339: &str) -> Option<i64> {
    OffsetDateTime::parse(rfc3339, &Rfc3339).ok().map(OffsetDateTime::unix_timestamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(wall: f64, boot: f64, boot_id: &str) -> Stamp {
        Stamp { wall, boot, boot_id: boot_id.into() }
    }

    #[test]
    fn a_set_clock_does_not_matter_within_one_boot() {
        assert_eq!(stamp(9e9, 20.0, "a").since(&stamp(1e9, 15.0, "a")), Duration::from_secs(5));
    }

    #[test]
    fn across_boots_the_wall_clock_counts_and_never_backwards() {
        assert_eq!(stamp(130.0, 1.0, "b").since(&stamp(100.0, 999.0, "a")), Duration::from_secs(30));
        assert_eq!(stamp(50.0, 1.0, "b").since(&stamp(100.0, 999.0, "a")), Duration::ZERO);
    }

    #[test]
    fn what_was_before_this_boot_is_at_least_as_old_as_it() {
        let (up, before) = (Duration::from_secs(7), stamp(100.0, 999.0, "a"));
        assert_eq!(stamp(50.0, 1.0, "b").since_with(&before, up), up);
        assert_eq!(stamp(150.0, 1.0, "b").since_with(&before, up), Duration::from_secs(50));
        assert_eq!(stamp(50.0, 1001.0, "a").since_with(&before, up), Duration::from_secs(2), "the same boot");
        assert!(uptime() < Duration::from_secs(1 << 32));
    }

    #[test]
    fn what_is_of_this_boot_is_later_than_what_is_not_whatever_the_clock_says() {
        let (now, before, after) = (stamp(60.0, 9.0, "b"), stamp(9e9, 999.0, "a"), stamp(50.0, 5.0, "b"));
        assert!(after.is_after(&before, &now) && !before.is_after(&after, &now));
        assert!(now.is_after(&after, &now) && !after.is_after(&now, &now) && !now.is_after(&now, &now));
        let (first, second) = (stamp(10.0, 1.0, "x"), stamp(20.0, 1.0, "y"));
        assert!(second.is_after(&first, &now) && !first.is_after(&second, &now));
    }

    #[test]
    fn a_boot_with_two_names_is_one() {
        let day = Duration::from_secs(86_400);
        assert_eq!(stamp(1000.2, 500.0, "b").since_with(&stamp(900.0, 400.0, "a"), day), Duration::from_secs(100));
    }

    #[test]
    fn names_sort_by_age() {
        assert_eq!(stamp(0.0, 0.0, "").compact(), "19700101T000000Z");
        assert_eq!(seconds_of(&stamp(86_400.0, 0.0, "").rfc3339()), Some(86_400));
        assert_eq!(seconds_of("yesterday"), None);
    }
}
