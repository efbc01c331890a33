//! P11: the socket directory /run/postgresql is gone or cannot be written, and the cluster is restarted.

use std::time::Duration;

use super::Fault;
use crate::{Host, Output};

/// See [`super::all`].
pub const FAULTS: &[Fault] = &[Fault {
    class: "P11",
    name: "socket directory not writable, and a restart",
    imitates: "a careless chmod in /run",
    is_not: "a socket that is removed under a running server",
    is_recorded: true,
    inject: |host| {
        inject_unwritable(host);
    },
    keeps_postmaster: false,
    deadline: Duration::from_secs(60),
}];

/// Removes the directory and restarts.
pub fn inject_missing(host: &Host) -> Output {
    host.sh("rm -r /run/postgresql");
    restart(host)
}

/// Takes the write permission away and restarts.
pub fn inject_unwritable(host: &Host) -> Output {
    host.sh("chmod 500 /run/postgresql");
    restart(host)
}

fn restart(host: &Host) -> Output {
    host.run(&format!("systemctl restart {}", host.unit()))
}
