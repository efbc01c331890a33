//! P4: a backend crashes, and the postmaster resets the server: SIGKILL to a session's process.

use crate::{Host, Signal};

/// Kills one idle session. The server recovers by itself.
pub fn inject(host: &Host) {
    super::session::open(host, "doomed-session", "SELECT pg_sleep(3600)");
    host.signal(super::session::backend_of(host, "doomed-session"), Signal::SIGKILL);
}
