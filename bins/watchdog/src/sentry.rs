//! Watches one cluster, in a thread of its own: while its postmaster lives, and while there is none.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use shared::Result;
use shared::clock::Stamp;
use shared::cluster::Cluster;
use shared::config::{Config, Mode, OnCleanStop};
use shared::lock::Lock;
use shared::log::{FAULT, LEFT_ALONE};
use shared::pidfile::LockFile;
use shared::process::{self, Identity, Pidfd, Process};
use shared::server_log::{self, Level};
use shared::standing::{self, Standing, Verdict};
use shared::state::State as StateFile;
use shared::unit::{self, ABANDONED, UnitState, control_group};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use crate::budget::{self, Budget};
use crate::crash::{self, Crash, Crashes};
use crate::death::{self, End, Seen};
use crate::handover::Handover;
use crate::keeper::{self, Keeper};
use crate::look::Look;
use crate::oom::{self, Kills};
use crate::post::{Post, WELL};
use crate::restart::{self, Incident, Tried};
use crate::sessions::{Scene, Sessions};
use crate::state::State;

/// A server under load alternates between busy and well; said once in this time.
const BUSY_SAID: Duration = Duration::from_secs(60);

/// A server ends in less.
const HELD_UP: Duration = Duration::from_secs(15);

pub struct Sentry {
    post: Arc<Post>,
    name: String,
    cluster: Arc<Cluster>,
    config: Arc<Config>,
    keeper: Keeper,
    handover: Handover,
    sessions: Sessions,
    budget: StateFile<Budget>,
    incident: Option<Incident>,
    crashes: Crashes,
    /// When the last postmaster was seen to end.
    died: Option<Instant>,
    seen: Seen,
    seen_well: Mark,
    /// What the kernel had killed before the last look that found it well.
    kills: Option<Kills>,
    said: String,
    busy_said: Option<Instant>,
    /// Something other than a busy spell was said about a server that runs; its end is said too.
    trouble_said: bool,
    /// Since when systemd has been waiting for a server that is dead.
    stuck: Option<Instant>,
    /// How long the server's log was when it was last searched for panics.
    panics_at: server_log::Mark,
}

/// What was there before a look at a server: what comes behind it is news when that look finds it well. A session of ours lives
/// on for a moment after the crash of another one is in the log.
#[derive(Default)]
struct Mark {
    log: server_log::Mark,
    kills: Kills,
}

impl Mark {
    fn of(cluster: &Cluster) -> Mark {
        Mark { log: server_log::lengths(cluster), kills: Kills::of(&cluster.unit) }
    }
}

/// Where a look at a cluster without a postmaster leads.
enum Next {
    Watch(Process),
    LookAgain(Duration),
    /// Nothing to do until something changes.
    Wait,
}

/// The thread of one cluster; ends when the cluster is dropped.
pub fn watch(post: Arc<Post>) {
    post.set_thread();
    let runtime = match shared::client::runtime() {
        Ok(runtime) => runtime,
        Err(why) => {
            log::error!(PG_CLUSTER = post.name.as_str(); "could not watch cluster {}: {why}", post.name);
            return;
        }
    };
    runtime.block_on(Sentry::new(post).run());
}

impl Sentry {
    fn new(post: Arc<Post>) -> Sentry {
        let name = post.name.clone();
        if let Err(why) = keeper::ensure_lock_file(&name) {
            log::warn!(PG_CLUSTER = name.as_str(); "{}", why.message);
        }
        let keeper = Keeper::new(&name);
        Sentry {
            cluster: post.cluster(),
            config: post.config(),
            seen_well: Mark { log: keeper.log(), kills: Kills::default() },
            kills: None,
            keeper,
            handover: Handover::default(),
            sessions: Sessions::new(&name),
            budget: budget::load(&name),
            incident: None,
            crashes: Crashes::default(),
            died: None,
            seen: Seen::default(),
            said: String::new(),
            busy_said: None,
            trouble_said: false,
            stuck: None,
            panics_at: server_log::Mark::default(),
            name,
            post,
        }
    }

    async fn run(mut self) {
        while !self.post.is_gone() {
            match self.find() {
                Some(postmaster) => self.accompany(postmaster).await,
                None => self.wait_for_postmaster().await,
            }
        }
    }

    fn refresh(&mut self) {
        self.cluster = self.post.cluster();
        self.config = self.post.config();
        self.post.promise(Duration::from_secs(30));
    }

