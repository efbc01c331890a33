//! What the programs that act do to files, processes and programs, as strace sees it, and what of it they must never do.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// In a machine; nothing of the product and none of its faults comes here.
const FOLDER: &str = "var/lib/trace-of-actors";
const CALLS: &str = "execve,unlink,unlinkat,rename,renameat,renameat2,truncate,ftruncate,kill,tkill,tgkill,pidfd_open,pidfd_send_signal";
/// What changes things, and the units that run it. The rest can only read: their sandbox has no file of a server that they may write.
const ACTORS: [(&str, &[&str]); 5] = [
    ("pg-watchdog", &["pg-watchdog.service"]),
    ("pg-recover", &["pg-recovery.service"]),
    ("pg-rollback", &["pg-rollback@.service"]),
    ("pg-cert-renew", &["pg-cert-renew.service"]),
    ("pg-backup", &["pg-backup.service", "pg-wal-stream.service", "pg-restore-drill.service"]),
];
/// Programs that can destroy data, and settings that do.
const NEVER_RUN: [&str; 6] =
    ["/pg_resetwal", "/initdb", "/ipcrm", "/ipcclean", "/pg_archivecleanup", "zero_damaged_pages"];

static WANTED: AtomicBool = AtomicBool::new(false);

/// Whether machines that are booted from now on write down what the actors do, and what they start. It costs time and memory: not
/// for figures, for which clients ask more often as well.
pub fn trace_actors(wanted: bool) {
    WANTED.store(wanted, Ordering::Relaxed);
}

pub(crate) fn is_wanted() -> bool {
    WANTED.load(Ordering::Relaxed)
}

/// Prepares a machine that is off. Units and people find strace in the way, who calls programs by their names; the sandbox of the
/// units lets it, and is the same otherwise.
pub(crate) fn prepare(root: &Path) {
    if !is_wanted() {
        return;
    }
    let write = |path: String, mode: u32, text: String| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder can be made in the machine");
        fs::write(&path, text).expect("a file can be written in the machine");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode can be set");
    };
    for (program, units) in ACTORS {
        if !root.join("usr/sbin").join(program).exists() {
            continue;
        }
        // -D: the tracer is a grandchild, so that the main process of a unit is the program.
        let strace =
            format!("/usr/bin/strace -D -f -q -yy -Y --seccomp-bpf -A -o /{FOLDER}/{program} -e trace={CALLS}");
        // Some run as postgres.
        write(format!("{FOLDER}/{program}"), 0o666, String::new());
        // One process has one tracer, and a test may be it.
        let by_hand = format!(
            "#!/bin/sh\nwhile read -r key value; do\n[ \"$key\" != TracerPid: ] || [ \"$value\" = 0 ] || exec /usr/sbin/{program} \"$@\"\n\
             done </proc/self/status\n[ $(id -u) = 0 ] || exec /usr/sbin/{program} \"$@\"\nexec {strace} /usr/sbin/{program} \"$@\"\n"
        );
        write(format!("usr/local/sbin/{program}"), 0o755, by_hand);
        for unit in units {
            let unit = format!("usr/lib/systemd/system/{unit}");
            let text = fs::read_to_string(root.join(&unit)).expect("the package has its units");
            let command =
                text.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("a unit starts a program");
            let traced = format!(
                "[Service]\nExecStart=\nExecStart={strace} {command}\nSystemCallFilter=\nSyslogIdentifier={program}\n\
                 ReadWritePaths=/{FOLDER}\n"
            );
            write(format!("{unit}.d/trace.conf"), 0o644, traced);
        }
    }
}

/// What the actors of a machine did that they must never do, and how much was seen at all.
pub(crate) fn forbidden_acts(root: &Path) -> (Vec<String>, usize) {
    let files = fs::read_dir(root.join(FOLDER)).into_iter().flatten().flatten();
    let (mut acts, mut seen) = (Vec::new(), 0);
    for file in files {
        let text = String::from_utf8_lossy(&fs::read(file.path()).unwrap_or_default()).into_owned();
        // Backups and what is restored from them have a pg_wal of their own, and a server while a drill looks at it.
        let is_of_copies = |line: &String| {
            file.file_name() == "pg-backup" && line.contains("pg_wal") && !line.contains("/main/pg_wal")
        };
        acts.extend(forbidden(&text).into_iter().filter(|line| !is_of_copies(line)));
        seen += text.lines().count();
    }
    (acts, seen)
}

