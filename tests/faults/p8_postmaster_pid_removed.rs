//! P8: somebody removes or overwrites postmaster.pid of a running server ("it was stale"): within a minute the server notices and shuts
//! itself down as if told to.

use std::time::Duration;

use super::Fault;
use crate::Host;

/// See [`super::all`].
pub const FAULTS: &[Fault] = &[
    Fault {
        class: "P8",
        name: "postmaster.pid removed under a running server",
        imitates: "a script that takes it for stale",
        is_not: "a data directory that is gone as a whole",
        is_recorded: true,
        inject: |host| {
            inject(host);
        },
        keeps_postmaster: true,
        deadline: Duration::from_secs(30),
    },
    Fault {
        class: "P8",
        name: "postmaster.pid emptied under a running server",
        imitates: "a careless redirection",
        is_not: "a torn file after a power cut",
        is_recorded: true,
        inject: inject_emptied,
        keeps_postmaster: true,
        deadline: Duration::from_secs(30),
    },
    Fault {
        class: "P8",
        name: "postmaster.pid replaced under a running server",
        imitates: "a restored backup that brings its own",
        is_not: "two servers on one data directory",
        is_recorded: true,
        inject: inject_replaced,
        keeps_postmaster: true,
        deadline: Duration::from_secs(30),
    },
];

/// Waits until the server has just looked after the file itself, as it does once a minute from its start on (ServerLoop in
/// postmaster.c): a look in the very second until it is put back ends the server. True for its first minutes.
pub fn wait_for_its_own_look(host: &Host) {
    let age =
        || host.sh(&format!("ps -o etimes= -p {}", host.postmaster_pid())).trim().parse::<u64>().expect("seconds");
    host.wait_until("the server has looked itself", Duration::from_secs(60), || (8..50).contains(&(age() % 60)));
}

/// Empties the file.
pub fn inject_emptied(host: &Host) {
    wait_for_its_own_look(host);
    host.sh(&format!(": > {}/postmaster.pid", host.data_directory()));
}

/// Puts another in its place, as a restored backup brings one along: its pid is a stranger's.
pub fn inject_replaced(host: &Host) {
    wait_for_its_own_look(host);
    let file = format!("{}/postmaster.pid", host.data_directory());
    host.sh(&format!("sed '1s/.*/1/' {file} > {file}.new && chown postgres: {file}.new && mv {file}.new {file}"));
}

/// Removes the file, and returns the pid that was in it.
pub fn inject(host: &Host) -> i32 {
    wait_for_its_own_look(host);
    let postmaster = host.postmaster_pid();
    host.file(&format!("{}/postmaster.pid", host.data_directory())).remove();
    postmaster
}
