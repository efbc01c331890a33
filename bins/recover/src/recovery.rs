//! One recovery of each cluster: look, decide, act, look again, prove, record.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use shared::clock::Stamp;
use shared::cluster::Cluster;
use shared::config::{Config, Mode};
use shared::evidence::{self, Evidence};
use shared::exit::{self, Code};
use shared::lock::Lock;
use shared::log::{FAULT, LEFT_ALONE, MANUAL, OUTCOME, STEP};
use shared::process::stop_here_for_a_test;
use shared::record::{self, Record, StepRecord};
use shared::standing::{self, Verdict};
use shared::state::State;
use shared::verify::{Unproven, verify};
use shared::{Error, Result, fault, health, meaning, server_log, terminals};

use crate::act::Actor;
use crate::diagnosis::{Diagnosis, Fault, diagnose, is_starting};
use crate::facts::{self, Facts, Memory};
use crate::operator;
use crate::plan::{Planned, Risk, Step, plan};
use crate::report;
use crate::turns::Turns;

/// No ladder is longer; a run that comes here goes round in circles.
const MOST_STEPS: usize = 12;
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Each reads and replays WAL; more at a time would only make all of them slower.
const MOST_AT_A_TIME: usize = 8;
/// How long the program that holds the cluster's lock is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a volume may take that does not answer.
const VOLUME: Duration = Duration::from_secs(600);

/// Recovers all of `clusters` side by side, each under its own lock.
pub fn all(clusters: Vec<Cluster>, config: &Config, json: bool) -> Result<Code> {
    operator::need_root()?;
    if clusters.is_empty() {
        log::info!("no PostgreSQL cluster on this host");
    }
    let at_work = AtomicUsize::new(0);
    // Which one is urgent takes a look of its own; few are all begun at once.
    let turns = (clusters.len() > MOST_AT_A_TIME).then(|| Turns::new(MOST_AT_A_TIME));
    let turns = turns.as_ref();
    let outcomes: Vec<Result<Code>> = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        let tickets: Vec<_> = clusters.iter().map(|_| AtWork::new(&at_work)).collect();
        for (cluster, ticket) in clusters.iter().zip(tickets) {
            threads.push(scope.spawn(|| attend(cluster, config, ticket, turns)));
        }
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|_| Err(Error::failed("a recovery ended in a bug"))))
            .collect()
    });
    if json {
        report::plans(&clusters, config, true)?;
    }
    let codes = outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|error| exit::report(&error)));
    Ok(Code::worst(codes))
}

/// One that is counted while it is recovered.
struct AtWork<'a>(&'a AtomicUsize);

impl<'a> AtWork<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        AtWork(count)
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Recovers a cluster, and again if it fails while others are still being recovered: systemd takes no second request to
/// start the service meanwhile.
fn attend(cluster: &Cluster, config: &Config, ticket: AtWork, turns: Option<&Turns>) -> Result<Code> {
    let answers = || cluster.is_whole && facts::connect(cluster, config, &cluster.lock_file().0, LOOK_AGAIN).is_ok();
    let count = ticket.0;
    let mut outcome = in_turn(cluster, config, turns);
    let mut answered = answers();
    drop(ticket);
    while count.load(Ordering::Relaxed) > 0 {
        std::thread::sleep(LOOK_AGAIN);
        let before = std::mem::replace(&mut answered, answers());
        if before && !answered {
            let _ticket = AtWork::new(count);
            let again = in_turn(cluster, config, turns);
            outcome = outcome.and_then(|code| Ok(Code::worst([code, again?].into_iter())));
            answered = answers();
        }
    }
    outcome
}

/// Waiting, it holds no lock: pg-watchdog may still restart it meanwhile.
fn in_turn(cluster: &Cluster, config: &Config, turns: Option<&Turns>) -> Result<Code> {
    let cluster = &facts::whole(cluster, config, VOLUME)?;
    let Some(turns) = turns else { return one(cluster, config) };
    let facts = facts::look(cluster, config, &Memory::default())?;
    let fault = diagnose(&facts, config, &cluster.name()).fault;
    let _turn = turns.take(fault::class(fault.class()).priority);
    one(cluster, config)
}

