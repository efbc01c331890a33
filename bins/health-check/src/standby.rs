//! A standby is judged by its replay: it should be connected to its primary and catch up with it. An idle primary sends
//! nothing, so a replay position that stands still is no fault by itself.

use std::time::Duration;

use shared::client::{Refusal, Session};
use shared::clock::Stamp;
use shared::control::Lsn;
use shared::health::Replay;

use crate::probe::Budget;
use crate::score::Finding;

/// After that time at one position, with more WAL at hand, it is no query on the standby that is waited for.
const PATIENCE: Duration = Duration::from_secs(600);

const STATEMENT: &str = "SELECT pg_last_wal_replay_lsn(), pg_is_wal_replay_paused(), \
     current_setting('primary_conninfo') <> '', current_setting('restore_command') <> '', \
     current_setting('recovery_min_apply_delay') <> '0', r.status, \
     greatest(r.latest_end_lsn, pg_last_wal_receive_lsn()) \
     FROM (VALUES (1)) AS one LEFT JOIN pg_stat_get_wal_receiver() AS r ON true";

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standby {
    pub replayed: Option<Lsn>,
    pub paused: bool,
    pub has_primary: bool,
    pub has_archive: bool,
    pub delayed: bool,
    /// What pg_stat_wal_receiver says; `None` when there is no receiver.
    pub receiver: Option<String>,
    /// As far as the primary has told.
    pub available: Option<Lsn>,
}

pub async fn ask(session: &Session, budget: &Budget) -> Result<Standby, Refusal> {
    let rows = session.query(STATEMENT, budget.left()).await?;
    let row = rows.into_iter().next().unwrap_or_default();
    let text = |column: usize| row.get(column).cloned().flatten();
    let is_true = |column: usize| text(column).as_deref() == Some("t");
    Ok(Standby {
        replayed: text(0).and_then(|t| Lsn::parse(&t)),
        paused: is_true(1),
        has_primary: is_true(2),
        has_archive: is_true(3),
        delayed: is_true(4),
        receiver: text(5),
        available: text(6).and_then(|t| Lsn::parse(&t)),
    })
}

/// The position now, and since when it has been there.
pub fn remember(last: &Replay, standby: &Standby, now: &Stamp) -> Replay {
    let lsn = standby.replayed.map(|lsn| lsn.to_string()).unwrap_or_default();
    if lsn == last.lsn { last.clone() } else { Replay { lsn, since: now.clone() } }
}

pub fn judge(standby: &Standby, last: &Replay, now: &Stamp) -> Finding {
    let Some(replayed) = standby.replayed else {
        return Finding::unknown("replay", "the standby does not tell how far it has replayed");
    };
    let behind = standby.available.map_or(0, |available| available.0.saturating_sub(replayed.0));
    let stood = if last.lsn == replayed.to_string() { now.since(&last.since) } else { Duration::ZERO };
    let is_streaming = standby.receiver.as_deref() == Some("streaming");
    let at = format!("replayed to {replayed}, {behind} bytes behind");
    let minutes = stood.as_secs() / 60;
    let finding = if standby.paused {
        Finding::warning("replay", format!("replay is paused: {at}"))
    } else if standby.has_primary && !is_streaming && !(standby.has_archive && stood.is_zero()) {
        Finding::warning("replay", format!("the standby is not connected to its primary: {at}"))
    } else if behind > 0 && !stood.is_zero() && !standby.delayed {
        let message = format!("replay has stood still for {minutes}min: {at}");
        if stood >= PATIENCE { Finding::critical("replay", message) } else { Finding::warning("replay", message) }
    } else {
        Finding::ok("replay", at)
    };
    finding.value(behind as f64, "B")
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::health::Status;

    fn streaming(replayed: u64, available: u64) -> Standby {
        Standby {
            replayed: Some(Lsn(replayed)),
            available: Some(Lsn(available)),
            has_primary: true,
            receiver: Some("streaming".into()),
            ..Standby::default()
        }
    }

    fn after(seconds: u64, standby: &Standby, stood_at: u64) -> Status {
        let at = |boot: f64| Stamp { wall: boot, boot, boot_id: "a".into() };
        let last = Replay { lsn: Lsn(stood_at).to_string(), since: at(0.0) };
        judge(standby, &last, &at(seconds as f64)).check.status
    }

    #[test]
    fn an_idle_primary_is_no_fault_of_its_standby() {
        assert_eq!(after(86_400, &streaming(500, 500), 500), Status::Ok);
    }

    #[test]
    fn a_standby_that_catches_up_is_well_however_far_it_is_behind() {
        assert_eq!(after(60, &streaming(600, 1 << 40), 500), Status::Ok);
    }

    #[test]
    fn replay_that_stands_still_with_wal_at_hand_is_told_and_then_critical() {
        assert_eq!(after(60, &streaming(500, 900), 500), Status::Warning);
        assert_eq!(after(600, &streaming(500, 900), 500), Status::Critical);
        let finding =
            judge(&streaming(500, 900), &Replay { lsn: Lsn(500).to_string(), since: Stamp::default() }, &Stamp::now());
        assert!(!finding.escalates, "restarting a standby lets it catch up no sooner");
    }

    #[test]
    fn paused_or_cut_off_is_a_warning_and_delayed_on_purpose_is_not() {
        let changed = |change: &dyn Fn(&mut Standby)| {
            let mut standby = streaming(500, 900);
            change(&mut standby);
            after(3600, &standby, 500)
        };
        assert_eq!(changed(&|s| s.paused = true), Status::Warning);
        assert_eq!(changed(&|s| s.receiver = None), Status::Warning);
        assert_eq!(changed(&|s| s.delayed = true), Status::Ok);
        assert_eq!(changed(&|s| s.replayed = None), Status::Unknown);
    }

    #[test]
    fn the_moment_it_came_to_stand_is_kept() {
        let first = remember(&Replay::default(), &streaming(500, 900), &Stamp { wall: 1.0, ..Stamp::default() });
        let second = remember(&first, &streaming(500, 900), &Stamp { wall: 61.0, ..Stamp::default() });
        assert_eq!(second.since.wall, 1.0);
        assert_eq!(
            remember(&second, &streaming(501, 900), &Stamp { wall: 121.0, ..Stamp::default() }).since.wall,
            121.0
        );
    }
}
