//! L6: a replication slot whose reader is gone keeps WAL.

use std::time::Duration;

use super::{End, Staged};

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "L6",
    name: "replication slot that nobody reads",
    imitates: "a standby that was given up, its slot not",
    is_not: "a reader that is a little behind",
    prepare: |host| {
        host.configure("[health]\nslot_warn = \"20MB\"\nslot_fail = \"60MB\"\n");
        Box::new(())
    },
    inject: |host, _| {
        host.psql("SELECT pg_create_physical_replication_slot('forgotten', true)");
        for _ in 0..5 {
            host.psql("SELECT pg_logical_emit_message(true, 'fact', 'x'); SELECT pg_switch_wal()");
        }
        Box::new(())
    },
    end: End::Told("slots", "critical"),
    deadline: Duration::from_secs(180),
}];
