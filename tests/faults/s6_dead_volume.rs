//! S6, a volume that never answers: a FUSE file system that nobody serves. Whoever touches a path on it waits.

use crate::Host;

/// Mounts one over this folder; it goes when the unit `dead-volume` is stopped.
pub fn inject(host: &Host, folder: &str) {
    let options = "fd=3,rootmode=40000,user_id=0,group_id=0,allow_other";
    let command = format!(
        "test -c /dev/fuse || mknod /dev/fuse c 10 229; exec 3<>/dev/fuse; mount -i -t fuse dead {folder} -o {options}; exec sleep infinity"
    );
    host.run_as_unit("dead-volume", "root", &command);
    host.wait_until("the volume is mounted", std::time::Duration::from_secs(60), || {
        host.run(&format!("grep -q ' {folder} fuse' /proc/mounts")).success()
    });
}
