//! L8: a prepared transaction that nobody finishes keeps its locks and old rows.

use std::time::Duration;

use super::{End, Staged};

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "L8",
    name: "prepared transaction that nobody finishes",
    imitates: "a transaction manager that died between its two phases",
    is_not: "a transaction that is just being finished",
    prepare: |host| {
        host.configure("[health]\nprepared_transaction_warn = \"1s\"\n");
        host.psql("ALTER SYSTEM SET max_prepared_transactions = 2");
        host.sh(&format!("systemctl restart {}", host.unit()));
        Box::new(())
    },
    inject: |host, _| Box::new(host.psql("BEGIN; CREATE TABLE prepared (id int); PREPARE TRANSACTION 'forgotten'")),
    end: End::Told("prepared_transactions", "critical"),
    deadline: Duration::from_secs(180),
}];
