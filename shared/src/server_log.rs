//! The end of a server log, and what was written to it since a moment.

use std::io::{Read, Result, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::cluster::Cluster;
use crate::{meaning, translation};

const LIMIT: u64 = 64 << 10;

/// The files that the server writes to: the one that pg_ctl gave it, and the collector's (manual, 20.8, `current_logfiles`). As
/// the owner.
pub fn files(cluster: &Cluster) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = cluster.log_file.iter().cloned().collect();
    if matches!(cluster.setting("logging_collector"), Some("on" | "true" | "yes" | "1")) {
        let named = std::fs::read_to_string(cluster.data_directory.join("current_logfiles")).unwrap_or_default();
        let text = named.lines().find_map(|line| line.strip_prefix("stderr "));
        files.extend(text.map(|path| cluster.data_directory.join(path)));
    }
    files
}

/// How bad a line is, as far as it is of interest here (manual, table 20.2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Level {
    Error,
    Fatal,
    Panic,
}

const LEVELS: &[(&str, Option<Level>)] = &[
    ("ERROR:  ", Some(Level::Error)),
    ("FATAL:  ", Some(Level::Fatal)),
    ("PANIC:  ", Some(Level::Panic)),
    ("LOG:  ", None),
    ("WARNING:  ", None),
    ("DETAIL:  ", None),
    ("CONTEXT:  ", None),
    ("STATEMENT:  ", None),
    ("HINT:  ", None),
    ("NOTICE:  ", None),
    ("INFO:  ", None),
];

/// Files below the data directory, as the server names them.
const INSIDE: &[&str] = &["\"base/", "\"global/", "\"pg_"];

/// What stands between prefix and message.
pub fn marks() -> impl Iterator<Item = &'static str> {
    LEVELS.iter().map(|(mark, _)| *mark)
}

/// Prefix, level and message of a line. `None` where it has more than one level: the names of a user and of a database are
/// in the prefix as a client sent them, whom nobody has asked yet who it is.
pub fn parts(line: &str) -> Option<(&str, Option<Level>, &str)> {
    let mut found = LEVELS.iter().flat_map(|(mark, level)| line.match_indices(mark).map(move |at| (at, *level)));
    let ((at, mark), level) = found.next()?;
    found.next().is_none().then(|| (&line[..at], level, line[at + mark.len()..].trim()))
}

/// What is said of the cluster's disk or of damaged files in each line of `log`: its class and the message. A statement that a
/// client sent is no message, whatever is in it; and a file that it names, as in COPY, may be on any disk.
pub fn of_storage(log: &str) -> impl Iterator<Item = (Level, &'static str, &str)> {
    log.lines().filter(|line| !line.starts_with('\t')).filter_map(|line| {
        let (_, level, message) = parts(line)?;
        let level = level?;
        let class = meaning::class_of(message, None).filter(|class| meaning::is_of_storage(class))?;
        let is_inside = || INSIDE.iter().any(|folder| message.contains(folder));
        (level != Level::Error || !matches!(class, "S4" | "S5") || is_inside()).then_some((level, class, message))
    })
}

/// One PANIC may be an accident; after three the server has begun anew twice, and met the same again.
const ENOUGH_PANICS: usize = 3;

/// Class and message of the last PANIC for the disk or damaged files, when `log` has so many that another start meets it again.
pub fn panics(log: &str) -> Option<(&'static str, &str)> {
    let panics: Vec<_> = of_storage(log).filter(|(level, ..)| *level == Level::Panic).collect();
    panics.last().filter(|_| panics.len() >= ENOUGH_PANICS).map(|(_, class, message)| (*class, *message))
}

/// What was logged behind `since`, and no more than the last 64 KiB of it.
pub fn tail(file: &Path, since: u64) -> Result<String> {
    tail_within(file, since, LIMIT)
}

/// The same with a limit of one's own.
pub fn tail_within(file: &Path, since: u64, limit: u64) -> Result<String> {
    // Without blocking on a pipe that somebody put there.
    let mut file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(file)?;
    let length = file.metadata()?.len();
    // A shorter file than before is a new one: it was rotated.
    let since = if since <= length { since } else { 0 };
    file.seek(SeekFrom::Start(since.max(length.saturating_sub(limit))))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// How long each log file was at one moment: what comes behind that was written later.
pub type Mark = Vec<(PathBuf, u64)>;

pub fn lengths(cluster: &Cluster) -> Mark {
    let length = |file: &PathBuf| std::fs::metadata(file).map_or(0, |meta| meta.len());
    let lengths = || files(cluster).into_iter().map(|file| (file.clone(), length(&file))).collect();
    cluster.owner.act(lengths).unwrap_or_default()
}

/// The end of the log, at most 64 KiB of each file, as far as it was written after `since`, in English.
pub fn written(cluster: &Cluster, since: &Mark) -> String {
    translation::english(cluster, &as_written(cluster, Some(since))).into_owned()
}

/// The same in the words of the server.
pub fn as_written(cluster: &Cluster, since: Option<&Mark>) -> String {
    let text = cluster.owner.act(|| {
        let mut text = String::new();
        for file in files(cluster) {
            // A file that is not in the mark is younger than the mark.
            let from = since.and_then(|mark| mark.iter().find(|(marked, _)| *marked == file)).map_or(0, |(_, at)| *at);
            text.push_str(&tail(&file, from).unwrap_or_default());
        }
        text
    });
    text.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_the_disk_is_told_apart_from_what_clients_send() {
        let log = "2026-11-25 13:00:00 UTC [8] app@shop ERROR:  invalid page in block 7 of relation base/5/16391\n\
            2026-11-25 13:00:00 UTC [8] app@shop STATEMENT:  SELECT 'ERROR:  invalid page in block'\n\
            \tERROR:  invalid page in block\n\
            2026-11-25 13:00:01 UTC [8] app@shop ERROR:  could not open file \"/cd/x\" for writing: Read-only file system\n\
            2026-11-25 13:00:02 UTC [8] app@shop WARNING:  invalid page in block 0 of relation base/5/9_vm; zeroing out page\n\
            2026-11-25 13:00:02 UTC [9] x@PANIC:  could not fsync file \"base/1\": Input/output error FATAL:  no pg_hba.conf entry\n\
            2026-11-25 13:00:03 UTC [7] PANIC:  could not fsync file \"base/5/16391\": Input/output error\n";
        let found: Vec<_> = of_storage(log).map(|(level, class, _)| (level, class)).collect();
        assert_eq!(found, [(Level::Error, "S12"), (Level::Panic, "S5")]);
        assert_eq!(panics(&log.repeat(2)), None);
        assert_eq!(panics(&log.repeat(3)).map(|(class, _)| class), Some("S5"));
    }

    #[test]
    fn only_what_is_new_is_read_and_all_of_a_rotated_file() {
        let file = std::env::temp_dir().join(format!("pg-recovery-log-{}", std::process::id()));
        std::fs::write(&file, "old\nnew\n").unwrap();
        assert_eq!(tail(&file, 4).unwrap(), "new\n");
        assert_eq!(tail(&file, 9).unwrap(), "old\nnew\n");
        std::fs::write(&file, "x".repeat(LIMIT as usize + 5)).unwrap();
        assert_eq!(tail(&file, 0).unwrap().len() as u64, LIMIT);
        std::fs::remove_file(&file).unwrap();
    }
}
