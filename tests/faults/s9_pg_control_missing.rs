//! S9: pg_control is lost together with the power.

use crate::Host;

/// Cuts the power, removes the file from the bare disk, and boots.
pub fn inject(host: &Host) {
    let path = format!("{}/global/pg_control", host.data_directory());
    host.cut_power();
    host.file(&path).remove();
    host.boot_again();
}
