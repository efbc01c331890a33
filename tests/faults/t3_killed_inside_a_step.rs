//! T3: a recovery is killed in the middle of a step that changes files, between any two of these changes.

use crate::{Host, Output};

/// Makes ready for [`run`].
pub fn prepare(host: &Host) {
    host.install_library("/usr/lib/killer.so", include_str!("t3_killed_inside_a_step.c"));
}

/// Runs pg-recover, which gets SIGKILL right after its n-th change of a name below this folder; status 137 says so.
pub fn run(host: &Host, folder: &str, after: u32) -> Output {
    host.run(&format!("KILL_IN={folder}/ KILL_AFTER={after} LD_PRELOAD=/usr/lib/killer.so pg-recover"))
}
