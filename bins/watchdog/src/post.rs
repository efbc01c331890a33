//! What the main thread and the thread of one cluster share.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use shared::cluster::Cluster;
use shared::config::Config;
use shared::process::Process;

use crate::board::Board;

/// The configuration in force; SIGHUP replaces it.
pub type InForce = Arc<Mutex<Arc<Config>>>;

pub struct Post {
    pub name: String,
    cluster: Mutex<Arc<Cluster>>,
    config: InForce,
    board: Arc<Board>,
    began: Instant,
    /// Until when the thread has promised to show up again, in milliseconds since `began`.
    promise: AtomicU64,
    thread: AtomicI32,
    has_looked: AtomicBool,
    is_gone: AtomicBool,
    state: Mutex<String>,
}

/// The state of a cluster that serves.
pub const WELL: &str = "well";

/// A value behind a mutex is whole even when a thread died while it held it: all of them are replaced at once.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Post {
    pub fn new(cluster: Arc<Cluster>, config: InForce, board: Arc<Board>) -> Post {
        let post = Post {
            name: cluster.name(),
            cluster: Mutex::new(cluster),
            config,
            board,
            began: Instant::now(),
            promise: AtomicU64::new(0),
            thread: AtomicI32::new(0),
            has_looked: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
            state: Mutex::new("looking".into()),
        };
        post.promise(Duration::from_secs(30));
        post
    }

    pub fn cluster(&self) -> Arc<Cluster> {
        lock(&self.cluster).clone()
    }

    pub fn set_cluster(&self, cluster: Arc<Cluster>) {
        *lock(&self.cluster) = cluster;
    }

    pub fn config(&self) -> Arc<Config> {
        lock(&self.config).clone()
    }

    pub fn state(&self) -> String {
        lock(&self.state).clone()
    }

    /// Whether it serves cannot be told for the moment: those who depend on it wait.
    pub fn doubt(&self) {
        self.tell_board(false);
    }

    fn tell_board(&self, serves: bool) {
        if !self.is_gone() {
            self.board.put(&self.name, serves);
        }
    }

    /// The state for `systemctl status`; the first one also says that the first look is done.
    pub fn set_state(&self, state: &str) {
        self.tell_board(state == WELL);
        let mut old = lock(&self.state);
        if *old != state {
            *old = state.into();
        }
        self.has_looked.store(true, Relaxed);
    }

    pub fn has_looked(&self) -> bool {
        self.has_looked.load(Relaxed)
    }

    /// The cluster was dropped: its thread ends at its next step.
    pub fn set_gone(&self) {
        self.is_gone.store(true, Relaxed);
        self.board.remove(&self.name);
    }

    pub fn is_gone(&self) -> bool {
        self.is_gone.load(Relaxed)
    }

    pub fn set_thread(&self) {
        self.thread.store(nix::unistd::gettid().as_raw(), Relaxed);
    }

    /// "You will hear from me within this time."
    pub fn promise(&self, bound: Duration) {
        self.promise.store((self.began.elapsed() + bound).as_millis() as u64, Relaxed);
    }

    /// Has the thread broken its promise? One that waits for a disk that does not answer has not: starting this program
    /// again would not make the disk answer.
    pub fn is_late(&self) -> Lateness {
        if (self.began.elapsed().as_millis() as u64) < self.promise.load(Relaxed) {
            return Lateness::InTime;
        }
        // Reads /proc/PID/stat, and a thread has its own under its own number.
        match Process::of(self.thread.load(Relaxed)) {
            Some(thread) if thread.state == 'D' => Lateness::WaitsForDisk,
            _ => Lateness::Late,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lateness {
    InTime,
    WaitsForDisk,
    Late,
}

/// One arena for all threads: glibc gives each its own 64 MiB of addresses otherwise, and keeps what is freed in them.
pub fn save_memory() {
    // SAFETY: mallopt takes two integers; called before the first thread is started.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
