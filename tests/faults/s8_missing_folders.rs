//! S8: a copy that leaves empty folders out (git, an object store), or a person who tidies up, and then a crash.

use std::time::Duration;

use super::{End, Fault, Staged};
use crate::Host;

/// See [`super::all`].
pub const FAULTS: &[Fault] = &[Fault {
    class: "S8",
    name: "empty folders removed, and the postmaster killed",
    imitates: "a copy that leaves empty folders out",
    is_not: "folders with content, which are left to a person",
    is_recorded: true,
    inject: |host| {
        host.sh("rm -rf /var/lib/postgresql/kept");
        inject(host, &["pg_notify", "pg_subtrans", "pg_dynshmem"]);
    },
    keeps_postmaster: false,
    deadline: Duration::from_secs(60),
}];

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "S8",
    name: "folder with content removed, and the postmaster killed",
    imitates: "a person who tidies up",
    is_not: "folders that hold nothing across a restart, which are made anew",
    prepare: |_| Box::new(()),
    inject: |host, _| Box::new(inject(host, &["pg_twophase"])),
    end: End::OnRecord("manual", 0),
    deadline: Duration::from_secs(60),
}];

/// Removes these folders of the data directory, with what is in them, and the server dies. They are kept
/// beside the data directory.
pub fn inject(host: &Host, folders: &[&str]) {
    let (data, aside) = (host.data_directory(), "/var/lib/postgresql/kept");
    host.server_dies_while(&format!("mkdir -p {aside} && cd {data} && mv {} {aside}/", folders.join(" ")));
}
