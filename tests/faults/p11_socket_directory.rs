//! P11: the socket directory /run/postgresql is gone or cannot be written, and the cluster is restarted.

use crate::{Host, Output};

/// Removes the directory and restarts.
pub fn inject_missing(host: &Host) -> Output {
    host.sh("rm -r /run/postgresql");
    restart(host)
}

/// Takes the write permission away and restarts.
pub fn inject_unwritable(host: &Host) -> Output {
    host.sh("chmod 500 /run/postgresql");
    restart(host)
}

fn restart(host: &Host) -> Output {
    host.run(&format!("systemctl restart {}", host.unit()))
}
