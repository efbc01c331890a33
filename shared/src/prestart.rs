//! What must be true before a cluster is started after a crash. Cheap, and changes nothing.
//!
//! A start with the wrong volume mounted, a damaged pg_control or a missing WAL tail is the moment in which data is
//! lost; so a check that fails means "do not start", whatever else is known.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statvfs::{Statvfs, statvfs};

use crate::cluster::Cluster;
use crate::control::{Control, ControlError};
use crate::error::Result;
use crate::evidence::Evidence;
use crate::mount::Mounts;
use crate::pidfile::LockFile;
use crate::{process, wal};

/// Folders that hold nothing of value while no server runs: the server empties each of them when it starts, or begins it
/// anew (storage/ipc/dsm.c, commands/async.c, access/transam/subtrans.c, storage/lmgr/predicate.c, utils/time/snapmgr.c,
/// pgstat).
const EMPTY_BY_DESIGN: &[&str] =
    &["pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans"];

/// Folders whose content is part of the data, also where that is no file at all at the time: an empty pg_xact turns commits
/// into aborts, an empty pg_twophase forgets prepared transactions, an empty pg_tblspc makes tablespaces anew.
const PART_OF_THE_DATA: &[&str] = &[
    "base",
    "pg_logical",
    "pg_multixact/members",
    "pg_multixact/offsets",
    "pg_replslot",
    "pg_tblspc",
    "pg_twophase",
    "pg_xact",
];

/// Which of the folders that are empty by design are missing (S8); none when others are missing as well, for then this is no
/// data directory that may be mended. As the owner.
pub fn missing_folders(data: &Path) -> Vec<&'static str> {
    if !missing(data, PART_OF_THE_DATA).is_empty() {
        return Vec::new();
    }
    missing(data, EMPTY_BY_DESIGN)
}

