//! `postmaster.pid`, the lock file of a data directory.
//!
//! Lines (src/include/utils/pidfile.h): 1 PID of the postmaster (negative: a standalone backend), 2 data directory,
//! 3 start time in seconds since 1970, 4 port, 5 first socket directory, 6 first listen address, 7 key and id of the
//! System V segment, 8 status ("starting", "stopping", "ready", "standby").

use std::path::{Path, PathBuf};

use crate::state;

pub const NAME: &str = "postmaster.pid";

#[derive(Clone, Debug, Default, PartialEq)]
pub struct PidFile {
    pub pid: i32,
    pub data_directory: PathBuf,
    pub started: i64,
    pub port: Option<u16>,
    pub socket_directory: Option<PathBuf>,
    pub listen_address: Option<String>,
    pub segment: Option<i64>,
    pub status: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum LockFile {
    Missing,
    /// Blocks every start: "the PID file is empty".
    Empty,
    /// Blocks every start: "bogus data in lock file".
    Garbage,
    Unreadable(String),
    Present(PidFile),
}

impl PidFile {
    /// The socket that the server has bound; none when unix_socket_directories is empty or names no folder.
    pub fn socket(&self) -> Option<PathBuf> {
        let directory = self.socket_directory.as_ref().filter(|directory| directory.is_absolute())?;
        Some(directory.join(format!(".s.PGSQL.{}", self.port?)))
    }
}

impl LockFile {
    /// Reads it; call it as the owner of the cluster.
    pub fn read(data_directory: &Path) -> (LockFile, Vec<u8>) {
        match state::read(&data_directory.join(NAME), 8192) {
            Ok(bytes) => (Self::parse(&bytes), bytes),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => (LockFile::Missing, Vec::new()),
            Err(e) => (LockFile::Unreadable(e.to_string()), Vec::new()),
        }
    }

    pub fn parse(bytes: &[u8]) -> LockFile {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return LockFile::Empty;
        }
        let text = String::from_utf8_lossy(bytes);
        let line: Vec<&str> = text.lines().map(str::trim).collect();
        let at = |index: usize| line.get(index).copied().filter(|l| !l.is_empty());
        // The server itself needs only a number in line 1 and refuses the file without one (miscinit.c,
        // CreateLockFile); pg_ctl wants at least the first lines.
        let Some(pid) = at(0).and_then(|l| l.parse::<i32>().ok()).filter(|pid| *pid != 0) else {
            return LockFile::Garbage;
        };
        LockFile::Present(PidFile {
            pid: pid.abs(),
            data_directory: at(1).unwrap_or_default().into(),
            started: at(2).and_then(|l| l.parse().ok()).unwrap_or_default(),
            port: at(3).and_then(|l| l.parse().ok()),
            socket_directory: at(4).map(PathBuf::from),
            listen_address: at(5).map(String::from),
            segment: at(6).and_then(|l| l.split_whitespace().nth(1)).and_then(|id| id.parse().ok()),
            status: at(7).unwrap_or_default().into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_file_is_read() {
        let text = b"4711\n/var/lib/postgresql/15/main\n1763776652\n5432\n/var/run/postgresql\nlocalhost\n   262145         7\nready   \n";
        let LockFile::Present(file) = LockFile::parse(text) else { panic!() };
        assert_eq!((file.pid, file.port, file.segment), (4711, Some(5432), Some(7)));
        assert_eq!(file.status, "ready");
        assert_eq!(file.socket(), Some("/var/run/postgresql/.s.PGSQL.5432".into()));
        let LockFile::Present(file) = LockFile::parse(b"1\n/d\n1\n5432\n\nlocalhost\n") else { panic!() };
        assert_eq!(file.socket(), None);
    }

    #[test]
    fn empty_and_garbage_are_told_apart() {
        assert_eq!(LockFile::parse(b""), LockFile::Empty);
        assert_eq!(LockFile::parse(b"\n \n"), LockFile::Empty);
        for garbage in [&b"xyz"[..], b"0\n", b"\0\0\0\0"] {
            assert_eq!(LockFile::parse(garbage), LockFile::Garbage);
        }
    }
}
