//! What machines are made of: a base that mmdebstrap builds once, and above it a layer with the package installed.
//!
//! Both live in the cache folder (`/var/cache/pg-recovery-tests`, or `PG_RECOVERY_TEST_CACHE`), named after what they were
//! made from, so nothing in it is ever stale; it may be deleted whenever no test is running.
//!
//! `NAME.lock` is held by whoever builds a layer (exclusively) or has machines on it (shared, as long as the process lives),
//! and was written when the layer was last used. Whoever builds a layer removes those that are in nobody's use any more.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use crate::machine::Machine;
use crate::{Output, Suite};

const INCLUDE: &str =
    "systemd,systemd-sysv,dbus,postgresql,libpam-systemd,iproute2,procps,kmod,adduser,e2fsprogs,strace";

/// Raise it when something below changes what a base holds.
const RECIPE: u32 = 2;

/// Services that do nothing for a test but take time, or reach for a network that is not there.
const MASKED: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "console-getty.service",
    "dev-hugepages.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "ldconfig.service",
    "man-db.timer",
    // Modules are the matter of the computer that runs the tests.
    "modprobe@.service",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-journal-catalog-update.service",
    "systemd-modules-load.service",
];

/// What looks at each boot and each reload of systemd for disks and devices that no machine has.
const MASKED_GENERATORS: &[&str] = &[
    "systemd-cryptsetup-generator",
    "systemd-debug-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-integritysetup-generator",
    "systemd-rc-local-generator",
    "systemd-run-generator",
    "systemd-ssh-generator",
    "systemd-system-update-generator",
    "systemd-tpm2-generator",
    "systemd-veritysetup-generator",
];

/// Backups would be a load on every machine; the facts about them switch them on (`Host::boot_with_backups`).
pub(crate) const BACKUPS: &[&str] = &["pg-backup.timer", "pg-wal-stream.service", "pg-restore-drill.timer"];

/// The layers of a machine without the package, but with these of the distribution (`,one,two`).
pub(crate) fn plain(suite: Suite, more: &str) -> Vec<PathBuf> {
    vec![base(suite, more)]
}

/// The layers of a machine with the package, the topmost first, on a base with these packages of the distribution as well
/// (`,one,two`).
pub(crate) fn with_package(suite: Suite, more: &str) -> Vec<PathBuf> {
    let base = base(suite, more);
    let package = package();
    let content = fs::read(&package).unwrap_or_else(|error| panic!("could not read {}: {error}", package.display()));
    let base_name = base.file_name().expect("a base has a name").to_string_lossy().into_owned();
    let layer = cache().join(format!("package-{}-on-{base_name}", short_hash(&content)));
    build_once(&layer, |target| {
        let machine = Machine::boot(std::slice::from_ref(&base), |_| ());
        fs::copy(&package, machine.root().join("pg-recovery.deb")).expect("the package can be copied into the machine");
        let mut install = machine.enter();
        install.env("DEBIAN_FRONTEND", "noninteractive");
        // As a unit, so that whatever the package starts or leaves behind is in a proper control group.
        install.args(["systemd-run", "--quiet", "--pipe", "--wait", "--setenv=DEBIAN_FRONTEND=noninteractive"]);
        install.args(["timeout", "300", "apt-get", "install", "--yes", "/pg-recovery.deb"]);
        let output = Output::from(&install.output().expect("nsenter can be started"));
        assert!(output.success(), "could not install {}: {output}", package.display());
        let mask = machine.enter().args(["systemctl", "mask", "--now"]).args(BACKUPS).output();
        let mask = Output::from(&mask.expect("nsenter can be started"));
        assert!(mask.success(), "could not switch backups off: {mask}");
        let _ = machine.enter().args(["systemctl", "stop", "pg-backup.service"]).output();
        fs::remove_dir_all(machine.root().join("var/backups/pg-recovery")).expect("the machine can be written");
        let _ = machine.enter().args(["systemctl", "poweroff"]).output();
        machine.wait_for_poweroff();
        for stale in ["var/log/journal", "var/log/postgresql"] {
            // Each test is to read its own journal only.
            empty_files_of(&machine.dir().join("upper").join(stale));
        }
        machine.keep_upper(target);
    });
    vec![layer, base]
}

/// The package under test: `PG_RECOVERY_DEB`, or built now.
pub fn package() -> PathBuf {
    static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
    PACKAGE
        .get_or_init(|| {
            if let Some(given) = std::env::var_os("PG_RECOVERY_DEB") {
                return PathBuf::from(given);
            }
            let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are in the work tree");
            let output = Command::new(top.join("packaging/deb"))
                .current_dir(top)
                .output()
                .unwrap_or_else(|error| panic!("could not start packaging/deb: {error}"));
            let output = Output::from(&output);
            assert!(output.success(), "could not build the package: {output}");
            top.join(output.stdout.lines().last().expect("packaging/deb prints the path of the package").trim())
        })
        .clone()
}

fn base_name(suite: Suite, more: &str) -> String {
    // A new month is a new base, with the updates that Debian has made since.
    let masked = [MASKED, MASKED_GENERATORS].concat().join(" ");
    let key = short_hash(format!("{INCLUDE}{more} {RECIPE} {masked}").as_bytes());
    format!("base-{}-{}-{key}", suite.name(), month())
}

