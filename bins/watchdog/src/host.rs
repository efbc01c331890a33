//! All clusters of the host and its services: one thread for each, followed as they come and go; and what systemd is told.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use shared::Result;
use shared::args::Args;
use shared::cluster::Cluster;
use shared::config::Config;
use shared::exit;

use crate::board::Board;
use crate::post::{InForce, Lateness, Post, lock};
use crate::sentry;
use crate::services::Services;
use crate::signals::{Asked, Signals};

const ROOT: &str = "/etc/postgresql";
/// How often the states are looked at for `systemctl status`.
const TURN: Duration = Duration::from_secs(1);
/// How often the clusters are looked for, and systemd gets its sign of life.
const ROUND: Duration = Duration::from_secs(5);
/// A cluster that does not answer must not keep the unit from becoming active.
const READY_AT_LAST: Duration = Duration::from_secs(15);
/// The tasks of a cluster's thread need little; the usual 2 MiB would be there for nothing.
const STACK: usize = 512 << 10;

struct Host<'a> {
    args: &'a Args,
    config: InForce,
    board: Arc<Board>,
    services: Services,
    posts: BTreeMap<String, (Arc<Post>, JoinHandle<()>)>,
    /// Names and times of the configuration folders when they were last read.
    seen: Vec<(PathBuf, i64, i64)>,
    status: String,
    is_ready: bool,
    is_late: bool,
    complaint: String,
}

/// Watches until SIGTERM.
pub fn watch(args: Args, config: Config, signals: &Signals) -> Result<()> {
    let config = Arc::new(Mutex::new(Arc::new(config)));
    let board = Arc::new(Board::default());
    let mut host = Host {
        args: &args,
        services: Services::new(config.clone(), board.clone()),
        config,
        board,
        posts: BTreeMap::new(),
        seen: Vec::new(),
        status: String::new(),
        is_ready: false,
        is_late: false,
        complaint: String::new(),
    };
    let began = Instant::now();
    let mut round: Option<Instant> = None;
    loop {
        if round.is_none_or(|at| at.elapsed() >= ROUND) {
            round = Some(Instant::now());
            host.follow();
            // Whoever asked for one cluster wants no more.
            if args.clusters.is_empty() {
                host.services.follow();
            }
            host.tell_watchdog();
        }
        host.report(began.elapsed() > READY_AT_LAST);
        match signals.wait(if host.is_ready { TURN } else { Duration::from_millis(50) }) {
            None => {}
            Some(Asked::Reload) => {
                host.reload();
                round = None;
            }
            Some(Asked::Stop) => {
                let _ = sd_notify::notify(&[NotifyState::Stopping]);
                log::info!("no longer watching; the clusters run on");
                return Ok(());
            }
        }
    }
}

