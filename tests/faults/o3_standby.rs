//! O3, not a fault: a second cluster on the host is a streaming standby of the main one, and must be judged as one.

use std::time::Duration;

use crate::{Cluster, Host};

/// Makes the standby with pg_basebackup, and returns it when it streams.
pub fn inject(host: &Host) -> Cluster {
    let standby = host.create_cluster("standby");
    host.operator_stops(&standby.unit());
    let data = standby.data_directory();
    host.sh(&format!("rm -r {data}"));
    let output = host.as_postgres(&format!("pg_basebackup --checkpoint=fast -R -p 5432 -D {data}"));
    assert!(output.success(), "{output}");
    host.sh(&format!("systemctl start {}", standby.unit()));
    host.wait_until("the standby streams", Duration::from_secs(30), || {
        host.psql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "1"
    });
    standby
}
