//! The words for the ledger: a client that keeps committing while the machine is being broken.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::book::{Book, Status, Tally, monotonic_ms};
use crate::poll::poll_until;
use crate::{Cluster, Host, Output};

/// A running ledger. It survives whatever happens to the machine, a power cut too.
pub struct Ledger {
    running: Child,
    log: PathBuf,
    reach: Vec<String>,
}

impl Ledger {
    pub(crate) fn start(host: &Host, cluster: &Cluster, more: &[&str]) -> Ledger {
        let program = program();
        let log = host.outside().join(format!("ledger-{}-{}.log", cluster.port(), monotonic_ms()));
        let socket = host.outside().join("machine/run/postgresql");
        let mut reach = vec!["--socket".to_owned(), socket.display().to_string()];
        reach.extend(["--port".to_owned(), cluster.port().to_string()]);
        reach.extend(["--log".to_owned(), log.display().to_string()]);
        reach.extend(["--uid".to_owned(), host.uid_of("postgres").to_string()]);
        let mut command = host.beside(&program);
        command.arg("run").args(&reach).args(more).stdout(Stdio::null()).stderr(Stdio::inherit());
        let running = command.spawn().unwrap_or_else(|error| panic!("could not start {}: {error}", program.display()));
        let ledger = Ledger { running, log, reach };
        ledger.wait_for_commits(1);
        ledger
    }

    /// Waits until so many more commits than now have been acknowledged.
    #[track_caller]
    pub fn wait_for_commits(&self, more: u64) {
        self.wait_for_commits_within(more, Duration::from_secs(60));
    }

    /// Waits until so many more commits than now have been acknowledged, but not longer than the deadline.
    #[track_caller]
    pub fn wait_for_commits_within(&self, more: u64, deadline: Duration) {
        let before = self.book().count(Status::Acked);
        let done = poll_until(deadline, || (self.book().count(Status::Acked) >= before + more).then_some(()));
        assert!(
            done.is_some(),
            "no {more} commits within {deadline:?}; the ledger's last lines:\n{}",
            self.last_lines()
        );
    }

    /// The longest time without an acknowledged commit so far, the present one included.
    pub fn gap_so_far(&self) -> Duration {
        Duration::from_millis(self.book().longest_gap(Some(monotonic_ms())).0)
    }

    /// Whether a commit has been acknowledged since this time of [`monotonic_ms`].
    pub fn has_committed_since(&self, since_ms: u64) -> bool {
        self.book().entries.iter().rev().any(|entry| entry.status == Status::Acked && entry.at_ms > since_ms)
    }

    /// What it has written down.
    pub fn book(&self) -> Book {
        Book::read(&self.log).unwrap_or_default()
    }

    /// Stops it and compares its book with the table; the server must be accepting, or be so within ten seconds.
    #[track_caller]
    pub fn stop_and_check(mut self) -> Tally {
        self.stop();
        let output =
            Command::new(program()).arg("check").args(&self.reach).output().expect("the ledger can be started");
        let output = Output::from(&output);
        assert!(output.success(), "the ledger could not read its table: {output}\n{}", self.last_lines());
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"))
    }

    fn stop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.running.id()).expect("a pid is an i32"));
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let ended =
            poll_until(Duration::from_secs(10), || matches!(self.running.try_wait(), Ok(Some(_))).then_some(()));
        assert!(ended.is_some(), "the ledger did not stop within ten seconds");
    }

    fn last_lines(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let _ = self.running.kill();
        let _ = self.running.wait();
    }
}

/// Cargo puts the binaries of a package one folder above its tests.
fn program() -> PathBuf {
    let me = std::env::current_exe().expect("this program has a path");
    me.ancestors()
        .skip(1)
        .map(|folder: &Path| folder.join("ledger"))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("the ledger is not built beside {}", me.display()))
}
