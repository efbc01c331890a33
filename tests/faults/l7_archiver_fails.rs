//! L7: archive_command fails.

use std::time::Duration;

use super::{End, Staged};

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "L7",
    name: "archive_command that fails",
    imitates: "an archive that is full or cannot be reached",
    is_not: "an archiver that is only slow",
    prepare: |host| {
        host.psql("ALTER SYSTEM SET archive_mode = on");
        host.psql("ALTER SYSTEM SET archive_command = 'true'");
        host.sh(&format!("systemctl restart {}", host.unit()));
        Box::new(())
    },
    inject: |host, _| {
        host.psql("ALTER SYSTEM SET archive_command = 'false'");
        host.psql("SELECT pg_reload_conf()");
        host.psql("SELECT pg_logical_emit_message(true, 'fact', 'x'); SELECT pg_switch_wal()");
        Box::new(())
    },
    end: End::Told("archiver", "warning"),
    deadline: Duration::from_secs(180),
}];
