//! C4: the host no longer gives the server the memory that its configuration asks for.

use std::time::Duration;

use super::{End, Staged};
use crate::Host;

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "C4",
    name: "less memory for the server than it is configured for, and a restart",
    imitates: "a host that was made smaller",
    is_not: "settings that were made larger, which are put back (C3)",
    prepare: |_| Box::new(()),
    inject: |host, _| Box::new(inject(host)),
    end: End::OnRecord("failed", 9),
    deadline: Duration::from_secs(180),
}];

/// A limit of its unit, under which there is no room for shared_buffers.
fn inject(host: &Host) {
    let unit = host.unit();
    host.file(&format!("/etc/systemd/system/{unit}.d/memory.conf")).write("[Service]\nLimitAS=150M\n");
    host.run(&format!("systemctl daemon-reload; systemctl restart {unit}"));
}
