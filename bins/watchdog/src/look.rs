//! Looks at a postmaster that lives: its process, its lock file, a session that stays, and fresh connections.

use std::time::{Duration, Instant};

use shared::client::{Refusal, Session, Target};
use shared::cluster::Cluster;
use shared::config::Config;
use shared::control::Lsn;
use shared::pidfile::{LockFile, PidFile};
use shared::process::{self, Process};

use crate::state::{Facts, Startup, State, classify};

/// How many sessions clients have. The view would look up the names of their roles and databases, too.
pub const CLIENTS: &str = "SELECT count(*) FROM pg_stat_get_activity(NULL) WHERE backend_type = 'client backend'";

/// Cheap questions whose answers are worth keeping. `CASE` calls only the functions of the branch it takes.
const HEARTBEAT: &str = "SELECT pg_is_in_recovery(), CASE WHEN pg_is_in_recovery() \
    THEN COALESCE(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) ELSE pg_current_wal_flush_lsn() END";

/// The server removes its lock file as the last thing before it ends; a look in between must not count as a loss.
const SECOND_LOOK: Duration = Duration::from_millis(300);
const CHILDREN_EVERY: Duration = Duration::from_secs(10);

/// What the session answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beat {
    pub standby: bool,
    pub flush_lsn: Option<Lsn>,
    /// Sessions of clients, our own included.
    pub clients: u32,
}

pub struct Look {
    pub postmaster: Process,
    /// The lock file as it was last seen in order, with its bytes.
    pub lock_file: Option<(PidFile, Vec<u8>)>,
    pub lock_file_lost: bool,
    pub session: Option<Session>,
    pub beat: Option<Beat>,
    /// The session was lost, and nobody has asked why yet.
    pub cut_off: bool,
    children_at: Option<Instant>,
    fresh_at: Option<Instant>,
    fresh: Option<Result<(), Refusal>>,
    silent: u32,
    refused: u32,
    disk_samples: u32,
    /// CPU time and context switches, and since when they have been these.
    moved: (u64, u64, Instant),
    startup: Option<(String, u64, Instant)>,
}

impl Look {
    pub fn new(postmaster: Process) -> Look {
        let now = Instant::now();
        Look {
            postmaster,
            lock_file: None,
            lock_file_lost: false,
            session: None,
            beat: None,
            cut_off: false,
            children_at: None,
            fresh_at: None,
            fresh: None,
            silent: 0,
            refused: 0,
            disk_samples: 0,
            moved: (0, 0, now),
            startup: None,
        }
    }

    /// One look. Dropped half-way when the postmaster ends meanwhile.
    pub async fn look(&mut self, cluster: &Cluster, config: &Config) -> State {
        let stopping = self.look_at_lock_file(cluster).await;
        if stopping {
            // A smart shutdown waits until every session has gone.
            self.session = None;
            return classify(&Facts { stopping, ..Facts::default() });
        }
        let Some(before) = self.postmaster.again() else {
            return State::Suspect;
        };
        let mut suspicious = !matches!(before.state, 'R' | 'S') || self.lock_file_lost || !self.is_let_in();
        if !suspicious {
            suspicious = !self.beats(config).await;
        }
        let due =
            self.fresh_at.is_none_or(|at| at.elapsed() + config.watchdog.heartbeat / 2 > config.watchdog.connect_every);
        if suspicious || due {
            self.connect(cluster, config).await;
        }
        classify(&self.facts(cluster, &before))
    }

    fn is_let_in(&self) -> bool {
        matches!(self.fresh, Some(Ok(()) | Err(Refusal::NotAllowed(_))))
    }

    /// True when the server is shutting down.
    async fn look_at_lock_file(&mut self, cluster: &Cluster) -> bool {
        if !self.reads_lock_file(cluster) && !self.lock_file_lost {
            tokio::time::sleep(SECOND_LOOK).await;
            self.lock_file_lost = !self.reads_lock_file(cluster);
        }
        self.lock_file.as_ref().is_some_and(|(file, _)| file.status == "stopping")
    }

    /// True when the lock file is there and names this postmaster.
    fn reads_lock_file(&mut self, cluster: &Cluster) -> bool {
        let (file, bytes) = cluster.lock_file();
        match file {
            LockFile::Present(file) if file.pid == self.postmaster.pid => {
                self.lock_file_lost = false;
                if self.lock_file.as_ref().is_none_or(|(_, old)| *old != bytes) {
                    self.lock_file = Some((file, bytes));
                }
                true
            }
            // A disk that cannot be read says nothing about the file.
            LockFile::Unreadable(_) => true,
            _ => self.lock_file.as_ref().is_some_and(|(file, _)| file.status == "stopping"),
        }
    }

    /// A child that a signal has stopped, and no debugger: clients may notice nothing for a long time (P3), and whoever stops
    /// the server waits.
    pub fn stopped_child(&mut self, state: &State) -> Option<String> {
        let every = if *state == State::Stopping { Duration::ZERO } else { CHILDREN_EVERY };
        if self.children_at.is_some_and(|at| at.elapsed() < every) {
            return None;
        }
        self.children_at = Some(Instant::now());
        let stopped = |child: &Process| child.is_stopped() && !child.is_traced();
        process::children(self.postmaster.pid).iter().find(|child| stopped(child)).map(Process::title)
    }

