//! C3: ALTER SYSTEM accepts a library that does not exist, and the next restart fails. `postgres -C` does not notice it.

use crate::{Host, Output};

/// Sets it, and restarts.
pub fn inject(host: &Host) -> Output {
    host.psql("ALTER SYSTEM SET shared_preload_libraries = 'nope'");
    host.run(&format!("systemctl restart {}", host.unit()))
}
