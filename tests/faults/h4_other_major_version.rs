//! H4: the data directory is of another major version than the programs that are to serve it.

use std::time::Duration;

use super::{End, Staged};
use crate::Host;

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "H4",
    name: "data directory of another major version, and the postmaster killed",
    imitates: "a package that was replaced without pg_upgradecluster",
    is_not: "a minor upgrade, which needs nothing but a restart",
    prepare: |_| Box::new(()),
    inject: |host, _| Box::new(inject(host)),
    end: End::OnRecord("manual", 1),
    deadline: Duration::from_secs(60),
}];

/// Says so in PG_VERSION, and kills the postmaster in one go.
fn inject(host: &Host) {
    host.sh(&format!("echo 14 >{}/PG_VERSION && kill -KILL {}", host.data_directory(), host.postmaster_pid()));
}
