//! Commits that wait until the stream has them on disk, so that not even the last second is lost with the server's disk.
//!
//! A person asks for it twice: `backup.synchronous_stream`, and `synchronous_standby_names = 'pg_recovery_stream'` in
//! postgresql.conf. While nobody receives, such a server would commit nothing for ever. So the stream lets it go when it
//! confirms nothing for ten seconds, gives up or is stopped: `ALTER SYSTEM SET synchronous_standby_names = ''` wins over
//! postgresql.conf, wakes whoever waits (SyncRepUpdateSyncStandbysDefined, syncrep.c) and is taken back as soon as the
//! stream has caught up. Meanwhile commits are as safe as without it. A list with other names in it is left alone.

use std::time::{Duration, Instant};

use shared::cluster::Cluster;
use shared::control::Lsn;
use shared::exit::Code;
use shared::log::{FAULT, OUTCOME};
use shared::{Error, Result};

use crate::server::{self, STREAM};

/// How long commits may wait without a confirmation; it is looked at every five seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long they do not wait after that, lest a disk that is too slow holds them up again and again.
const HOLD: Duration = Duration::from_secs(60);

const FACTS: &str = "
SELECT current_setting('synchronous_standby_names'),
    (SELECT setting FROM pg_file_settings WHERE name = 'synchronous_standby_names'
        AND sourcefile NOT LIKE '%/postgresql.auto.conf' ORDER BY seqno DESC LIMIT 1),
    (SELECT setting FROM pg_file_settings WHERE name = 'synchronous_standby_names'
        AND sourcefile LIKE '%/postgresql.auto.conf' ORDER BY seqno DESC LIMIT 1),
    (SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'),
    (SELECT max(flush_lsn) FROM pg_stat_replication WHERE application_name = 'pg_recovery_stream'),
    (SELECT bool_or(state = 'streaming' AND pg_current_wal_lsn() - flush_lsn < 1048576) FROM pg_stat_replication
        WHERE application_name = 'pg_recovery_stream')";

/// What a server says of its synchronous standbys.
#[derive(Clone, Debug, Default, PartialEq)]
struct Facts {
    /// What is in force, what postgresql.conf says, and what ALTER SYSTEM has set.
    names: String,
    configured: Option<String>,
    altered: Option<String>,
    waits: bool,
    /// How far the stream has confirmed.
    confirmed: Option<Lsn>,
    has_caught_up: bool,
}

#[derive(Debug, PartialEq)]
enum Duty {
    Nothing,
    Release,
    Engage,
}

/// Whether a list names the stream and nobody else.
pub fn is_ours(names: &str) -> bool {
    names.trim().trim_matches('"') == STREAM
}

impl Facts {
    fn ask(cluster: &Cluster) -> Result<Facts> {
        let rows = server::query(cluster, FACTS)?;
        let row = rows.first().ok_or_else(|| Error::failed("an unexpected answer"))?;
        let text = |column: usize| row.get(column).cloned().flatten();
        Ok(Facts {
            names: text(0).unwrap_or_default(),
            configured: text(1),
            altered: text(2),
            waits: text(3).is_some_and(|count| count != "0"),
            confirmed: text(4).as_deref().and_then(Lsn::parse),
            has_caught_up: text(5).as_deref() == Some("t"),
        })
    }
}

/// What is known from one look to the next.
#[derive(Default)]
pub struct Synchronous {
    /// Since when commits wait, and how far was confirmed then.
    stands: Option<(Instant, Option<Lsn>)>,
    released: Option<Instant>,
}

impl Synchronous {
    /// Looks, and lets commits go or has them wait again. `wanted`: `backup.synchronous_stream`.
    pub fn tend(&mut self, cluster: &Cluster, wanted: bool) -> Result<()> {
        let facts = Facts::ask(cluster)?;
        match self.decide(&facts, wanted, Instant::now()) {
            Duty::Nothing => Ok(()),
            Duty::Release => {
                self.stands = None;
                self.released = Some(Instant::now());
                let_go(cluster, &format!("the stream has confirmed nothing for {}s", PATIENCE.as_secs()))
            }
            Duty::Engage => {
                alter(cluster, "RESET synchronous_standby_names")?;
                let name = cluster.name();
                log::info!(MESSAGE_ID = OUTCOME, PG_CLUSTER = name; "commits of cluster {name} wait for the stream again");
                Ok(())
            }
        }
    }

    fn decide(&mut self, facts: &Facts, wanted: bool, now: Instant) -> Duty {
        if is_ours(&facts.names) {
            self.stands = match self.stands {
                _ if !facts.waits => None,
                Some((since, confirmed)) if confirmed == facts.confirmed => Some((since, confirmed)),
                _ => Some((now, facts.confirmed)),
            };
            let stands = self.stands.is_some_and(|(since, _)| now.duration_since(since) >= PATIENCE);
            return if stands { Duty::Release } else { Duty::Nothing };
        }
        let is_let_go = facts.altered.as_deref() == Some("") && facts.configured.as_deref().is_some_and(is_ours);
        let rests = self.released.is_some_and(|since| now.duration_since(since) < HOLD);
        if wanted && is_let_go && facts.has_caught_up && !rests { Duty::Engage } else { Duty::Nothing }
    }
}

/// No commit of these clusters waits for the stream any more, whatever has become of it.
pub fn release(clusters: &[Cluster], why: &str) -> Result<Code> {
    crate::each(clusters, |cluster| {
        // Nobody waits for a server that is not there.
        if Facts::ask(cluster).is_ok_and(|facts| is_ours(&facts.names)) {
            let_go(cluster, why)?;
        }
        Ok(Code::Ok)
    })
}

fn let_go(cluster: &Cluster, why: &str) -> Result<()> {
    alter(cluster, "SET synchronous_standby_names = ''")?;
    let name = cluster.name();
    log::warn!(MESSAGE_ID = FAULT, PG_CLUSTER = name; "commits of cluster {name} no longer wait for the stream: {why}");
    log::warn!(
        "HINT: See: journalctl -u pg-wal-stream. They wait again when it has caught up; what ALTER SYSTEM had set \
        before is to be set again, better in postgresql.conf."
    );
    Ok(())
}

fn alter(cluster: &Cluster, what: &str) -> Result<()> {
    // Two queries: several statements in one are a transaction, in which ALTER SYSTEM cannot run.
    server::query(cluster, &format!("ALTER SYSTEM {what}"))?;
    server::query(cluster, "SELECT pg_reload_conf()").map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(names: &str) -> Facts {
        Facts { names: names.into(), configured: Some(STREAM.into()), has_caught_up: true, ..Facts::default() }
    }

    #[test]
    fn commits_that_are_not_confirmed_are_let_go_after_ten_seconds() {
        let (mut state, now) = (Synchronous::default(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        let at = |confirmed| Facts { waits: true, confirmed: Some(Lsn(confirmed)), ..facts(STREAM) };
        assert_eq!(state.decide(&at(1), true, after(0)), Duty::Nothing);
        assert_eq!(state.decide(&at(2), true, after(9)), Duty::Nothing, "it goes on");
        assert_eq!(state.decide(&at(2), true, after(14)), Duty::Nothing);
        assert_eq!(state.decide(&at(2), true, after(19)), Duty::Release);
        assert_eq!(state.decide(&facts(STREAM), true, after(24)), Duty::Nothing, "nobody waits");
        let others = Facts { waits: true, ..facts("FIRST 1 (db2, pg_recovery_stream)") };
        for seconds in [0, 30, 60] {
            assert_eq!(state.decide(&others, true, after(seconds)), Duty::Nothing, "that is not ours to decide");
        }
    }

    #[test]
    fn they_wait_again_when_the_stream_has_caught_up_and_it_is_wanted() {
        let (mut state, now) = (Synchronous::default(), Instant::now());
        let let_go = Facts { altered: Some(String::new()), ..facts("") };
        let behind = Facts { has_caught_up: false, ..let_go.clone() };
        let never = Facts { configured: None, ..let_go.clone() };
        assert_eq!(state.decide(&let_go, true, now), Duty::Engage);
        assert_eq!(state.decide(&let_go, false, now), Duty::Nothing);
        assert_eq!(state.decide(&behind, true, now), Duty::Nothing);
        assert_eq!(state.decide(&never, true, now), Duty::Nothing, "nobody has asked for it in postgresql.conf");
        state.released = Some(now);
        assert_eq!(state.decide(&let_go, true, now + HOLD / 2), Duty::Nothing);
        assert_eq!(state.decide(&let_go, true, now + HOLD), Duty::Engage);
    }
}
