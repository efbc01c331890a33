//! P2: the postmaster hangs, as in a debugger or a stuck system call: SIGSTOP. The kernel still accepts connections for it,
//! old sessions go on and commit, and the unit stays active.

use std::time::Duration;

use super::Fault;
use crate::{Host, Signal};

/// See [`super::all`].
pub const FAULTS: &[Fault] = &[Fault {
    class: "P2",
    name: "postmaster stopped by a signal",
    imitates: "a debugger left attached, a stuck system call",
    is_not: "a busy or a frozen server, which is left alone",
    is_recorded: true,
    inject: |host| {
        inject(host);
    },
    keeps_postmaster: true,
    deadline: Duration::from_secs(30),
}];

/// Stops the postmaster only, and returns its pid in the machine.
pub fn inject(host: &Host) -> i32 {
    let postmaster = host.postmaster_pid();
    host.signal(postmaster, Signal::SIGSTOP);
    postmaster
}
