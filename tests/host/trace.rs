//! What the programs that act do to files, processes and programs, as strace sees it, and what of it they must never do.

use std::collections::HashSet;

use crate::Host;

const FOLDER: &str = "/var/lib/pg-recovery/trace";
const CALLS: &str = "execve,unlink,unlinkat,rename,renameat,renameat2,truncate,ftruncate,kill,tkill,tgkill,pidfd_open,pidfd_send_signal";
/// Programs that can destroy data, and settings that do.
const NEVER_RUN: [&str; 6] =
    ["/pg_resetwal", "/initdb", "/ipcrm", "/ipcclean", "/pg_archivecleanup", "zero_damaged_pages"];

impl Host {
    /// Has strace write down from now on what pg-watchdog, pg-recover and what they start do. Their sandbox lets it, and is
    /// the same otherwise.
    #[track_caller]
    pub fn trace_actors(&self) {
        self.sh(&format!("install -d -m 700 {FOLDER}"));
        for (unit, program) in [("pg-watchdog", "pg-watchdog"), ("pg-recovery", "pg-recover")] {
            // -D: the tracer is a grandchild, so that the unit's main process is the program.
            let start = format!(
                "/usr/bin/strace -D -f -q -yy -Y --seccomp-bpf -A -o {FOLDER}/{program} -e trace={CALLS} /usr/sbin/{program}"
            );
            self.file(&format!("/etc/systemd/system/{unit}.service.d/trace.conf"))
                .write(format!("[Service]\nExecStart=\nExecStart={start}\nSystemCallFilter=\n"));
        }
        self.sh("systemctl daemon-reload && systemctl restart pg-watchdog");
    }

    /// What they did that they must never do, and how much was seen at all.
    #[track_caller]
    pub fn forbidden_acts(&self) -> (Vec<String>, usize) {
        let text = self.sh(&format!("cat {FOLDER}/*"));
        (forbidden(&text), text.lines().count())
    }
}

/// The lines of a trace that show a forbidden act: a file of pg_wal removed, renamed or cut, a program that can destroy data,
/// a signal to a process that is not PostgreSQL's.
fn forbidden(trace: &str) -> Vec<String> {
    // A pidfd is opened, its process looked at, and only then a signal sent.
    let servers: HashSet<&str> = trace
        .lines()
        .filter_map(|line| line.split_once("pidfd_open(")?.1.split_once("<postgres>"))
        .map(|(pid, _)| pid)
        .collect();
    let is_forbidden = |line: &&str| {
        // PID<program> call(arguments) = result
        let Some((call, arguments)) = line.split_once('(') else { return false };
        let caller = line.split(['<', ' ']).next().unwrap_or_default();
        let call = call.rsplit(' ').next().unwrap_or_default();
        match call {
            "execve" => NEVER_RUN.iter().any(|word| arguments.contains(word)),
            "kill" | "tkill" => {
                !arguments.contains("<postgres>") && !arguments.contains(", 0)") && !arguments.starts_with(caller)
            }
            "pidfd_send_signal" => {
                let pid = arguments.split_once("<pid:").and_then(|(_, rest)| rest.split(['>', '<']).next());
                !arguments.contains(", 0, ") && pid.is_none_or(|pid| !servers.contains(pid))
            }
            "tgkill" | "pidfd_open" => false,
            _ => arguments.contains("pg_wal"),
        }
    };
    trace.lines().filter(is_forbidden).map(str::to_owned).collect()
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
12<pg-recover> kill(12<pg-recover>, SIGKILL) = 0
12<pg-recover> unlink("/var/lib/postgresql/17/main/postmaster.pid.12") = 0
"#;
        assert_eq!(forbidden(allowed), Vec::<String>::new());
        for line in [
            r#"12<pg-recover> execve("/usr/lib/postgresql/17/bin/pg_resetwal", ["pg_resetwal"], 0x7f) = 0"#,
            r#"12<pg-recover> kill(78<sleep>, SIGTERM) = 0"#,
            r#"12<pg-recover> pidfd_send_signal(5<pid:78>, SIGINT, NULL, 0) = 0"#,
            r#"12<pg-recover> unlinkat(4</var/lib/postgresql/17/main/pg_wal>, "000000010000000000000001", 0) = 0"#,
            r#"12<pg-recover> rename("/var/lib/postgresql/17/main/pg_wal/1", "/tmp/1") = 0"#,
        ] {
            assert_eq!(forbidden(line), [line]);
        }
    }
}