    /// The postmaster that postmaster.pid names.
    fn find(&self) -> Option<Process> {
        let (LockFile::Present(file), _) = self.cluster.lock_file() else { return None };
        let identity = process::identify(file.pid, &self.cluster.data_directory, &self.cluster.owner).ok()?;
        (identity == Identity::Ours).then(|| Process::of(file.pid))?
    }

    // ---- while there is a postmaster ----

    async fn accompany(&mut self, postmaster: Process) {
        let pid = postmaster.pid;
        let Some(Ok(pidfd)) = Pidfd::open(&postmaster).map(register) else {
            // It is gone already, or there are no descriptors left.
            return sleep(Duration::from_millis(20)).await;
        };
        log::info!(PG_CLUSTER = self.name.as_str(); "cluster {} has a postmaster, PID {pid}", self.name);
        self.keeper.begin();
        self.sessions.begin();
        self.seen = Seen::default();
        let mut look = Look::new(postmaster);
        let mut state = None;
        let mut answered = Instant::now();
        loop {
            self.refresh();
            if self.post.is_gone() {
                return;
            }
            let began = Instant::now();
            let turn = async {
                let mark = Mark::of(&self.cluster);
                let now = look.look(&self.cluster, &self.config).await;
                self.became(&now, state.as_ref(), answered.elapsed());
                if now == State::Well {
                    answered = Instant::now();
                }
                state = Some(now);
                self.act_on(state.as_ref(), &mut look, mark).await;
                let heartbeat = self.config.watchdog.heartbeat;
                // A server that is starting is looked at more often, to see the moment in which it is back.
                let pause = if self.incident.is_some() { heartbeat.min(Duration::from_millis(100)) } else { heartbeat };
                sleep(pause.saturating_sub(began.elapsed())).await;
            };
            if unless(pidfd.readable(), turn).await.is_none() {
                break;
            }
        }
        self.died = Some(Instant::now());
        self.seen.ended = true;
        self.seen.lock_file_lost = look.lock_file_lost;
        self.handover.forget();
        self.said.clear();
        self.post.set_state("down");
        log::warn!(PG_CLUSTER = self.name.as_str(); "the postmaster of cluster {}, PID {pid}, has ended", self.name);
    }

    /// Says what has changed.
    fn became(&mut self, now: &State, before: Option<&State>, silence: Duration) {
        if *now == State::Suspect {
            self.post.doubt();
            return;
        }
        self.post.set_state(now.label());
        let same =
            |a: &State, b: &State| std::mem::discriminant(a) == std::mem::discriminant(b) && a.label() == b.label();
        if before.is_some_and(|before| same(before, now)) {
            return;
        }
        let (name, cluster) = (self.name.as_str(), &self.name);
        let silent_ms = silence.as_millis() as u64;
        self.trouble_said |= !matches!(now, State::Well | State::Busy);
        match now {
            State::Well => self.is_well(silent_ms),
            State::Busy => {
                if self.busy_said.is_none_or(|at| at.elapsed() > BUSY_SAID) {
                    self.busy_said = Some(Instant::now());
                    log::warn!(PG_CLUSTER = name;
                        "cluster {cluster} is slow to take new connections; it is left alone as long as its postmaster moves");
                }
            }
            State::OutOfSlots => log::warn!(PG_CLUSTER = name, PG_FAULT = "L1";
                "cluster {cluster} has no connection slot left"),
            State::Refusing { why, fault: None } => log::warn!(PG_CLUSTER = name;
                "cluster {cluster} lets nobody in: {why}; left to pg-health-check"),
            State::Refusing { why, fault: Some(fault) } => {
                log::error!(MESSAGE_ID = FAULT, PG_CLUSTER = name, PG_FAULT = fault;
                "cluster {cluster} lets nobody in: {why}")
            }
            State::SocketGone => log::warn!(PG_CLUSTER = name, PG_FAULT = "P12";
                "cluster {cluster} runs, and there is no socket for its clients"),
            State::Traced => log::warn!(MESSAGE_ID = LEFT_ALONE, PG_CLUSTER = name;
                "the postmaster of cluster {cluster} is in somebody's debugger, leaving it alone"),
            State::Frozen => log::warn!(MESSAGE_ID = LEFT_ALONE, PG_CLUSTER = name;
                "cluster {cluster} is frozen, leaving it alone; systemctl thaw {} ends this", self.cluster.unit),
            State::LockFileLost => log::error!(MESSAGE_ID = FAULT, PG_CLUSTER = name, PG_FAULT = "P8";
                "postmaster.pid of cluster {cluster} was removed or replaced while its server runs"),
            State::Hung(why) => {
                log::error!(MESSAGE_ID = FAULT, PG_CLUSTER = name, PG_FAULT = "P2", PG_DETECTED_MS = silent_ms;
                "the postmaster of cluster {cluster} hangs: {why}; it last answered {silent_ms}ms ago")
            }
            State::Recovering { moving: false } => log::warn!(PG_CLUSTER = name;
                "recovery of cluster {cluster} has not moved for a minute; left alone"),
            _ => log::info!(PG_CLUSTER = name; "cluster {cluster} is {}", now.label()),
        }
    }

