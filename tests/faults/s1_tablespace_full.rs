//! S1: the volume of a tablespace is full. Whoever writes there gets an error, everybody else is served on; a full volume of pg_wal
//! is another thing (S2).

use std::time::Duration;

use crate::{Disk, Host};

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
