//! S2: the disk with pg_wal fills up while clients write: PANIC, a restart that fails, and a server that stays down.
use std::time::Duration;

use super::{End, Staged};
use crate::{Disk, Host};

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "S2",
    name: "volume of pg_wal full",
    imitates: "WAL that is kept, or files of somebody else",
    is_not: "a volume on which there was never room for a ballast file",
    prepare: |host| {
        let disk = host.move_data_to_disk(400);
        let ballast = format!("{}/pgsql_tmp.pg-recovery-ballast", host.data_directory());
        host.wait_until("room is kept", Duration::from_secs(60), || host.file(&ballast).exists());
        Box::new(disk)
    },
    inject: |host, _| Box::new(fill(host)),
    end: End::Healed(None),
    deadline: Duration::from_secs(60),
}];

/// Moves the data directory to a disk of 160 MiB and writes until there is no room left for WAL. The server is then down.
pub fn inject(host: &Host) -> Disk {
    let disk = host.move_data_to_disk(160);
    fill(host);
    host.wait_for_state(&host.unit(), "failed", Duration::from_secs(60));
    disk
}

/// Writes until the server stops for want of room.
pub fn fill(host: &Host) {
    // Somebody else's file takes what PostgreSQL would have needed; WAL is kept instead of being recycled.
    host.psql("ALTER SYSTEM SET wal_keep_size = '10GB'");
    host.psql("SELECT pg_reload_conf()");
    host.psql("CREATE TABLE filler (line text)");
    host.wait_until("the disk is full", Duration::from_secs(120), || {
        let write = "INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 8000); SELECT pg_switch_wal()";
        !host.try_psql(write).success()
    });
}