/// The lines of a trace that show a forbidden act: a file of pg_wal removed, renamed or cut, a program that can destroy data,
/// a signal to a process that is neither PostgreSQL's nor its own or its command's, which are in the trace themselves.
fn forbidden(trace: &str) -> Vec<String> {
    let trace = whole_calls(trace);
    // A pidfd is opened, its process looked at, and only then a signal sent.
    let servers: HashSet<&str> = trace
        .iter()
        .filter_map(|line| line.split_once("pidfd_open(")?.1.split_once("<postgres>"))
        .map(|(pid, _)| pid)
        .collect();
    let traced: HashSet<&str> = trace.iter().map(|line| pid(line)).collect();
    let is_forbidden = |line: &String| {
        // PID<program> call(arguments) = result
        let Some((call, arguments)) = line.split_once('(') else { return false };
        let call = call.rsplit(' ').next().unwrap_or_default();
        // Nobody was met.
        if arguments.contains("= -1 ESRCH") {
            return false;
        }
        match call {
            "execve" => NEVER_RUN.iter().any(|word| arguments.contains(word)),
            "kill" | "tkill" => {
                let pid = arguments.trim_start_matches('-').split(['<', ',']).next().unwrap_or_default();
                !arguments.contains("<postgres>") && !arguments.contains(", 0)") && !traced.contains(pid)
            }
            "pidfd_send_signal" => {
                let pid = arguments.split_once("<pid:").and_then(|(_, rest)| rest.split(['>', '<']).next());
                !arguments.contains(", 0, ") && pid.is_none_or(|pid| !servers.contains(pid))
            }
            "tgkill" | "pidfd_open" => false,
            _ => arguments.contains("pg_wal"),
        }
    };
    trace.iter().filter(|line| is_forbidden(line)).cloned().collect()
}

/// Each call in one line. Where another process comes between the beginning and the end of a call, strace writes them apart:
/// `PID<program> call(arguments <unfinished ...>` and `PID<program> <... call resumed>) = result`.
fn whole_calls(trace: &str) -> Vec<String> {
    let (mut calls, mut begun) = (Vec::<String>::new(), HashMap::new());
    for line in trace.lines() {
        if let Some(beginning) = line.strip_suffix(" <unfinished ...>") {
            begun.insert(pid(line), calls.len());
            calls.push(beginning.to_owned());
        } else if let Some((_, end)) = line.split_once(" resumed>")
            && let Some(place) = begun.remove(pid(line))
        {
            calls[place].push_str(end);
        } else {
            calls.push(line.to_owned());
        }
    }
    calls
}

fn pid(line: &str) -> &str {
    line.split(['<', ' ']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_must_never_be_done_is_found() {
        let allowed = r#"
12<pg-recover> execve("/usr/bin/systemctl", ["systemctl", "start"], 0x7f /* 9 vars */) = 0
12<pg-recover> pidfd_open(77<postgres>, 0) = 5<pid:77>
12<pg-recover> pidfd_send_signal(5<pid:77>, SIGINT, NULL, 0) = 0
12<pg-recover> kill(78<sleep>, 0) = 0
12<pg-recover> pidfd_send_signal(4<anon_inode:[pidfd]>, SIGCONT, NULL, 0) = -1 ESRCH (No such process)
13<pg-recover> kill(12<pg-recover>, SIGKILL) = 0
14<systemctl> execve("/usr/bin/systemctl", ["systemctl"], 0x7f) = 0
12<pg-recover> kill(-14, SIGTERM) = 0
12<pg-recover> unlink("/var/lib/postgresql/17/main/postmaster.pid.12") = 0
12<pg-recover> pidfd_send_signal(4<anon_inode:[pidfd]>, SIGCONT, NULL, 0 <unfinished ...>
14<systemctl> kill(78<sleep>, 0 <unfinished ...>
12<pg-recover> <... pidfd_send_signal resumed>) = -1 ESRCH (No such process)
14<systemctl> <... kill resumed>)         = 0
"#;
        assert_eq!(forbidden(allowed), Vec::<String>::new());
        for line in [
            r#"12<pg-recover> execve("/usr/lib/postgresql/17/bin/pg_resetwal", ["pg_resetwal"], 0x7f) = 0"#,
            r#"12<pg-recover> kill(78<sleep>, SIGTERM) = 0"#,
            r#"12<pg-recover> pidfd_send_signal(5<pid:78>, SIGINT, NULL, 0) = 0"#,
            r#"12<pg-recover> pidfd_send_signal(4<anon_inode:[pidfd]>, SIGCONT, NULL, 0"#,
            r#"12<pg-recover> unlinkat(4</var/lib/postgresql/17/main/pg_wal>, "000000010000000000000001", 0) = 0"#,
            r#"12<pg-recover> rename("/var/lib/postgresql/17/main/pg_wal/1", "/tmp/1") = 0"#,
        ] {
            assert_eq!(forbidden(line), [line]);
            // And when it is cut short.
            assert_eq!(forbidden(&format!("{line} <unfinished ...>")), [line]);
        }
    }
}
