//! `/var/lib/pg-recovery/recoveries.jsonl`: one line for each recovery, written by pg-recover and pg-watchdog.
//!
//! A line is one write at the end of the file, under flock. At `LIMIT` the file becomes `recoveries.jsonl.1`, and what was
//! in that one goes into the sums of `tally`. A line that a full disk tore is ended by the next one, so readers skip what
//! they cannot parse.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::clock::Stamp;
use crate::tally::Sums;
use crate::{fault, state};

const LIMIT: u64 = 1 << 20;

/// One recovery.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Record {
    pub id: String,
    /// `16/main`
    pub cluster: String,
    /// Class of the fault, such as `P1`.
    pub fault: String,
    /// Program that noticed it.
    pub detected_by: String,
    pub evidence: Vec<String>,
    pub steps: Vec<StepRecord>,
    /// `recovered`, `failed`, `manual` or `declined`.
    pub outcome: String,
    /// `2026-11-22T01:57:32Z`
    pub started: String,
    pub finished: String,
    pub downtime_ms: u64,
    /// Was it over in the time that a fault of this class may take (`fault`)? `None` for what was left alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_met: Option<bool>,
}

impl Record {
    /// Ends it and adds it to the history.
    pub fn close(&mut self, outcome: &str, downtime: Duration) {
        self.outcome = outcome.into();
        self.finished = Stamp::now().rfc3339();
        self.downtime_ms = downtime.as_millis() as u64;
        self.target_met = match outcome {
            "declined" => None,
            outcome => Some(outcome == "recovered" && downtime <= fault::class(&self.fault).priority.target()),
        };
        append(self);
    }
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct StepRecord {
    pub step: String,
    pub outcome: String,
    pub ms: u64,
    pub why: String,
    /// Class of the fault that it was for, where that is known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fault: String,
    /// Which of several alternatives it was.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub of: String,
}

/// `20261122T015732Z-16-main-4711`: sorts by age, and no other recovery of this host has it.
pub fn new_id(cluster: &str) -> String {
    format!("{}-{}-{}", Stamp::now().compact(), crate::cluster::file_name(cluster), std::process::id())
}

pub fn path() -> PathBuf {
    Path::new(state::DIRECTORY).join("recoveries.jsonl")
}

/// Adds a line. A disk that is full or read-only costs the line, never the recovery.
pub fn append(record: &Record) {
    if let Err(why) = append_to(&path(), record) {
        log::warn!("could not write {}: {why}; going on without this line of the history", path().display());
    }
}

/// Every recovery that is still on record, oldest first.
pub fn all() -> Vec<Record> {
    files().iter().flat_map(|path| read_from(path)).collect()
}

fn files() -> [PathBuf; 2] {
    [path().with_added_extension("1"), path()]
}

/// Changes when the history does: inode, length and time of its files.
pub fn signature() -> Vec<(u64, u64, i64, i64)> {
    let metadata = files().into_iter().filter_map(|path| path.symlink_metadata().ok());
    metadata.map(|meta| (meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec())).collect()
}

fn read_from(path: &Path) -> Vec<Record> {
    let bytes = state::read(path, 2 * LIMIT).unwrap_or_default();
    String::from_utf8_lossy(&bytes).lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn append_to(path: &Path, record: &Record) -> io::Result<()> {
    let mut line = serde_json::to_vec(record).map_err(io::Error::other)?;
    line.push(b'\n');
    let mut file = open_locked(path)?;
    if file.metadata()?.len() + line.len() as u64 > LIMIT {
        let older = path.with_added_extension("1");
        // A sum that is not kept costs a figure, never a line.
        if let Err(why) = Sums::keep(path, &read_from(&older)) {
            log::warn!("could not count what leaves the history with {}: {why}", older.display());
        }
        std::fs::rename(path, older)?;
        file = open_locked(path)?;
    }
    if file.metadata()?.len() > 0 {
        let mut last = [0u8];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != [b'\n'] {
            line.insert(0, b'\n');
        }
    }
    file.write_all(&line)?;
    file.sync_data()
}

/// Opens the file under an exclusive flock, and makes sure that it still has this name.
fn open_locked(path: &Path) -> io::Result<Flock<File>> {
    for _ in 0..100 {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o644)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path)?;
        // Not waiting for ever: the holder may have been stopped.
        if let Ok(held) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            let (mine, there) = (held.metadata()?, path.symlink_metadata());
            if there.is_ok_and(|there| (there.dev(), there.ino()) == (mine.dev(), mine.ino())) {
                return Ok(held);
            }
        } else {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "another program keeps it locked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("pg-recovery-record-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        folder.join("recoveries.jsonl")
    }

    #[test]
    fn a_torn_line_costs_only_itself() {
        let path = file("torn");
        let record = Record { id: "a".into(), ..Record::default() };
        append_to(&path, &record).unwrap();
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"id\":\"b\"").unwrap();
        append_to(&path, &record).unwrap();
        assert_eq!(read_from(&path), [record.clone(), record]);
    }

    #[test]
    fn the_file_does_not_grow_for_ever() {
        let path = file("grow");
        for number in 0..10 {
            let record = Record { id: number.to_string(), evidence: vec!["x".repeat(300_000)], ..Record::default() };
            append_to(&path, &record).unwrap();
        }
        let before = std::fs::read_to_string(path.with_file_name("recoveries-before.json")).unwrap();
        assert!(before.contains("\"count\":6"), "{before}");
        let size = |path: &Path| std::fs::metadata(path).unwrap().len();
        assert!(size(&path) <= LIMIT && size(&path.with_added_extension("1")) <= LIMIT);
        assert_eq!(read_from(&path).len() + read_from(&path.with_added_extension("1")).len(), 4);
    }
}
