//! P6: after a power cut postmaster.pid is there but of no use: of a dead process, empty, or garbage. The power is cut, the
//! file is written on the bare disk, and the machine boots again. (After a mere crash of the server no file is left: the
//! unit's ExecStop removes it.) PostgreSQL refuses to start with such a file; Debian's pg_ctlcluster removes it first.

use std::time::Duration;

use super::Fault;
use crate::Host;

/// See [`super::all`].
pub const FAULTS: &[Fault] = &[
    Fault {
        class: "P6",
        name: "empty postmaster.pid after a power cut",
        imitates: "a file system that lost the data of a new file",
        is_not: "a running server whose file is emptied",
        is_recorded: false,
        inject: inject_empty,
        keeps_postmaster: false,
        deadline: Duration::from_secs(60),
    },
    Fault {
        class: "P6",
        name: "garbage in postmaster.pid after a power cut",
        imitates: "a file system that mixed up blocks",
        is_not: "a running server whose file is replaced",
        is_recorded: false,
        inject: inject_garbage,
        keeps_postmaster: false,
        deadline: Duration::from_secs(60),
    },
];

/// Leaves the file of the postmaster that died with the power: a server removes such a file itself.
pub fn inject_stale(host: &Host) {
    host.power_cut_and_boot();
}

/// Leaves an empty file, as a file system does that lost the data of a new file.
pub fn inject_empty(host: &Host) {
    boot_with(host, "");
}

/// Leaves a file without a pid in it.
pub fn inject_garbage(host: &Host) {
    boot_with(host, "xyz\n");
}

fn boot_with(host: &Host, content: &str) {
    let path = format!("{}/postmaster.pid", host.data_directory());
    host.cut_power();
    host.file(&path).write(content);
    host.boot_again();
}
