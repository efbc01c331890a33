//! P2: the postmaster hangs by itself, not by a signal: asleep and deaf to every signal but SIGKILL (a lock that nobody
//! gives back, a library's bug), or waiting for a disk, which not even SIGKILL ends.

use crate::{Disk, Host};

const FLAG: &str = "/run/hang-postmaster";
const LIBRARY: &str = "/usr/lib/hang.so";

/// Starts the cluster again so that it can hang later.
pub fn prepare(host: &Host) {
    host.install_library(LIBRARY, include_str!("p2_postmaster_asleep.c"));
    host.file(&format!("{}/environment", host.configuration_directory())).append(&format!("LD_PRELOAD = '{LIBRARY}'"));
    host.sh(&format!("systemctl restart {}", host.unit()));
}

/// The next connection puts the postmaster to sleep. Returns its pid.
pub fn inject(host: &Host) -> i32 {
    host.file(FLAG).write("");
    host.postmaster_pid()
}

/// Not a fault: every connection takes the postmaster six seconds from now on, but it takes each.
pub fn inject_slowness(host: &Host) -> i32 {
    host.file(FLAG).write("slow");
    host.postmaster_pid()
}

/// A server that is started from now on does not hang, and a slow one is quick again.
pub fn end(host: &Host) {
    host.file(FLAG).remove();
}

/// A disk that takes no writes; it must be thawed before the machine can go.
pub struct Frozen<'a> {
    host: &'a Host,
    disk: Disk,
}

/// The next connection makes the postmaster wait for a disk.
pub fn inject_on_disk(host: &Host) -> Frozen<'_> {
    let disk = host.attach_disk("/frozen", 16);
    let file = format!("{}/file", disk.mount_point());
    host.file(&file).write("");
    host.sh(&format!("chown postgres: {file} && fsfreeze --freeze {}", disk.mount_point()));
    host.file(FLAG).write(&file);
    Frozen { host, disk }
}

impl Drop for Frozen<'_> {
    /// The disk answers again.
    fn drop(&mut self) {
        self.host.run(&format!("rm {FLAG}; fsfreeze --unfreeze {}", self.disk.mount_point()));
    }
}
