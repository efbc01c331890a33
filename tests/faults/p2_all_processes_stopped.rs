//! P2, the whole server: every process of the cluster hangs, as on storage that gives no answer: SIGSTOP to all of them.

use std::time::Duration;

use super::Fault;
use crate::{Host, Signal};

/// See [`super::all`].
pub const FAULTS: &[Fault] = &[Fault {
    class: "P2",
    name: "all processes stopped by a signal",
    imitates: "a whole server that hangs",
    is_not: "a frozen control group, or storage without an answer (state D)",
    is_recorded: true,
    inject: |host| {
        inject(host);
    },
    keeps_postmaster: true,
    deadline: Duration::from_secs(30),
}];

/// Stops the postmaster and its children, and returns their pids in the machine, the postmaster's first.
pub fn inject(host: &Host) -> Vec<i32> {
    let postmaster = host.postmaster_pid();
    // A lock file that was replaced may name systemd, whose children are all there is.
    let name = host.file(&format!("/proc/{postmaster}/comm")).read();
    assert_eq!(name.trim(), "postgres", "postmaster.pid names {postmaster}");
    // The postmaster first: it must not start children while they are being counted.
    host.signal(postmaster, Signal::SIGSTOP);
    let children = host.sh(&format!("pgrep -P {postmaster}"));
    let children = children.lines().map(|line| line.parse().expect("pgrep prints pids"));
    let all: Vec<i32> = std::iter::once(postmaster).chain(children).collect();
    for child in &all[1..] {
        host.signal(*child, Signal::SIGSTOP);
    }
    all
}
