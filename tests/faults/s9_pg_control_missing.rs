//! S9: pg_control is lost, with the power or under a running server, or damaged.

use std::time::Duration;

use super::Fault;
use crate::Host;

/// See [`super::all`].
pub const FAULTS: &[Fault] = &[
    Fault {
        class: "S9",
        name: "pg_control removed under a running server",
        imitates: "a careless clean-up",
        is_not: "a data directory that is gone as a whole",
        is_recorded: true,
        inject: inject_while_it_runs,
        keeps_postmaster: true,
        deadline: Duration::from_secs(60),
    },
    Fault {
        class: "S9",
        name: "pg_control lost with the power",
        imitates: "a file system that lost a rename",
        is_not: "WAL that is lost as well",
        is_recorded: true,
        inject,
        keeps_postmaster: false,
        deadline: Duration::from_secs(60),
    },
    Fault {
        class: "S9",
        name: "pg_control damaged, and the postmaster killed",
        imitates: "a bad disk",
        is_not: "WAL that is damaged as well",
        is_recorded: true,
        inject: inject_damage,
        keeps_postmaster: false,
        deadline: Duration::from_secs(60),
    },
];

fn path(host: &Host) -> String {
    format!("{}/global/pg_control", host.data_directory())
}

/// Cuts the power, removes the file from the bare disk, and boots.
pub fn inject(host: &Host) {
    host.cut_power();
    host.file(&path(host)).remove();
    host.boot_again();
}

/// Removes the file of a running server, which goes on until its next checkpoint.
pub fn inject_while_it_runs(host: &Host) {
    host.file(&path(host)).remove();
}

/// Flips a bit, as a bad disk does, of a server that was killed.
pub fn inject_damage(host: &Host) {
    let file = path(host);
    let flip = format!(
        "perl -e 'open F, \"+<\", \"{file}\" or die; seek F, 40, 0; read F, $b, 1; seek F, 40, 0; print F chr(ord($b) ^ 4)'"
    );
    // In one go, before anybody starts it again; nothing where no server runs.
    let postmaster = host.postmaster_pid();
    host.sh(&format!("kill -0 {postmaster} && {flip}; kill -KILL {postmaster}"));
}
