//! One machine: an overlay, a control group of its own, systemd-nspawn in it, and a reaper that outlives the test.
//!
//! The run folder holds one folder for each machine, named after its owner: `PID-STARTTIME-N`. What an owner leaves behind is
//! removed by the machine's reaper; should the reaper have been killed as well, by the next test process that boots a machine.

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, Once};
use std::thread;
use std::time::Duration;

use crate::poll::poll_until;

const REAPER: &str = include_str!("reaper.sh");
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const IN_MEMORY: &str = "/dev/shm";
const ON_DISK: &str = "/var/tmp";
const RUN: &str = "pg-recovery-tests";

/// Said by a machine that is up when its test fails.
const EVIDENCE: &str = r#"
. /etc/os-release
echo "---- journal of $VERSION_CODENAME ----"
journalctl --sync
journalctl --quiet --no-pager -o short-precise -n 200 -u 'pg-*' -u 'postgresql*'
for log in /var/log/postgresql/*.log; do
    echo "---- $log on $VERSION_CODENAME ----"
    tail -n 40 "$log"
done
echo "---- clusters and failed units of $VERSION_CODENAME ----"
pg_lsclusters
systemctl --failed --no-pager
exit 0
"#;

/// Long enough for a busy computer; a healthy machine needs three seconds.
const BOOT_DEADLINE: Duration = Duration::from_secs(120);

/// A machine that is up, or between two boots. Dropping it removes it; when the test is failing, its evidence is printed first.
pub(crate) struct Machine {
    dir: PathBuf,
    cgroup: PathBuf,
    running: Mutex<Option<Running>>,
    reaper: Child,
}

struct Running {
    nspawn: Child,
    leader: i32,
}

impl Machine {
    /// Prepares a machine on these layers, the topmost first, does this to its file tree first, and boots it.
    pub fn boot(layers: &[PathBuf], first: impl FnOnce(&Path)) -> Machine {
        let machine = Machine::prepare(layers);
        first(&machine.root());
        machine.start();
        machine
    }

    fn prepare(layers: &[PathBuf]) -> Machine {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            sweep();
            end_a_test_that_hangs();
        });
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}{}", own_prefix(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let dir = run_folder().join(&name);
        let cgroup = cgroup_of(&name);
        for part in ["upper", "work", "root"] {
            fs::create_dir_all(dir.join(part))
                .unwrap_or_else(|error| panic!("could not create {}: {error}", dir.display()));
        }
        // The reaper must be there before the first thing that it would have to remove.
        let reaper = start_reaper(&dir, &cgroup, Stdio::piped());
        // The commands of tests are kept apart from the payload, whose control groups belong to the machine's systemd.
        fs::create_dir_all(cgroup.join("words"))
            .unwrap_or_else(|error| panic!("could not create the control group {}: {error}", cgroup.display()));
        mount_overlay(layers, &dir);
        Machine { dir, cgroup, running: Mutex::new(None), reaper }
    }

    /// Boots, and returns when systemd has finished all jobs of the boot.
    pub fn start(&self) {
        let console = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("console"))
            .expect("the console's file can be opened");
        let mut command = Command::new("systemd-nspawn");
        command
            .args([
                "--quiet",
                "--register=no",
                "--keep-unit",
                "--private-network",
                "--capability=all",
                "--link-journal=no",
            ])
            .args(["--timezone=off", "--resolv-conf=off", "--console=pipe", "--boot", "--directory"])
            .arg(self.dir.join("root"))
            // Two machines of the same name exclude each other.
            .arg(format!("--machine=pg-{}", self.dir.file_name().expect("the folder has a name").display()))
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
            .stdin(Stdio::null())
            .stdout(console.try_clone().expect("a file can be cloned"))
            .stderr(console)
            .process_group(0);
        // nspawn makes payload/ and supervisor/ in the control group it is started from; two machines in one would share them.
        join_cgroup(&mut command, &self.cgroup);
        let mut nspawn = command.spawn().unwrap_or_else(|error| panic!("could not start systemd-nspawn: {error}"));
        let leader = poll_until(BOOT_DEADLINE, || match nspawn.try_wait() {
            Ok(None) => leader_of(nspawn.id()),
            _ => Some(0),
        })
        .filter(|leader| *leader != 0);
        let Some(leader) = leader else {
            let _ = nspawn.kill();
            let _ = nspawn.wait();
            panic!("the machine did not start:\n{}", self.console());
        };
        // Clients outside reach the machine's sockets by this path, whichever boot it is.
        let link = self.dir.join("machine");
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(format!("/proc/{leader}/root"), &link).expect("a link can be made");
        *self.running.lock().expect("no word panicked while booting") = Some(Running { nspawn, leader });

        // It answers when the boot is over; before there is a bus it would have to be asked again and again.
        let bus = self.root().join("run/dbus/system_bus_socket");
        let booted = poll_until(BOOT_DEADLINE, || {
            let mut wait = bus.exists().then(|| self.enter())?;
            let output = wait.args(["timeout", "60", "systemctl", "is-system-running", "--wait"]).output().ok()?;
            let state = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            matches!(state.as_str(), "running" | "degraded").then_some(())
        });
        assert!(booted.is_some(), "the machine did not finish its boot:\n{}", self.console());
    }

    /// Takes the power away: every process is gone at once, the disk stays as it is.
    pub fn cut_power(&self) {
        let mut running = self.running.lock().expect("no word panicked while booting");
        if let Some(mut was) = running.take() {
            // SAFETY: kill(2) has no memory effects; the leader is a live or zombie child of nspawn, which is not reaped yet.
            unsafe { libc::kill(was.leader, libc::SIGKILL) };
            wait_for_exit(&mut was.nspawn);
        }
    }

    /// Waits until the machine has powered itself off.
    pub fn wait_for_poweroff(&self) {
        let mut running = self.running.lock().expect("no word panicked while booting");
        if let Some(mut was) = running.take() {
            wait_for_exit(&mut was.nspawn);
        }
    }

    /// A command that will run in the machine, as root, outside of its units.
    pub fn enter(&self) -> Command {
        enter(self.leader(), &self.cgroup)
    }

    /// A command outside that must not outlive the machine.
    pub fn beside(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).process_group(0);
        join_cgroup(&mut command, &self.cgroup.join("words"));
        command
    }

    /// Its PID 1, as seen from outside.
    pub fn leader(&self) -> i32 {
        let running = self.running.lock().expect("no word panicked while booting");
        running.as_ref().expect("the machine is up").leader
    }

    /// Whether PID 1 is there.
    pub fn is_up(&self) -> bool {
        self.running.lock().is_ok_and(|running| running.is_some())
    }

    /// The machine's file tree: as its own processes see it while it is up, the bare disk otherwise.
    pub fn root(&self) -> PathBuf {
        match self.running.lock().expect("no word panicked while booting").as_ref() {
            Some(running) => PathBuf::from(format!("/proc/{}/root", running.leader)),
            None => self.dir.join("root"),
        }
    }

    /// The folder outside, for whatever belongs to this machine and must go with it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its control group, as seen from outside.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// What it has written on its console.
    pub fn console(&self) -> String {
        console(&self.dir)
    }

    /// Gives the disk away to be a lower layer; the machine must be off.
    pub fn keep_upper(self, target: &Path) {
        assert!(!self.is_up(), "a layer is taken from a machine that is off");
        unmount_overlay(&self.dir);
        let upper = self.dir.join("upper");
        if fs::rename(&upper, target).is_err() {
            // Another file system. The copy must keep overlay's own marks, which are device files and attributes.
            let status =
                Command::new("cp").arg("--archive").arg(&upper).arg(target).status().expect("cp can be started");
            assert!(status.success(), "could not keep the layer {}", target.display());
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", evidence(&self.dir));
        }
        // Closing its standard input is what the reaper waits for.
        drop(self.reaper.stdin.take());
        let _ = self.reaper.wait();
        if let Ok(mut running) = self.running.lock()
            && let Some(was) = running.as_mut()
        {
            let _ = was.nspawn.wait();
        }
    }
}

/// The folder with a folder for each machine: `PG_RECOVERY_TEST_RUN`; otherwise in memory where there is plenty of it, and
/// else on disk.
///
/// On a disk a machine's first crash recovery takes seconds, because it opens each file of the data directory to flush it
/// and overlay then copies that file from the lower layer: that would be measured as downtime. [`crate::Disk`] is for tests
/// that are about disks.
pub(crate) fn run_folder() -> PathBuf {
    if let Some(given) = std::env::var_os("PG_RECOVERY_TEST_RUN") {
        return PathBuf::from(given);
    }
    let free = nix::sys::statvfs::statvfs(IN_MEMORY).map_or(0, |fs| fs.blocks_available() * fs.fragment_size());
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let plenty = free > 4 << 30 && available.unwrap_or(0) > 8 << 20;
    Path::new(if plenty { IN_MEMORY } else { ON_DISK }).join(RUN)
}

fn cgroup_of(name: &str) -> PathBuf {
    // On a hybrid host cgroup2 is mounted below the old hierarchies.
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
    let root = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, target, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(target))
        })
        .next()
        .expect("cannot boot machines here: cgroup2 is not mounted");
    root.join(format!("pg-recovery-tests-{name}"))
}

fn start_reaper(dir: &Path, cgroup: &Path, input: Stdio) -> Child {
    let mut command = Command::new("/bin/bash");
    command
        .args(["-c", REAPER, "reaper"])
        .arg(dir)
        .arg(cgroup)
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // In a session of its own, so that neither Ctrl-C nor the end of the terminal reaches it.
    // SAFETY: setsid(2) is async-signal-safe and touches no memory.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            Ok(())
        });
    }
    command.spawn().unwrap_or_else(|error| panic!("could not start the reaper: {error}"))
}

fn enter(leader: i32, cgroup: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command
        .args(["--target", &leader.to_string()])
        .args(["--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--root", "--wd", "--"])
        .env_clear()
        .envs([("PATH", PATH), ("HOME", "/root"), ("LANG", "C.UTF-8"), ("TERM", "dumb")])
        .stdin(Stdio::null())
        .process_group(0);
    join_cgroup(&mut command, &cgroup.join("words"));
    command
}

fn console(dir: &Path) -> String {
    fs::read(dir.join("console")).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// What tells why a test fails: the journal and the logs of a machine, or the console of one that is off.
///
/// Asks the folder only, because a test that hangs may hold the locks of its [`Machine`].
fn evidence(dir: &Path) -> String {
    let name = dir.file_name().expect("the folder has a name").display();
    fs::read_link(dir.join("machine"))
        .ok()
        .and_then(|link| link.iter().nth(2)?.to_str()?.parse().ok())
        .and_then(|leader| {
            let mut command = enter(leader, &cgroup_of(&name.to_string()));
            command.args(["timeout", "--kill-after=2", "60", "/bin/bash", "-c", EVIDENCE]).output().ok()
        })
        .filter(|output| output.status.success())
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_else(|| format!("---- console of the machine {name}, which is off or hangs ----\n{}", console(dir)))
}

/// `tests/run` runs each test as a process of its own, and kills it some time after `PG_RECOVERY_TEST_TIMEOUT` (seconds). It
/// would take its machines along without a word; so it ends before that, and says what they know.
fn end_a_test_that_hangs() {
    let Some(limit) = std::env::var("PG_RECOVERY_TEST_TIMEOUT").ok().and_then(|limit| limit.parse().ok()) else {
        return;
    };
    thread::spawn(move || {
        thread::sleep(Duration::from_secs(limit));
        // Not by eprintln!, which libtest captures.
        let mut stderr = std::io::stderr();
        let _ = writeln!(stderr, "\nthe test hangs: it has not ended within {limit} s");
        for folder in fs::read_dir(run_folder()).into_iter().flatten().flatten() {
            if folder.file_name().to_string_lossy().starts_with(&own_prefix()) {
                let _ = writeln!(stderr, "{}", evidence(&folder.path()));
            }
        }
        std::process::exit(124);
    });
}

/// What the names of this process's machines begin with.
fn own_prefix() -> String {
    let pid = std::process::id();
    format!("{pid}-{}-", start_time(pid).expect("this process has a start time"))
}

/// Removes what dead owners left behind.
fn sweep() {
    let Ok(folders) = fs::read_dir(run_folder()) else {
        return;
    };
    for folder in folders.flatten() {
        let name = folder.file_name().to_string_lossy().into_owned();
        let mut parts = name.split('-');
        let owner = parts.next().and_then(|pid| pid.parse::<u32>().ok());
        let started = parts.next().and_then(|time| time.parse::<u64>().ok());
        let (Some(owner), Some(started)) = (owner, started) else {
            continue;
        };
        if start_time(owner) != Some(started) {
            let _ = start_reaper(&folder.path(), &cgroup_of(&name), Stdio::null()).wait();
        }
    }
}

/// Field 22 of /proc/PID/stat: together with the pid it names a process for good.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold spaces.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// The child of nspawn that is PID 1 in its own namespace and has become systemd.
fn leader_of(nspawn: u32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).ok()?;
    children.split_whitespace().find_map(|child| {
        let status = fs::read_to_string(format!("/proc/{child}/status")).ok()?;
        let is_first = status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"));
        let is_systemd = status.lines().next().is_some_and(|line| line == "Name:\tsystemd");
        (is_first && is_systemd).then(|| child.parse().ok())?
    })
}

fn join_cgroup(command: &mut Command, cgroup: &Path) {
    let path = CString::new(cgroup.join("cgroup.procs").as_os_str().as_bytes()).expect("a path has no NUL byte");
    // SAFETY: open, write and close are async-signal-safe, and the path was allocated before the fork.
    unsafe {
        command.pre_exec(move || {
            let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if fd < 0 || libc::write(fd, b"0".as_ptr().cast(), 1) != 1 {
                return Err(std::io::Error::last_os_error());
            }
            libc::close(fd);
            Ok(())
        });
    }
}

fn mount_overlay(layers: &[PathBuf], dir: &Path) {
    let lower: Vec<String> = layers.iter().map(|layer| layer.display().to_string()).collect();
    let options = format!("lowerdir={},upperdir={d}/upper,workdir={d}/work", lower.join(":"), d = dir.display());
    let status = Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &options])
        .arg(dir.join("root"))
        .status()
        .expect("mount can be started");
    assert!(status.success(), "could not mount the overlay with {options}");
}

fn unmount_overlay(dir: &Path) {
    let status = Command::new("umount").arg(dir.join("root")).status().expect("umount can be started");
    assert!(status.success(), "could not unmount {}/root", dir.display());
}

fn wait_for_exit(nspawn: &mut Child) {
    let gone = poll_until(BOOT_DEADLINE, || matches!(nspawn.try_wait(), Ok(Some(_)) | Err(_)).then_some(()));
    if gone.is_none() {
        let _ = nspawn.kill();
        let _ = nspawn.wait();
        let _ = writeln!(std::io::stderr(), "systemd-nspawn did not end by itself and was killed");
    }
}
