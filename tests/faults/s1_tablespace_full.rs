//! S1: the volume of a tablespace is full. Whoever writes there gets an error, everybody else is served on; a full volume of pg_wal
//! is another thing (S2).
use std::time::Duration;

use super::{End, Staged};
use crate::{Disk, Host};

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "S1",
    name: "volume of a tablespace full",
    imitates: "data that outgrows its disk",
    is_not: "a full volume of pg_wal (S2)",
    prepare: |_| Box::new(()),
    inject: |host, _| Box::new(inject(host)),
    end: End::Told("disk_tablespace", "critical"),
    deadline: Duration::from_secs(180),
}];

/// Makes a table `far` on a small disk of its own and writes to it until there is no room.
pub fn inject(host: &Host) -> Disk {
    let disk = host.attach_disk("/far", 60);
    host.sh("install -d -o postgres -g postgres -m 700 /far/own");
    host.psql("CREATE TABLESPACE far LOCATION '/far/own'");
    host.psql("CREATE TABLE far (line text) TABLESPACE far");
    host.wait_until("the disk is full", Duration::from_secs(60), || {
        let answer = host.try_psql("INSERT INTO far SELECT repeat('x', 1000) FROM generate_series(1, 8000)");
        answer.stderr.contains("No space left on device")
    });
    // What a failed statement had taken is given back.
    host.run("fallocate -l 50M /far/rest; head -c 50M /dev/zero >/far/rest");
    disk
}
