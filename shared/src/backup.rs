//! What there is of base backups: `backup.json` in each of the folders that pg-backup makes, which has the rest
//! (bins/backup/src/store.rs). Others read it only.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::clock::Stamp;
use crate::control::{Control, DbState, Lsn};
use crate::state;

pub const ROOT: &str = "/var/backups/pg-recovery";
pub const INFO: &str = "backup.json";
/// The first PostgreSQL with zstd, and with manifests in tar format.
pub const OLDEST: u32 = 15;
/// Name that the session which receives WAL has in pg_stat_replication.
pub const STREAM: &str = "pg_recovery_stream";

/// What is known of a base backup; `backup.json` in its folder.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Info {
    pub cluster: String,
    pub version: u32,
    pub started: Stamp,
    pub finished: Stamp,
    pub system: u64,
    pub timeline: u32,
    pub start: Lsn,
    pub end: Lsn,
    pub segment_size: u64,
    pub block_size: u32,
    /// Of the files here.
    pub bytes: u64,
    /// Of the cluster, when it was made.
    pub cluster_bytes: u64,
    pub verified: Option<Verdict>,
    pub drilled: Option<Verdict>,
    /// Its files can only be read with an identity (bins/backup/src/encryption.rs).
    pub encrypted: bool,
    /// Where the copy is when pgBackRest has made it: there is nothing but `backup.json` here then.
    pub pgbackrest: Option<Set>,
}

/// A backup in a repository of pgBackRest.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Set {
    pub stanza: String,
    /// Number of the repository, from 1 on.
    pub repo: u32,
    /// Such as `20261125-020000F_20261126-020000I`.
    pub label: String,
}

/// The outcome of a verification or a drill.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Verdict {
    pub at: Stamp,
    /// Why the backup is not good.
    pub error: Option<String>,
    /// How long it took until the restored server answered.
    pub seconds: Option<f64>,
}

impl Info {
    /// Read again and found whole. Older versions of pgBackRest can only read a whole repository again, so its word counts
    /// that it has copied everything.
    pub fn is_good(&self) -> bool {
        let sound = |verdict: &Option<Verdict>| verdict.as_ref().map(|v| v.error.is_none());
        sound(&self.verified).unwrap_or(self.pgbackrest.is_some()) && sound(&self.drilled) != Some(false)
    }

    /// As the reader of WAL needs it.
    pub fn control(&self) -> Control {
        Control {
            system_identifier: self.system,
            state: DbState::InProduction,
            checkpoint: self.start,
            redo: self.start,
            timeline: self.timeline,
            recovery_timeline: 0,
            wal_segment_size: self.segment_size as u32,
            wal_block_size: self.block_size,
        }
    }

    /// By which backups are put in order, never by the clock.
    pub fn order(&self) -> (u64, u32, Lsn) {
        (self.system, self.timeline, self.start)
    }
}

/// The newest good base backup of a cluster, and when one was last restored to prove it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Newest {
    pub id: String,
    pub finished: Stamp,
    pub proven: Option<Stamp>,
    /// How long that took.
    pub restore_s: Option<f64>,
}

impl Newest {
    /// `bases`: in order.
    pub fn of(bases: &[(String, Info)]) -> Option<Newest> {
        let mut good = bases.iter().rev().filter(|(_, info)| info.is_good());
        let (id, info) = good.clone().next()?;
        let drill = good.find_map(|(_, info)| info.drilled.as_ref());
        Some(Newest {
            id: id.clone(),
            finished: info.finished.clone(),
            proven: drill.map(|drill| drill.at.clone()),
            restore_s: drill.and_then(|drill| drill.seconds),
        })
    }
}

/// Every base backup in the folder of a cluster, in no order: its id, its folder, and what is known of it or why that
/// cannot be read. No link is followed.
pub fn read_all(store: &Path) -> Vec<(String, PathBuf, Result<Info, String>)> {
    let entries = std::fs::read_dir(store.join("base")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok().filter(|name| is_id(name)))
        .filter_map(|id| {
            let path = store.join("base").join(&id);
            path.symlink_metadata().is_ok_and(|meta| meta.is_dir()).then(|| {
                let text = state::read(&path.join(INFO), 65536).map_err(|e| e.to_string());
                let info = text.and_then(|text| serde_json::from_slice(&text).map_err(|e| e.to_string()));
                (id, path, info)
            })
        })
        .collect()
}

/// `20261125T020000Z`
pub fn is_id(name: &str) -> bool {
    name.len() == 16
        && name.bytes().enumerate().all(|(at, byte)| match at {
            8 => byte == b'T',
            15 => byte == b'Z',
            _ => byte.is_ascii_digit(),
        })
}
