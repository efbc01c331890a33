//! P12: somebody tidies up /run/postgresql under a running server: socket clients fail, TCP goes on, the log is silent.

use std::time::Duration;

use super::Fault;
use crate::Host;

/// See [`super::all`].
pub const FAULTS: &[Fault] = &[
    Fault {
        class: "P12",
        name: "socket removed under a running server",
        imitates: "a person or a script that tidies up /run",
        is_not: "a server that never had one",
        is_recorded: true,
        inject,
        keeps_postmaster: true,
        deadline: Duration::from_secs(60),
    },
    Fault {
        class: "P12",
        name: "socket removed with its directory",
        imitates: "the same, more thorough",
        is_not: "a boot, which makes the directory anew",
        is_recorded: true,
        inject: inject_with_its_directory,
        keeps_postmaster: true,
        deadline: Duration::from_secs(60),
    },
];

/// Removes the socket.
pub fn inject(host: &Host) {
    host.file("/run/postgresql/.s.PGSQL.5432").remove();
}

/// Removes the whole directory.
pub fn inject_with_its_directory(host: &Host) {
    host.sh("rm -r /run/postgresql");
}

/// Removes the socket and every other name of it, as on a host where there was none.
pub fn inject_without_a_second_name(host: &Host) {
    host.sh("rm /run/pg-recovery-socket/* /run/postgresql/.s.PGSQL.5432");
}
