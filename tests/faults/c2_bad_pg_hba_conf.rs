//! C2: a typing error in pg_hba.conf, noticed at the next restart.

use std::time::Duration;

use super::Fault;
use crate::{Host, Output};

/// See [`super::all`].
pub const FAULTS: &[Fault] = &[Fault {
    class: "C2",
    name: "bad line in pg_hba.conf, and a restart",
    imitates: "a typing error",
    is_not: "a rule that locks clients out",
    is_recorded: true,
    inject: |host| {
        inject(host);
    },
    keeps_postmaster: false,
    deadline: Duration::from_secs(60),
}];

/// Adds a line that cannot be parsed, and restarts.
pub fn inject(host: &Host) -> Output {
    host.file(&format!("{}/pg_hba.conf", host.configuration_directory()))
        .append("hots all all 10.0.0.0/8 scram-sha-256");
    host.run(&format!("systemctl restart {}", host.unit()))
}
