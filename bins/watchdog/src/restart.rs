//! One restart of a cluster that crashed: decided anew each time, under the lock, through systemd.

use std::time::{Duration, Instant};

use shared::client::{Refusal, Session};
use shared::clock::Stamp;
use shared::cluster::Cluster;
use shared::config::Config;
use shared::evidence;
use shared::lock::Lock;
use shared::log::{MANUAL, OUTCOME, STEP};
use shared::pidfile::LockFile;
use shared::prestart;
use shared::process::{self, Identity, Process};
use shared::record::{self, Record, StepRecord};
use shared::standing::{self, Standing};
use shared::terminals;
use shared::unit::{self, UnitState};

use crate::budget::{Allowance, Budget};
use crate::look;
use crate::post::Post;

/// After a death the children take a moment to notice; what runs longer is an orphan.
const CHILDREN_END: Duration = Duration::from_secs(5);
/// Once the server says that it is starting, the lock is in the way of those who look.
const HOLD_WHILE_STARTING: Duration = Duration::from_secs(3);

/// From the death of a postmaster, or another fault, to the end of what is done about it.
pub struct Incident {
    pub died: Instant,
    pub record: Record,
}

impl Incident {
    pub fn new(cluster: &str, fault: &str, died: Instant, evidence: String) -> Incident {
        let record = Record {
            id: record::new_id(cluster),
            cluster: cluster.into(),
            fault: fault.into(),
            detected_by: "pg-watchdog".into(),
            evidence: vec![evidence],
            started: Stamp::now().rfc3339(),
            ..Record::default()
        };
        Incident { died, record }
    }

    /// Writes the line of the history, if anything was done.
    pub fn close(self, outcome: &str) {
        if self.record.steps.is_empty() {
            return;
        }
        let text = match outcome {
            "recovered" => {
                format!("accepts connections again, {}ms after its end was seen", self.died.elapsed().as_millis())
            }
            _ => "could not be brought back by a restart".into(),
        };
        self.close_with(outcome, &text);
    }

    /// Writes the line of the history, and says `text` of the cluster.
    pub fn close_with(mut self, outcome: &str, text: &str) {
        self.record.close(outcome, self.died.elapsed());
        let (cluster, id, fault) = (self.record.cluster.as_str(), self.record.id.as_str(), self.record.fault.as_str());
        let ms = self.record.downtime_ms;
        let level = if outcome == "recovered" { log::Level::Info } else { log::Level::Error };
        log::log!(level, MESSAGE_ID = OUTCOME, PG_CLUSTER = cluster, PG_FAULT = fault, PG_RECOVERY_ID = id, PG_DOWNTIME_MS = ms;
            "cluster {cluster} {text}");
    }

    pub fn step(&mut self, step: &str, outcome: &str, began: Instant, why: String) {
        let ms = began.elapsed().as_millis() as u64;
        self.record.steps.push(StepRecord {
            step: step.into(),
            outcome: outcome.into(),
            ms,
            why,
            ..StepRecord::default()
        });
    }
}

