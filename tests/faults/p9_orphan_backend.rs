//! P9: a backend survives its postmaster and keeps the shared memory, so that no new server can start.
//!
//! Under Debian's unit systemd would take the orphan away, because it belongs to the unit's control group (it gets SIGTERM
//! and SIGCONT as soon as the postmaster is gone). So it is moved out of the group first, as if its cluster had been started
//! from a shell.

use std::time::Duration;

use super::Fault;
use crate::{Host, Signal};

/// See [`super::all`].
pub const FAULTS: &[Fault] = &[Fault {
    class: "P9",
    name: "backend that outlives its postmaster",
    imitates: "a backend in a stuck system call when the postmaster dies",
    is_not: "a second server on the data directory",
    is_recorded: true,
    inject: |host| {
        inject(host);
    },
    keeps_postmaster: false,
    deadline: Duration::from_secs(60),
}];

/// Stops a backend, moves it out of the unit, kills the postmaster, and returns the orphan's pid.
pub fn inject(host: &Host) -> i32 {
    super::session::open(host, "orphaned-session", "SELECT pg_sleep(3600)");
    let orphan = super::session::backend_of(host, "orphaned-session");
    host.signal(orphan, Signal::SIGSTOP);
    host.sh(&format!("mkdir -p /sys/fs/cgroup/shell && echo {orphan} > /sys/fs/cgroup/shell/cgroup.procs"));
    host.signal(host.postmaster_pid(), Signal::SIGKILL);
    orphan
}