    fn is_well(&mut self, silent_ms: u64) {
        self.handover.forget();
        self.said.clear();
        let name = self.name.as_str();
        match (self.incident.take(), self.died.take(), std::mem::take(&mut self.trouble_said)) {
            (Some(incident), ..) => incident.close("recovered"),
            (None, Some(died), _) => log::info!(PG_CLUSTER = name;
                "cluster {name} accepts connections again, {}ms after its end was seen", died.elapsed().as_millis()),
            (None, None, true) => log::info!(PG_CLUSTER = name;
                "cluster {name} accepts connections again, {silent_ms}ms after it last did"),
            (None, None, false) => {}
        }
    }

    async fn act_on(&mut self, state: Option<&State>, look: &mut Look, mark: Mark) {
        match state {
            Some(state @ State::Well) => {
                self.seen.well = true;
                // The crash of one session ends all others, ours among them.
                if std::mem::take(&mut look.cut_off) {
                    let end = Mark::of(&self.cluster);
                    let (log, killed) =
                        (server_log::written(&self.cluster, &self.seen_well.log), self.seen_well.kills.since());
                    if let Some(last) = self.crashes.enter(&self.name, &log, killed.as_deref()) {
                        self.ran_out_of_memory(Some(&last));
                    }
                    self.kills = Some(end.kills.clone());
                    self.seen_well = end;
                } else {
                    // A kill counts before the process is gone and the server can log it: one look earlier for that.
                    let kills = self.kills.replace(mark.kills.clone()).unwrap_or(mark.kills);
                    self.seen_well = Mark { kills, ..mark };
                }
                if let Some(beat) = look.beat {
                    // Who only looks on takes no room.
                    let heals = self.config.mode_of(&self.name) == Mode::Heal;
                    let ballast = heals.then_some(self.config.recover.ballast);
                    self.keeper.keep(&self.cluster, look.lock_file.as_ref(), beat, ballast);
                }
                if let Some(why) = self.keeper.control_lost().map(String::from) {
                    self.hand_over("S9", &format!("its server runs, and {why}"));
                }
                if let Some(child) = look.stopped_child(state) {
                    self.hand_over("P3", &format!("its server runs, and a signal has stopped \"{child}\""));
                }
                if let Some(wrong) = self.keeper.take_wrong() {
                    self.hand_over("S7", &format!("its server runs, and {wrong}"));
                }
                if let Some(session) = &look.session {
                    self.keeper.keep_good(&self.cluster, session, self.config.watchdog.answer_timeout).await;
                }
            }
            Some(State::Hung(why)) => self.hand_over("P2", &format!("its postmaster hangs: {why}")),
            Some(State::Refusing { why, fault: Some(fault) }) => {
                self.hand_over(fault, &format!("its server runs, and lets nobody in: {why}"));
            }
            Some(state @ State::Stopping) => {
                if let Some(child) = look.stopped_child(state) {
                    self.hand_over("P3", &format!("its server is told to stop, and a signal has stopped \"{child}\""));
                }
            }
            Some(State::Starting | State::Recovering { .. }) => self.look_for_panics(),
            Some(State::LockFileLost) => self.hand_over("P8", "its server runs without its lock file"),
            Some(State::SocketGone) if look.lock_file.as_ref().is_some_and(|(file, _)| file.socket().is_some()) => {
                self.hand_over("P12", "its server runs, and its socket is gone");
            }
            _ => {}
        }
        if let Some(state @ (State::Well | State::Busy | State::OutOfSlots)) = state {
            let scene = Scene { post: &self.post, cluster: &self.cluster, config: &self.config, look };
            self.sessions.attend(&scene, state).await;
        }
    }