fn one(cluster: &Cluster, config: &Config) -> Result<Code> {
    let name = cluster.name();
    match take(&name)? {
        Some(held) => Recovery::new(cluster, config, held).run(),
        None => Ok(Code::TempFail),
    }
}

fn take(name: &str) -> Result<Option<Lock>> {
    let held = Lock::take(name, PATIENCE)?;
    if held.is_none() {
        log::info!(PG_CLUSTER = name; "another program is at work on cluster {name}, leaving it to that one");
    }
    Ok(held)
}

struct Recovery<'a> {
    /// `None` while another program does a step.
    held: Option<Lock>,
    /// As its configuration is now.
    cluster: Cluster,
    config: &'a Config,
    name: String,
    id: String,
    verdict: State<Verdict>,
    /// The evidence as it was before anything was done; pg-watchdog goes on recording.
    recorded: Option<Evidence>,
    memory: Memory,
    tried: Vec<Step>,
    /// What was found last, for people, its class, and the server's last word when nothing explains it.
    found: (String, &'static str, String),
    record: Record,
    began: Instant,
    last_step: Instant,
}

impl<'a> Recovery<'a> {
    fn new(cluster: &'a Cluster, config: &'a Config, held: Lock) -> Self {
        let name = cluster.name();
        let id = record::new_id(&name);
        let verdict = standing::present_verdict(&name, config);
        let recorded = evidence::load(&name);
        let memory = Memory::of(&name, config, &verdict.value);
        let asked = health::state(&name).value.failures >= config.health.max_failures;
        let record = Record {
            id: id.clone(),
            cluster: name.clone(),
            detected_by: if asked { "pg-health-check" } else { "pg-recover" }.into(),
            started: Stamp::now().rfc3339(),
            ..Record::default()
        };
        Recovery {
            held: Some(held),
            cluster: cluster.clone(),
            config,
            name,
            id,
            verdict,
            recorded,
            memory,
            tried: Vec::new(),
            found: Default::default(),
            record,
            began: Instant::now(),
            last_step: Instant::now(),
        }
    }

    fn run(mut self) -> Result<Code> {
        loop {
            let facts = facts::look(&self.cluster, self.config, &self.memory)?;
            let diagnosis = diagnose(&facts, self.config, &self.name);
            self.say_diagnosis(&diagnosis);
            let last_word = facts.failure.as_ref().filter(|_| diagnosis.fault == Fault::Unknown);
            self.found.2 = last_word.map(|(message, _)| message.clone()).unwrap_or_default();
            if diagnosis.fault == Fault::Well {
                for warning in &facts.warnings {
                    log::warn!(PG_CLUSTER = self.name; "cluster {}: {warning}", self.name);
                }
            }
            let mut next = plan(&facts, &diagnosis, &self.tried).into_iter().next();
            let is_allowed =
                |planned: &Planned| planned.risk != Risk::Data || self.verdict.value.is_approved(planned.step.name());
            let waiting = next.take_if(|planned| !is_allowed(planned));
            self.verdict.value.waiting = waiting.map(|planned| planned.step.name().into()).unwrap_or_default();
            match (&diagnosis.fault, next) {
                (Fault::Well, _) if self.tried.is_empty() => return Ok(self.well()),
                (Fault::Well, _) => return Ok(self.prove()),
                // What was healed before it is proven for itself; the next run has the certificate.
                (Fault::Certificate { .. }, _) if self.tried.iter().any(|step| *step != Step::RenewCertificate) => {
                    return Ok(self.prove());
                }
                (Fault::Certificate { .. }, None) => return Ok(self.not_renewed(&diagnosis)),
                (fault @ (Fault::Settling | Fault::Moving), _) if self.may_wait_for(fault) => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                // Looked at once more with that in mind: what holds systemd up may be what has to be repaired.
                (Fault::Settling, _) if !self.memory.waited => self.memory.waited = true,
                (Fault::LeftAlone(_) | Fault::StoppedOnPurpose | Fault::Moving | Fault::Settling, _) => {
                    return Ok(self.leave(&diagnosis, &facts));
                }
                (_, Some(planned)) if self.config.mode_of(&self.name) == Mode::Observe => {
                    log::warn!(PG_CLUSTER = self.name, PG_FAULT = diagnosis.fault.class(), MESSAGE_ID = LEFT_ALONE;
                        "cluster {}: mode is \"observe\"; would now {}: {}", self.name, planned.step.name(), planned.why);
                    return Ok(self.finish("declined", Code::Ok));
                }
                (Fault::Certificate { .. }, Some(planned)) => {
                    self.step(planned, &diagnosis, &facts);
                    let Some(held) = take(&self.name)? else { return Ok(self.finish("failed", Code::TempFail)) };
                    self.held = Some(held);
                }
                // Runs that were killed count too.
                (_, Some(_)) if self.tried.is_empty() && self.is_spent() => return Ok(self.failed()),
                (_, Some(planned)) if self.tried.len() < MOST_STEPS => self.step(planned, &diagnosis, &facts),
                _ if self.tried.is_empty() => return Ok(self.hand_over(&diagnosis, &facts)),
                _ => return Ok(self.give_up(&diagnosis)),
            }
        }
    }

