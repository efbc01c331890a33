//! S5: the disk takes no more writes, or what is on it cannot be read: the kernel reports I/O errors. A disk that is full says
//! so before it takes anything (S1, S2); one that hangs reports nothing.
use std::time::Duration;

use super::{End, Staged};
use crate::{Disk, Host};

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[
    Staged {
        class: "S5",
        name: "flushes that fail",
        imitates: "a disk that takes no more writes",
        is_not: "a disk that hangs and reports nothing",
        prepare: |host| Box::new(prepare_flushes(host)),
        inject: |host, _| Box::new(inject_flushes(host)),
        end: End::OnRecord("manual", 1),
        deadline: Duration::from_secs(180),
    },
    Staged {
        class: "S5",
        name: "table that cannot be read from its disk",
        imitates: "bad sectors",
        is_not: "a disk that hangs and reports nothing",
        prepare: |_| Box::new(()),
        inject: |host, _| {
            let disk = inject_reads(host);
            host.wait_until_accepting(Duration::from_secs(60));
            let answer = host.try_psql("SELECT sum(id) FROM far");
            assert!(answer.stderr.contains("Input/output error"), "{answer}");
            Box::new(disk)
        },
        end: End::Told("damage", "critical"),
        deadline: Duration::from_secs(180),
    },
];

const FLAG: &str = "/run/sick-disk";
const LIBRARY: &str = "/usr/lib/sick-disk.so";

/// Starts the cluster again so that its flushes can fail later.
pub fn prepare_flushes(host: &Host) {
    host.install_library(LIBRARY, include_str!("s5_disk_error.c"));
    host.file(&format!("{}/environment", host.configuration_directory())).append(&format!("LD_PRELOAD = '{LIBRARY}'"));
    host.sh(&format!("systemctl restart {}", host.unit()));
}

/// Each flush fails from now on, and nothing else.
pub fn inject_flushes(host: &Host) {
    host.file(FLAG).write("");
}

/// The same for the file of this table only, and for the checkpointer: crash recovery itself goes well, and the checkpoint at its
/// end does not, for ever. The startup process flushes what it replays only where it is there before the checkpointer.
pub fn inject_flushes_of(host: &Host, table: &str) {
    host.file(FLAG).write(host.psql(&format!("SELECT pg_relation_filepath('{table}')")));
    host.try_psql("CHECKPOINT");
}

/// The disk is in order again.
pub fn end_flushes(host: &Host) {
    host.file(FLAG).remove();
}

/// Moves the data directory to a thin volume whose pool has less room than it promises.
pub fn prepare_writes(host: &Host) -> Disk {
    let disk = host.move_data_to_thin_disk(600, 190);
    // What the move has only written to memory would be lost with the first error.
    host.sh(&format!("sync -f {}", disk.mount_point()));
    disk
}

/// Writes until the pool is full; the file system itself has room.
pub fn inject_writes(host: &Host) {
    host.psql("CREATE TABLE filler (line text)");
    host.wait_until("the pool is full", std::time::Duration::from_secs(120), || {
        let write = "INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 8000); CHECKPOINT";
        !host.try_psql(write).success()
    });
}

/// Makes a table `far` on a disk of its own, of which nothing can be read any more: not by the server either, whose
/// memory is empty again.
pub fn inject_reads(host: &Host) -> Disk {
    let disk = host.attach_disk("/far", 60);
    host.sh("install -d -o postgres -g postgres -m 700 /far/own");
    host.psql("CREATE TABLESPACE far LOCATION '/far/own'");
    host.psql("CREATE TABLE far TABLESPACE far AS SELECT generate_series(1, 50000) AS id");
    let path = format!("{}/{}", host.data_directory(), host.psql("SELECT pg_relation_filepath('far')"));
    let unit = host.unit();
    host.sh(&format!(
        "systemctl stop {unit}; sync; dd of={path} oflag=nocache conv=notrunc,fdatasync count=0 status=none"
    ));
    disk.lose_content();
    host.sh(&format!("systemctl start {unit}"));
    disk
}