impl Host<'_> {
    fn config(&self) -> Arc<Config> {
        lock(&self.config).clone()
    }

    /// Starts a thread for each new cluster, and lets the threads of those that are gone end.
    fn follow(&mut self) {
        let seen = times(Path::new(ROOT));
        if seen == self.seen && self.posts.values().all(|(_, thread)| !thread.is_finished()) {
            return;
        }
        let mut clusters = match Cluster::discover(&self.config()) {
            Ok(clusters) => clusters,
            Err(why) => {
                if self.complaint != why.message {
                    exit::report(&why);
                    self.complaint = why.message;
                }
                return;
            }
        };
        self.complaint.clear();
        self.seen = seen;
        for name in &self.args.clusters {
            // No error: the others must be watched, and this one may have been removed, or not be made yet.
            if !clusters.iter().any(|cluster| cluster.name() == *name) {
                log::warn!(PG_CLUSTER = name.as_str(); "cannot find cluster {name}; it is watched as soon as it is there");
            }
        }
        if !self.args.clusters.is_empty() {
            clusters.retain(|cluster| self.args.clusters.contains(&cluster.name()));
        }
        self.posts.retain(|name, (post, thread)| {
            let stays = clusters.iter().any(|cluster| cluster.name() == *name) && !thread.is_finished();
            if !stays {
                post.set_gone();
                log::info!(PG_CLUSTER = name.as_str(); "no longer watching cluster {name}");
            }
            stays
        });
        for cluster in clusters {
            let name = cluster.name();
            let cluster = Arc::new(cluster);
            if let Some((post, _)) = self.posts.get(&name) {
                post.set_cluster(cluster);
                continue;
            }
            let post = Arc::new(Post::new(cluster, self.config.clone(), self.board.clone()));
            let theirs = post.clone();
            let started =
                std::thread::Builder::new().name(name.clone()).stack_size(STACK).spawn(move || sentry::watch(theirs));
            match started {
                Ok(thread) => {
                    log::info!(PG_CLUSTER = name.as_str(); "watching cluster {name}");
                    self.posts.insert(name, (post, thread));
                }
                Err(why) => {
                    // Tried again at the next turn.
                    self.seen.clear();
                    log::error!(PG_CLUSTER = name.as_str(); "could not watch cluster {name}: {why}");
                }
            }
        }
    }

    fn has_looked(&self) -> bool {
        self.posts.values().all(|(post, _)| post.has_looked())
    }

    /// Tells systemd's watchdog that all is well, while every thread keeps its promise.
    fn tell_watchdog(&mut self) {
        let mut late = Vec::new();
        for (name, (post, _)) in &self.posts {
            match post.is_late() {
                Lateness::InTime => {}
                lateness => late.push((name, lateness)),
            }
        }
        if late.is_empty() == self.is_late {
            for (name, lateness) in &late {
                let why = match lateness {
                    Lateness::WaitsForDisk => "waits for a disk that does not answer",
                    _ => "does not come round",
                };
                log::warn!(PG_CLUSTER = name.as_str(); "the thread that watches cluster {name} {why}");
            }
            self.is_late = !late.is_empty();
        }
        if late.iter().all(|(_, lateness)| *lateness == Lateness::WaitsForDisk) {
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        }
    }

    /// Tells systemd in what state the clusters are, and once that all have been looked at.
    fn report(&mut self, is_time: bool) {
        let states: Vec<String> =
            self.posts.iter().map(|(name, (post, _))| format!("{name} {}", post.state())).collect();
        let status = if states.is_empty() { "no cluster on this host".to_string() } else { states.join(", ") };
        let is_ready = !self.is_ready && (is_time || self.has_looked());
        if status == self.status && !is_ready {
            return;
        }
        let mut told = vec![NotifyState::Status(&status)];
        if is_ready {
            told.push(NotifyState::Ready);
        }
        let _ = sd_notify::notify(&told);
        self.is_ready |= is_ready;
        self.status = status;
    }

    /// SIGHUP: a configuration that is wrong changes nothing.
    fn reload(&mut self) {
        match self.args.load_config() {
            Ok(config) => {
                *lock(&self.config) = Arc::new(config);
                // It may describe other clusters.
                self.seen.clear();
                log::info!("the configuration was read again");
            }
            Err(why) => {
                exit::report(&why);
                log::warn!("the configuration that was in force stays in force");
            }
        }
    }
}

/// What shows that a cluster came, went or was configured anew, for a few system calls.
fn times(root: &Path) -> Vec<(PathBuf, i64, i64)> {
    let mut times = Vec::new();
    note(root, 3, &mut times);
    times.sort();
    times
}

/// Notes a folder or file, and what is up to `depth` folders below it.
fn note(path: &Path, depth: u8, times: &mut Vec<(PathBuf, i64, i64)>) {
    let Ok(meta) = std::fs::metadata(path) else { return };
    times.push((path.to_path_buf(), meta.mtime(), meta.mtime_nsec()));
    if depth == 0 || !meta.is_dir() {
        return;
    }
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        note(&entry.path(), depth - 1, times);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_cluster_and_a_changed_file_are_noticed() {
        let root = std::env::temp_dir().join(format!("pg-watchdog-times-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        std::fs::create_dir_all(root.join("15/main")).unwrap();
        let empty = times(&root);
        std::fs::write(root.join("15/main/start.conf"), "auto").unwrap();
        let one = times(&root);
        assert_ne!(empty, one);
        std::fs::create_dir_all(root.join("15/other")).unwrap();
        assert_ne!(one, times(&root));
    }
}