    /// What systemd is doing ends soon; what moves is waited for only if this run has set it in motion.
    fn may_wait_for(&self, fault: &Fault) -> bool {
        let limit = match fault {
            Fault::Settling => PATIENCE,
            _ if self.tried.is_empty() => Duration::ZERO,
            _ => self.config.recover.start_timeout,
        };
        self.last_step.elapsed() < limit
    }

    fn say_diagnosis(&mut self, diagnosis: &Diagnosis) {
        for line in &diagnosis.evidence {
            // Looked at several times, and still the same.
            if !self.record.evidence.contains(line) {
                self.record.evidence.push(line.clone());
            }
        }
        if matches!(
            diagnosis.fault,
            Fault::Well | Fault::LeftAlone(_) | Fault::StoppedOnPurpose | Fault::Moving | Fault::Settling
        ) {
            return;
        }
        (self.found.0, self.found.1) = (diagnosis.fault.describe(), diagnosis.fault.class());
        if self.record.fault.is_empty() {
            self.record.fault = diagnosis.fault.class().into();
        }
        log::warn!(PG_CLUSTER = self.name, PG_FAULT = diagnosis.fault.class(), PG_RECOVERY_ID = self.id, MESSAGE_ID = FAULT;
            "cluster {}: {}; evidence: {}", self.name, diagnosis.fault.describe(), diagnosis.evidence.join("; "));
    }

