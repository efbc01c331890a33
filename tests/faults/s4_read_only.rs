//! S4: the kernel finds an error on the disk and makes the file system read-only (`errors=remount-ro`, as Debian's installer
//! sets it). An administrator's `mount -o remount,ro` is another thing: the kernel refuses it while files are open to write.
use std::time::Duration;

use super::{End, Staged};
use crate::{Disk, Host};

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[
    Staged {
        class: "S4",
        name: "file system turned read-only",
        imitates: "an error of the disk, after which the kernel does that",
        is_not: "mount -o remount,ro by an administrator, which the kernel refuses while files are open",
        prepare: |host| Box::new(prepare(host)),
        inject: |_, disk| {
            inject(disk.downcast_ref().expect("it is a disk"));
            Box::new(())
        },
        end: End::OnRecord("manual", 0),
        deadline: Duration::from_secs(180),
    },
    Staged {
        class: "S4",
        name: "file system turned read-only, and the postmaster killed",
        imitates: "the same, and a server that ends of it",
        is_not: "mount -o remount,ro by an administrator, which the kernel refuses while files are open",
        prepare: |host| Box::new(prepare(host)),
        inject: |host, disk| {
            inject(disk.downcast_ref().expect("it is a disk"));
            host.run(&format!("kill -KILL {}", host.postmaster_pid()));
            Box::new(())
        },
        end: End::OnRecord("manual", 0),
        deadline: Duration::from_secs(180),
    },
];

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
