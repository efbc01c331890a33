//! Not a fault: a client session that faults are done to.

use std::time::Duration;

use crate::Host;

/// Opens a session that runs this SQL, as a unit and an application of this name.
pub fn open(host: &Host, name: &str, sql: &str) {
    let command = format!("PGAPPNAME={name} exec psql -X -d postgres -c \"{sql}\"");
    host.run_as_unit(name, "postgres", &command);
    let query =
        format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}' AND query LIKE '%{sql}%'");
    host.wait_until("the session runs its statement", Duration::from_secs(20), || {
        host.try_psql(&query).stdout.trim() == "1"
    });
}

/// Has the watchdog look after sessions this way: keys of `[watchdog.sessions]`, and sections after it.
pub fn configure(host: &Host, toml: &str) {
    let times = || host.journal_of("pg-watchdog").count("the configuration was read again");
    let before = times();
    host.configure(&format!("[watchdog.sessions]\n{toml}\n"));
    host.sh("systemctl reload pg-watchdog");
    host.wait_until("the configuration is in force", Duration::from_secs(60), || times() > before);
}

/// The pid of the session's backend, in the machine.
pub fn backend_of(host: &Host, name: &str) -> i32 {
    let pid = host.psql(&format!("SELECT pid FROM pg_stat_activity WHERE application_name = '{name}'"));
    pid.parse().expect("a pid is a number")
}
