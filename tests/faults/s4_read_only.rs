//! S4: the kernel finds an error on the disk and makes the file system read-only (`errors=remount-ro`, as Debian's installer
//! sets it). An administrator's `mount -o remount,ro` is another thing: the kernel refuses it while files are open to write.

use crate::{Disk, Host};

/// Moves the data directory to a disk on which that can happen.
pub fn prepare(host: &Host) -> Disk {
    let disk = host.move_data_to_disk(400);
    // What the move has only written to memory would be lost with the first error.
    host.sh(&format!("mount -o remount,errors=remount-ro {0} && sync -f {0}", disk.mount_point()));
    disk
}

/// Makes it happen. Whether the server lives on depends on what it does next.
pub fn inject(disk: &Disk) {
    disk.report_an_error();
}
