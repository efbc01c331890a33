//! M2: the host has too little memory for what is asked of it, and thrashes: the pages of a table that is read again and again
//! are thrown away as soon as they are there.

use std::time::Duration;

use super::m1_oom_killer::{Limit, limit_to};
use crate::{Disk, Host};

/// What is left of it beside the server itself is less than the table.
const LIMIT: u64 = 48 << 20;

/// As long as it lasts, whoever reads waits for memory.
pub struct Pressure {
    pub limit: Limit,
    // Goes last.
    _disk: Disk,
}

/// Clients that read all of a table that does not fit, for so long.
pub fn inject(host: &Host, time: Duration) -> Pressure {
    host.psql("ALTER SYSTEM SET shared_buffers = '8MB'");
    let disk = host.move_data_to_disk(500);
    // What is cached counts for whoever has read or written it first.
    let limit = limit_to(host, &host.unit(), LIMIT);
    let (psql, table) =
        (host.main_cluster().program("psql"), "repeat('x', 1000) AS filler FROM generate_series(1, 80000)");
    assert!(host.as_postgres(&format!("{psql} -X postgres -c \"CREATE TABLE big AS SELECT {table}\"")).success());
    let pgbench = host.main_cluster().program("pgbench");
    host.file("/tmp/read.sql").write("SELECT count(*) FROM big;\n");
    let load = format!("{pgbench} -n -f /tmp/read.sql -C -c 6 -j 2 -T {} postgres", time.as_secs());
    host.run_as_unit("load", "postgres", &load);
    Pressure { limit, _disk: disk }
}