/// What a try came to.
#[derive(Debug, PartialEq)]
pub enum Tried {
    /// It accepts connections.
    Accepting,
    /// It runs, and is not accepting yet.
    Coming,
    /// Not now; look again after this time.
    Later(Duration),
    /// A restart does not help here: fault class and reason.
    HandOver(&'static str, String),
}

/// Restarts the cluster if nothing speaks against it. The caller has found that it is meant to run and crashed.
pub async fn restart(
    post: &Post,
    cluster: &Cluster,
    config: &Config,
    budget: &mut shared::state::State<Budget>,
    incident: &mut Incident,
) -> shared::Result<Tried> {
    let name = cluster.name();
    let rule = &config.watchdog;
    let nth = match budget.value.allows(rule, &Stamp::now()) {
        Allowance::Now(nth) => nth,
        Allowance::In(pause) => return Ok(Tried::Later(pause)),
        Allowance::Exhausted(made) => {
            let window = rule.restart_window.as_secs() / 60;
            return Ok(Tried::HandOver("P1", format!("it was restarted {made} times in {window}min and died again")));
        }
    };
    let Some(held) = Lock::try_take(&name)? else {
        return Ok(Tried::Later(Duration::from_millis(200)));
    };
    // Reading the WAL may take minutes when there is much of it.
    post.promise(Duration::from_secs(1800));
    let began = Instant::now();
    if let Some((fault, why)) = lock_file_obstacle(cluster)? {
        return Ok(Tried::HandOver(fault, why));
    }
    let obstacles = prestart::obstacles(cluster, evidence::load(&name).as_ref())?;
    if obstacles.iter().any(|o| o.fault == "P9") && incident.died.elapsed() < CHILDREN_END {
        return Ok(Tried::Later(Duration::from_millis(20)));
    }
    if let Some(first) = obstacles.first() {
        let all: Vec<&str> = obstacles.iter().map(|o| o.message.as_str()).collect();
        return Ok(Tried::HandOver(first.fault, format!("it must not be started: {}", all.join("; "))));
    }
    // Reading much WAL takes long enough for a person to say something.
    if began.elapsed() > Duration::from_secs(1) {
        let (unit, umbrella) = standing::units(cluster)?;
        if let Standing::Left(why) = standing::of(cluster, config, &unit, umbrella.as_ref()) {
            log::info!(PG_CLUSTER = name.as_str(); "cluster {name} {why}, leaving it alone");
            return Ok(Tried::Later(Duration::from_secs(1)));
        }
    }
    incident.step("check", "ok", began, "nothing speaks against a start".into());
    // Counted before it is done: a restart that takes the host down counts too.
    let often = budget.value.spend(rule, Stamp::now());
    budget.save_or_warn();
    if let Some(times) = often {
        let minutes = rule.quiet.as_secs() / 60;
        let text = format!(
            "cluster {name} dies again and again: this is start {times} within {minutes}min, and each death ends every session. \
             Find out who ends it: pg-recover history, journalctl -u {}, and the server log",
            cluster.unit
        );
        log::error!(MESSAGE_ID = MANUAL, PG_CLUSTER = name.as_str(), PG_FAULT = incident.record.fault; "{text}");
        terminals::tell("pg-watchdog", &text);
    }
    let (id, fault) = (incident.record.id.as_str(), incident.record.fault.as_str());
    log::info!(MESSAGE_ID = STEP, PG_CLUSTER = name.as_str(), PG_FAULT = fault, PG_RECOVERY_ID = id, PG_STEP = "start";
        "starting {} (restart {nth} of {})", cluster.unit, rule.restarts);
    let began = Instant::now();
    unit::start(&cluster.unit)?;
    let (tried, outcome) = wait_for_answer(post, cluster, config, held).await;
    incident.step("start", outcome, began, format!("it is meant to run; restart {nth} of {}", rule.restarts));
    Ok(tried)
}

/// A lock file that keeps a server from starting, or names a process that must not be touched.
fn lock_file_obstacle(cluster: &Cluster) -> shared::Result<Option<(&'static str, String)>> {
    let (file, _) = cluster.lock_file();
    Ok(match file {
        LockFile::Missing => None,
        LockFile::Empty => Some(("P6", "postmaster.pid is empty".into())),
        LockFile::Garbage => Some(("P6", "postmaster.pid holds no process number".into())),
        LockFile::Unreadable(why) => Some(("P6", format!("postmaster.pid cannot be read: {why}"))),
        LockFile::Present(file) => {
            match process::identify(file.pid, &cluster.data_directory, &cluster.owner)? {
                // One that is ours is found among the processes, too.
                Identity::Dead | Identity::Zombie | Identity::Ours => None,
                Identity::Foreign(who) => Some(("P7", format!("postmaster.pid names another process, {who}"))),
                Identity::Unclear => {
                    Some(("P7", format!("it cannot be told what process {} of postmaster.pid is", file.pid)))
                }
            }
        }
    })
}

/// Asks the server itself: its unit is "active" before and "failed" after, and neither means that it accepts.
async fn wait_for_answer(post: &Post, cluster: &Cluster, config: &Config, held: Lock) -> (Tried, &'static str) {
    let began = Instant::now();
    let mut asked_systemd = began;
    let mut alive: Option<Instant> = None;
    let _held = held;
    while began.elapsed() < config.recover.start_timeout {
        post.promise(Duration::from_secs(60));
        let (file, _) = cluster.lock_file();
        let running = if let LockFile::Present(file) = file { Some(file) } else { None };
        if running.as_ref().is_some_and(|file| Process::of(file.pid).is_some_and(|p| p.state != 'Z')) {
            alive = Some(Instant::now());
        } else if alive.is_some_and(|at| at.elapsed() > Duration::from_secs(1)) {
            // Its unit may not have noticed, and may never do so.
            return (Tried::Later(Duration::ZERO), "died");
        }
        let target = look::target(cluster, config, running.as_ref());
        match Session::connect(&target, config.watchdog.answer_timeout).await {
            Ok(session) => {
                if session.query("SELECT 1", config.watchdog.answer_timeout).await.is_ok() {
                    return (Tried::Accepting, "ok");
                }
            }
            Err(Refusal::NotAllowed(_) | Refusal::OutOfSlots(_)) => return (Tried::Accepting, "ok"),
            Err(Refusal::Starting(_)) if began.elapsed() > HOLD_WHILE_STARTING => {
                return (Tried::Coming, "recovering");
            }
            Err(_) => {}
        }
        if asked_systemd.elapsed() > Duration::from_millis(300) {
            asked_systemd = Instant::now();
            if let Ok(unit) = unit::show_one(&cluster.unit)
                && has_failed(&unit)
            {
                let why = format!("{} could not be started: {}", cluster.unit, unit.result);
                return (Tried::HandOver("start-failed", why), "failed");
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (Tried::Coming, "unclear")
}

fn has_failed(unit: &UnitState) -> bool {
    !unit.job && matches!(unit.active.as_str(), "failed" | "inactive")
}
