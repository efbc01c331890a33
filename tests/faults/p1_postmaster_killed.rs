//! P1: the postmaster dies at once, as under the OOM killer or a person's `kill -9`: SIGKILL to line 1 of postmaster.pid.

use std::time::Duration;

use super::Fault;
use crate::{Host, Signal};

/// See [`super::all`].
pub const FAULTS: &[Fault] = &[Fault {
    class: "P1",
    name: "postmaster killed",
    imitates: "the OOM killer, or a kill -9 by hand",
    is_not: "a backend that crashes: the postmaster restarts the server itself",
    is_recorded: true,
    inject,
    keeps_postmaster: false,
    deadline: Duration::from_secs(30),
}];

/// Kills the postmaster of the main cluster. Its unit is `failed` some 60 ms later.
pub fn inject(host: &Host) {
    host.signal(host.postmaster_pid(), Signal::SIGKILL);
}
