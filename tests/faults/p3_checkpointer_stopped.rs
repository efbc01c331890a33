//! P3: an auxiliary process hangs while clients notice nothing: SIGSTOP to the checkpointer.

use std::time::Duration;

use super::Fault;
use crate::{Host, Signal};

/// See [`super::all`].
pub const FAULTS: &[Fault] = &[Fault {
    class: "P3",
    name: "checkpointer stopped by a signal",
    imitates: "a debugger left attached",
    is_not: "a checkpoint that waits for the disk",
    is_recorded: true,
    inject: |host| {
        inject(host);
    },
    keeps_postmaster: true,
    deadline: Duration::from_secs(60),
}];

/// Stops the checkpointer, and returns its pid in the machine.
pub fn inject(host: &Host) -> i32 {
    let pid = pid(host);
    host.signal(pid, Signal::SIGSTOP);
    pid
}

/// That of the checkpointer.
pub fn pid(host: &Host) -> i32 {
    let pid = host.psql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'");
    pid.parse().expect("a pid is a number")
}