    /// The server itself begins anew after a PANIC, and for ever where each recovery meets the next one.
    fn look_for_panics(&mut self) {
        let length = server_log::lengths(&self.cluster);
        if self.panics_at == length {
            return;
        }
        self.panics_at = length;
        let log = server_log::written(&self.cluster, &self.seen_well.log);
        if let Some((fault, message)) = server_log::panics(&log) {
            self.hand_over(fault, &format!("it begins anew again and again, and ends each time with: {message}"));
        }
    }

    // ---- while there is none ----

    async fn wait_for_postmaster(&mut self) {
        let began = Instant::now();
        let mut looked: Option<Instant> = None;
        let mut again: Option<Duration> = None;
        let mut signs = (server_log::Mark::default(), false);
        loop {
            self.refresh();
            if self.post.is_gone() || self.find().is_some() {
                return;
            }
            let now = (server_log::lengths(&self.cluster), control_group(&self.cluster.unit).is_some());
            let changed = looked.is_some() && signs != now;
            signs = now;
            let spacing = again.unwrap_or_else(|| spacing(began.elapsed()));
            if changed || looked.is_none_or(|at| at.elapsed() >= spacing) {
                looked = Some(Instant::now());
                again = match self.consider(began.elapsed()).await {
                    Ok(Next::Watch(postmaster)) => return self.accompany(postmaster).await,
                    Ok(Next::LookAgain(pause)) => Some(pause),
                    Ok(Next::Wait) => None,
                    Err(why) => {
                        self.say_once(&why.message);
                        Some(Duration::from_secs(1))
                    }
                };
            }
            let pause = if began.elapsed() < Duration::from_secs(10) { 100 } else { 1000 };
            sleep(again.unwrap_or(Duration::MAX).min(Duration::from_millis(pause))).await;
        }
    }

