//! C3: ALTER SYSTEM accepts a library that does not exist or crashes, an address of another host, or a setting that another
//! one needs, and the next restart fails. `postgres -C` does not notice it.

use std::time::Duration;

use super::Fault;
use crate::{Host, Output};

/// See [`super::all`].
pub const FAULTS: &[Fault] = &[
    Fault {
        class: "C3",
        name: "library to preload that does not exist, and a restart",
        imitates: "an extension whose package was removed",
        is_not: "a library that crashes the server, which is the next row",
        is_recorded: true,
        inject: |host| {
            inject(host);
        },
        keeps_postmaster: false,
        deadline: Duration::from_secs(60),
    },
    Fault {
        class: "C3",
        name: "library to preload that crashes the server, and a restart",
        imitates: "an extension that was built for something else",
        is_not: "one that crashes sessions later",
        is_recorded: true,
        inject: inject_crash,
        keeps_postmaster: false,
        deadline: Duration::from_secs(60),
    },
    Fault {
        class: "C3",
        name: "wal_level too low for its other settings, and a restart",
        imitates: "ALTER SYSTEM by hand",
        is_not: "a value out of range, which ALTER SYSTEM refuses",
        is_recorded: true,
        inject: |host| {
            inject_setting(host, "wal_level = minimal");
        },
        keeps_postmaster: false,
        deadline: Duration::from_secs(60),
    },
];

/// The library, and a restart.
pub fn inject(host: &Host) -> Output {
    inject_setting(host, "shared_preload_libraries = 'nope'")
}

/// A library with which the server ends without a word, and a restart.
pub fn inject_crash(host: &Host) {
    let library = format!("/usr/lib/postgresql/{}/lib/crash.so", host.version());
    host.install_library(&library, "__attribute__((constructor)) static void crash(void) { __builtin_trap(); }");
    inject_setting(host, "shared_preload_libraries = 'crash'");
}

/// Any setting, and a restart.
pub fn inject_setting(host: &Host, setting: &str) -> Output {
    host.psql(&format!("ALTER SYSTEM SET {setting}"));
    host.run(&format!("systemctl restart {}", host.unit()))
}
