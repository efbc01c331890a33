//! L3: a reader, a statement that wants the table for itself and waits for the reader, and everybody else behind that.

use std::time::Duration;

use super::{End, Staged, l1_connection_storm, session};

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "L3",
    name: "queue for a lock, lock_queue = \"act\"",
    imitates: "ALTER TABLE in the middle of the day, behind a long report",
    is_not: "a few who wait for a moment: they are left alone",
    prepare: |host| {
        l1_connection_storm::prepare(host, &["shop"]);
        Box::new(session::configure(host, "lock_queue = \"act\""))
    },
    inject: |host, _| {
        host.psql("ALTER TABLE ledger OWNER TO shop");
        for (unit, sql) in [("report", "SELECT id, pg_sleep(600) FROM ledger"), ("ddl", "ALTER TABLE ledger ADD n int")]
        {
            host.run_as_unit(
                unit,
                "postgres",
                &format!("PGAPPNAME={unit} exec psql -X -U shop -d postgres -c '{sql}'"),
            );
            let runs =
                format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{unit}' AND state = 'active'");
            host.wait_until("it runs its statement", Duration::from_secs(30), || host.psql(&runs) == "1");
        }
        Box::new(())
    },
    end: End::Healed(None),
    deadline: Duration::from_secs(120),
}];