    /// Finds out why there is no postmaster, and does what is to be done about it.
    async fn consider(&mut self, since: Duration) -> Result<Next> {
        // Whoever holds the lock is stopping or starting it, and knows why.
        if Lock::try_take_shared(&self.name)?.is_none() {
            self.post.set_state("being repaired");
            return Ok(Next::LookAgain(Duration::from_millis(200)));
        }
        // After a death systemd runs ExecStop=, some 60 ms of Perl; asking it meanwhile only takes CPU time from that.
        // The control group goes when all is done.
        if since < Duration::from_millis(500) && control_group(&self.cluster.unit).is_some() {
            return Ok(Next::LookAgain(Duration::from_millis(2)));
        }
        // start.conf may have been changed a moment ago.
        let Some(cluster) =
            shared::cluster::Cluster::discover(&self.config)?.into_iter().find(|c| c.name() == self.name)
        else {
            self.say_once(&format!("cluster {} is gone", self.name));
            return Ok(Next::LookAgain(Duration::from_secs(1)));
        };
        if !cluster.is_whole {
            self.say_once(&format!("the volume of cluster {} does not answer in time; looking again", self.name));
            return Ok(Next::LookAgain(Duration::from_secs(1)));
        }
        self.cluster = Arc::new(cluster);
        self.post.set_cluster(self.cluster.clone());
        self.post.promise(Duration::from_secs(60));
        let (unit, umbrella) = standing::units(&self.cluster)?;
        // systemd is at work, or has not noticed yet; just after a death both take less than a tenth of a second.
        let is_settled = !unit.job && matches!(unit.active.as_str(), "failed" | "inactive");
        if !is_settled && (since < Duration::from_secs(5) || unit.job || unit.active != "active") {
            self.post.set_state(&unit.active);
            if unit.active == "activating" {
                self.free_stuck_start(&unit, umbrella.as_ref())?;
            }
            // A backend that does not notice the death of its postmaster keeps the unit in this state for an hour.
            if unit.active == "deactivating" && !unit.job && since > HELD_UP {
                let family = process::family(&self.cluster.data_directory, &self.cluster.owner)?;
                if family.postmaster.is_none() && !family.children.is_empty() {
                    self.hand_over("P9", "processes of the dead postmaster live on");
                }
            }
            return Ok(Next::LookAgain(Duration::from_millis(if since < Duration::from_secs(1) { 20 } else { 200 })));
        }
        self.stuck = None;
        if let Some(postmaster) = process::family(&self.cluster.data_directory, &self.cluster.owner)?.postmaster {
            return Ok(Next::Watch(postmaster));
        }
        let control = death::control(&self.cluster);
        let log = server_log::written(&self.cluster, &self.seen_well.log);
        let end = death::judge(&unit, &control, self.seen, &log);
        let found = control.map_or_else(|e| e.to_string(), |state| format!("pg_control says \"{state}\""));
        // Its own last word, and not that of a session before somebody killed it. A PANIC ends in SIGABRT.
        let ended_itself =
            unit.exit_kind == 1 || unit.exit_status == Signal::SIGABRT as i32 || unit.result == "protocol";
        let last = server_log::of_storage(&log).filter(|(level, ..)| *level != Level::Error).last();
        if let (End::Crash(why), Some((_, fault, message))) = (&end, last.filter(|_| ended_itself)) {
            self.post.set_state("crashed");
            if let Some(incident) = self.incident.take() {
                incident.close("failed");
            }
            // One start is for pg-recover to try; a budget of them would only wear the disk.
            self.hand_over(fault, &format!("{why}; its last word was: {message}"));
            return Ok(Next::Wait);
        }
        match end {
            End::Crash(why) => {
                let by_kill = unit.exit_kind == 2 && unit.exit_status == 9;
                match self.seen_well.kills.since().filter(|_| by_kill) {
                    Some(shown) => {
                        let end = format!("{why}, and that was the OOM killer: {shown}");
                        self.crashed("M1", &end, &found, &log, &unit, umbrella.as_ref()).await
                    }
                    None => self.crashed("P1", &why, &found, &log, &unit, umbrella.as_ref()).await,
                }
            }
            End::OutOfMemory(why) => self.crashed("M1", &why, &found, &log, &unit, umbrella.as_ref()).await,
            End::LockFileLost => {
                let why = "it ended itself because its lock file was removed or replaced";
                self.crashed("P8", why, &found, &log, &unit, umbrella.as_ref()).await
            }
            End::StartFailed => {
                self.post.set_state("not started");
                if let Some(incident) = self.incident.take() {
                    incident.close("failed");
                }
                self.hand_over("start-failed", &format!("{} could not be started", self.cluster.unit));
                Ok(Next::Wait)
            }
            // A run of pg-recover, or this program, was ended between a stop and the start that was to follow.
            End::Clean | End::Immediate | End::Down if self.verdict().stopped_by_us => {
                self.hand_over("P2", "it was stopped to be started again, and has not been");
                Ok(Next::Wait)
            }
            End::Clean => {
                self.stopped("was stopped", &unit, umbrella.as_ref());
                Ok(Next::Wait)
            }
            End::Immediate => {
                self.stopped("was stopped with an immediate shutdown", &unit, umbrella.as_ref());
                Ok(Next::Wait)
            }
            End::Down => {
                self.stopped("does not run", &unit, umbrella.as_ref());
                Ok(Next::Wait)
            }
        }
    }

    /// What pg-recover last left word of, as far as it is about the present fault.
    fn verdict(&self) -> Verdict {
        standing::present_verdict(&self.name, &self.config).value
    }

    /// Ends a start that nobody works on any more.
    fn free_stuck_start(&mut self, unit: &UnitState, umbrella: Option<&UnitState>) -> Result<()> {
        let family = process::family(&self.cluster.data_directory, &self.cluster.owner)?;
        if !unit::start_is_abandoned(&self.cluster.unit, &family) {
            self.stuck = None;
            return Ok(());
        }
        if self.stuck.get_or_insert_with(Instant::now).elapsed() < ABANDONED {
            return Ok(());
        }
        let name = self.name.clone();
        if let Standing::Left(reason) = standing::of(&self.cluster, &self.config, unit, umbrella) {
            self.leave(&reason);
            return Ok(());
        }
        if self.config.mode_of(&name) == Mode::Observe {
            self.leave("is only observed; else its start, which waits for a dead server, would be ended now");
            return Ok(());
        }
        if let Some(_held) = Lock::try_take(&name)? {
            self.seen.died_starting = true;
            self.stuck = None;
            log::warn!(MESSAGE_ID = FAULT, PG_CLUSTER = name.as_str(), PG_FAULT = "P1";
                "the postmaster of cluster {name} died while it was started, and systemd goes on waiting for it: \
                 ending that start");
            // A stopped unit is somebody's wish, unless there is word of this: the start that follows may be for pg-recover.
            let mut verdict = standing::present_verdict(&name, &self.config);
            (verdict.value.stopped_by_us, verdict.value.at) = (true, Stamp::now());
            verdict.save_or_warn();
            shared::unit::stop(&self.cluster.unit)?;
        }
        Ok(())
    }

