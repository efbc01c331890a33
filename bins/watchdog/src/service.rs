//! Watches one service, in a thread of its own: it looks, decides (`verdict`), acts, and keeps what is known.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use log::Level;
use shared::clock::Stamp;
use shared::config::{Config, Mode, Service};
use shared::lock::Lock;
use shared::log::{FAULT, LEFT_ALONE, MANUAL, OUTCOME, STEP};
use shared::record::{self, Record, StepRecord};
use shared::service::{self, Condition, Incident, Known};
use shared::state::State;
use shared::unit::{self, UnitState};
use shared::{Result, pause, standing, terminals};

use crate::board::Board;
use crate::endpoint::{self, Answer};
use crate::post::{InForce, lock};
use crate::verdict::{self, Around, Plan, Sign};

/// From one look that has failed to the next: with the defaults, three of them are over in little more than three seconds.
const AGAIN: Duration = Duration::from_millis(500);
/// Between two looks while something is on its way, and at what shows without asking anybody.
const SOON: Duration = Duration::from_secs(1);
/// Between two looks while nothing is done, or another one is waited for.
const LATER: Duration = Duration::from_secs(5);
/// How old the time of the last look on record may be.
const STALE: Duration = Duration::from_secs(60);

/// What the main thread and the thread of one service share.
pub struct Seat {
    pub name: String,
    pub config: InForce,
    pub board: Arc<Board>,
    pub is_gone: AtomicBool,
}

impl Seat {
    /// The configuration with the section of this service; `None`: there is none any more.
    fn rule(&self) -> Option<(Arc<Config>, Service)> {
        let config = lock(&self.config).clone();
        let rule = config.service.iter().find(|rule| rule.name == self.name).cloned();
        rule.filter(|_| !self.is_gone.load(Relaxed)).map(|rule| (config, rule))
    }
}

/// The thread of one service; ends when the configuration no longer has it.
pub fn watch(seat: &Seat) {
    let about = service::about(&seat.name);
    let mut complaint = String::new();
    while let Some((config, rule)) = seat.rule() {
        let began = Instant::now();
        let due = turn(seat, &config, &rule, began).unwrap_or_else(|why| {
            if complaint != why.message {
                log::warn!(PG_CLUSTER = about.as_str(); "could not look at service {}: {}", seat.name, why.message);
                complaint = why.message;
            }
            Instant::now() + LATER
        });
        // A start, an end, and a configuration that was read again show without asking.
        let runs = || unit::control_group(&rule.unit()).is_some();
        let ran = runs();
        loop {
            std::thread::sleep(due.saturating_duration_since(Instant::now()).min(SOON));
            let is_same = Arc::ptr_eq(&lock(&seat.config), &config) && !seat.is_gone.load(Relaxed);
            if Instant::now() >= due || !is_same || runs() != ran {
                break;
            }
        }
    }
    seat.board.remove(&seat.name);
}

/// One look at a service, and what follows from it. Returns when the next one is due.
fn turn(seat: &Seat, config: &Config, rule: &Service, began: Instant) -> Result<Instant> {
    let unit = unit::show_one(&rule.unit())?;
    let answer = if unit.active == "active" && !unit.job { endpoint::ask(rule) } else { Answer::Good };
    let went_with = went_with(&unit, rule, config)?;
    let is_last = Known::load(&seat.name).value.failures + 1 >= rule.failures() || unit.active != "active";
    let is_seen = answer == Answer::Good && unit.active == "active" || !is_last || {
        let patience = 2 * config.watchdog.heartbeat + 3 * config.watchdog.answer_timeout + SOON;
        seat.board.are_seen_after(clusters(rule), Instant::now(), patience)
    };
    let _lock = service::lock(&seat.name)?;
    let mut file = Known::load(&seat.name);
    let before = file.value.clone();
    let known = &mut file.value;
    // Until it runs again, however often the other one goes down meanwhile.
    known.taken_down = unit.active == "inactive" && (known.taken_down || went_with);
    let sign = verdict::judge(&rule.unit(), &unit, answer, known.taken_down);
    seat.board.put(&seat.name, sign == Sign::Serves);
    let now = Stamp::now();
    let plan = verdict::decide(&sign, known, rule, &now, || around(seat, config, rule, &unit, is_seen));
    Actor { rule, unit: &unit, about: service::about(&seat.name), now: &now }.carry_out(&plan, &mut file);
    if file.value != before || now.since(&before.at) > STALE {
        file.value.at = now;
        file.save_or_warn();
    }
    Ok(match plan {
        Plan::Fine | Plan::Leave(Condition::Off | Condition::Unknown, _) => began + rule.interval(),
        Plan::LookAgain(_) => began + AGAIN,
        Plan::Wait(_) | Plan::Restart(..) | Plan::Leave(Condition::Starting, _) => Instant::now() + SOON,
        Plan::Leave(..) | Plan::Report(..) | Plan::GiveUp(..) | Plan::GivenUp(_) => {
            Instant::now() + LATER.min(rule.interval())
        }
    })
}