    fn step(&mut self, planned: Planned, diagnosis: &Diagnosis, facts: &Facts) {
        let Planned { step, why, .. } = &planned;
        let stops = matches!(step, Step::StopFast | Step::StopImmediate | Step::KillPostmaster | Step::EndStart);
        let disturbs = step.disturbs() && facts.family.postmaster.is_some();
        let is_first = disturbs && !self.tried.iter().any(Step::disturbs);
        if *step == Step::RenewCertificate {
            self.forget();
        } else if self.tried.is_empty() || stops || is_first {
            let verdict = &mut self.verdict.value;
            if is_first {
                verdict.disturbed.add(Stamp::now());
            }
            // Counted before anything is done, so that a run which is killed counts too.
            verdict.attempts += u32::from(self.tried.is_empty());
            // A run that is killed now must leave word that nobody wanted the server to stay stopped.
            verdict.stopped_by_us |= stops;
            verdict.answered = facts.connection.is_ok() && !stops;
            verdict.at = Stamp::now();
            self.verdict.save_or_warn();
        }
        if matches!(step, Step::RestoreConfiguration { .. }) && self.tried.iter().all(|step| *step == Step::Start) {
            // Not the death that it caused.
            self.record.fault = diagnosis.fault.class().into();
        }
        stop_here_for_a_test(self.tried.len() + 1);
        if planned.risk == Risk::Data {
            // Used up before it is used: if this run is killed now, the person is asked again.
            self.verdict.value.approved.retain(|approval| approval.always || approval.step != step.name());
            self.verdict.save_or_warn();
            // Measured by what is given up, nothing would ever be proven.
            self.recorded = None;
        }
        let actor = Actor { cluster: &self.cluster, config: self.config, id: &self.id };
        if self.tried.is_empty()
            && let Err(e) = actor.save_evidence()
        {
            log::warn!(PG_CLUSTER = self.name; "could not save the evidence: {e}; going on without it");
        }
        log::info!(PG_CLUSTER = self.name, PG_FAULT = self.record.fault, PG_STEP = step.name(), PG_RECOVERY_ID = self.id, MESSAGE_ID = STEP;
            "cluster {}: step {} {}: {why}", self.name, self.tried.len() + 1, step.name());
        if *step == Step::RenewCertificate {
            // pg-cert-renew takes it.
            self.held = None;
        }
        let began = Instant::now();
        let outcome = actor.carry_out(step, facts, &mut self.memory);
        let ms = began.elapsed().as_millis() as u64;
        let (word, detail) = match &outcome {
            Ok(done) => ("ok", done.clone()),
            Err(e) => ("failed", e.message.clone()),
        };
        log::info!(PG_CLUSTER = self.name, PG_STEP = step.name(), PG_RECOVERY_ID = self.id, MESSAGE_ID = STEP;
            "cluster {}: {} {word} after {ms}ms: {detail}", self.name, step.name());
        if matches!(step, Step::RestoreConfiguration { .. } | Step::RenewCertificate)
            && let Ok(mut as_it_is_now) = Cluster::select(self.config, std::slice::from_ref(&self.name))
        {
            self.cluster = as_it_is_now.remove(0);
        }
        if *step == Step::Start && self.verdict.value.stopped_by_us && !self.memory.stopped_by_us {
            self.verdict.value.stopped_by_us = false;
            self.verdict.save_or_warn();
        }
        if outcome.is_ok() {
            // What the server complained about before this is past.
            self.memory.log_mark = Some(server_log::lengths(&self.cluster));
        }
        self.record.steps.push(StepRecord {
            step: step.name().into(),
            outcome: word.into(),
            ms,
            why: format!("{why}; {detail}"),
            fault: diagnosis.fault.class().into(),
            of: step.of().into(),
        });
        self.tried.push(planned.step);
        self.last_step = Instant::now();
    }

    /// It runs and answers, and this run has done nothing.
    fn well(mut self) -> Code {
        log::info!(PG_CLUSTER = self.name; "cluster {}: it runs and answers, nothing to do", self.name);
        self.forget();
        Code::Ok
    }

    /// What ailed it before is past.
    fn forget(&mut self) {
        let past = self.verdict.value.past();
        if self.verdict.value != past {
            self.verdict.value = past;
            self.verdict.save_or_warn();
        }
    }

    /// It runs and answers, with a certificate of which hardly anything is left. That says nothing about the server, which is
    /// restarted for none of it: a renewal that failed keeps no recovery of the server from being tried.
    fn not_renewed(mut self, diagnosis: &Diagnosis) -> Code {
        let (class, seen) = (diagnosis.fault.class(), diagnosis.evidence.join("; "));
        if let Some(tried) = self.record.steps.last() {
            log::error!(PG_CLUSTER = self.name, PG_FAULT = class, PG_RECOVERY_ID = self.id, MESSAGE_ID = OUTCOME;
                "cluster {}: not recovered from {class}: {}; it serves on with the one that it has", self.name, tried.why);
            return self.finish("failed", Code::Failed);
        }
        let advice = meaning::of(class).map(|row| row.advice(&self.cluster)).unwrap_or_default();
        log::warn!(PG_CLUSTER = self.name, PG_FAULT = class; "cluster {}: nothing is done: {seen}. {advice}", self.name);
        self.forget();
        Code::Ok
    }

