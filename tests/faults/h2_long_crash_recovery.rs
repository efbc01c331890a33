//! H2: the power fails long after the last checkpoint, so that crash recovery takes its time. Nobody may restart it.

use crate::Host;

/// Writes that many times 100,000 rows after the last checkpoint, cuts the power, and boots. The cluster may still be in
/// recovery when this returns: each 100,000 rows take more than a second to write and about half a second to replay.
pub fn inject(host: &Host, hundred_thousand_rows: u32) {
    write_wal(host, hundred_thousand_rows);
    host.power_cut_and_boot();
}

/// The same with a killed postmaster instead of a power cut.
pub fn inject_by_kill(host: &Host, hundred_thousand_rows: u32) {
    write_wal(host, hundred_thousand_rows);
    super::p1_postmaster_killed::inject(host);
}

fn write_wal(host: &Host, hundred_thousand_rows: u32) {
    for setting in ["max_wal_size = '20GB'", "checkpoint_timeout = '1h'", "shared_buffers = '16MB'"] {
        host.psql(&format!("ALTER SYSTEM SET {setting}"));
    }
    host.sh(&format!("systemctl restart {}", host.unit()));
    host.psql("CREATE TABLE long (id bigint, pad text); CREATE INDEX ON long (pad)");
    host.psql("CHECKPOINT");
    for _ in 0..4 * hundred_thousand_rows {
        // Small records in random places of an index: much to replay, quickly written, on a busy computer too.
        host.psql("INSERT INTO long SELECT n, md5(random()::text) FROM generate_series(1, 25000) n");
    }
}