/// Clusters that this service depends on.
fn clusters(rule: &Service) -> impl Iterator<Item = &String> + Clone {
    rule.depends_on.iter().filter(|name| name.contains('/'))
}

/// Did systemd take it down together with a cluster that it depends on?
fn went_with(unit: &UnitState, rule: &Service, config: &Config) -> Result<bool> {
    if unit.active != "inactive" {
        return Ok(false);
    }
    for cluster in clusters(rule).map(|cluster| config.unit_of(cluster)) {
        if unit.bound_to.contains(&cluster) && verdict::went_together(unit, &unit::show_one(&cluster)?) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What speaks against touching it now.
fn around(seat: &Seat, config: &Config, rule: &Service, unit: &UnitState, is_seen: bool) -> Around {
    let is_repaired = |cluster: &&String| matches!(Lock::try_take_shared(cluster), Ok(None));
    let repaired = || clusters(rule).find(is_repaired).map(|cluster| format!("{cluster}, which is being repaired"));
    // The start of a service that needs a cluster's unit would start that as well, and cancel a stop of it that has only begun.
    let is_away = |cluster: &&String| {
        let name = config.unit_of(cluster);
        unit::show_one(&name).map_or(true, |other| other.job || verdict::is_away(unit, &name, &other))
    };
    let away = || clusters(rule).find(is_away).map(|cluster| format!("{cluster}, which is on its way down or up"));
    let unseen = || (!is_seen).then(|| "a cluster, which was not seen to serve since".to_string());
    let paused = pause::of("").or_else(|| clusters(rule).find_map(|cluster| pause::of(cluster)));
    let stopping = || unit::is_stopping().then(|| "is on a host that is shutting down".to_string());
    Around {
        // The board last: to ask systemd takes a while.
        missing: repaired().or_else(away).or_else(unseen).or_else(|| seat.board.missing(&rule.depends_on)),
        left: paused.or_else(standing::package_manager_runs).or_else(stopping),
        is_observed: config.mode == Mode::Observe
            || clusters(rule).any(|cluster| config.mode_of(cluster) == Mode::Observe),
    }
}

struct Actor<'a> {
    rule: &'a Service,
    unit: &'a UnitState,
    about: String,
    now: &'a Stamp,
}

impl Actor<'_> {
    fn carry_out(&self, plan: &Plan, file: &mut State<Known>) {
        let (name, about) = (&self.rule.name, self.about.as_str());
        let known = &mut file.value;
        match plan {
            Plan::Fine => {
                self.close(known, "recovered", "serves again");
                self.becomes(known, Condition::Ok, "");
            }
            Plan::LookAgain(why) => drop(self.becomes(known, Condition::Failing, why)),
            Plan::Wait(why) => drop(self.becomes(known, Condition::Starting, why)),
            Plan::Leave(condition, why) => {
                if *condition == Condition::Off {
                    self.close(known, "declined", &format!("{why}, so nobody waits for it"));
                }
                if self.becomes(known, *condition, why) && *condition != Condition::Starting {
                    log::info!(MESSAGE_ID = LEFT_ALONE, PG_CLUSTER = about; "service {name} {why}, leaving it alone");
                }
            }
            Plan::Report(why, because) => {
                self.open(known, why);
                if self.becomes(known, Condition::Down, &format!("{why}; {because}")) {
                    log::info!(MESSAGE_ID = LEFT_ALONE, PG_CLUSTER = about; "service {name} {because}");
                }
            }
            Plan::Restart(why, nth) => {
                self.open(known, why);
                self.becomes(known, Condition::Down, why);
                known.restarts.add(self.now.clone());
                // Counted before it is done: a restart that takes the host down counts too.
                file.save_or_warn();
                self.restart(&mut file.value, *nth);
            }
            Plan::GiveUp(why, made) => {
                self.open(known, why);
                self.becomes(known, Condition::Manual, why);
                known.exhausted = true;
                file.save_or_warn();
                self.give_up(&mut file.value, why, *made);
            }
            Plan::GivenUp(why) => drop(self.becomes(known, Condition::Manual, why)),
        }
    }

    /// Whether that is news. Numbers make none: a pause has a minute less each minute.
    fn becomes(&self, known: &mut Known, condition: Condition, why: &str) -> bool {
        let same =
            |a: &str, b: &str| a.chars().filter(|c| !c.is_ascii_digit()).eq(b.chars().filter(|c| !c.is_ascii_digit()));
        let is_news = known.condition != condition || !same(&known.why, why);
        if known.condition != condition {
            known.since = self.now.clone();
            known.condition = condition;
        }
        known.why = why.into();
        is_news
    }

    /// Nobody is woken for a service that is not critical.
    fn level(&self) -> Level {
        if self.rule.critical { Level::Error } else { Level::Warn }
    }

    /// Trouble begins.
    fn open(&self, known: &mut Known, why: &str) {
        if known.incident.is_some() {
            return;
        }
        let fault = if self.unit.active == "active" { "A2" } else { "A1" };
        let record = Record { fault: fault.into(), evidence: vec![why.into()], ..Record::default() };
        known.incident = Some(Incident { began: self.now.clone(), record });
        log::log!(self.level(), MESSAGE_ID = FAULT, PG_CLUSTER = self.about.as_str(), PG_FAULT = fault;
            "service {}: {why}", self.rule.name);
    }

    /// Trouble is over.
    fn close(&self, known: &mut Known, outcome: &str, text: &str) {
        let Some(mut incident) = known.incident.take() else { return };
        let ms = self.now.since(&incident.began).as_millis() as u64;
        let id = incident.record.id.clone();
        self.enter(known, &mut incident, outcome);
        log::info!(MESSAGE_ID = OUTCOME, PG_CLUSTER = self.about.as_str(), PG_FAULT = incident.record.fault.as_str(),
            PG_RECOVERY_ID = id, PG_DOWNTIME_MS = ms;
            "service {} {text}, {ms}ms after that was missed", self.rule.name);
    }

    /// Writes the line of the history, if anything was done.
    fn enter(&self, known: &Known, incident: &mut Incident, outcome: &str) {
        if incident.record.steps.is_empty() {
            return;
        }
        self.end_step(known, &mut incident.record, if outcome == "recovered" { "ok" } else { "failed" });
        incident.record.close(outcome, self.now.since(&incident.began));
    }

    /// How the last restart went is known only now.
    fn end_step(&self, known: &Known, record: &mut Record, outcome: &str) {
        if let Some(step) = record.steps.last_mut() {
            step.ms = known.restarts.quiet(self.now).unwrap_or_default().as_millis() as u64;
            step.outcome = outcome.into();
        }
    }

    fn restart(&self, known: &mut Known, nth: u32) {
        let (unit, most) = (self.rule.unit(), self.rule.restarts());
        let Some(mut incident) = known.incident.take() else { return };
        let record = &mut incident.record;
        if record.id.is_empty() {
            record.id = record::new_id(&self.about);
            record.cluster = self.about.clone();
            record.detected_by = "pg-watchdog".into();
            record.started = incident.began.rfc3339();
        }
        self.end_step(known, record, "failed");
        let why = format!("it is meant to run; restart {nth} of {most}");
        record.steps.push(StepRecord {
            step: "restart".into(),
            outcome: "queued".into(),
            why,
            ..StepRecord::default()
        });
        log::info!(MESSAGE_ID = STEP, PG_CLUSTER = self.about.as_str(), PG_FAULT = record.fault.as_str(),
            PG_RECOVERY_ID = record.id.as_str(), PG_STEP = "restart"; "restarting {unit} (restart {nth} of {most})");
        // systemd refuses a start too many (StartLimitBurst=); here they are counted by us.
        let cleared = if self.unit.active == "failed" { unit::reset_failed(&unit) } else { Ok(()) };
        if let Err(why) = cleared.and_then(|()| unit::restart(&unit)) {
            log::warn!(PG_CLUSTER = self.about.as_str(); "could not restart {unit}: {}", why.message);
        }
        known.incident = Some(incident);
    }

    fn give_up(&self, known: &mut Known, why: &str, made: u32) {
        let (name, unit) = (&self.rule.name, self.rule.unit());
        if let Some(mut incident) = known.incident.take() {
            self.enter(known, &mut incident, "failed");
            // What is done when the budget is there again is another recovery.
            incident.record = Record { fault: incident.record.fault, evidence: vec![why.into()], ..Record::default() };
            known.incident = Some(incident);
        }
        let (minutes, pause) =
            (self.rule.restart_window().as_secs().div_ceil(60), self.rule.cool_down().as_secs().div_ceil(60));
        let text = format!(
            "service {name} was restarted {made} times within {minutes}min, and that does not help: {why}. Look at \
             journalctl --unit {unit}. It is tried again in {pause}min, or after: pg-status services --reset {name}"
        );
        log::log!(self.level(), MESSAGE_ID = MANUAL, PG_CLUSTER = self.about.as_str(); "{text}");
        if self.rule.critical {
            terminals::tell("pg-watchdog", &text);
        }
        let (started, what) = match (&self.rule.escalate_unit, self.rule.escalate_command.as_slice()) {
            (Some(unit), _) => (unit::start(unit), unit.clone()),
            (None, []) => return,
            (None, command) => (unit::run(&format!("pg-recovery-escalate-{name}.service"), command), command.join(" ")),
        };
        match started {
            Ok(()) => log::warn!(MESSAGE_ID = STEP, PG_CLUSTER = self.about.as_str(), PG_STEP = "escalate";
                "started {what}, for the restarts of service {name} do not help"),
            Err(why) => log::error!(PG_CLUSTER = self.about.as_str(); "could not start {what}: {}", why.message),
        }
    }
}
