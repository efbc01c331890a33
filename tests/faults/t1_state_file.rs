//! T1: the state of the tools themselves is damaged, or cannot be written.

use crate::{Host, Output};

/// Where all state is.
pub const STATE: &str = "/var/lib/pg-recovery";

/// Cuts a state file in half, as a crash without fsync does.
pub fn inject_torn(host: &Host, path: &str) {
    let file = host.file(path);
    let bytes = file.read_bytes();
    file.write(&bytes[..bytes.len() / 2]);
}

/// Empties a state file, as a file system does that lost the data of a new file.
pub fn inject_empty(host: &Host, path: &str) {
    host.file(path).write("");
}

/// Puts all state on a file system of its own that has no block left.
pub fn inject_disk_full(host: &Host) {
    move_to_own_file_system(host);
    // dd ends with "No space left on device": that is the point.
    host.run(&format!("dd if=/dev/zero of={STATE}/filler bs=4k; dd if=/dev/zero of={STATE}/filler2 bs=1"));
}

/// Puts all state on a file system of its own that is read-only.
pub fn inject_read_only(host: &Host) {
    move_to_own_file_system(host);
    host.sh(&format!("mount -o remount,ro {STATE}"));
}

/// Makes ready for [`run_while_it_fills_up`].
pub fn prepare(host: &Host) {
    host.install_library("/usr/lib/full.so", include_str!("t1_state_disk_full.c"));
}

/// Runs pg-recover, for which the disk with the state is full from its n-th use of it on. Nothing if it does not use it so often.
pub fn run_while_it_fills_up(host: &Host, after: u32) -> Option<Output> {
    host.sh("rm -f /run/was-full");
    let output = host.run(&format!("FULL_IN={STATE}/ FULL_AFTER={after} LD_PRELOAD=/usr/lib/full.so pg-recover"));
    host.file("/run/was-full").exists().then_some(output)
}

fn move_to_own_file_system(host: &Host) {
    host.sh(&format!(
        "mkdir -p {STATE} && mount -t tmpfs -o size=256k,mode=755 tmpfs /mnt && cp -a {STATE}/. /mnt && mount --move /mnt {STATE} 2>/dev/null \
         || (mount --bind /mnt {STATE} && umount /mnt)"
    ));
}
