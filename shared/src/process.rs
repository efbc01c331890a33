//! Processes of a cluster as /proc shows them (proc(5)), and signals that can only reach the process that was looked at.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::deadline;
use crate::error::Result;
use crate::owner::Owner;

/// What /proc/PID/stat says. Times are in clock ticks since boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub comm: String,
    /// R running, S sleeping, D waiting for the disk, T stopped, t traced, Z zombie.
    pub state: char,
    pub cpu: u64,
    pub started: u64,
}

impl Process {
    /// `None` when there is no such process.
    pub fn of(pid: i32) -> Option<Process> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Option<Process> {
        // The name is in parentheses and may itself hold spaces and parentheses.
        let (pid, rest) = text.split_once(" (")?;
        let (comm, rest) = rest.rsplit_once(") ")?;
        let field: Vec<&str> = rest.split(' ').collect();
        let number = |index: usize| field.get(index)?.parse::<u64>().ok();
        Some(Process {
            pid: pid.parse().ok()?,
            parent: field.get(1)?.parse().ok()?,
            comm: comm.to_string(),
            state: field.first()?.chars().next()?,
            cpu: number(11)? + number(12)?,
            started: number(19)?,
        })
    }

    /// The same process, looked at again; `None` when it is gone, even if its number was given to another.
    pub fn again(&self) -> Option<Process> {
        Self::of(self.pid).filter(|p| p.started == self.started)
    }

    pub fn is_stopped(&self) -> bool {
        self.state == 'T'
    }

    /// Somebody's debugger has hold of it.
    pub fn is_traced(&self) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        status.lines().find_map(|l| l.strip_prefix("TracerPid:")).is_some_and(|t| t.trim() != "0")
    }

    /// It is in a control group that was frozen (cgroups(7), `cgroup.events`); its state is then S, as if it slept.
    pub fn is_frozen(&self) -> bool {
        let group = std::fs::read_to_string(format!("/proc/{}/cgroup", self.pid)).unwrap_or_default();
        let Some(path) = group.lines().find_map(|line| line.strip_prefix("0::")) else { return false };
        ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].iter().any(|root| {
            let events = std::fs::read_to_string(format!("{root}{path}/cgroup.events")).unwrap_or_default();
            events.lines().any(|line| line == "frozen 1")
        })
    }

    /// Arguments joined by spaces; PostgreSQL's children show their role here ("postgres: 15/main: walwriter").
    pub fn title(&self) -> String {
        let bytes = std::fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_string()
    }

    /// Its effective user.
    pub fn uid(&self) -> Option<u32> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix("Uid:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }

    /// The unit that systemd keeps it in, such as `postgresql@16-main.service`.
    pub fn unit(&self) -> Option<String> {
        let text = std::fs::read_to_string(format!("/proc/{}/cgroup", self.pid)).ok()?;
        let path = text.lines().find_map(|l| l.strip_prefix("0::"))?;
        path.rsplit('/').find(|part| part.ends_with(".service") || part.ends_with(".scope")).map(String::from)
    }

    /// Voluntary and involuntary context switches: they stand still in a process that hangs.
    pub fn switches(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let sum = status
            .lines()
            .filter_map(|l| l.split_once("ctxt_switches:"))
            .filter_map(|(_, n)| n.trim().parse::<u64>().ok())
            .sum();
        Some(sum)
    }

    /// It has the socket with this inode open (/proc/PID/fd, proc(5)).
    pub fn has_socket(&self, inode: u64) -> bool {
        let wanted = format!("socket:[{inode}]");
        let entries = std::fs::read_dir(format!("/proc/{}/fd", self.pid)).into_iter().flatten().flatten();
        entries.into_iter().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| *target == *wanted))
    }

    /// A client session of PostgreSQL that is in the middle of something, by its title ("postgres: 15/main: app shop
    /// [local] SELECT"; backend/utils/misc/ps_status.c). What its title does not tell counts as at work.
    pub fn is_session_at_work(&self) -> bool {
        session_at_work(&self.title())
    }

    /// Is it a `postgres` whose current folder is this one? `None` when /proc does not tell. Call it as the owner of the
    /// cluster, or with CAP_SYS_PTRACE.
    fn is_at(&self, path: &Path) -> Option<bool> {
        let exe = match std::fs::read_link(format!("/proc/{}/exe", self.pid)) {
            Ok(exe) => exe,
            // Gone meanwhile, or a zombie: it has no files open any more.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Some(false),
            Err(_) => return None,
        };
        // After a package upgrade the link reads "/usr/lib/postgresql/16/bin/postgres (deleted)".
        let exe = exe.to_string_lossy();
        if !exe.trim_end_matches(" (deleted)").ends_with("/postgres") {
            return Some(false);
        }
        let cwd = format!("/proc/{}/cwd", self.pid);
        match std::fs::read_link(&cwd) {
            Ok(there) if there == path => {}
            // Only the own folder is ever touched: another cluster's may be on a volume that never answers.
            Ok(_) => return Some(false),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Some(false),
            Err(_) => return None,
        }
        // The same path leads a process in a container to another folder.
        let identity = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
        match (identity(path), identity(Path::new(&cwd))) {
            (Ok(mine), Ok(its)) => Some(mine == its),
            _ => None,
        }
    }
}

