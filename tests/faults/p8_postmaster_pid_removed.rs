//! P8: somebody removes or overwrites postmaster.pid of a running server ("it was stale"): within a minute the server notices and shuts
//! itself down as if told to.

use crate::Host;

/// Empties the file.
pub fn inject_emptied(host: &Host) {
    host.sh(&format!(": > {}/postmaster.pid", host.data_directory()));
}

/// Puts another in its place, as a restored backup brings one along: its pid is a stranger's.
pub fn inject_replaced(host: &Host) {
    let file = format!("{}/postmaster.pid", host.data_directory());
    host.sh(&format!("sed '1s/.*/1/' {file} > {file}.new && chown postgres: {file}.new && mv {file}.new {file}"));
}

/// Removes the file, and returns the pid that was in it.
pub fn inject(host: &Host) -> i32 {
    let postmaster = host.postmaster_pid();
    host.file(&format!("{}/postmaster.pid", host.data_directory())).remove();
    postmaster
}
