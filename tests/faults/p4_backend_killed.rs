//! P4: a backend crashes, and the postmaster resets the server: SIGKILL to a session's process.
use std::time::Duration;

use super::{End, Staged};
use crate::{Host, Signal};

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "P4",
    name: "backend killed",
    imitates: "a session that crashes, or a kill -9 of the wrong process",
    is_not: "a crash of the postmaster; crashes in a row, of which a person is told",
    prepare: |_| Box::new(()),
    inject: |host, _| Box::new(inject(host)),
    end: End::OnRecord("declined", 0),
    deadline: Duration::from_secs(60),
}];

/// Kills one idle session. The server recovers by itself.
pub fn inject(host: &Host) {
    super::session::open(host, "doomed-session", "SELECT pg_sleep(3600)");
    host.signal(super::session::backend_of(host, "doomed-session"), Signal::SIGKILL);
}
