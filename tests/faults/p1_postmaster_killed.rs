//! P1: the postmaster dies at once, as under the OOM killer or a person's `kill -9`: SIGKILL to line 1 of postmaster.pid.

use crate::{Host, Signal};

/// Kills the postmaster of the main cluster. Its unit is `failed` some 60 ms later.
pub fn inject(host: &Host) {
    host.signal(host.postmaster_pid(), Signal::SIGKILL);
}