fn base(suite: Suite, more: &str) -> PathBuf {
    let base = cache().join(base_name(suite, more));
    build_once(&base, |target| {
        let mut refused = String::new();
        // First mmdebstrap's own choice of an archive, then the one that this computer uses itself.
        for archive in [None, host_archive()] {
            let _ = fs::remove_dir_all(target);
            let mut command = Command::new("mmdebstrap");
            command.args(["--quiet", "--variant=apt", &format!("--include={INCLUDE}{more}")]);
            command.arg(suite.name()).arg(target).args(archive);
            let output = command.output().unwrap_or_else(|error| panic!("could not start mmdebstrap: {error}"));
            if output.status.success() {
                prepare(target);
                return;
            }
            refused = Output::from(&output).to_string();
        }
        panic!("could not build a base of {}: {refused}", suite.name());
    });
    base
}

/// Trims a new base for quick boots.
fn prepare(base: &Path) {
    // Without an identity every boot would be a "first boot", which enables units by preset.
    let identity = short_hash(base.as_os_str().as_encoded_bytes()).repeat(2);
    fs::write(base.join("etc/machine-id"), format!("{}\n", &identity[..32])).expect("the base can be written");
    // mmdebstrap copies both from the computer it runs on.
    fs::write(base.join("etc/hostname"), "pghost\n").expect("the base can be written");
    fs::write(base.join("etc/hosts"), "127.0.0.1 localhost pghost\n::1 localhost\n").expect("the base can be written");
    let _ = fs::remove_file(base.join("etc/resolv.conf"));
    for (folder, names) in [("system", MASKED), ("system-generators", MASKED_GENERATORS)] {
        let folder = base.join("etc/systemd").join(folder);
        fs::create_dir_all(&folder).expect("the base can be written");
        for link in names.iter().map(|name| folder.join(name)) {
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink("/dev/null", link).expect("the base can be written");
        }
    }
}

fn host_archive() -> Option<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian"])
        .output()
        .ok()?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
}

fn cache() -> PathBuf {
    std::env::var_os("PG_RECOVERY_TEST_CACHE")
        .map_or_else(|| PathBuf::from("/var/cache/pg-recovery-tests"), PathBuf::from)
}

/// The first test to come builds, all others wait; what is there under its final name is complete.
fn build_once(target: &Path, build: impl FnOnce(&Path)) {
    let name = target.file_name().expect("a layer has a name").to_string_lossy().into_owned();
    fs::create_dir_all(cache()).unwrap_or_else(|error| panic!("could not create {}: {error}", cache().display()));
    let mut build = Some(build);
    loop {
        let in_use = lock(&name, FlockArg::LockShared).expect("it waits");
        if target.exists() {
            let _ = in_use.set_modified(SystemTime::now());
            // Until the process ends, whichever way.
            std::mem::forget(in_use);
            return;
        }
        drop(in_use);
        let _alone = lock(&name, FlockArg::LockExclusive).expect("it waits");
        if target.exists() {
            continue;
        }
        remove_old_layers();
        let partial = cache().join(format!("{name}.partial"));
        let _ = fs::remove_dir_all(&partial);
        build.take().expect("what was built is there")(&partial);
        // What was built is on the disk before its name says so: a later power cut must not leave half a base.
        nix::unistd::syncfs(fs::File::open(&partial).expect("the layer is there").as_fd()).expect("syncfs works");
        fs::rename(&partial, target).expect("the cache can be written");
    }
}

/// Takes a layer's lock; `None` if it is not to wait and somebody has it.
fn lock(name: &str, how: FlockArg) -> Option<Flock<fs::File>> {
    let path = cache().join(format!("{name}.lock"));
    loop {
        let file = fs::File::options().create(true).append(true).open(&path).expect("the cache can be written");
        let held = match Flock::lock(file, how) {
            Ok(held) => held,
            Err((_, Errno::EWOULDBLOCK)) => return None,
            Err((_, error)) => panic!("could not lock {}: {error}", path.display()),
        };
        // Whoever waited while the layer was removed has the lock of a file that is gone.
        let inode = held.metadata().expect("an open file has an inode").ino();
        if fs::metadata(&path).is_ok_and(|named| named.ino() == inode) {
            return Some(held);
        }
    }
}

/// Each month makes bases and each build of the package a layer. Removes those that nobody uses, and nobody has used for two
/// days: another work tree may come back to its own.
fn remove_old_layers() {
    let current = [Suite::Bookworm, Suite::Trixie].map(|suite| base_name(suite, ""));
    for entry in fs::read_dir(cache()).into_iter().flatten().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        let Some(name) = file.strip_suffix(".lock").filter(|name| !current.iter().any(|base| base == name)) else {
            continue;
        };
        let used = entry.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|time| time.elapsed().ok());
        if used.is_some_and(|used| used > Duration::from_secs(2 * 24 * 60 * 60))
            && let Some(_alone) = lock(name, FlockArg::LockExclusiveNonblock)
        {
            let partial = cache().join(format!("{name}.partial"));
            let _ = fs::remove_dir_all(&partial);
            // Half of a layer must not keep the name of a whole one.
            let _ = fs::rename(cache().join(name), &partial);
            let _ = fs::remove_dir_all(&partial);
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn empty_files_of(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            empty_files_of(&path);
        } else if path.extension().is_some_and(|extension| extension == "journal") {
            let _ = fs::remove_file(path);
        } else {
            let _ = fs::write(path, "");
        }
    }
}

fn short_hash(content: &[u8]) -> String {
    Sha256::digest(content).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Months since 1970, near enough.
fn month() -> u64 {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    seconds / (30 * 24 * 60 * 60)
}