    /// Asks the session for a sign of life; false when it owes one.
    async fn beats(&mut self, config: &Config) -> bool {
        let Some(session) = &self.session else { return matches!(self.fresh, Some(Err(Refusal::NotAllowed(_)))) };
        match session.query(&format!("{HEARTBEAT}, ({CLIENTS})"), config.watchdog.answer_timeout).await {
            Ok(rows) => {
                let row = rows.first();
                let column = |index: usize| row.and_then(|row| row.get(index)?.as_deref());
                let flush_lsn = column(1).and_then(Lsn::parse);
                let clients = column(2).and_then(|count| count.parse().ok()).unwrap_or_default();
                self.beat = Some(Beat { standby: column(0) == Some("t"), flush_lsn, clients });
                true
            }
            Err(_) => {
                self.session = None;
                self.cut_off = true;
                self.beat = None;
                false
            }
        }
    }

    async fn connect(&mut self, cluster: &Cluster, config: &Config) {
        let target = target(cluster, config, self.lock_file.as_ref().map(|(file, _)| file));
        self.fresh_at = Some(Instant::now());
        let outcome = match Session::connect(&target, config.watchdog.answer_timeout).await {
            Ok(session) => {
                // A refusal may have been the server's reset after a crash, which has ended the session that was there.
                if self.session.is_some() && !self.is_let_in() {
                    self.beats(config).await;
                }
                if self.session.is_none() {
                    self.session = Some(session);
                    self.beats(config).await;
                }
                Ok(())
            }
            Err(refusal) => Err(refusal),
        };
        let is_silence = outcome.as_ref().is_err_and(Refusal::is_silence);
        self.silent = if is_silence { self.silent + 1 } else { 0 };
        self.refused = if outcome.is_err() && !is_silence { self.refused + 1 } else { 0 };
        self.fresh = Some(outcome);
    }

    fn facts(&mut self, cluster: &Cluster, before: &Process) -> Facts {
        let mut facts = Facts {
            lock_file_lost: self.lock_file_lost,
            silent: self.silent,
            refused: self.refused,
            fresh: self.fresh.clone(),
            ..Facts::default()
        };
        if self.is_let_in() {
            self.startup = None;
            self.disk_samples = 0;
            return facts;
        }
        if self.silent == 0 {
            facts.startup = self.startup(cluster);
            return facts;
        }
        let Some(after) = self.postmaster.again() else { return facts };
        let both = |state: char| before.state == state && after.state == state;
        facts.stopped = both('T');
        facts.running = before.state == 'R' || after.state == 'R';
        facts.traced = before.state == 't' || after.state == 't' || after.is_traced();
        facts.frozen = after.is_frozen();
        let now = (after.cpu, after.switches().unwrap_or_default());
        let moves = now != (self.moved.0, self.moved.1);
        if moves || self.silent == 1 {
            self.moved = (now.0, now.1, Instant::now());
        }
        self.disk_samples = if both('D') && !(moves && self.silent > 1) { self.disk_samples + 1 } else { 0 };
        facts.disk_samples = self.disk_samples;
        facts.still = self.moved.2.elapsed();
        facts
    }

    /// How the startup process gets on: its title has the WAL segment it replays, its CPU time moves within one.
    fn startup(&mut self, cluster: &Cluster) -> Option<Startup> {
        let family = process::family(&cluster.data_directory, &cluster.owner).ok()?;
        let found = family.children.iter().map(|child| (child, child.title())).find(|(_, title)| is_startup(title));
        let Some((process, title)) = found else {
            self.startup = None;
            // Before it forks its first child it starts as well.
            let is_starting = self.lock_file.as_ref().is_none_or(|(file, _)| file.status == "starting");
            return is_starting.then(Startup::default);
        };
        let since = match &self.startup {
            Some((old, cpu, since)) if *old == title && *cpu == process.cpu => *since,
            _ => Instant::now(),
        };
        let recovering = title.contains("recovering") || title.contains("waiting for");
        self.startup = Some((title, process.cpu, since));
        Some(Startup { recovering, still: since.elapsed() })
    }
}

/// "postgres: 15/main: startup recovering 000000010000000000000003", or without the cluster's name.
fn is_startup(title: &str) -> bool {
    let role = title.rsplit(": ").next().unwrap_or_default();
    role == "startup" || role.starts_with("startup recovering ") || role.starts_with("startup waiting ")
}

/// The cluster's own socket, as its owner.
pub fn target(cluster: &Cluster, config: &Config, running: Option<&PidFile>) -> Target {
    Target::of(cluster, running, &config.health.database, "pg-watchdog")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_startup_process_is_known_by_its_title() {
        assert!(is_startup("postgres: 15/main: startup recovering 000000010000000000000003"));
        assert!(is_startup("postgres: startup"));
        assert!(!is_startup("postgres: 15/main: startup app [local] idle"));
        assert!(!is_startup("postgres: 15/main: walwriter"));
    }
}
