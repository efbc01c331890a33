//! All services of the configuration: one thread for each, followed as they come and go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use shared::service as known;

use crate::board::Board;
use crate::post::{InForce, lock};
use crate::service::{self, Seat};

/// A service's thread mostly waits for other programs.
const STACK: usize = 512 << 10;

pub struct Services {
    config: InForce,
    board: Arc<Board>,
    threads: BTreeMap<String, (Arc<Seat>, JoinHandle<()>)>,
}

impl Services {
    pub fn new(config: InForce, board: Arc<Board>) -> Services {
        Services { config, board, threads: BTreeMap::new() }
    }

    /// Starts a thread for each new service, and lets the threads of those that are gone end. None of them ever keeps
    /// systemd's watchdog waiting: for a service that hangs, no cluster goes unwatched.
    pub fn follow(&mut self) {
        let config = lock(&self.config).clone();
        self.threads.retain(|name, (seat, thread)| {
            let stays = config.service.iter().any(|rule| rule.name == *name) && !thread.is_finished();
            if !stays {
                seat.is_gone.store(true, Relaxed);
                log::info!(PG_CLUSTER = known::about(name).as_str(); "no longer watching service {name}");
            }
            stays
        });
        for rule in &config.service {
            if self.threads.contains_key(&rule.name) {
                continue;
            }
            let (name, about) = (rule.name.clone(), known::about(&rule.name));
            let (config, board, is_gone) = (self.config.clone(), self.board.clone(), AtomicBool::new(false));
            let seat = Arc::new(Seat { name: name.clone(), config, board, is_gone });
            let theirs = seat.clone();
            let started =
                std::thread::Builder::new().name(name.clone()).stack_size(STACK).spawn(move || service::watch(&theirs));
            match started {
                Ok(thread) => {
                    log::info!(PG_CLUSTER = about.as_str(); "watching service {name}");
                    self.threads.insert(name, (seat, thread));
                }
                // Tried again at the next turn.
                Err(why) => log::error!(PG_CLUSTER = about.as_str(); "could not watch service {name}: {why}"),
            }
        }
    }
}
