//! C1: a typing error in postgresql.conf, noticed at the next restart: the server stops and does not come back.

use crate::{Host, Output};

/// Adds a line that cannot be parsed, and restarts.
pub fn inject(host: &Host) -> Output {
    host.file(&format!("{}/postgresql.conf", host.configuration_directory())).append("work_mem = = 1");
    host.run(&format!("systemctl restart {}", host.unit()))
}
