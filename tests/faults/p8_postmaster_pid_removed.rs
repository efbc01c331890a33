//! P8: somebody removes postmaster.pid of a running server ("it was stale"): within a minute the server notices and shuts
//! itself down as if told to.

use crate::Host;

/// Removes the file, and returns the pid that was in it.
pub fn inject(host: &Host) -> i32 {
    let postmaster = host.postmaster_pid();
    host.file(&format!("{}/postmaster.pid", host.data_directory())).remove();
    postmaster
}
