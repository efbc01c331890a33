//! L5: the transaction ids of a server run out, because something keeps VACUUM from freezing old rows: a prepared transaction
//! that everybody forgot, and many millions of transactions since. pg_resetwal does the latter, on a server that was stopped
//! cleanly, and only a test may do that.
use std::time::Duration;

use super::{End, Staged};
use crate::Host;

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "L5",
    name: "transaction ids that run out",
    imitates: "a prepared transaction that everybody forgot",
    is_not: "ids that VACUUM is just making young",
    prepare: |_| Box::new(()),
    inject: |host, _| Box::new(inject(host, 1_200_000_000)),
    end: End::Told("xid_age", "critical"),
    deadline: Duration::from_secs(180),
}];

/// The name of the transaction.
pub const FORGOTTEN: &str = "forgotten";
/// Those that fit into one file of pg_xact.
const IDS_IN_FILE: u64 = 1 << 20;

/// Leaves the server with a next transaction id that is at least so many further on.
pub fn inject(host: &Host, ids: u64) {
    host.psql("ALTER SYSTEM SET max_prepared_transactions = 5");
    restart(host, || {});
    host.psql(&format!(
        "CREATE TABLE held (id int); BEGIN; INSERT INTO held VALUES (1); PREPARE TRANSACTION '{FORGOTTEN}'"
    ));
    restart(host, || {
        let (data, pg_resetwal) = (host.data_directory(), host.main_cluster().program("pg_resetwal"));
        let file = ids.div_ceil(IDS_IN_FILE);
        let next = file * IDS_IN_FILE;
        // The server looks there for the fate of the next one.
        let make = format!("dd if=/dev/zero of={data}/pg_xact/{file:04X} bs=256k count=1 status=none");
        assert!(host.as_postgres(&format!("{make} && {pg_resetwal} -x {next} -D {data}")).success());
    });
}

fn restart(host: &Host, between: impl FnOnce()) {
    host.sh(&format!("pg-recover pause 1h lab && systemctl stop {}", host.unit()));
    between();
    host.sh(&format!("systemctl start {} && pg-recover resume", host.unit()));
    host.wait_until_accepting(Duration::from_secs(60));
}
