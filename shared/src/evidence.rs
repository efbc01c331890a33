//! What will be needed after a crash, saved while the cluster is well.
//!
//! Written by pg-watchdog, into `/var/lib/pg-recovery/evidence/16-main/`: `postmaster.pid` and `pg_control` byte for
//! byte (with the one before as `pg_control.1`), `files` (path and size) at the last completed checkpoint, and
//! `evidence.json`. The flush LSN moves with each commit, so between checkpoints it goes to
//! `/run/pg-recovery/evidence/16-main.json` every second (memory: survives the death of any process, not of the host)
//! and to the disk now and then.

use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::clock::Stamp;
use crate::control::{Control, Lsn};
use crate::server_log;
use crate::state::{self, State};

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Evidence {
    pub at: Stamp,
    pub system_identifier: u64,
    pub timeline: u32,
    /// Everything before it was on disk: no start may lose it.
    pub flush_lsn: Lsn,
    pub standby: bool,
    pub data_directory: PathBuf,
    /// Permission bits of the data directory, and who owned it.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// How long the server's log files were: what comes behind it was written after this moment.
    pub log: server_log::Mark,
    /// Line 3 of postmaster.pid: seconds since 1970.
    pub postmaster_started: i64,
    pub postmaster_pid: i32,
}

pub fn directory(cluster: &str) -> PathBuf {
    Path::new(state::DIRECTORY).join("evidence").join(crate::cluster::file_name(cluster))
}

/// The copies of pg_control that are sound, the newest first, with their bytes.
pub fn controls(cluster: &str) -> Vec<(Control, Vec<u8>)> {
    let read = |name| state::read(&directory(cluster).join(name), 8192).ok();
    let copies = ["pg_control", "pg_control.1"].into_iter().filter_map(read);
    copies.filter_map(|bytes| Some((Control::parse(&bytes).ok()?, bytes))).collect()
}

fn volatile(cluster: &str) -> PathBuf {
    PathBuf::from(format!("/run/pg-recovery/evidence/{}.json", crate::cluster::file_name(cluster)))
}

/// The state file of one cluster's evidence.
pub fn state(cluster: &str) -> State<Evidence> {
    State::load(&format!("evidence/{}/evidence.json", crate::cluster::file_name(cluster)))
}

/// The newest evidence there is; `None` when nothing was ever recorded, and for pg-health-check, which is not root.
pub fn load(cluster: &str) -> Option<Evidence> {
    if !geteuid().is_root() {
        return None;
    }
    let saved = Some(state(cluster).value).filter(|e| e.system_identifier != 0);
    let fresh = state::read(&volatile(cluster), 1 << 20)
        .ok()
        .and_then(|text| serde_json::from_slice::<Evidence>(&text).ok())
        .filter(|e| e.system_identifier != 0);
    newest(saved, fresh)
}

fn newest(saved: Option<Evidence>, fresh: Option<Evidence>) -> Option<Evidence> {
    match (saved, fresh) {
        (Some(saved), Some(fresh))
            if (fresh.system_identifier, fresh.timeline) == (saved.system_identifier, saved.timeline)
                && fresh.flush_lsn < saved.flush_lsn =>
        {
            Some(saved)
        }
        (saved, fresh) => fresh.or(saved),
    }
}

/// Of this cluster nothing is known to have been flushed any more; pg-watchdog begins anew when it runs.
pub fn forget(cluster: &str) -> std::io::Result<()> {
    for path in [directory(cluster).join("evidence.json"), volatile(cluster)] {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Writes the copy in memory.
pub fn save_volatile(cluster: &str, evidence: &Evidence) -> std::io::Result<()> {
    let path = volatile(cluster);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    state::replace(&path, &serde_json::to_vec(evidence)?, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_higher_flush_position_of_the_same_history_counts() {
        let at = |lsn, timeline| {
            Some(Evidence { system_identifier: 1, timeline, flush_lsn: Lsn(lsn), ..Evidence::default() })
        };
        assert_eq!(newest(at(9, 1), at(5, 1)), at(9, 1));
        assert_eq!(newest(at(5, 1), at(9, 1)), at(9, 1));
        assert_eq!(newest(at(9, 1), at(5, 2)), at(5, 2));
        assert_eq!(newest(None, None), None);
    }
}