fn session_at_work(title: &str) -> bool {
    // "[local]" or "10.0.0.1(48312)": only client sessions have it.
    let is_host = |word: &str| word == "[local]" || (word.ends_with(')') && word.contains('('));
    let Some(at) = title.split(' ').position(is_host) else { return false };
    let rest: Vec<&str> = title.split(' ').skip(at + 1).collect();
    // A standby that streams connects again by itself.
    rest != ["idle"] && rest.first() != Some(&"streaming")
}

/// The processes of one cluster.
#[derive(Clone, Debug, Default)]
pub struct Family {
    pub postmaster: Option<Process>,
    /// Backends and auxiliary processes, including those whose postmaster is dead.
    pub children: Vec<Process>,
    /// Zombies named postgres that nobody has reaped yet.
    pub zombies: Vec<Process>,
    /// PIDs of processes named postgres that could not be examined.
    pub unclear: Vec<i32>,
}

impl Family {
    pub fn is_empty(&self) -> bool {
        self.postmaster.is_none() && self.children.is_empty()
    }

    pub fn all(&self) -> impl Iterator<Item = &Process> {
        self.postmaster.iter().chain(&self.children)
    }
}

/// Finds every process of the cluster: executable `postgres`, current folder the data directory (a postmaster changes
/// into it at start and its children stay there, src/backend/utils/init/miscinit.c `ChangeToDataDir`). `data_directory`
/// must be canonical.
pub fn family(data_directory: &Path, owner: &Owner) -> Result<Family> {
    let candidates: Vec<Process> = all().filter(|p| p.comm == "postgres" || p.comm == "postmaster").collect();
    owner.act(|| {
        let mut family = Family::default();
        for process in candidates {
            if process.state == 'Z' {
                family.zombies.push(process);
                continue;
            }
            match process.is_at(data_directory) {
                Some(false) => {}
                // Children rename themselves to "postgres: ..." (src/backend/utils/misc/ps_status.c).
                Some(true) if process.title().starts_with("postgres: ") => family.children.push(process),
                // Between fork and the new name a child looks like its parent.
                Some(true) => match &family.postmaster {
                    Some(parent) if parent.pid == process.parent => family.children.push(process),
                    Some(other) if other.parent == process.pid => {
                        let child = family.postmaster.replace(process);
                        family.children.extend(child);
                    }
                    _ => family.postmaster = Some(process),
                },
                // Owned by another user: not a process of this cluster, whose all run as its owner.
                None if process.uid().is_some_and(|uid| uid != owner.uid.as_raw()) => {}
                None => family.unclear.push(process.pid),
            }
        }
        family
    })
}

/// The children of a process (/proc/PID/task/PID/children, proc(5)); those of a server are all of its first thread.
pub fn children(pid: i32) -> Vec<Process> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_ascii_whitespace().filter_map(|child| Process::of(child.parse().ok()?)).collect()
}

