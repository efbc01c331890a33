//! A second name for the socket of a server that runs (P12).
//!
//! When a socket's file is removed, the server goes on listening where nobody finds it, and only its postmaster could bind
//! a new one, at a start. But a connection finds a socket by the inode that its path leads to (net/unix/af_unix.c,
//! unix_find_bsd), so a hard link that was made in time serves as well as the name that is gone. It is
//! `/run/pg-recovery-socket/16-main`, made by pg-watchdog and put back by pg-recover, both with the owner's power: the
//! kernel lets nobody link a socket that is not his (fs.protected_hardlinks, proc(5)). A socket that is not below /run is on
//! another file system and gets none.

use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt::PeerCredentials,
};

use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::process::Process;

/// Not below /run/pg-recovery, which is a mount of its own in a unit with RuntimeDirectory=, and no link leads from one mount to
/// another.
const DIRECTORY: &str = "/run/pg-recovery-socket";

fn second_name(cluster: &Cluster) -> PathBuf {
    Path::new(DIRECTORY).join(cluster.file_name())
}

/// Gives the socket its second name, in the place of an earlier server's.
pub fn keep(cluster: &Cluster, socket: &Path) -> Result<()> {
    let second = second_name(cluster);
    Ok(cluster.owner.act(|| {
        let found = socket.symlink_metadata()?;
        if second.symlink_metadata().is_ok_and(|kept| (kept.dev(), kept.ino()) == (found.dev(), found.ino())) {
            return Ok(());
        }
        let _ = std::fs::remove_file(&second);
        std::fs::hard_link(socket, &second)
    })??)
}

/// Whether the second name leads to this postmaster, and if not, why.
pub fn leads_to(cluster: &Cluster, postmaster: &Process) -> Result<(), String> {
    let second = second_name(cluster);
    let listener = cluster.owner.act(|| listener(&second)).map_err(|e| e.message)?;
    match listener {
        Ok(pid) if pid == postmaster.pid => Ok(()),
        Ok(pid) => Err(format!("the second name that was kept for its socket leads to PID {pid}")),
        Err(why) => Err(format!("no second name of its socket was kept: {why}")),
    }
}

/// The process that listens on this socket: a client sees the ids of whoever called listen(2) (SO_PEERCRED, unix(7)).
fn listener(path: &Path) -> std::io::Result<i32> {
    if !path.symlink_metadata()?.file_type().is_socket() {
        return Err(std::io::Error::other("it is no socket"));
    }
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let client = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(client.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(getsockopt(&client, PeerCredentials)?.pid())
}

/// Gives the socket its name back. link(2) never overwrites: a socket that has appeared meanwhile stays.
pub fn put_back(cluster: &Cluster, socket: &Path) -> Result<()> {
    let second = second_name(cluster);
    cluster
        .owner
        .act(|| std::fs::hard_link(&second, socket))?
        .map_err(|e| Error::failed(format!("could not put {} back: {e}", socket.display())))
}

/// Whether this process listens on a socket that was bound to `path`: the name stays in the kernel's table when the file is
/// gone (/proc/net/unix, proc(5): flag 00010000 is a listener's).
pub fn is_bound_by(path: &Path, process: &Process) -> bool {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    table.lines().filter_map(|line| listening(line, path)).any(|inode| process.has_socket(inode))
}

fn listening(line: &str, path: &Path) -> Option<u64> {
    let mut field = line.split_ascii_whitespace();
    (field.nth(3)? == "00010000").then_some(())?;
    let inode = field.nth(2)?.parse().ok()?;
    (Path::new(field.next()?) == path).then_some(inode)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_second_name_leads_to_the_listener_when_the_first_is_gone() {
        let folder = std::env::temp_dir().join(format!("pg-recovery-socket-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
        let (first, second) = (folder.join("first"), folder.join("second"));
        let socket = UnixListener::bind(&first).unwrap();
        std::fs::hard_link(&first, &second).unwrap();
        std::fs::remove_file(&first).unwrap();
        let me = Process::of(std::process::id() as i32).unwrap();
        assert_eq!(listener(&second).unwrap(), me.pid);
        assert!(is_bound_by(&first, &me) && !is_bound_by(&second, &me));
        std::fs::hard_link(&second, &first).unwrap();
        assert!(UnixStream::connect(&first).is_ok());
        drop(socket);
        assert!(listener(&second).is_err() && !is_bound_by(&first, &me));
        std::fs::write(folder.join("file"), "").unwrap();
        assert!(listener(&folder.join("file")).is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
