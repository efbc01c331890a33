//! S9: pg_control is gone or damaged, and pg-watchdog has kept a copy of it from each of the last two checkpoints.
//!
//! An older pg_control is as good as the newest one as long as the WAL from its redo location on is complete: crash
//! recovery then begins at an earlier checkpoint. That is checked record by record, up to what was known to be flushed,
//! and each segment must carry the system identifier that was recorded. What the WAL does not prove is not put back.

use std::path::Path;
use std::time::Duration;

use shared::client::Target;
use shared::cluster::Cluster;
use shared::control::{self, Control, DbState, Lsn};
use shared::evidence::{self, Evidence};
use shared::process::{Pidfd, Process};
use shared::{Error, Result, state, wal};

use crate::facts;

/// Where the WAL of a running server ends, and on which timeline. It fails on a standby.
const END: &str = "SELECT pg_walfile_name(lsn), lsn FROM pg_current_wal_flush_lsn() AS lsn";

/// What was recorded of the server that runs: of one that nobody has looked at yet, what was recorded of the one before, as far as
/// the WAL goes on by its own account.
pub fn recorded(recorded: Option<Evidence>, target: &Target, postmaster: Option<&Process>) -> Option<Evidence> {
    let recorded = recorded?;
    let Some(postmaster) = postmaster.filter(|postmaster| postmaster.pid != recorded.postmaster_pid) else {
        return Some(recorded);
    };
    let end = facts::ask(target, END, Duration::from_secs(2)).ok().and_then(|rows| {
        let column = |index: usize| rows.first()?.get(index)?.as_deref();
        Some((u32::from_str_radix(column(0)?.get(..8)?, 16).ok()?, column(1).and_then(Lsn::parse)?))
    });
    Some(match end {
        Some((timeline, flush_lsn)) if timeline == recorded.timeline => {
            Evidence { flush_lsn, postmaster_pid: postmaster.pid, ..recorded }
        }
        _ => recorded,
    })
}

/// The copy that may take the place of pg_control, or why none may. `postmaster` is the one that runs.
pub fn usable(
    cluster: &Cluster,
    recorded: Option<&Evidence>,
    postmaster: Option<&Process>,
) -> Result<(Control, Vec<u8>), String> {
    let Some(recorded) = recorded.filter(|e| e.data_directory == cluster.data_directory) else {
        return Err("nothing was recorded about this data directory while the server ran".into());
    };
    // Where the WAL of these begins and ends is not for this host alone to say.
    let data = &cluster.data_directory;
    let marks = ["standby.signal", "recovery.signal", "backup_label"];
    let mark = cluster.owner.act(|| marks.into_iter().find(|name| data.join(name).exists())).map_err(|e| e.message)?;
    if recorded.standby || mark.is_some() {
        return Err("it is a standby or was being restored".into());
    }
    if postmaster.is_some_and(|p| p.pid != recorded.postmaster_pid) {
        return Err("the copy is of an earlier server".into());
    }
    let mut why = "there is no sound copy of it".to_string();
    for (copy, bytes) in evidence::controls(&cluster.name()) {
        if (copy.system_identifier, copy.timeline) != (recorded.system_identifier, recorded.timeline)
            || copy.state != DbState::InProduction
        {
            why = "the copy is of another cluster, timeline or state".into();
            continue;
        }
        let end = recorded.flush_lsn.max(copy.checkpoint);
        let checked = cluster.owner.act(|| wal::check(&data.join("pg_wal"), &copy, end)).map_err(|e| e.message)?;
        match checked {
            Ok(()) => return Ok((copy, bytes)),
            Err(broken) => why = format!("WAL for the copy is not readable at {}: {}", broken.at, broken.why),
        }
    }
    Err(why)
}

/// Puts the copy in the place of pg_control; what is there now is kept in `evidence`.
pub fn put_back(
    cluster: &Cluster,
    recorded: Option<&Evidence>,
    postmaster: Option<&Process>,
    evidence: &Path,
) -> Result<String> {
    let (copy, bytes) = usable(cluster, recorded, postmaster).map_err(Error::failed)?;
    let pidfd = match postmaster {
        Some(postmaster) => {
            Some(Pidfd::open(postmaster).ok_or_else(|| Error::failed("the postmaster ended meanwhile"))?)
        }
        None => None,
    };
    let data = &cluster.data_directory;
    let path = data.join(control::NAME);
    let damaged = cluster.owner.act(|| state::read(&path, 8192)).ok().and_then(Result::ok);
    if let Some(damaged) = damaged
        && let Err(e) = state::replace(&evidence.join("pg_control.damaged"), &damaged, 0o600)
    {
        log::warn!(PG_CLUSTER = cluster.name(); "could not keep the damaged pg_control: {e}; going on without it");
    }
    // Group access, if the data directory has it (initdb -g).
    let mode = 0o600 | (recorded.map_or(0, |e| e.mode) & 0o040);
    cluster.owner.act(|| {
        // A server that runs may have written a sound one at this moment, and that one is newer.
        if Control::read(data).is_ok() {
            return Err(Error::failed("pg_control is sound again"));
        }
        Ok(state::replace(&path, &bytes, mode)?)
    })??;
    if pidfd.is_some_and(|pidfd| pidfd.wait(std::time::Duration::ZERO)) {
        return Err(Error::failed("the postmaster ended while pg_control was put back"));
    }
    Ok(format!("the copy with the checkpoint at {}; WAL is complete from {}", copy.checkpoint, copy.redo))
}
