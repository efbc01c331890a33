//! The end of a server log, and what was written to it since a moment.

use std::io::{Read, Result, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::cluster::Cluster;

const LIMIT: u64 = 64 << 10;

/// What was logged behind `since`, and no more than the last 64 KiB of it.
pub fn tail(file: &Path, since: u64) -> Result<String> {
    // Without blocking on a pipe that somebody put there.
    let mut file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(file)?;
    let length = file.metadata()?.len();
    // A shorter file than before is a new one: it was rotated.
    let since = if since <= length { since } else { 0 };
    file.seek(SeekFrom::Start(since.max(length.saturating_sub(LIMIT))))?;
    let mut bytes = Vec::new();
    file.take(LIMIT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The file that the server writes to: the collector's newest one, else the one that pg_ctl gave it.
fn files(cluster: &Cluster) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = cluster.log_file.iter().cloned().collect();
    if matches!(cluster.setting("logging_collector"), Some("on" | "true" | "yes" | "1")) {
        let folder = cluster.data_directory.join(cluster.setting("log_directory").unwrap_or("log"));
        let newest = std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .max_by_key(|path| std::fs::metadata(path).and_then(|m| m.modified()).ok());
        files.extend(newest);
    }
    files
}

/// How long each log file was at one moment: what comes behind that was written later.
pub type Mark = Vec<(PathBuf, u64)>;

pub fn lengths(cluster: &Cluster) -> Mark {
    let length = |file: &PathBuf| std::fs::metadata(file).map_or(0, |meta| meta.len());
    let lengths = || files(cluster).into_iter().map(|file| (file.clone(), length(&file))).collect();
    cluster.owner.act(lengths).unwrap_or_default()
}

/// The end of the log, at most 64 KiB of each file, as far as it was written after `since`.
pub fn written(cluster: &Cluster, since: Option<&Mark>) -> String {
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
