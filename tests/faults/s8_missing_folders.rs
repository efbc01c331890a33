//! S8: a copy that leaves empty folders out (git, an object store), or a person who tidies up, and then a crash.

use crate::Host;

/// Removes these folders of the data directory, with what is in them, and kills the postmaster in one go. They are kept
/// beside the data directory.
pub fn inject(host: &Host, folders: &[&str]) {
    let (data, aside) = (host.data_directory(), "/var/lib/postgresql/kept");
    host.sh(&format!(
        "mkdir -p {aside} && cd {data} && mv {} {aside}/ && kill -KILL {}",
        folders.join(" "),
        host.postmaster_pid()
    ));
}
