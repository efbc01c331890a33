//! C3: ALTER SYSTEM accepts a library that does not exist, an address of another host, or a setting that another one needs,
//! and the next restart fails. `postgres -C` does not notice it.

use crate::{Host, Output};

/// The library, and a restart.
pub fn inject(host: &Host) -> Output {
    inject_setting(host, "shared_preload_libraries = 'nope'")
}

/// Any setting, and a restart.
pub fn inject_setting(host: &Host, setting: &str) -> Output {
    host.psql(&format!("ALTER SYSTEM SET {setting}"));
    host.run(&format!("systemctl restart {}", host.unit()))
}