fn missing(data: &Path, names: &[&'static str]) -> Vec<&'static str> {
    let is_missing = |name: &&&str| data.join(name).symlink_metadata().is_err_and(|e| e.kind() == ErrorKind::NotFound);
    names.iter().filter(is_missing).copied().collect()
}

/// Why the cluster must not be started, with its fault class.
#[derive(Clone, Debug, PartialEq)]
pub struct Obstacle {
    /// `S6`, `S7`, ...
    pub fault: &'static str,
    pub message: String,
}

fn obstacle(fault: &'static str, message: impl Into<String>) -> Obstacle {
    Obstacle { fault, message: message.into() }
}

/// All checks that can be made without starting anything; empty means that a start is safe.
pub fn obstacles(cluster: &Cluster, evidence: Option<&Evidence>) -> Result<Vec<Obstacle>> {
    let mut found = Vec::new();
    let family = process::family(&cluster.data_directory, &cluster.owner)?;
    if !family.is_empty() {
        let pids: Vec<String> = family.all().map(|p| p.pid.to_string()).collect();
        found.push(obstacle("P9", format!("processes of the cluster still run: PID {}", pids.join(", "))));
    }
    if !family.unclear.is_empty() {
        found.push(obstacle("P9", format!("it cannot be told what PID {:?} belong to", family.unclear)));
    }
    if let (LockFile::Present(file), _) = cluster.lock_file() {
        let attached = file.segment.and_then(process::attached_to_segment).unwrap_or(0);
        if family.is_empty() && attached > 0 {
            let message = format!("{attached} processes are still attached to its shared memory");
            found.push(obstacle("P9", message));
        }
    }
    found.extend(cluster.owner.act(|| directory(cluster, evidence))?);
    Ok(found)
}

/// The checks on files; runs as the owner.
fn directory(cluster: &Cluster, evidence: Option<&Evidence>) -> Vec<Obstacle> {
    let data = &cluster.data_directory;
    let meta = match std::fs::metadata(data) {
        Ok(meta) => meta,
        Err(e) => {
            let fault = if e.kind() == ErrorKind::PermissionDenied { "S7" } else { "S6" };
            return vec![obstacle(fault, format!("the data directory {} cannot be reached: {e}", data.display()))];
        }
    };
    let (mode, uid) = (meta.mode() & 0o7777, meta.uid());
    // The server wants exactly this (miscinit.c, checkDataDir).
    if uid != cluster.owner.uid.as_raw() {
        return vec![obstacle(
            "S7",
            format!("the data directory {} belongs to user {uid}, not to {}", data.display(), cluster.owner.name),
        )];
    }
    if mode & 0o027 != 0 || mode & 0o700 != 0o700 {
        return vec![obstacle(
            "S7",
            format!("the data directory {} has mode {mode:04o} instead of 0700 or 0750", data.display()),
        )];
    }
    let version = match std::fs::read_to_string(data.join("PG_VERSION")) {
        Ok(text) => text.trim().to_string(),
        Err(e) => {
            let message = format!(
                "{} has no readable PG_VERSION ({e}): a volume that is not mounted looks like this",
                data.display()
            );
            return vec![obstacle("S6", message)];
        }
    };
    if let Some(why) = read_only(data) {
        return vec![obstacle("S4", why)];
    }
    let mut found = Vec::new();
    if version != cluster.version {
        found.push(obstacle(
            "H4",
            format!("the data directory is of PostgreSQL {version:?}, the cluster of {}", cluster.version),
        ));
    }
    let control = match Control::read(data) {
        Ok((control, _)) => control,
        // The server reads it; what cannot be understood here cannot be guarded here either.
        Err(ControlError::Unknown(_)) => return found,
        Err(why) => {
            found.push(obstacle("S9", why.to_string()));
            return found;
        }
    };
    for (folders, why) in
        [(PART_OF_THE_DATA, "their content is part of the data"), (EMPTY_BY_DESIGN, "they are empty by design")]
    {
        let names = missing(data, folders);
        if !names.is_empty() {
            found.push(obstacle(
                "S8",
                format!("folders of {} are missing: {}; {why}", data.display(), names.join(", ")),
            ));
        }
    }
    let pg_wal = data.join("pg_wal");
    found.extend(space(&pg_wal, u64::from(control.wal_segment_size)));
    found.extend(tablespaces(data, &version));
    let Some(evidence) = evidence else { return found };
    if evidence.system_identifier != control.system_identifier {
        found.push(obstacle(
            "S6",
            format!(
                "the data directory has system identifier {}, recorded was {}: it is another cluster's",
                control.system_identifier, evidence.system_identifier
            ),
        ));
        return found;
    }
    let is_standby = ["standby.signal", "recovery.signal"].iter().any(|name| data.join(name).exists());
    // A standby gets what it misses from its primary; after a promotion the old position says nothing.
    let promoted = control.recovery_timeline > control.timeline;
    let same_history = !is_standby && !evidence.standby && !promoted && evidence.timeline == control.timeline;
    // All WAL since the last checkpoint is read for this; not again and again while something else is in the way.
    if same_history
        && found.is_empty()
        && let Err(broken) = wal::check(&pg_wal, &control, evidence.flush_lsn)
    {
        let what = format!(
            "WAL is not readable from {} to the flushed position {}: {}",
            broken.at, evidence.flush_lsn, broken.why
        );
        // A base backup in place of the data directory, and no server has begun to recover it.
        found.push(if data.join("backup_label").exists() {
            obstacle("S18", format!("{what}; and there is a backup_label"))
        } else {
            obstacle("S11", format!("{what}; a start would lose commits"))
        });
    }
    found
}

/// Which volume takes no writes that the server cannot do without (S4). No start gets anywhere there, and to write to it may
/// do harm. A tablespace is none of these: whoever needs nothing of it is served. As the owner.
pub fn read_only(data: &Path) -> Option<String> {
    let mounts = Mounts::now();
    [data.to_path_buf(), data.join("pg_wal")]
        .into_iter()
        .find(|path| std::fs::metadata(path).is_ok_and(|meta| mounts.is_read_only(meta.dev())))
        .map(|path| format!("the file system of {} is read-only", path.display()))
}

/// A tablespace whose volume is not mounted: crash recovery would make its files anew on the bare mount point, and the
/// next checkpoint would let go of the WAL that belongs to the real ones. The folder inside is named
/// `PG_15_202209061` (catalog/catalog.h, TABLESPACE_VERSION_DIRECTORY).
fn tablespaces(data: &Path, version: &str) -> Vec<Obstacle> {
    let prefix = format!("PG_{version}_");
    let holds_files = |tablespace: &Path| {
        let entries = std::fs::read_dir(tablespace).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
    };
    let entries = std::fs::read_dir(data.join("pg_tblspc")).into_iter().flatten().flatten();
    let links = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    links
        .map(|link| link.path())
        .filter(|path| !holds_files(path))
        .map(|path| {
            let target = std::fs::read_link(&path).unwrap_or_else(|_| path.clone());
            obstacle(
                "S6",
                format!("the tablespace {} has no {prefix}* in it; its volume may not be mounted", target.display()),
            )
        })
        .collect()
}

/// Crash recovery needs room for two segments.
fn space(pg_wal: &Path, segment: u64) -> Option<Obstacle> {
    let stat = match statvfs(pg_wal) {
        Ok(stat) => stat,
        Err(e) => return Some(obstacle("S10", format!("{} cannot be reached: {}", pg_wal.display(), e.desc()))),
    };
    let free = stat.blocks_available() * stat.fragment_size();
    if free < 2 * segment {
        let message =
            format!("{} has {} MB free, crash recovery needs {}", pg_wal.display(), free >> 20, (2 * segment) >> 20);
        return Some(obstacle("S2", message));
    }
    let inodes = format!("{} has {} inodes free", pg_wal.display(), stat.files_available());
    lacks_inodes(&stat).then(|| obstacle("S2", inodes))
}

/// Some file systems count no inodes and say 0 of 0.
fn lacks_inodes(stat: &Statvfs) -> bool {
    stat.files() > 0 && stat.files_available() < 16
}

/// Bytes given back on the volume of pg_wal are of use: it is not inodes that it is short of. As the owner.
pub fn bytes_would_help(data: &Path) -> bool {
    statvfs(&data.join("pg_wal")).is_ok_and(|stat| !lacks_inodes(&stat))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_that_are_empty_by_design_may_be_made_anew() {
        let data = std::env::temp_dir().join(format!("pg-recovery-prestart-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&data);
        for name in EMPTY_BY_DESIGN.iter().chain(PART_OF_THE_DATA) {
            std::fs::create_dir_all(data.join(name)).unwrap();
        }
        assert!(missing_folders(&data).is_empty());
        std::fs::remove_dir(data.join("pg_notify")).unwrap();
        assert_eq!(missing_folders(&data), ["pg_notify"]);
        std::fs::remove_dir(data.join("pg_twophase")).unwrap();
        assert!(missing_folders(&data).is_empty());
        assert_eq!(missing(&data, PART_OF_THE_DATA), ["pg_twophase"]);
        std::fs::remove_dir_all(&data).unwrap();
    }
}
