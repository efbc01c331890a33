//! C1: a typing error in postgresql.conf, noticed at the next restart: the server stops and does not come back.

use std::time::Duration;

use super::Fault;
use crate::{Host, Output};

/// See [`super::all`].
pub const FAULTS: &[Fault] = &[Fault {
    class: "C1",
    name: "bad line in postgresql.conf, and a restart",
    imitates: "a typing error",
    is_not: "a setting that the server takes and that is unwise",
    is_recorded: true,
    inject: |host| {
        inject(host);
    },
    keeps_postmaster: false,
    deadline: Duration::from_secs(60),
}];

/// Adds a line that cannot be parsed, and restarts.
pub fn inject(host: &Host) -> Output {
    host.file(&format!("{}/postgresql.conf", host.configuration_directory())).append("work_mem = = 1");
    host.run(&format!("systemctl restart {}", host.unit()))
}