    async fn crashed(
        &mut self,
        fault: &'static str,
        why: &str,
        found: &str,
        log: &str,
        unit: &UnitState,
        umbrella: Option<&UnitState>,
    ) -> Result<Next> {
        self.post.set_state("crashed");
        if self.say_once(&format!("cluster {} crashed: {why}; {found}", self.name)) && fault != "P1" {
            log::info!(PG_CLUSTER = self.name.as_str(), PG_FAULT = fault; "this is fault {fault}");
        }
        if let Standing::Left(reason) = standing::of(&self.cluster, &self.config, unit, umbrella) {
            self.leave(&reason);
            return Ok(Next::Wait);
        }
        if self.config.mode_of(&self.name) == Mode::Observe {
            self.leave(&format!("is only observed; else {} would be started now", self.cluster.unit));
            return Ok(Next::Wait);
        }
        let mut incident = match self.incident.take() {
            Some(incident) => incident,
            None => {
                let died = self.died.unwrap_or_else(Instant::now);
                let mut incident = Incident::new(&self.name, fault, died, format!("{why}; {found}"));
                if fault == "M1" {
                    let last = crash::find(log).into_iter().rfind(Crash::is_kill);
                    incident.record.evidence.extend(last.as_ref().map(Crash::evidence).unwrap_or_default());
                    // Else it was well in between, and this is the end of what was counted then.
                    if last.is_some() || unit.was_killed() {
                        self.ran_out_of_memory(last.as_ref());
                    }
                }
                incident
            }
        };
        let tried = restart::restart(&self.post, &self.cluster, &self.config, &mut self.budget, &mut incident).await?;
        if !matches!(tried, Tried::Later(_)) && std::mem::take(&mut self.seen.died_starting) {
            // It is meant to run until somebody stops it again, which would be that one's wish.
            if matches!(tried, Tried::Accepting | Tried::Coming)
                && let Ok(Some(_held)) = Lock::try_take(&self.name)
            {
                let mut verdict = standing::verdict(&self.name);
                verdict.value.stopped_by_us = false;
                verdict.save_or_warn();
            }
        }
        Ok(match tried {
            Tried::Accepting => {
                self.died = None;
                self.post.set_state(WELL);
                incident.close("recovered");
                Next::LookAgain(Duration::ZERO)
            }
            Tried::Coming => {
                self.incident = Some(incident);
                Next::LookAgain(Duration::from_millis(100))
            }
            Tried::Later(pause) => {
                self.incident = Some(incident);
                Next::LookAgain(pause)
            }
            Tried::HandOver(fault, why) => {
                incident.close("failed");
                self.hand_over(fault, &why);
                Next::Wait
            }
        })
    }

    /// The OOM killer has ended a process of it. Not again and again: a person is told what to do.
    fn ran_out_of_memory(&mut self, last: Option<&Crash>) {
        let rule = &self.config.watchdog;
        let times = self.budget.value.out_of_memory(rule, Stamp::now());
        self.budget.save_or_warn();
        if times == oom::TOLD_AT {
            oom::tell(&self.cluster, last, times, rule.quiet);
        }
    }

    /// It does not run, and that is somebody's wish, or nobody knows better.
    fn stopped(&mut self, how: &str, unit: &UnitState, umbrella: Option<&UnitState>) {
        let name = self.name.clone();
        self.post.set_state("stopped");
        if self.handover.is_pending() {
            self.handover.forget();
        }
        if let Some(incident) = self.incident.take() {
            incident.close("declined");
        }
        let quoted = format!("cluster {name} {how}");
        // A host that shuts down and a package that is being upgraded stop it, too.
        if let Standing::Left(reason) = standing::of(&self.cluster, &self.config, unit, umbrella) {
            self.say_once_as(log::Level::Info, &format!("{quoted} and {reason}, leaving it alone"));
            return;
        }
        let pause = format!("pg-recover pause --cluster {name} 2h \"why\"");
        let message = match self.config.on_clean_stop_of(&name) {
            OnCleanStop::Start => format!(
                "{quoted} although it is meant to run; pg-health-check will have it started again after {} checks. \
                 To keep it stopped: {pause}",
                self.config.health.max_failures
            ),
            OnCleanStop::Leave => format!("{quoted}; it stays so until a person starts it (on_clean_stop = \"leave\")"),
        };
        // Not at boot, nor again when this program is restarted: only somebody who just stopped it wants to know.
        if self.say_once_as(log::Level::Warn, &message) && self.died.is_some() {
            shared::terminals::tell("pg-watchdog", &message);
        }
    }

