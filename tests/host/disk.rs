//! A disk of a machine: a file outside, a loop device, an ext4 file system mounted inside.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::Host;

/// An ext4 file system of its own, to be filled, broken, or copied at an instant.
pub struct Disk {
    image: PathBuf,
    device: String,
    mount_point: String,
}

impl Disk {
    /// Makes and mounts one; it has to be mounted again after a power cut ([`Disk::mount`]).
    pub(crate) fn attach(host: &Host, mount_point: &str, megabytes: u64) -> Disk {
        let name = mount_point.trim_matches('/').replace('/', "-");
        Disk::of(host, host.outside().join(format!("{name}.img")), mount_point, megabytes)
    }

    /// The same on a thin volume: its pool has room for so many megabytes only, and a write beyond that fails.
    pub(crate) fn attach_thin(host: &Host, mount_point: &str, megabytes: u64, room: u64) -> Disk {
        let name = mount_point.trim_matches('/').replace('/', "-");
        // The reaper unmounts what has this name.
        let pool = host.outside().join(format!("{name}.pool"));
        fs::create_dir_all(&pool).expect("the run folder can be written");
        outside(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={room}M"), "pool"]).arg(&pool));
        Disk::of(host, pool.join("image"), mount_point, megabytes)
    }

    fn of(host: &Host, image: PathBuf, mount_point: &str, megabytes: u64) -> Disk {
        let file = fs::File::create(&image).expect("the run folder can be written");
        file.set_len(megabytes * 1024 * 1024).expect("the run folder has room");
        outside(
            Command::new("mkfs.ext4").args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(&image),
        );
        let device = outside(Command::new("losetup").args(["--find", "--show"]).arg(&image));
        let disk = Disk { image, device: device.trim().to_owned(), mount_point: mount_point.to_owned() };
        disk.mount(host);
        disk
    }

    /// Mounts it where it belongs.
    pub fn mount(&self, host: &Host) {
        let number = self.device.trim_start_matches("/dev/loop");
        // A machine's /dev is made anew at each boot and has no loop devices of its own.
        host.sh(&format!(
            "test -b {d} || mknod {d} b 7 {number}; mkdir -p {m}; mount {d} {m}",
            d = self.device,
            m = self.mount_point
        ));
    }

    /// Makes ext4 believe that it has found an error: it remounts itself read-only when mounted with `errors=remount-ro`.
    pub fn report_an_error(&self) {
        let name = self.device.trim_start_matches("/dev/");
        fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "1").expect("the file system is mounted");
    }

    /// Nothing of it can be read any more that is not in memory: the kernel reports an I/O error. What lies behind the end of an
    /// image it would read as zeros at times; behind the end of a device it never does.
    pub fn lose_content(&self) {
        fs::File::options()
            .write(true)
            .open(&self.image)
            .and_then(|image| image.set_len(0))
            .expect("the image is there");
        outside(Command::new("losetup").args(["--set-capacity", &self.device]));
    }

    /// The pool of a thin volume gets so much room.
    pub fn give_room(&self, megabytes: u64) {
        let pool = self.image.parent().expect("it is in its pool");
        outside(Command::new("mount").args(["-o", &format!("remount,size={megabytes}M")]).arg(pool));
    }

    /// Takes it out of use, has it checked and mounts it again, as a person would. Nothing may be using it.
    pub fn check_and_mount(&self, host: &Host) {
        host.sh(&format!("umount {}", self.mount_point));
        // 1: errors were corrected (e2fsck(8)).
        host.sh(&format!("e2fsck -f -y {} || test $? -eq 1", self.device));
        self.mount(host);
    }

    /// A copy of the disk as it is at this instant, without what only the machine's page cache holds: what a power cut leaves.
    pub fn copy_as_after_a_power_cut(&self, to: &std::path::Path) {
        outside(Command::new("cp").arg("--sparse=always").arg(&self.image).arg(to));
    }

    /// Where it is mounted.
    pub fn mount_point(&self) -> &str {
        &self.mount_point
    }

    /// Its device, inside and outside.
    pub fn device(&self) -> &str {
        &self.device
    }
}

fn outside(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("could not start {command:?}: {error}"));
    assert!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
