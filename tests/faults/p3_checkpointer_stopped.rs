//! P3: an auxiliary process hangs while clients notice nothing: SIGSTOP to the checkpointer.

use crate::{Host, Signal};

/// Stops the checkpointer, and returns its pid in the machine.
pub fn inject(host: &Host) -> i32 {
    let pid = host.psql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'");
    let pid = pid.parse().expect("a pid is a number");
    host.signal(pid, Signal::SIGSTOP);
    pid
}
