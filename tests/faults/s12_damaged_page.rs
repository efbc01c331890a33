//! S12, S13: a page of a table or an index is damaged on the disk, as by a controller that wrote something else there, or never
//! wrote it. The server notices when it reads the page, for which its memory has to be empty.
use std::time::Duration;

use super::{End, Staged};
use crate::Host;

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[
    Staged {
        class: "S12",
        name: "page of a table damaged",
        imitates: "a controller that wrote something else there",
        is_not: "a page that nobody reads, which only a backup meets",
        prepare: |host| Box::new(host.psql("CREATE TABLE goods AS SELECT generate_series(1, 50000) AS id")),
        inject: |host, _| {
            inject(host, "goods", 7);
            host.wait_until_accepting(Duration::from_secs(60));
            host.try_psql("SELECT sum(id) FROM goods");
            Box::new(())
        },
        end: End::Told("damage", "critical"),
        deadline: Duration::from_secs(180),
    },
    Staged {
        class: "S13",
        name: "page of an index never written",
        imitates: "a write that the disk lost",
        is_not: "an index whose entries are wrong, which only pg_amcheck finds",
        prepare: |host| {
            host.psql("CREATE TABLE goods AS SELECT generate_series(1, 50000) AS id");
            Box::new(host.psql("CREATE INDEX goods_id ON goods (id)"))
        },
        inject: |host, _| {
            inject_zeros(host, "goods_id", 1);
            host.wait_until_accepting(Duration::from_secs(60));
            host.try_psql("SET enable_seqscan = off; SELECT id FROM goods WHERE id = 1");
            Box::new(())
        },
        end: End::Told("damage", "critical"),
        deadline: Duration::from_secs(180),
    },
];

const PAGE: u64 = 8192;

/// Overwrites a page of this relation; the server is stopped for it, and starts again without complaint.
pub fn inject(host: &Host, relation: &str, block: u64) {
    overwrite(host, relation, &format!("head -c {PAGE} /dev/zero | tr '\\0' '\\252'"), block * PAGE);
}

/// A page was never written: nothing but zeros.
pub fn inject_zeros(host: &Host, relation: &str, block: u64) {
    overwrite(host, relation, &format!("head -c {PAGE} /dev/zero"), block * PAGE);
}

/// 64 bytes in the middle of a page: only a checksum tells.
pub fn inject_bit_rot(host: &Host, relation: &str, block: u64) {
    overwrite(host, relation, "head -c 64 /dev/zero | tr '\\0' '\\252'", block * PAGE + PAGE / 2);
}

fn overwrite(host: &Host, relation: &str, bytes: &str, at: u64) {
    let path = file_of(host, relation);
    host.psql("CHECKPOINT");
    while_stopped(host, &format!("{bytes} | dd of={path} bs=1 seek={at} conv=notrunc status=none"));
}

/// Makes a table `goods`, whose length the catalog has: autovacuum, which would take a new length for the right one, has nothing to do.
pub fn make_goods(host: &Host) {
    host.psql("CREATE TABLE goods AS SELECT generate_series(1, 50000) AS id");
    host.psql("VACUUM ANALYZE goods");
}

/// The first file of a relation.
pub fn file_of(host: &Host, relation: &str) -> String {
    format!("{}/{}", host.data_directory(), host.psql(&format!("SELECT pg_relation_filepath('{relation}')")))
}

/// Stops the server, runs this, starts the server.
pub fn while_stopped(host: &Host, command: &str) {
    let unit = host.unit();
    host.sh(&format!("systemctl stop {unit} && {command} && systemctl start {unit}"));
}
