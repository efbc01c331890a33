//! L9: commits wait for a synchronous standby that is not there.

use std::time::Duration;

use super::{End, Staged};

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "L9",
    name: "synchronous standby missing",
    imitates: "a standby that is down",
    is_not: "our own synchronous stream, which is taken off the list by its own unit",
    prepare: |_| Box::new(()),
    inject: |host, _| {
        host.psql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
        host.psql("SELECT pg_reload_conf()");
        Box::new(())
    },
    end: End::Told("synchronous_standby", "critical"),
    deadline: Duration::from_secs(180),
}];
