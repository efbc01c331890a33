//! S6: the volume of the data directory is not mounted, and the bare folder under it is there.

use std::time::Duration;

use super::{End, Staged};
use crate::Host;

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "S6",
    name: "volume of the data directory missing",
    imitates: "a boot without that mount",
    is_not: "a data directory that was moved with its setting",
    prepare: |_| Box::new(()),
    inject: |host, _| Box::new(inject(host)),
    end: End::OnRecord("manual", 0),
    deadline: Duration::from_secs(180),
}];

/// Puts an empty folder in place of the data directory, as a bare mount point is, and the server dies.
fn inject(host: &Host) {
    let data = host.data_directory();
    host.server_dies_while(&format!("mv {data} {data}.elsewhere && install -d -o postgres -g postgres -m 700 {data}"));
}
