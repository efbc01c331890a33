//! S7: a careless `chmod -R` or `chown -R` hits the data directory, and the next restart fails.

use std::time::Duration;

use super::Fault;
use crate::{Host, Output};

/// See [`super::all`].
pub const FAULTS: &[Fault] = &[
    Fault {
        class: "S7",
        name: "wrong mode of the data directory, and a restart",
        imitates: "a careless chmod -R",
        is_not: "files inside with another owner, which are left to a person",
        is_recorded: true,
        inject: |host| {
            inject_mode(host);
        },
        keeps_postmaster: false,
        deadline: Duration::from_secs(60),
    },
    Fault {
        class: "S7",
        name: "wrong owner of the data directory, and a restart",
        imitates: "a copy made as root",
        is_not: "files inside with another owner, which are left to a person",
        is_recorded: true,
        inject: |host| {
            inject_owner(host);
        },
        keeps_postmaster: false,
        deadline: Duration::from_secs(60),
    },
];

/// Mode 0755, and a restart.
pub fn inject_mode(host: &Host) -> Output {
    host.sh(&format!("chmod 755 {}", host.data_directory()));
    restart(host)
}

/// The directory itself belongs to root, and a restart.
pub fn inject_owner(host: &Host) -> Output {
    host.sh(&format!("chown root:root {}", host.data_directory()));
    restart(host)
}

/// One file belongs to root, as after a copy by root, and the postmaster is killed. Returns its path.
pub fn inject_owner_of_a_file(host: &Host) -> String {
    let path = format!("{}/PG_VERSION", host.data_directory());
    host.sh(&format!("chown root:root {path} && kill -KILL {}", host.postmaster_pid()));
    path
}

/// One file of a table, which the running server then cannot open. Returns its path.
pub fn inject_mode_of_a_table(host: &Host, table: &str) -> String {
    let path = format!("{}/{}", host.data_directory(), host.psql(&format!("SELECT pg_relation_filepath('{table}')")));
    host.sh(&format!("chmod 000 {path}"));
    path
}

fn restart(host: &Host) -> Output {
    host.run(&format!("systemctl restart {}", host.unit()))
}
