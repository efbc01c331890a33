//! P2: the postmaster hangs, as in a debugger or a stuck system call: SIGSTOP. The kernel still accepts connections for it,
//! old sessions go on and commit, and the unit stays active.

use crate::{Host, Signal};

/// Stops the postmaster only, and returns its pid in the machine.
pub fn inject(host: &Host) -> i32 {
    let postmaster = host.postmaster_pid();
    host.signal(postmaster, Signal::SIGSTOP);
    postmaster
}