    fn leave(mut self, diagnosis: &Diagnosis, facts: &Facts) -> Code {
        let is_moving = diagnosis.fault == Fault::Moving;
        let seen = diagnosis.evidence.last().filter(|_| is_moving).map(|line| format!(": {line}"));
        log::info!(PG_CLUSTER = self.name, PG_FAULT = diagnosis.fault.class(), MESSAGE_ID = LEFT_ALONE;
            "cluster {}: {}{}", self.name, diagnosis.fault.describe(), seen.unwrap_or_default());
        // A run that was killed has started it again: whoever stops it from now on has it stopped.
        let is_started_again = is_moving && self.verdict.value.stopped_by_us && is_starting(facts);
        self.verdict.value.stopped_by_us &= !is_started_again;
        if self.tried.is_empty() {
            if is_started_again {
                self.verdict.save_or_warn();
            }
            return Code::Ok;
        }
        // It was acted upon, and goes on by itself now: neither a success that was proven nor a failure.
        self.verdict.value.attempts = self.verdict.value.attempts.saturating_sub(1);
        self.verdict.value.recoveries.add(Stamp::now());
        self.verdict.save_or_warn();
        self.finish("declined", Code::Ok)
    }

    fn prove(mut self) -> Code {
        stop_here_for_a_test(self.tried.len() + 1);
        let began = Instant::now();
        let target = facts::target(&self.cluster, self.config, &self.cluster.lock_file().0);
        let outcome = verify(&self.cluster, &target, self.recorded.as_ref());
        let ms = began.elapsed().as_millis() as u64;
        let (word, why) = match &outcome {
            Ok(proof) => ("ok", proof.message.clone()),
            Err(Unproven::Silent(why) | Unproven::Lost(why)) => ("failed", why.clone()),
        };
        self.record.steps.push(StepRecord {
            step: "verify".into(),
            outcome: word.into(),
            ms,
            why: why.clone(),
            ..StepRecord::default()
        });
        if let Err(unproven) = outcome {
            log::error!(PG_CLUSTER = self.name, PG_STEP = "verify", PG_RECOVERY_ID = self.id; "cluster {}: not proven: {why}", self.name);
            return match unproven {
                Unproven::Silent(_) => self.failed(),
                // No further try brings it back, and each one may bury what a person could still find.
                Unproven::Lost(why) => self.require_a_person(&why, "manual"),
            };
        }
        self.verdict.value = self.verdict.value.past();
        // What was mended under a server that ran on is no reason to stop healing when it dies.
        if self.tried.contains(&Step::Start) {
            self.verdict.value.recoveries.add(Stamp::now());
        }
        self.verdict.save_or_warn();
        log::warn!(PG_CLUSTER = self.name, PG_FAULT = self.record.fault, PG_STEP = "verify", PG_RECOVERY_ID = self.id, MESSAGE_ID = OUTCOME;
            "cluster {}: recovered from {} in {}ms: {why}", self.name, self.record.fault, self.began.elapsed().as_millis());
        self.finish("recovered", Code::Ok)
    }

    /// Nothing was done, because nothing that this program would do fits. The alarm is raised once for each fault.
    fn hand_over(mut self, diagnosis: &Diagnosis, facts: &Facts) -> Code {
        let class = diagnosis.fault.class();
        let (now, quiet) = (Stamp::now(), self.config.watchdog.quiet);
        let in_turns = matches!(diagnosis.fault, Fault::InTurns(_));
        // In between it is well, which makes each time a fault of its own.
        let told = in_turns && self.verdict.value.told.as_ref().is_some_and(|told| now.since(told) < quiet);
        let is_known = told || self.verdict.value.handed_over == class;
        if in_turns && !is_known {
            self.verdict.value.told = Some(now);
        }
        self.verdict.value.handed_over = class.into();
        self.verdict.value.answered = facts.connection.is_ok();
        self.verdict.value.at = Stamp::now();
        self.verdict.save_or_warn();
        if is_known {
            log::warn!(PG_CLUSTER = self.name, PG_FAULT = class; "cluster {}: still waiting for a person: {}", self.name, diagnosis.fault.describe());
            return Code::Unavailable;
        }
        let mut what = vec![diagnosis.fault.describe()];
        what.extend(facts.learnt.resting(class));
        if in_turns {
            what.push(format!(
                "find out who does it; to have stopped processes go on: systemctl kill --signal=CONT {}",
                self.cluster.unit
            ));
        }
        if !self.verdict.value.waiting.is_empty() {
            what.push(format!("step {} waits for approval", self.verdict.value.waiting));
        }
        self.alarm(&format!("{}; nothing was changed", what.join("; ")));
        self.finish("manual", Code::Unavailable)
    }

