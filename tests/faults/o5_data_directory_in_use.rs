//! O5: the cluster is stopped because another program works on its data directory: a cold copy with tar.

use std::time::Duration;

use crate::Host;

/// Stops the cluster and starts a tar of the data directory that never gets rid of what it has read: it keeps the directory
/// as its own and a file of it open. Returns its pid.
pub fn inject(host: &Host) -> i32 {
    host.operator_stops(&host.unit());
    let command = format!("cd {} && tar -cf - . | sleep infinity", host.data_directory());
    host.run_as_unit("cold-copy", "root", &command);
    let mut tar = None;
    host.wait_until("tar is at work", Duration::from_secs(10), || {
        tar = host.run("pgrep -x tar").stdout.trim().parse().ok();
        tar.is_some_and(|pid: i32| host.run(&format!("ls -l /proc/{pid}/fd")).stdout.contains(&host.data_directory()))
    });
    tar.expect("tar was found")
}