/// Every process of the host.
pub fn all() -> impl Iterator<Item = Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter_map(Process::of)
}

/// What a process number taken from a file turned out to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Identity {
    /// A process of this cluster.
    Ours,
    /// No such process.
    Dead,
    /// Dead, but its parent has not asked for its exit status yet; kill(2) still finds it.
    Zombie,
    /// Something else has the number now.
    Foreign(String),
    /// It could not be told; nothing may be done on this account.
    Unclear,
}

/// Tells whether `pid` is a process of the cluster.
pub fn identify(pid: i32, data_directory: &Path, owner: &Owner) -> Result<Identity> {
    let Some(process) = Process::of(pid) else {
        return Ok(Identity::Dead);
    };
    if process.state == 'Z' {
        return Ok(Identity::Zombie);
    }
    let foreign = || Identity::Foreign(format!("{} (PID {pid})", process.comm));
    if process.uid().is_some_and(|uid| uid != owner.uid.as_raw()) {
        return Ok(foreign());
    }
    Ok(match owner.act(|| process.is_at(data_directory))? {
        Some(true) => Identity::Ours,
        Some(false) if process.again().is_some() => foreign(),
        Some(false) => Identity::Dead,
        None => Identity::Unclear,
    })
}

/// A handle that stays with one process, whatever becomes of its number (pidfd_open(2)).
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

impl Pidfd {
    /// Opens `process`, and makes sure that it is still the one that was looked at.
    pub fn open(process: &Process) -> Option<Pidfd> {
        // SAFETY: pidfd_open takes two integers; the descriptor it returns belongs to nobody else.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process.pid, 0) };
        let fd = Errno::result(fd).ok()?;
        // SAFETY: the descriptor was just returned to us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        process.again().map(|_| Pidfd(fd))
    }

    pub fn send(&self, signal: Signal) -> Result<(), Errno> {
        // SAFETY: pidfd_send_signal accepts a null siginfo (pidfd_send_signal(2)).
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal as i32,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        Errno::result(sent).map(drop)
    }

    /// Waits until the process has ended, for at most `patience`; true when it has.
    pub fn wait(&self, patience: Duration) -> bool {
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout).is_ok_and(|n| n > 0)
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Pidfd {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// Programs other than PostgreSQL that have `data_directory` to themselves: one of `names` with the folder, something
/// in it or a folder above it among its arguments, or with files below it open. What runs in the cluster's own `unit` is
/// the server's own errand, such as its archive_command. Returns `tar (PID 123)`.
pub fn users_of(data_directory: &Path, names: &[String], unit: &str) -> Vec<String> {
    let me = std::process::id() as i32;
    let mut users = Vec::new();
    for process in all().filter(|p| p.pid != me && p.state != 'Z') {
        if !names.iter().any(|name| name_matches(name, &process.comm)) || process.unit().as_deref() == Some(unit) {
            continue;
        }
        let bytes = std::fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        let cwd = std::fs::read_link(format!("/proc/{}/cwd", process.pid)).ok();
        let named = bytes.split(|b| *b == 0).filter(|a| !a.is_empty()).skip(1).any(|argument| {
            let argument = String::from_utf8_lossy(argument);
            let candidate = argument.rsplit('=').next().unwrap_or(&argument);
            argument_touches(candidate, cwd.as_deref(), data_directory)
        });
        if named || cwd.is_some_and(|cwd| cwd.starts_with(data_directory)) || has_open(process.pid, data_directory) {
            users.push(format!("{} (PID {})", process.comm, process.pid));
        }
    }
    users
}

/// /proc/PID/comm holds at most 15 bytes (TASK_COMM_LEN, proc(5)).
fn name_matches(name: &str, comm: &str) -> bool {
    let cut = name.char_indices().map(|(i, c)| i + c.len_utf8()).take_while(|end| *end <= 15).last().unwrap_or(0);
    &name[..cut] == comm
}

fn argument_touches(argument: &str, cwd: Option<&Path>, data_directory: &Path) -> bool {
    let path = PathBuf::from(argument);
    let path = match cwd {
        _ if path.is_absolute() => path,
        Some(cwd) if !argument.is_empty() && !argument.starts_with('-') => cwd.join(path),
        _ => return false,
    };
    // It may be on any volume of the host, also on one that does not answer.
    let theirs = path.clone();
    let real = deadline::within(&path, Duration::from_millis(500), move || theirs.canonicalize().ok()).flatten();
    let path = real.unwrap_or(path);
    // "/" and other roots are above every folder; only a copy of a real parent counts.
    let above = data_directory.starts_with(&path) && path.components().count() > 2;
    path.starts_with(data_directory) || above
}

fn has_open(pid: i32, folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    entries.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target.starts_with(folder)))
}

