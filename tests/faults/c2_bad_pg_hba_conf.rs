//! C2: a typing error in pg_hba.conf, noticed at the next restart.

use crate::{Host, Output};

/// Adds a line that cannot be parsed, and restarts.
pub fn inject(host: &Host) -> Output {
    host.file(&format!("{}/pg_hba.conf", host.configuration_directory()))
        .append("hots all all 10.0.0.0/8 scram-sha-256");
    host.run(&format!("systemctl restart {}", host.unit()))
}
