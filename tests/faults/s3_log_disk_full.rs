//! S3: the volume of the server log is full. The server goes on and says nothing any more; its log is no witness then.
use std::time::Duration;

use super::{End, Staged};
use crate::{Disk, Host};

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "S3",
    name: "volume of the server log full",
    imitates: "a log that nobody rotates",
    is_not: "a server that cannot start for it",
    prepare: |host| Box::new(inject(host)),
    inject: |_, _| Box::new(()),
    end: End::Told("disk_log", "critical"),
    deadline: Duration::from_secs(180),
}];

/// Moves the log of the cluster to a small disk, which is full from then on.
pub fn inject(host: &Host) -> Disk {
    let (unit, folder) = (host.unit(), "/var/log/postgresql");
    host.operator_stops(&unit);
    let disk = host.attach_disk(folder, 16);
    host.sh(&format!("chown root:postgres {folder} && chmod 1775 {folder} && systemctl start {unit}"));
    host.wait_until_accepting(std::time::Duration::from_secs(60));
    host.run(&format!("head -c 50M /dev/zero >{folder}/rest"));
    disk
}
