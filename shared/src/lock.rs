//! The cluster lock: flock on `/run/pg-recovery/lock/16-main.lock`, exclusive for whoever stops or alters the cluster,
//! shared for whoever needs it to stay.
//!
//! The folder and its files belong to root and are created by the programs that run as root; sensors open them for
//! reading only. A file that does not exist is a lock that nobody holds. The kernel gives the lock back when its holder
//! dies; what is written in the file is for people.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::error::{Error, Result};

pub const DIRECTORY: &str = "/run/pg-recovery/lock";

/// Held until dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its Drop")] Flock<File>);

impl Lock {
    /// Takes the exclusive lock, or `None` when another program has it.
    pub fn try_take(cluster: &str) -> Result<Option<Lock>> {
        Self::try_take_in(Path::new(DIRECTORY), cluster)
    }

    /// Takes the exclusive lock, waiting for at most `patience`.
    pub fn take(cluster: &str, patience: Duration) -> Result<Option<Lock>> {
        let deadline = Instant::now() + patience;
        loop {
            match Self::try_take(cluster)? {
                None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
                lock => return Ok(lock),
            }
        }
    }

    fn try_take_in(folder: &Path, cluster: &str) -> Result<Option<Lock>> {
        let path = path(folder, cluster);
        let mut options = std::fs::OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            // Whoever may open it can hold it, and stop all healing: the owners of clusters may, others may not.
            .mode(0o640)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
        let file = crate::owner::with_group_of("postgres", || options.open(&path))?.map_err(|e| {
            let error =
                Error::from(std::io::Error::new(e.kind(), format!("could not open the lock {}: {e}", path.display())));
            error.hint("Run as root; systemd-tmpfiles --create pg-recovery.conf makes the folder.")
        })?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut held) => {
                // Only for people who look; a full disk does not matter.
                let program = std::env::args().next().unwrap_or_default();
                let _ = held.set_len(0).and_then(|()| writeln!(held, "{} {program}", std::process::id()));
                Ok(Some(Lock(held)))
            }
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, e)) => Err(Error::failed(format!("could not lock {}: {}", path.display(), e.desc()))),
        }
    }

    /// Takes the lock shared, or `None` when somebody is altering the cluster. Needs no right to write.
    pub fn try_take_shared(cluster: &str) -> Result<Option<SharedLock>> {
        Self::try_take_shared_in(Path::new(DIRECTORY), cluster)
    }

    fn try_take_shared_in(folder: &Path, cluster: &str) -> Result<Option<SharedLock>> {
        let path = path(folder, cluster);
        let file =
            match std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Some(SharedLock(None))),
                Err(e) => return Err(Error::failed(format!("could not open the lock {}: {e}", path.display()))),
            };
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(held) => Ok(Some(SharedLock(Some(held)))),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, e)) => Err(Error::failed(format!("could not lock {}: {}", path.display(), e.desc()))),
        }
    }
}

/// Held until dropped; nobody alters the cluster meanwhile.
#[derive(Debug)]
pub struct SharedLock(#[expect(dead_code, reason = "held for its Drop")] Option<Flock<File>>);

fn path(folder: &Path, cluster: &str) -> PathBuf {
    folder.join(format!("{}.lock", crate::cluster::file_name(cluster)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_excludes_all_others_until_it_is_gone() {
        let folder = std::env::temp_dir().join(format!("pg-recovery-lock-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        assert!(Lock::try_take_shared_in(&folder, "16/main").unwrap().is_some(), "no file, no holder");
        let held = Lock::try_take_in(&folder, "16/main").unwrap().unwrap();
        assert!(Lock::try_take_in(&folder, "16/main").unwrap().is_none());
        assert!(Lock::try_take_shared_in(&folder, "16/main").unwrap().is_none());
        assert!(Lock::try_take_in(&folder, "16/other").unwrap().is_some());
        drop(held);
        let shared = Lock::try_take_shared_in(&folder, "16/main").unwrap().unwrap();
        assert!(Lock::try_take_shared_in(&folder, "16/main").unwrap().is_some());
        assert!(Lock::try_take_in(&folder, "16/main").unwrap().is_none());
        drop(shared);
    }
}
