//! S10: the WAL that crash recovery has to begin with is lost, on a host that does not know how far WAL was flushed; where that is
//! known it is S11.

use std::time::Duration;

use super::{End, Staged};
use crate::Host;

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "S10",
    name: "WAL of the last checkpoint and the evidence lost, and the postmaster killed",
    imitates: "a disk that lost files, or pg_wal \"tidied\" while the server was down",
    is_not: "older WAL, which no start needs",
    prepare: |_| Box::new(()),
    inject: |host, _| Box::new(inject(host)),
    end: End::OnRecord("manual", 2),
    deadline: Duration::from_secs(60),
}];

/// Moves all WAL and what pg-watchdog has recorded away, and the server dies.
fn inject(host: &Host) {
    let (data, away) = (host.data_directory(), "/var/lib/postgresql/wal.away");
    let evidence = "rm -rf /var/lib/pg-recovery/evidence/* /run/pg-recovery/evidence/*";
    host.sh("systemctl stop pg-watchdog");
    host.server_dies_while(&format!("mkdir {away} && {evidence} && mv {data}/pg_wal/0* {away}"));
    host.sh("systemctl start pg-watchdog");
}
