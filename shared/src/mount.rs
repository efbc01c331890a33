//! Which file systems of this host take no writes.

use nix::sys::stat::{major, minor};

/// What is mounted, as /proc/self/mountinfo had it at one moment.
#[derive(Debug)]
pub struct Mounts(String);

impl Mounts {
    pub fn now() -> Mounts {
        Mounts(std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
    }

    /// Whether the file system itself is read-only. The flag that statvfs(3) has would not do: the sandbox of a unit mounts
    /// for that unit alone. The last field of mountinfo has the options of the file system, also ext4's `emergency_ro`
    /// (proc_pid_mountinfo(5)). `device` is the `st_dev` of something on it; btrfs, whose subvolumes have others than
    /// mountinfo says, counts as writable.
    pub fn is_read_only(&self, device: u64) -> bool {
        let id = format!("{}:{}", major(device), minor(device));
        self.0
            .lines()
            .filter(|line| line.split(' ').nth(2) == Some(id.as_str()))
            .filter_map(|line| line.rsplit(' ').next())
            .any(|options| options.split(',').any(|o| o == "ro" || o == "emergency_ro"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_went_read_only_is_told_apart_from_a_sandbox() {
        let is_read_only = |mount: &str, options: &str| {
            let line = format!("22 1 8:1 / / {mount} shared:1 - ext4 /dev/sda1 {options}\n");
            Mounts(format!("{line}23 1 8:2 / /x ro - ext4 /dev/b rw\n")).is_read_only(nix::sys::stat::makedev(8, 1))
        };
        assert!(!is_read_only("ro,nosuid", "rw,errors=remount-ro"));
        assert!(is_read_only("rw", "ro,errors=remount-ro"));
        assert!(is_read_only("rw", "rw,emergency_ro"));
    }
}
