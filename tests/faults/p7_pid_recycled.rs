//! P7: after a power cut the pid in postmaster.pid belongs to another process of postgres. A unit that starts before the
//! cluster writes its own pid into line 1 of the file that the power cut left behind.

use std::time::Duration;

use super::Fault;
use crate::Host;

/// See [`super::all`].
pub const FAULTS: &[Fault] = &[Fault {
    class: "P7",
    name: "pid of postmaster.pid given to another process",
    imitates: "a reboot after which pids are handed out anew",
    is_not: "two servers on one data directory",
    is_recorded: true,
    inject: |host| {
        inject_with_postgres_in_its_command_line(host);
    },
    keeps_postmaster: false,
    deadline: Duration::from_secs(60),
}];

const SQUATTER: &str = "squatter.service";

/// The pid is that of a `sleep`. Debian's pg_ctlcluster removes such a file by itself. Returns the innocent pid.
pub fn inject(host: &Host) -> i32 {
    boot_with(host, "/usr/bin/sleep infinity")
}

/// The process has the word postgres in its command line, as somebody's `tail` has: pg_ctlcluster then takes it for the
/// running cluster and will not start. Returns the innocent pid.
pub fn inject_with_postgres_in_its_command_line(host: &Host) -> i32 {
    boot_with(host, "/usr/bin/tail -F /var/log/postgres.log")
}

fn boot_with(host: &Host, command: &str) -> i32 {
    let file = format!("{}/postmaster.pid", host.data_directory());
    let unit = format!(
        "[Unit]\nDescription=A process that got a recycled pid\nBefore={cluster}\n\
         [Service]\nUser=postgres\nExecStart={command}\nExecStartPost=/bin/sed -i '1s/.*/${{MAINPID}}/' {file}\n\
         [Install]\nWantedBy=multi-user.target\n",
        cluster = host.unit(),
    );
    host.file(&format!("/etc/systemd/system/{SQUATTER}")).write(unit);
    host.sh(&format!("systemctl enable {SQUATTER}"));
    host.power_cut_and_boot();
    host.property_of(SQUATTER, "MainPID").parse().expect("systemd knows the pid")
}
