//! The OOM killer (M1): did the kernel end a process for want of memory, and what is a person told about it?
//!
//! systemd says so of a unit that it stopped for it (`OOMPolicy=`); of a server that goes on, the kernel's counter does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use shared::cluster::Cluster;
use shared::log::MANUAL;
use shared::{terminals, unit};

use crate::crash::Crash;

/// So many times within `watchdog.quiet` are told: once may be chance.
pub const TOLD_AT: u32 = 2;

/// The counter as it was at some moment.
#[derive(Clone, Debug, Default)]
pub struct Kills(Option<(PathBuf, u64)>);

impl Kills {
    pub fn of(unit: &str) -> Kills {
        // That of the unit counts its own processes (cgroup-v2.rst, memory.events). Where the memory controller is not
        // there, that of the host has to do (proc_vmstat(5)): together with a process of ours that died by SIGKILL meanwhile.
        let own = unit::control_group(unit).map(|group| group.join("memory.events"));
        let sources = own.into_iter().chain([PathBuf::from("/proc/vmstat")]);
        Kills(sources.into_iter().find_map(|source| count(&source).map(|count| (source, count))))
    }

    /// What was killed since then, for people; `None` when nothing was, or when that cannot be told.
    pub fn since(&self) -> Option<String> {
        let (source, before) = self.0.as_ref()?;
        let now = count(source)?;
        (now > *before).then(|| format!("oom_kill in {} went from {before} to {now}", source.display()))
    }
}

fn count(source: &Path) -> Option<u64> {
    parse(&std::fs::read_to_string(source).ok()?)
}

fn parse(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
}

/// Tells a person what to do about it.
pub fn tell(cluster: &Cluster, last: Option<&Crash>, times: u32, window: Duration) {
    // systemd.service(5), OOMPolicy=: all but "continue" end the whole unit for the end of one process.
    let stops = unit::show_one(&cluster.unit).is_ok_and(|unit| unit.oom_policy != "continue");
    let text = advice(cluster, last, times, window, stops);
    log::error!(MESSAGE_ID = MANUAL, PG_CLUSTER = cluster.name(), PG_FAULT = "M1"; "{text}");
    terminals::tell("pg-watchdog", &text);
}

fn advice(cluster: &Cluster, last: Option<&Crash>, times: u32, window: Duration, stops: bool) -> String {
    let minutes = window.as_secs() / 60;
    let mut text =
        format!("cluster {}: the OOM killer ended processes of it {times} times within {minutes}min", cluster.name());
    let statement = last.map(|crash| crash.statement.as_str()).filter(|statement| !statement.is_empty());
    if let Some(statement) = statement {
        text.push_str(&format!("; the last one was running: {statement}"));
    }
    let role = last.map(|crash| crash.role.as_str()).filter(|role| !role.is_empty());
    if let Some(role) = role {
        text.push_str(&format!("; it was of {role}"));
    }
    text.push_str(
        ". It is started again within the budget for restarts. Give it less to use: ALTER ROLE name SET work_mem = '4MB' \
         for whoever runs such statements, CONNECTION LIMIT for whoever has many sessions, a lower shared_buffers",
    );
    if stops {
        let folder = format!("/etc/systemd/system/{}.d", cluster.unit);
        text.push_str(&format!(
            ". So that the end of one session does not stop the whole server, and that the server itself is ended last: \
             mkdir -p {folder} && printf '[Service]\\nOOMPolicy=continue\\nOOMScoreAdjust=-900\\n' > {folder}/memory.conf && \
             systemctl daemon-reload"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_read_from_either_source() {
        assert_eq!(parse("low 0\nhigh 0\nmax 12\noom 1\noom_kill 3\noom_group_kill 0\n"), Some(3));
        assert_eq!(parse("oom_kill_disable 0\n"), None);
    }

    #[test]
    fn only_what_was_killed_since_counts() {
        let file = std::env::temp_dir().join(format!("pg-watchdog-oom-{}", std::process::id()));
        std::fs::write(&file, "oom_kill 3\n").unwrap();
        let kills = Kills(Some((file.clone(), 3)));
        assert_eq!(kills.since(), None);
        std::fs::write(&file, "oom_kill 4\n").unwrap();
        assert!(kills.since().unwrap().ends_with("went from 3 to 4"));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(kills.since(), None, "the unit is gone, and its counter with it");
        assert_eq!(Kills::default().since(), None);
    }
}
