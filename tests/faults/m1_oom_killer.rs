//! M1: the kernel's OOM killer ends a process of the server: a query that takes more memory than there is, in a control group
//! with a limit. On the hosts of these tests the memory controller is in the old hierarchy, so that systemd does not notice.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Fault;
use crate::{Host, poll_until};

/// See [`super::all`].
pub const FAULTS: &[Fault] = &[Fault {
    class: "M1",
    name: "server ended for want of memory",
    imitates: "systemd-oomd, or systemd with OOMPolicy=stop after the kernel has killed one process",
    is_not: "a session that the kernel has killed while systemd goes on: the postmaster restarts the server itself",
    is_recorded: true,
    inject: inject_on_unit,
    keeps_postmaster: false,
    deadline: Duration::from_secs(30),
}];

const HIERARCHY: &str = "/sys/fs/cgroup/memory";
/// What a server that has just been started needs is a third of it.
const LIMIT: u64 = 160 << 20;
/// Takes a gigabyte, if it gets it.
const GREEDY: &str = "SELECT length(string_agg(repeat(md5(n::text), 32), '')) FROM generate_series(1, 900000) n";

/// A limit on the memory of processes; what systemd starts anew is not under it.
pub struct Limit {
    group: PathBuf,
}

/// Whether this computer has the old hierarchy.
pub fn is_possible() -> bool {
    Path::new(HIERARCHY).join("memory.limit_in_bytes").exists()
}

/// Puts the limit on a unit's processes and all that they will start.
pub fn limit(host: &Host, unit: &str) -> Limit {
    limit_to(host, unit, LIMIT)
}

/// The same of so many bytes.
pub fn limit_to(host: &Host, unit: &str, bytes: u64) -> Limit {
    let name = host.outside().file_name().expect("the folder has a name");
    let group = Path::new(HIERARCHY).join(format!("pg-recovery-tests-{}-{unit}", name.display()));
    fs::create_dir_all(&group).expect("a control group can be made");
    let limit = Limit { group };
    limit.write("memory.limit_in_bytes", &bytes.to_string());
    // By their numbers outside.
    let group = host.control_group().join("payload").join(control_group(host, unit).trim_start_matches('/'));
    let all = fs::read_to_string(group.join("cgroup.procs")).expect("the unit runs");
    for pid in all.lines() {
        limit.write("cgroup.procs", pid);
    }
    limit
}

fn control_group(host: &Host, unit: &str) -> String {
    host.property_of(unit, "ControlGroup")
}

impl Limit {
    fn write(&self, file: &str, text: &str) {
        fs::write(self.group.join(file), text).unwrap_or_else(|error| panic!("{file}: {error}"));
    }

    /// How often its processes had to wait until memory was taken from others of them.
    pub fn waits(&self) -> u64 {
        let text = fs::read_to_string(self.group.join("memory.failcnt")).expect("the group is there");
        text.trim().parse().expect("a number")
    }

    /// How many processes in it the kernel has killed.
    pub fn kills(&self) -> u64 {
        let text = fs::read_to_string(self.group.join("memory.oom_control")).expect("the group is there");
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok());
        kills.expect("the kernel counts them")
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let all = fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
        for pid in all.lines() {
            let _ = fs::write(Path::new(HIERARCHY).join("cgroup.procs"), pid);
        }
        // One that was killed a moment ago may still be on its way out.
        let _ = poll_until(Duration::from_secs(5), || fs::remove_dir(&self.group).ok());
    }
}

/// One session takes so much that the kernel ends it; returns when it has done so. The postmaster has the usual protection.
pub fn inject(host: &Host, limit: &Limit) {
    let before = limit.kills();
    host.try_psql(GREEDY);
    assert_eq!(limit.kills(), before + 1, "the kernel killed it, and nothing else did");
}

/// A program that is none of the server's is ended by it.
pub fn inject_on_another(host: &Host) {
    host.run_as_unit(
        "eater",
        "root",
        "until test -e /run/eat; do sleep 0.1; done; exec perl -e 'push @x, \"x\" x 1e6 while 1'",
    );
    let limit = limit(host, "eater.service");
    host.file("/run/eat").write("");
    host.wait_until("the kernel kills it", Duration::from_secs(30), || limit.kills() > 0);
}

/// One session takes so much, and the kernel ends the postmaster, as in a unit without `OOMScoreAdjust=`.
pub fn inject_on_postmaster(host: &Host, limit: &Limit) {
    let before = limit.kills();
    host.sh(&format!("echo 1000 > /proc/{}/oom_score_adj", host.postmaster_pid()));
    host.try_psql(GREEDY);
    assert!(limit.kills() > before, "the kernel has not killed it");
}

/// systemd-oomd, or systemd itself where it sees the memory controller: the whole unit goes, and its result is `oom-kill`.
pub fn inject_on_unit(host: &Host) {
    let group = format!("/sys/fs/cgroup{}", control_group(host, &host.unit()));
    // As systemd-oomd leaves word of what it is about to kill (src/oom/oomd-util.c): setxattr(2) on x86-64.
    let mark = "for (qw(user.oomd_ooms user.oomd_kill)) { $n = \"$_\"; $v = 1; syscall(188, $g, $n, \"$v\", 1, 0) == 0 or die $! }";
    host.sh(&format!("perl -e '$g = q({group}); {mark}'"));
    host.sh(&format!("systemctl kill --signal=KILL {}", host.unit()));
}
