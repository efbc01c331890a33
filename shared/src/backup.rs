//! What there is of base backups: `backup.json` in each of the folders that pg-backup makes, which has the rest
//! (bins/backup/src/store.rs). Others read it only.

use std::collections::HashMap;
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
    /// The id of the backup that an incremental one was made upon, without which it is worth nothing.
    pub parent: Option<String>,
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
/// cannot be read. One that stands upon another that is not there is not good. No link is followed.
pub fn read_all(store: &Path) -> Vec<(String, PathBuf, Result<Info, String>)> {
    let entries = std::fs::read_dir(store.join("base")).into_iter().flatten().flatten();
    let mut all: Vec<(String, PathBuf, Result<Info, String>)> = entries
        .filter_map(|entry| entry.file_name().into_string().ok().filter(|name| is_id(name)))
        .filter_map(|id| {
            let path = store.join("base").join(&id);
            path.symlink_metadata().is_ok_and(|meta| meta.is_dir()).then(|| {
                let text = state::read(&path.join(INFO), 65536).map_err(|e| e.to_string());
                let info = text.and_then(|text| serde_json::from_slice(&text).map_err(|e| e.to_string()));
                (id, path, info)
            })
        })
        .collect();
    let known = all.iter().filter_map(|(id, _, info)| Some((id.clone(), info.as_ref().ok()?.parent.clone()))).collect();
    for info in all.iter_mut().filter_map(|(_, _, info)| info.as_mut().ok()) {
        if let Some(id) = missing(&known, info.parent.as_deref()) {
            let error = Some(format!("it stands upon backup {id}, which is not there"));
            info.verified = Some(Verdict { error, ..info.verified.take().unwrap_or_default() });
        }
    }
    all
}

/// The first of those that a backup stands upon, from its parent on, that is not there.
fn missing<'a>(known: &'a HashMap<String, Option<String>>, mut parent: Option<&'a str>) -> Option<&'a str> {
    for _ in 0..known.len() {
        match known.get(parent?) {
            Some(next) => parent = next.as_deref(),
            None => return parent,
        }
    }
    parent
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_not_good_without_one_of_those_it_stands_upon() {
        let folder = std::env::temp_dir().join(format!("pg-backup-chain-{}", std::process::id()));
        let day = |day: u32| format!("202611{day:02}T020000Z");
        let write = |id: u32, parent: Option<u32>| {
            let path = folder.join("base").join(day(id));
            std::fs::create_dir_all(&path).unwrap();
            let info = Info {
                verified: Some(Verdict::default()),
                parent: parent.map(day),
                segment_size: 1,
                ..Info::default()
            };
            std::fs::write(path.join(INFO), serde_json::to_vec(&info).unwrap()).unwrap();
        };
        let good = || {
            let mut all = read_all(&folder);
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all.into_iter().map(|(_, _, info)| info.unwrap().is_good()).collect::<Vec<_>>()
        };
        write(1, None);
        write(2, Some(1));
        write(3, Some(2));
        write(4, None);
        assert_eq!(good(), [true; 4]);
        std::fs::remove_dir_all(folder.join("base").join(day(1))).unwrap();
        assert_eq!(good(), [false, false, true]);
        let text = read_all(&folder).into_iter().find(|(id, ..)| *id == day(3)).unwrap().2.unwrap().verified.unwrap();
        assert_eq!(text.error.unwrap(), format!("it stands upon backup {}, which is not there", day(1)));
        // A file that somebody has edited: it ends all the same.
        write(2, Some(3));
        assert_eq!(good(), [false, false, true]);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
