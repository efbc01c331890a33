//! S7: a careless `chmod -R` or `chown -R` hits the data directory, and the next restart fails.

use crate::{Host, Output};

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

fn restart(host: &Host) -> Output {
    host.run(&format!("systemctl restart {}", host.unit()))
}