/// Processes attached to the System V segment `id` (`postmaster.pid` line 7); `None` when there is no such segment or
/// it cannot be seen. From /proc/sysvipc/shm (proc(5)).
pub fn attached_to_segment(id: i64) -> Option<u64> {
    let table = std::fs::read_to_string("/proc/sysvipc/shm").ok()?;
    table.lines().skip(1).find_map(|line| {
        let field: Vec<&str> = line.split_whitespace().collect();
        (field.get(1)?.parse::<i64>().ok()? == id).then(|| field.get(6)?.parse().ok())?
    })
}

/// The tests kill a run before each of its steps in turn, to see that the next run converges; the variable says which.
pub fn stop_here_for_a_test(step: usize) {
    if std::env::var("PG_RECOVERY_KILL_BEFORE_STEP").is_ok_and(|n| n == step.to_string()) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_at_work_unless_its_title_says_idle() {
        for (title, at_work) in [
            ("postgres: 15/main: checkpointer", false),
            ("postgres: 15/main: autovacuum worker shop", false),
            ("postgres: 15/main: app shop [local] idle", false),
            ("postgres: app shop 10.0.0.1(48312) idle", false),
            ("postgres: 15/main: walsender repl ::1(5) streaming 0/3000060", false),
            ("postgres: 15/main: app shop [local] idle in transaction", true),
            ("postgres: 15/main: app shop 10.0.0.1(48312) SELECT", true),
            ("postgres: 15/main: walsender repl [local] sending backup \"pg_basebackup\"", true),
            ("postgres: 15/main: app shop [local] authentication", true),
        ] {
            assert_eq!(session_at_work(title), at_work, "{title}");
        }
    }

    #[test]
    fn a_name_with_parentheses_is_read_right() {
        let text = "42 (a) b) S 7 42 42 0 -1 4194560 1 0 0 0 5 6 0 0 20 0 1 0 999 1 2 3";
        let process = Process::parse(text).unwrap();
        assert_eq!((process.pid, process.parent, process.state), (42, 7, 'S'));
        assert_eq!((process.comm.as_str(), process.cpu, process.started), ("a) b", 11, 999));
    }

    #[test]
    fn a_pidfd_sees_the_end_of_its_process() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process::of(child.id() as i32).unwrap();
        let pidfd = Pidfd::open(&process).unwrap();
        assert!(!pidfd.wait(Duration::ZERO));
        pidfd.send(Signal::SIGKILL).unwrap();
        assert!(pidfd.wait(Duration::from_secs(5)));
        child.wait().unwrap();
        assert!(process.again().is_none());
        assert!(pidfd.send(Signal::SIGKILL).is_err(), "a number used again is never hit");
    }

    #[test]
    fn an_argument_counts_when_it_is_the_folder_below_it_or_above_it() {
        let data = Path::new("/var/lib/postgresql/16/main");
        for yes in ["/var/lib/postgresql/16/main", "/var/lib/postgresql/16/main/base", "/var/lib/postgresql"] {
            assert!(argument_touches(yes, None, data), "{yes}");
        }
        for no in ["/var/lib/postgresql/16/other", "/", "-D", "main"] {
            assert!(!argument_touches(no, None, data), "{no}");
        }
        assert!(argument_touches("main", Some(Path::new("/var/lib/postgresql/16")), data));
    }
}
