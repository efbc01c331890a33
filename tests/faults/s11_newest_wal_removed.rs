//! S11: the newest WAL segment is lost in a crash ("old logs" tidied away, a disk that lied about a flush). PostgreSQL
//! cannot tell that from the end of WAL: it starts, and acknowledged commits are silently gone.
use std::time::Duration;

use super::{End, Staged};
use crate::Host;

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "S11",
    name: "newest WAL segment lost in a crash",
    imitates: "\"old logs\" tidied away, a disk that lied about a flush",
    is_not: "WAL from before the last checkpoint, which no start needs",
    prepare: |_| Box::new(()),
    inject: |host, _| Box::new(inject(host, || wait_until_recorded(host))),
    end: End::OnRecord("manual", 0),
    deadline: Duration::from_secs(60),
}];

/// The flushed position is recorded once a second; only what was recorded can be missed.
pub fn wait_until_recorded(host: &Host) {
    let recorded = host.file(&format!("/run/pg-recovery/evidence/{}-main.json", host.version()));
    let position = || serde_json::from_str::<serde_json::Value>(&recorded.read()).ok()?["flush_lsn"].as_u64();
    let flushed: u64 = host.psql("SELECT pg_current_wal_flush_lsn() - '0/0'").parse().expect("a number");
    host.wait_until("the position is recorded", Duration::from_secs(60), || position() >= Some(flushed));
}

/// Commits a row into a new segment, then removes that segment, and the server dies. Returns the lost row's id
/// in the table `tail`, and the path of a copy of the segment, as an archive would have it.
pub fn inject(host: &Host, before_the_crash: impl FnOnce()) -> (i64, String) {
    host.psql("CREATE TABLE IF NOT EXISTS tail (id bigint)");
    host.psql("CHECKPOINT");
    host.psql("SELECT pg_switch_wal()");
    host.psql("INSERT INTO tail VALUES (1)");
    let segment = host.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    let path = format!("{}/pg_wal/{segment}", host.data_directory());
    let copy = format!("/var/lib/postgresql/{segment}.kept");
    before_the_crash();
    host.server_dies_while(&format!("cp -a {path} {copy} && rm {path}"));
    (1, copy)
}
