//! Tells a start or crash recovery that moves from one that stands still.

use std::time::Duration;

use shared::cluster::Cluster;
use shared::health::Startup;
use shared::process::{self, Process};

/// Passes for which a start may go without any trace of a startup process.
const GRACE: u32 = 5;

/// New startup processes in a row after which it is a loop of crashes, not progress (a disk that fails each replay).
const LOOP: u32 = 3;

#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    Moves(String),
    Stands(String),
}

/// Watches the startup process for a moment and compares it with what the last pass saw.
pub fn watch(cluster: &Cluster, last: &Startup) -> (Progress, Startup) {
    let before = sample(cluster);
    std::thread::sleep(Duration::from_millis(300));
    judge(before.as_ref(), sample(cluster).as_ref(), last)
}

fn sample(cluster: &Cluster) -> Option<Startup> {
    let family = process::family(&cluster.data_directory, &cluster.owner).ok()?;
    let (process, title) = family
        .children
        .into_iter()
        .map(|p| (p.title(), p))
        .find_map(|(title, process)| is_startup(&title).then_some((process, title)))?;
    let io = cluster.owner.act(|| io_of(&process)).unwrap_or_default();
    let Process { pid, started, cpu, .. } = process;
    Some(Startup { pid, started, cpu, io, title, ..Startup::default() })
}

/// `postgres: startup recovering 0000...` or, with a cluster_name, `postgres: 15/main: startup recovering 0000...`.
fn is_startup(title: &str) -> bool {
    let rest = title.strip_prefix("postgres: ").unwrap_or_default();
    rest.starts_with("startup") || rest.split_once(": ").is_some_and(|(_, rest)| rest.starts_with("startup"))
}

/// Bytes that it read and wrote (proc_pid_io(5)).
fn io_of(process: &Process) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/io", process.pid)).unwrap_or_default();
    text.lines().filter_map(|l| l.split_once(": ")?.1.parse::<u64>().ok()).fold(0, u64::wrapping_add)
}

fn moved(from: &Startup, to: &Startup) -> bool {
    (from.cpu, from.io, &from.title) != (to.cpu, to.io, &to.title)
}

fn is_same(a: &Startup, b: &Startup) -> bool {
    (a.pid, a.started) == (b.pid, b.started)
}

fn judge(before: Option<&Startup>, after: Option<&Startup>, last: &Startup) -> (Progress, Startup) {
    let passes = last.passes + 1;
    let Some(now) = after.or(before) else {
        let memory = Startup { passes, ..last.clone() };
        let progress = if passes <= GRACE {
            Progress::Moves("is starting".into())
        } else {
            Progress::Stands(format!("it has been starting for {passes} checks without a startup process"))
        };
        return (progress, memory);
    };
    let is_new = last.pid != 0 && !is_same(last, now);
    let replaced = last.replaced + u32::from(is_new);
    let moves_now = before.zip(after).is_none_or(|(a, b)| !is_same(a, b) || moved(a, b));
    // At the first sight it may be in a long fsync: it has not had the time to show that it stands still.
    let moves = moves_now || last.pid == 0 || is_new || moved(last, now);
    let memory = Startup { passes, replaced, ..now.clone() };
    let title = now.title.trim_start_matches("postgres: ");
    let progress = if replaced >= LOOP {
        Progress::Stands(format!("its recovery was begun again {replaced} times and never ended"))
    } else if moves || title.contains("startup waiting for") {
        // A standby that waits for WAL of its primary before it is consistent does nothing, and is well.
        Progress::Moves(format!("is starting or in crash recovery that moves ({title})"))
    } else {
        Progress::Stands(format!("its startup process stands still ({title})"))
    };
    (progress, memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(pid: i32, cpu: u64) -> Startup {
        Startup { pid, started: pid as u64, cpu, title: "postgres: startup".into(), ..Startup::default() }
    }

    fn moves(before: Option<&Startup>, after: Option<&Startup>, last: &Startup) -> bool {
        matches!(judge(before, after, last).0, Progress::Moves(_))
    }

    #[test]
    fn recovery_that_uses_cpu_moves() {
        let last = Startup { passes: 9, ..at(7, 1) };
        assert!(moves(Some(&at(7, 1)), Some(&at(7, 2)), &last), "within one pass");
        assert!(moves(Some(&at(7, 2)), Some(&at(7, 2)), &last), "since the last pass");
        assert!(!moves(Some(&at(7, 1)), Some(&at(7, 1)), &last));
    }

    #[test]
    fn the_first_sight_proves_no_standstill() {
        assert!(moves(Some(&at(7, 1)), Some(&at(7, 1)), &Startup::default()));
    }

    #[test]
    fn a_recovery_that_begins_again_and_again_is_no_progress() {
        let mut memory = Startup::default();
        let mut answers = Vec::new();
        for pid in 1..6 {
            let (progress, next) = judge(Some(&at(pid, 1)), Some(&at(pid, 9)), &memory);
            memory = next;
            answers.push(matches!(progress, Progress::Moves(_)));
        }
        assert_eq!(answers, [true, true, true, false, false]);
    }

    #[test]
    fn a_start_without_a_trace_is_waited_for_only_so_long() {
        let mut memory = Startup::default();
        for _ in 0..GRACE {
            let (progress, next) = judge(None, None, &memory);
            assert!(matches!(progress, Progress::Moves(_)));
            memory = next;
        }
        assert!(!moves(None, None, &memory));
    }

    #[test]
    fn only_the_startup_process_is_taken_for_it() {
        assert!(is_startup("postgres: 15/main: startup recovering 000000010000000000000005"));
        assert!(is_startup("postgres: startup waiting for 000000010000000000000005"));
        assert!(!is_startup("postgres: 15/main: checkpointer"));
        assert!(!is_startup("/usr/lib/postgresql/15/bin/postgres -D /x"));
    }
}
