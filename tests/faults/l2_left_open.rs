//! L2: a transaction that a client has left open, for whose lock others wait.

use std::time::Duration;

use super::{End, Staged, l1_connection_storm, session};

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "L2",
    name: "transaction left open, idle_in_transaction = \"act\"",
    imitates: "an application that forgets its COMMIT",
    is_not: "a session that is at work, or nobody waits for: it is left alone",
    prepare: |host| {
        l1_connection_storm::prepare(host, &["shop"]);
        let act = "idle_in_transaction = \"act\"\nidle_in_transaction_for = \"10s\"\nlock_queue = \"off\"";
        Box::new(session::configure(host, act))
    },
    inject: |host, _| {
        host.psql("GRANT ALL ON ledger TO shop");
        host.run_as_unit(
            "open",
            "postgres",
            "(echo 'BEGIN; LOCK TABLE ledger IN EXCLUSIVE MODE;'; sleep 600) | PGAPPNAME=open psql -X -U shop -d postgres",
        );
        Box::new(())
    },
    end: End::Healed(None),
    deadline: Duration::from_secs(90),
}];