    // ---- both ----

    /// Starts pg-recovery.service, now and, with growing spacing, as long as the fault stays.
    fn hand_over(&mut self, fault: &str, why: &str) {
        if !self.handover.is_due(Instant::now()) {
            return;
        }
        let name = self.name.clone();
        // Whoever holds the lock is repairing already.
        if !matches!(Lock::try_take_shared(&name), Ok(Some(_))) {
            return;
        }
        self.post.promise(Duration::from_secs(60));
        match standing::units(&self.cluster) {
            Ok((unit, umbrella)) => {
                if let Standing::Left(reason) = standing::of(&self.cluster, &self.config, &unit, umbrella.as_ref()) {
                    return self.leave(&reason);
                }
            }
            Err(error) => {
                self.say_once(&error.message);
                return;
            }
        }
        if self.config.mode_of(&name) == Mode::Observe {
            return self.leave("is only observed; else pg-recovery.service would be started now");
        }
        let waits_for_a_person = !self.verdict().handed_over.is_empty();
        match self.handover.start(Instant::now(), waits_for_a_person) {
            Ok(()) => log::warn!(MESSAGE_ID = FAULT, PG_CLUSTER = name.as_str(), PG_FAULT = fault;
                "handed cluster {name} over to pg-recovery.service: {why}"),
            Err(error) => {
                self.say_once(&format!("could not hand cluster {name} over: {}", error.message));
            }
        }
    }

    fn leave(&mut self, reason: &str) {
        self.handover.postpone(Instant::now());
        let line = format!("cluster {} {reason}, leaving it alone", self.name);
        if self.is_news(&line) {
            log::info!(MESSAGE_ID = LEFT_ALONE, PG_CLUSTER = self.name.as_str(); "{line}");
        }
    }

    fn say_once(&mut self, line: &str) -> bool {
        self.say_once_as(log::Level::Warn, line)
    }

    fn say_once_as(&mut self, level: log::Level, line: &str) -> bool {
        let is_news = self.is_news(line);
        if is_news {
            log::log!(level, PG_CLUSTER = self.name.as_str(); "{line}");
        }
        is_news
    }

    /// Has it not been said since the last change? Numbers do not make news: a pause has a minute less each minute.
    fn is_news(&mut self, line: &str) -> bool {
        let line: String = line.chars().filter(|c| !c.is_ascii_digit()).chain(['\n']).collect();
        if self.said.contains(&line) {
            return false;
        }
        if self.said.len() > 4096 {
            self.said.clear();
        }
        self.said.push_str(&line);
        true
    }
}

/// How often systemd is asked about a cluster that is down. What changes in between shows in its log or control group.
fn spacing(down: Duration) -> Duration {
    match down.as_secs() {
        0..10 => Duration::from_millis(500),
        10..70 => Duration::from_secs(2),
        _ => Duration::from_secs(30),
    }
}

fn register(pidfd: Pidfd) -> std::io::Result<AsyncFd<Pidfd>> {
    // SAFETY: a Pidfd owns its descriptor and keeps it open for as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?)
}

/// Does `work`, unless `stop` comes first.
async fn unless<S, T>(stop: impl Future<Output = S>, work: impl Future<Output = T>) -> Option<T> {
    let (mut stop, mut work) = (pin!(stop), pin!(work));
    poll_fn(|context| {
        if stop.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        work.as_mut().poll(context).map(Some)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_dropped_as_soon_as_the_postmaster_ends() {
        let runtime = shared::client::runtime().unwrap();
        let began = Instant::now();
        runtime.block_on(async {
            assert_eq!(unless(sleep(Duration::from_millis(20)), sleep(Duration::from_secs(60))).await, None);
            assert_eq!(unless(std::future::pending::<()>(), async { 7 }).await, Some(7));
        });
        assert!(began.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_cluster_that_stays_down_is_asked_about_less_and_less() {
        let at = |seconds| spacing(Duration::from_secs(seconds));
        assert!(at(1) < at(20) && at(20) < at(600));
    }
}
