//! L4: a statement whose temporary files fill the volume of the data directory.

use std::time::Duration;

use super::{End, Staged, l1_connection_storm, session};
use crate::{Disk, Host};

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "L4",
    name: "temporary files that fill the volume, temporary_files = \"act\"",
    imitates: "a report that joins everything with everything",
    is_not: "a volume that is full of other things (S1, S2)",
    prepare: |host| {
        l1_connection_storm::prepare(host, &["shop"]);
        Box::new(prepare(host))
    },
    inject: |host, _| Box::new(inject(host)),
    end: End::OnRecord("recovered", 0),
    deadline: Duration::from_secs(90),
}];

const SOON: Duration = Duration::from_secs(60);

/// Moves the data directory to a small disk, on which this package keeps no room, and has the watchdog act.
pub fn prepare(host: &Host) -> Disk {
    session::configure(host, "temporary_files = \"act\"\n[recover]\nballast = \"0B\"");
    host.move_data_to_disk(256)
}

/// A session of `shop` whose statement leaves less than a tenth of the disk; it lives on after its statement. Returns when it runs.
pub fn inject(host: &Host) {
    let (used, room) = space(host);
    let rows = (room * 92 / 100 - used) / 8000;
    let sql = format!(
        "WITH x AS MATERIALIZED (SELECT repeat('x', 8000) FROM generate_series(1, {rows})) SELECT (SELECT count(*) FROM x), pg_sleep(600);"
    );
    let command = format!("(echo \"{sql}\"; sleep 600) | PGAPPNAME=spill psql -X -U shop -d postgres");
    host.run_as_unit("spill", "postgres", &command);
    let there = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'spill'";
    host.wait_until("the session is there", SOON, || host.psql(there) == "1");
}

/// Bytes of the disk that are used, and that there are for everybody.
pub fn space(host: &Host) -> (u64, u64) {
    let text = host.sh(&format!("df --output=used,avail -B1 {} | tail -1", host.data_directory()));
    let numbers: Vec<u64> = text.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    (numbers[0], numbers[0] + numbers[1])
}
