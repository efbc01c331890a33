//! S18: a base backup is put in place without the WAL that belongs to it.

use std::time::Duration;

use super::{End, Staged};
use crate::Host;

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "S18",
    name: "base backup restored without its WAL",
    imitates: "a copy by hand that leaves pg_wal out",
    is_not: "a restored backup with a restore_command, which has its WAL",
    prepare: |_| Box::new(()),
    inject: |host, _| Box::new(inject(host)),
    // One is of pg-watchdog, where it has caught sight of the postmaster that refuses.
    end: End::OnRecord("manual", 2),
    deadline: Duration::from_secs(180),
}];

/// Has a person put a base backup without WAL in place of the data directory and start the server, which refuses.
fn inject(host: &Host) {
    let (data, unit) = (host.data_directory(), host.unit());
    let backup = format!("{} -X none -c fast -D {data}.backup", host.main_cluster().program("pg_basebackup"));
    assert!(host.as_postgres(&backup).success());
    host.sh(&format!(
        "pg-recover pause 1h lab && systemctl stop {unit} && mv {data} {data}.old && mv {data}.backup {data}"
    ));
    host.sh("pg-recover resume");
    host.run(&format!("systemctl start {unit}"));
}