    /// Something was done, and nothing is left to do.
    fn give_up(mut self, diagnosis: &Diagnosis) -> Code {
        log::error!(PG_CLUSTER = self.name, PG_FAULT = diagnosis.fault.class(), PG_RECOVERY_ID = self.id, MESSAGE_ID = OUTCOME;
            "cluster {}: not recovered: {}", self.name, diagnosis.fault.describe());
        // Numbers make no difference: there is a pid in many a message.
        let last_word: String = self.found.2.chars().filter(|c| !c.is_ascii_digit()).collect();
        if !last_word.is_empty() && std::mem::replace(&mut self.verdict.value.unknown, last_word.clone()) == last_word {
            return self.require_a_person("two recoveries in a row met the same failure, which is not known", "failed");
        }
        self.verdict.save_or_warn();
        if matches!(diagnosis.fault, Fault::NotOurs(_)) {
            // Not the death that it caused first.
            self.record.fault = diagnosis.fault.class().into();
        }
        if meaning::outlives_starts(diagnosis.fault.class()) {
            return self.require_a_person("a start meets the same again, so no more will be tried", "manual");
        }
        self.failed()
    }

    /// Those that failed and those that did not hold.
    fn spent(&self) -> (u32, u32) {
        let verdict = &self.verdict.value;
        (verdict.attempts, verdict.recoveries.within(self.config.watchdog.restart_window, &Stamp::now()))
    }

    fn is_spent(&self) -> bool {
        let (failed, brief) = self.spent();
        failed + brief >= self.config.recover.max_attempts
    }

    fn failed(mut self) -> Code {
        let (failed, brief) = self.spent();
        if !self.is_spent() {
            let most = self.config.recover.max_attempts;
            log::error!(PG_CLUSTER = self.name; "cluster {}: recovery {} of {most} failed", self.name, failed + brief);
            return self.finish("failed", Code::Failed);
        }
        let window = self.config.watchdog.restart_window.as_secs() / 60;
        let how = match brief {
            0 => format!("{failed} recoveries in a row failed"),
            _ => format!("of the last recoveries {failed} failed and {brief} did not hold for {window}min"),
        };
        self.require_a_person(&format!("{how}, no more will be tried"), "failed")
    }

    fn require_a_person(&mut self, why: &str, outcome: &str) -> Code {
        self.verdict.value.manual = true;
        self.verdict.save_or_warn();
        self.alarm(why);
        self.finish(outcome, Code::Failed)
    }

    fn alarm(&self, what: &str) {
        let (found, class, last_word) = &self.found;
        let last_word =
            if last_word.is_empty() { String::new() } else { format!("; the server's last word was: {last_word}") };
        let found =
            if what.contains(found.as_str()) { String::new() } else { format!("; the last that was found: {found}") };
        let advice = meaning::of(class).map(|row| format!(" {}", row.advice(&self.cluster))).unwrap_or_default();
        let text = format!(
            "cluster {}: manual intervention required: {what}{found}{last_word}.{advice} What was seen and done: pg-recover explain {}. \
             Evidence: journalctl -t pg-recover, {} and the folder {}. When it is repaired: pg-recover reset --cluster {}",
            self.name,
            self.id,
            self.cluster.log_file.as_ref().map_or("the server log".into(), |f| f.display().to_string()),
            evidence::directory(&self.name).display(),
            self.name
        );
        log::error!(PG_CLUSTER = self.name, PG_FAULT = self.record.fault, PG_RECOVERY_ID = self.id, MESSAGE_ID = MANUAL; "{text}");
        terminals::tell("pg-recover", &text);
    }

    fn finish(&mut self, outcome: &str, code: Code) -> Code {
        self.record.close(outcome, self.began.elapsed());
        code
    }
}
