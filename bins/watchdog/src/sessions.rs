//! Sessions that harm all the others: judged from the session that stays, ended by the gentlest means, put on record.
//!
//! `/var/lib/pg-recovery/sessions/16-main.json` has the connection limit that a role was given, from before it is set until
//! it is taken back. Whatever happens in between, to this program or the host, the limit is taken back when its time is over,
//! unless a person has given the role another one: then it is theirs.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use shared::client::{Refusal, Rows, Session};
use shared::clock::{self, Stamp};
use shared::cluster::Cluster;
use shared::config::{Config, Mode, Policy};
use shared::lock::Lock;
use shared::log::{FAULT, LEFT_ALONE, MANUAL, STEP};
use shared::standing::{self, Standing};
use shared::state::{self, State as StateFile};
use shared::{pause, terminals};

use crate::blockers::{self, Process};
use crate::look::{self, Look};
use crate::post::Post;
use crate::restart::Incident;
use crate::spill;
use crate::state::State;
use crate::storm::{self, Client, Facts, Limit, Slots, Step, TakeBack};

/// For questions that are asked when much is going on; none of them waits for a lock of its own.
const ANSWER: Duration = Duration::from_secs(5);
/// What is left alone is looked at again after this time, for that costs two calls of systemctl.
const LEFT: Duration = Duration::from_secs(5);
/// A person is told about slots that are used up no more often than this.
const TOLD: Duration = Duration::from_secs(600);
/// A session that was ended needs a moment to go, and a client that comes back no longer.
const SETTLE: Duration = Duration::from_millis(300);
const SETTLED: u32 = 4;
/// How often somebody who waits for others is looked for.
const BLOCKERS_EVERY: Duration = Duration::from_secs(10);

/// A session that is idle and holds a lock holds an advisory lock, which is what its client keeps it for.
const CLIENTS: &str = "SELECT a.pid, a.usesysid, a.usename, a.application_name, coalesce(host(a.client_addr), 'local'), \
    r.rolsuper OR r.rolreplication, r.rolconnlimit, CASE WHEN a.state = 'idle' AND NOT a.pid IN \
    (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND pid IS NOT NULL) \
    THEN extract(epoch FROM clock_timestamp() - a.state_change) END \
    FROM pg_stat_activity a LEFT JOIN pg_roles r ON r.oid = a.usesysid WHERE a.backend_type = 'client backend'";

const SLOTS: &str = "SELECT current_setting('max_connections'), current_setting('max_connections')::int \
    - current_setting('superuser_reserved_connections')::int \
    - coalesce(nullif(current_setting('reserved_connections', true), '')::int, 0)";

/// pg_blocking_pids stops all locking for a moment, so it is asked for those who wait, and only when somebody has for long.
const PROCESSES: &str = "SELECT a.pid, a.usename, a.application_name, \
    a.backend_type = 'client backend' AND NOT (r.rolsuper OR r.rolreplication), \
    CASE WHEN a.state LIKE 'idle in transaction%' THEN extract(epoch FROM clock_timestamp() - a.state_change) END, \
    a.xact_start, extract(epoch FROM clock_timestamp() - a.xact_start), \
    a.backend_xid IS NOT NULL OR a.backend_xmin IS NOT NULL, \
    CASE WHEN a.wait_event_type = 'Lock' THEN array_to_string(pg_blocking_pids(a.pid), ' ') END, \
    extract(epoch FROM clock_timestamp() - a.query_start), \
    a.pid IN (SELECT pid FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock' AND pid IS NOT NULL) \
    FROM pg_stat_activity a LEFT JOIN pg_roles r ON r.oid = a.usesysid WHERE a.xact_start IS NOT NULL";

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
struct Memory {
    limit: Option<Limit>,
    /// When idle sessions were last ended.
    ended: Option<Stamp>,
}

/// Where they are, and what is known of it.
pub struct Scene<'a> {
    pub post: &'a Post,
    pub cluster: &'a Cluster,
    pub config: &'a Config,
    pub look: &'a Look,
}

pub struct Sessions {
    name: String,
    memory: StateFile<Memory>,
    slots: Option<Slots>,
    /// Since when the slots have been used up.
    full: Option<Instant>,
    not_before: Option<Instant>,
    /// When a person was told of it.
    told: Option<Instant>,
    incident: Option<Incident>,
    /// When a limit that could not be taken back is tried again, and what was said about it.
    owed: Option<(Instant, String)>,
    blockers_at: Option<Instant>,
    /// Transactions whose statement was cancelled.
    cancelled: Vec<(i32, String)>,
    /// What was last said about each fault.
    said: Vec<(&'static str, String)>,
}

impl Sessions {
    pub fn new(name: &str) -> Sessions {
        Sessions {
            name: name.into(),
            memory: StateFile::load(&file(name)),
            slots: None,
            full: None,
            not_before: None,
            told: None,
            incident: None,
            owed: None,
            blockers_at: None,
            cancelled: Vec::new(),
            said: Vec::new(),
        }
    }

    /// A new postmaster, and perhaps a new `max_connections`; nobody of before is there any more.
    pub fn begin(&mut self) {
        self.slots = None;
        self.calm();
    }

    /// Called after each look at a server that answers.
    pub async fn attend(&mut self, scene: &Scene<'_>, state: &State) {
        let (Some(session), Some(beat)) = (&scene.look.session, scene.look.beat) else { return };
        self.take_back(scene, session, beat.standby).await;
        if scene.config.watchdog.sessions.connection_storm != Policy::Off {
            self.watch_slots(scene, session, state).await;
        }
        // Those who wait for a lock may be the very ones who hold all the slots.
        if matches!(state, State::Well | State::OutOfSlots) && self.incident.is_none() {
            self.watch_blockers(scene, session).await;
        }
    }

    // ---- connection slots ----

    async fn watch_slots(&mut self, scene: &Scene<'_>, session: &Session, state: &State) {
        let rule = &scene.config.watchdog.sessions;
        if self.slots.is_none() {
            self.slots = session.query(SLOTS, ANSWER).await.ok().and_then(slots);
        }
        let (Some(slots), Some(beat)) = (self.slots, scene.look.beat) else { return };
        let refused = *state == State::OutOfSlots;
        let used = match state {
            State::Well => Some(beat.clients),
            // New connections take too long, and the beat is not asked for meanwhile.
            State::Busy => count(session, scene.config.watchdog.answer_timeout).await,
            _ => None,
        };
        if !refused && used.is_none_or(|used| used < slots.full(rule)) {
            return self.calm();
        }
        let is_first = self.full.is_none();
        let full = *self.full.get_or_insert_with(Instant::now);
        // Seen twice, unless it was felt.
        if (is_first && !refused) || self.not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        scene.post.promise(Duration::from_secs(60));
        let Ok(rows) = session.query(CLIENTS, ANSWER).await else { return };
        let clients = clients(rows);
        let facts = Facts {
            slots,
            clients: &clients,
            refused,
            standby: beat.standby,
            limit: self.memory.value.limit.as_ref(),
            ended: self.memory.value.ended.as_ref().map(|at| Stamp::now().since(at)),
            full: full.elapsed(),
        };
        let plan = storm::decide(&facts, rule);
        let is_persons = plan.iter().any(|planned| planned.step == Step::Person);
        let was_told = is_persons && self.told.is_some_and(|at| at.elapsed() < TOLD);
        let would = plan.iter().map(describe).collect::<Vec<_>>().join("; then ");
        if plan.is_empty() || was_told || self.leaves(scene, "L1", "connection_storm", rule.connection_storm, &would) {
            // What changes soon changes in the beginning.
            let is_early = plan.is_empty() && full.elapsed() < LEFT;
            self.not_before = (!is_early).then(|| Instant::now() + LEFT);
            return;
        }
        // Whoever holds the lock is stopping or repairing it.
        let Ok(Some(_held)) = Lock::try_take(&self.name) else { return };
        let holders = storm::holders(clients.iter());
        let felt = if refused { "; a connection was refused for want of one" } else { "" };
        let evidence = format!(
            "{} of {} connection slots are used, of which {} are not for everybody{felt}; they are held by {holders}",
            clients.len(),
            slots.max,
            slots.max - slots.ordinary
        );
        let mut incident = self.incident.take().unwrap_or_else(|| self.open("L1", full, evidence));
        for planned in plan {
            let began = Instant::now();
            let (name, outcome) = match planned.step {
                Step::Person => return self.tell(incident, &planned.why, &holders),
                Step::End(pids) => ("end-sessions", self.end(session, &pids, rule.idle).await),
                Step::Limit { role_oid, role, before, now } => {
                    let limit = Limit { role_oid, role, before, now, at: Stamp::now() };
                    ("limit-connections", self.limit(session, limit, rule.connection_limit_for).await)
                }
            };
            if !note(&mut incident, name, &planned.why, outcome, began) {
                break;
            }
        }
        self.incident = Some(incident);
        if self.is_relieved(scene, slots).await {
            self.close();
        }
    }

    /// There is room again.
    fn calm(&mut self) {
        self.close();
        self.full = None;
        self.not_before = None;
        self.forget("L1");
    }

    fn close(&mut self) {
        if let Some(incident) = self.incident.take() {
            let ms = incident.died.elapsed().as_millis();
            incident.close_with(
                "recovered",
                &format!("has connection slots again, {ms}ms after they were seen to be used up"),
            );
        }
    }

    /// How many of them were still idle and have been told to end.
    async fn end(&mut self, session: &Session, pids: &[(i32, u32)], idle: Duration) -> Result<String, String> {
        self.memory.value.ended = Some(Stamp::now());
        self.save();
        let all: Vec<String> = pids.iter().map(|(pid, role)| format!("({pid}, {role})")).collect();
        // In the list of columns, for there it is called for no row that the conditions refuse.
        let sql = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE (pid, usesysid) IN ({}) \
             AND backend_type = 'client backend' AND state = 'idle' \
             AND state_change <= clock_timestamp() - interval '{} ms'",
            all.join(", "),
            idle.as_millis()
        );
        let rows = session.query(&sql, ANSWER).await.map_err(|why| why.to_string())?;
        let ended = rows.iter().filter(|row| column(row, 0) == Some("t")).count();
        Ok(format!("ended {ended} of {}", pids.len()))
    }

    /// Gives the role a limit that is sure to be taken back.
    async fn limit(&mut self, session: &Session, limit: Limit, lasts: Duration) -> Result<String, String> {
        let (oid, before, now) = (limit.role_oid, limit.before, limit.now);
        let done = format!("role {:?} may have {now} connections, for {}s", limit.role, lasts.as_secs());
        self.memory.value.limit = Some(limit);
        let outcome = match self.save() {
            true => alter(session, oid, before, now).await,
            false => return Err(self.drop_limit("the old limit could not be written down, so no new one is set")),
        };
        match outcome {
            Ok(true) => Ok(done),
            Ok(false) => Err(self.drop_limit("somebody else has changed the role in this moment")),
            // Without an answer it may be set all the same: what is written down stays.
            Err(Refusal::Timeout) => Err(Refusal::Timeout.to_string()),
            Err(why) => Err(self.drop_limit(&why.to_string())),
        }
    }

    fn drop_limit(&mut self, why: &str) -> String {
        self.memory.value.limit = None;
        self.save();
        why.into()
    }

    /// Puts the old limit back when its time is over, whatever the policy and mode are by now: it is our own change.
    async fn take_back(&mut self, scene: &Scene<'_>, session: &Session, standby: bool) {
        let Some(limit) = self.memory.value.limit.clone() else { return };
        if self.owed.as_ref().is_some_and(|(at, _)| Instant::now() < *at)
            || Stamp::now().since_with(&limit.at, clock::uptime()) < scene.config.watchdog.sessions.connection_limit_for
        {
            return;
        }
        let outcome = match (pause::of(&self.name), Lock::try_take(&self.name)) {
            (Some(reason), _) => Err(format!("the cluster {reason}")),
            (None, Ok(Some(_held))) => restore(session, &limit, standby).await,
            // Whoever holds it will be done in a moment.
            _ => return,
        };
        let name = self.name.as_str();
        let role = format!("role {:?} of cluster {name}", limit.role);
        match outcome {
            Ok(done) => {
                log::info!(MESSAGE_ID = STEP, PG_CLUSTER = name, PG_FAULT = "L1", PG_STEP = "take-back-limit"; "{role} {done}");
                self.owed = None;
                self.memory.value.limit = None;
                self.save();
            }
            Err(why) => {
                let line = format!("could not take back the connection limit of {role} yet: {why}");
                if self.owed.as_ref().is_none_or(|(_, said)| !is_same(said, &line)) {
                    log::warn!(PG_CLUSTER = name, PG_FAULT = "L1"; "{line}");
                }
                self.owed = Some((Instant::now() + LEFT, line));
            }
        }
    }

    /// A fresh connection is let in, and there is room beside it.
    async fn is_relieved(&self, scene: &Scene<'_>, slots: Slots) -> bool {
        let target = look::target(scene.cluster, scene.config, scene.look.lock_file.as_ref().map(|(file, _)| file));
        for _ in 0..SETTLED {
            tokio::time::sleep(SETTLE).await;
            let Ok(session) = Session::connect(&target, scene.config.watchdog.answer_timeout).await else { continue };
            let used = count(&session, ANSWER).await;
            if used.is_some_and(|used| used < slots.full(&scene.config.watchdog.sessions)) {
                return true;
            }
        }
        false
    }

    /// Says who holds the slots, what was done, and what to type.
    fn tell(&mut self, incident: Incident, why: &str, holders: &str) {
        self.told = Some(Instant::now());
        let done: Vec<&str> = incident.record.steps.iter().map(|step| step.why.as_str()).collect();
        let done =
            if done.is_empty() { "Nothing was changed".into() } else { format!("Done so far: {}", done.join("; ")) };
        let text = format!(
            "cluster {}: its connection slots are used up, and {why}. They are held by {holders}. {done}. To see them, as \
             postgres: psql -c \"SELECT pid, usename, application_name, client_addr, state, state_change, query FROM \
             pg_stat_activity ORDER BY state_change\"; to end one: psql -c \"SELECT pg_terminate_backend(PID)\"",
            self.name
        );
        let (name, id) = (self.name.as_str(), incident.record.id.as_str());
        log::error!(MESSAGE_ID = MANUAL, PG_CLUSTER = name, PG_FAULT = "L1", PG_RECOVERY_ID = id; "{text}");
        terminals::tell("pg-watchdog", &text);
        incident.close_with("manual", "has no connection slot left, which is a person's matter now");
    }

    // ---- those that others wait for ----

    async fn watch_blockers(&mut self, scene: &Scene<'_>, session: &Session) {
        let rule = &scene.config.watchdog.sessions;
        let policies = [rule.idle_in_transaction, rule.lock_queue, rule.temporary_files];
        let is_off = policies.iter().all(|policy| *policy == Policy::Off);
        if is_off || self.blockers_at.is_some_and(|at| at.elapsed() < BLOCKERS_EVERY) {
            return;
        }
        self.blockers_at = Some(Instant::now());
        let sql = format!(
            "SELECT count(*) FILTER (WHERE state LIKE 'idle in transaction%' AND \
             state_change <= clock_timestamp() - interval '{} ms'), count(*) FILTER (WHERE wait_event_type = 'Lock' AND \
             query_start <= clock_timestamp() - interval '{} ms') FROM pg_stat_get_activity(NULL)",
            rule.idle_in_transaction_for.as_millis(),
            rule.lock_wait.as_millis()
        );
        let Ok(rows) = session.query(&sql, ANSWER).await else { return };
        let is_none = |index| rows.first().is_none_or(|row| column(row, index) == Some("0"));
        if is_none(0) {
            self.forget("L2");
        }
        if is_none(1) {
            self.forget("L3");
        }
        let full = scene.config.health.disk_fail;
        let spill = spill::look(scene.cluster, full);
        if spill.is_none() {
            self.forget("L4");
        }
        if is_none(1) && spill.is_none() {
            self.cancelled.clear();
        }
        if is_none(0) && is_none(1) && spill.is_none() {
            return;
        }
        scene.post.promise(Duration::from_secs(60));
        let Ok(rows) = session.query(PROCESSES, ANSWER).await else { return };
        let all = processes(rows);
        let plans = [
            ("idle_in_transaction", rule.idle_in_transaction, blockers::left_open(&all, rule)),
            ("lock_queue", rule.lock_queue, blockers::queue(&all, rule, &self.cancelled)),
            (
                "temporary_files",
                rule.temporary_files,
                spill.and_then(|spill| blockers::spilling(&all, &spill, full, &self.cancelled)),
            ),
        ];
        for (key, policy, planned) in plans.into_iter().filter(|(_, policy, _)| *policy != Policy::Off) {
            let Some(blockers::Planned { fault, step, why }) = planned else { continue };
            let (statement, transaction, name) = match step {
                blockers::Step::Cancel(pid, transaction) => {
                    (format!("pg_cancel_backend({pid})"), (pid, transaction), "cancel")
                }
                blockers::Step::End(pid, transaction) => {
                    (format!("pg_terminate_backend({pid})"), (pid, transaction), "end-session")
                }
                blockers::Step::Person => {
                    if self.is_news(fault, &why) {
                        log::warn!(MESSAGE_ID = MANUAL, PG_CLUSTER = self.name.as_str(), PG_FAULT = fault;
                            "cluster {}: {why}; that is a person's matter", self.name);
                    }
                    continue;
                }
            };
            if self.leaves(scene, fault, key, policy, &format!("{why}: SELECT {statement}")) {
                continue;
            }
            let Ok(Some(_held)) = Lock::try_take(&self.name) else { return };
            let mut incident = self.open(fault, Instant::now(), why.clone());
            let began = Instant::now();
            let outcome = end_transaction(session, &statement, &transaction).await;
            let is_done = note(&mut incident, name, &why, outcome, began);
            if name == "cancel" && !is_done {
                self.cancelled.push(transaction);
            }
            match is_done {
                true => incident.close_with("recovered", "is rid of that transaction"),
                false => incident.close_with("failed", "still has that transaction"),
            }
            return;
        }
    }

    // ---- both ----

    /// Says why nothing may be done, if so, and what would be done else.
    fn leaves(&mut self, scene: &Scene, fault: &'static str, key: &str, policy: Policy, plan: &str) -> bool {
        let name = self.name.clone();
        let standing = || match standing::units(scene.cluster) {
            Ok((unit, umbrella)) => standing::of(scene.cluster, scene.config, &unit, umbrella.as_ref()),
            Err(why) => Standing::Left(format!("cannot be judged ({})", why.message)),
        };
        let reason = if policy == Policy::Advise {
            format!("is left alone, for {key} is \"advise\"")
        } else if scene.config.mode_of(&name) == Mode::Observe {
            "is only observed".into()
        } else if let Standing::Left(reason) = standing() {
            format!("{reason}, leaving it alone")
        } else {
            return false;
        };
        let line = format!("cluster {name} {reason}; else now: {plan}");
        if self.is_news(fault, &line) {
            log::warn!(MESSAGE_ID = LEFT_ALONE, PG_CLUSTER = name.as_str(), PG_FAULT = fault; "{line}");
        }
        true
    }

    fn open(&self, fault: &str, since: Instant, evidence: String) -> Incident {
        let name = self.name.as_str();
        let incident = Incident::new(name, fault, since, evidence);
        let (id, evidence) = (incident.record.id.as_str(), &incident.record.evidence[0]);
        log::warn!(MESSAGE_ID = FAULT, PG_CLUSTER = name, PG_FAULT = fault, PG_RECOVERY_ID = id; "cluster {name}: {evidence}");
        incident
    }

    /// True when it is where it survives a reboot as well.
    fn save(&mut self) -> bool {
        let _ = std::fs::create_dir_all(Path::new(state::DIRECTORY).join("sessions"));
        self.memory.save().is_ok() && !Path::new(state::FALLBACK).join(file(&self.name)).exists()
    }

    fn is_news(&mut self, fault: &'static str, line: &str) -> bool {
        let is_news = !self.said.iter().any(|(of, said)| *of == fault && is_same(said, line));
        self.forget(fault);
        self.said.push((fault, line.into()));
        is_news
    }

    fn forget(&mut self, fault: &str) {
        self.said.retain(|(of, _)| *of != fault);
    }
}

fn file(cluster: &str) -> String {
    format!("sessions/{}.json", shared::cluster::file_name(cluster))
}

/// Numbers make no news.
fn is_same(a: &str, b: &str) -> bool {
    let words = |text: &str| text.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
    words(a) == words(b)
}

fn describe(planned: &storm::Planned) -> String {
    let why = &planned.why;
    match &planned.step {
        Step::End(pids) => format!("end {} sessions, {why}", pids.len()),
        Step::Limit { role, now, .. } => format!("give role {role:?} a connection limit of {now} for a while: {why}"),
        Step::Person => format!("tell a person: {why}"),
    }
}

/// Writes a step down; false when it has failed.
fn note(incident: &mut Incident, step: &str, why: &str, outcome: Result<String, String>, began: Instant) -> bool {
    let (word, detail) = match &outcome {
        Ok(done) => ("ok", done),
        Err(why) => ("failed", why),
    };
    let (name, id, fault) = (&incident.record.cluster, incident.record.id.as_str(), incident.record.fault.as_str());
    log::warn!(MESSAGE_ID = STEP, PG_CLUSTER = name.as_str(), PG_FAULT = fault, PG_STEP = step, PG_RECOVERY_ID = id;
        "cluster {name}: {step} {word}: {detail} ({why})");
    incident.step(step, word, began, format!("{why}; {detail}"));
    outcome.is_ok()
}

async fn restore(session: &Session, limit: &Limit, standby: bool) -> Result<String, String> {
    let sql = format!("SELECT rolconnlimit FROM pg_roles WHERE oid = {}", limit.role_oid);
    let rows = session.query(&sql, ANSWER).await.map_err(|why| why.to_string())?;
    let now = rows.first().and_then(|row| column(row, 0)?.parse().ok());
    let before = limit.before;
    match storm::take_back(limit, now, standby) {
        TakeBack::Restore => match alter(session, limit.role_oid, limit.now, before).await {
            Ok(true) => Ok(format!("has its connection limit of {before} again")),
            Ok(false) => Err("it was changed in this moment".into()),
            Err(why) => Err(why.to_string()),
        },
        TakeBack::AsBefore => Ok(format!("has its connection limit of {before} already")),
        TakeBack::Dropped => Ok("was dropped, and its connection limit with it".into()),
        TakeBack::Theirs(now) => Ok(format!(
            "was given a connection limit of {now} meanwhile, leaving it so; before the storm it was {before}"
        )),
        TakeBack::OnStandby => {
            Err(format!("it is a standby now; on its primary the limit was {before} before the storm"))
        }
    }
}

/// Changes the connection limit of a role that still has the limit `from`; false when it has not, or is gone.
async fn alter(session: &Session, role_oid: u32, from: i32, to: i32) -> Result<bool, Refusal> {
    // The server quotes the name, which it knows best.
    let sql = format!(
        "SELECT format('ALTER ROLE %I CONNECTION LIMIT %s', rolname, {to}) FROM pg_roles \
         WHERE oid = {role_oid} AND rolconnlimit = {from} AND NOT rolsuper"
    );
    let rows = session.query(&sql, ANSWER).await?;
    let Some(statement) = rows.first().and_then(|row| column(row, 0)) else { return Ok(false) };
    // Somebody else's change of the role may hold it up: the server must not make it after we have given up.
    session.query(&format!("SET LOCAL statement_timeout = '2s'; {statement}"), ANSWER).await?;
    Ok(true)
}

/// Calls `statement` for the process while it is in this very transaction, and waits a moment for its end.
async fn end_transaction(session: &Session, statement: &str, (pid, start): &(i32, String)) -> Result<String, String> {
    let of = format!("FROM pg_stat_activity WHERE pid = {pid} AND xact_start = '{start}'");
    session.query(&format!("SELECT {statement} {of}"), ANSWER).await.map_err(|why| why.to_string())?;
    for _ in 0..SETTLED {
        tokio::time::sleep(SETTLE).await;
        if session.query(&format!("SELECT {of}"), ANSWER).await.is_ok_and(|rows| rows.is_empty()) {
            return Ok("its transaction has ended".into());
        }
    }
    Err("its transaction goes on".into())
}

/// How many clients have a session.
async fn count(session: &Session, patience: Duration) -> Option<u32> {
    let rows = session.query(look::CLIENTS, patience).await.ok()?;
    column(rows.first()?, 0)?.parse().ok()
}

fn column(row: &[Option<String>], index: usize) -> Option<&str> {
    row.get(index)?.as_deref()
}

fn seconds(row: &[Option<String>], index: usize) -> Option<Duration> {
    Duration::try_from_secs_f64(column(row, index)?.parse().ok()?).ok()
}

fn text(row: &[Option<String>], index: usize) -> String {
    column(row, index).unwrap_or_default().into()
}

fn slots(rows: Rows) -> Option<Slots> {
    let number = |index| column(rows.first()?, index)?.parse().ok();
    Some(Slots { max: number(0)?, ordinary: number(1)? })
}

fn clients(rows: Rows) -> Vec<Client> {
    let client = |row: &Vec<Option<String>>| {
        Some(Client {
            pid: column(row, 0)?.parse().ok()?,
            role_oid: column(row, 1)?.parse().ok()?,
            role: text(row, 2),
            application: text(row, 3),
            address: text(row, 4),
            // A role that is not there any more cannot be judged.
            is_protected: column(row, 5) != Some("f"),
            connection_limit: column(row, 6).and_then(|limit| limit.parse().ok()).unwrap_or(-1),
            idle: seconds(row, 7),
        })
    };
    rows.iter().filter_map(client).collect()
}

fn processes(rows: Rows) -> Vec<Process> {
    let process = |row: &Vec<Option<String>>| {
        Some(Process {
            pid: column(row, 0)?.parse().ok()?,
            role: text(row, 1),
            application: text(row, 2),
            is_protected: column(row, 3) != Some("t"),
            idle: seconds(row, 4),
            transaction: text(row, 5),
            age: seconds(row, 6).unwrap_or_default(),
            holds_back: column(row, 7) == Some("t"),
            waits_for: text(row, 8).split(' ').filter_map(|pid| pid.parse().ok()).collect(),
            waited: seconds(row, 9).unwrap_or_default(),
            wants_all: column(row, 10) == Some("t"),
        })
    };
    rows.iter().filter_map(process).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(texts: &[&str]) -> Vec<Option<String>> {
        texts.iter().map(|text| (!text.is_empty()).then(|| text.to_string())).collect()
    }

    #[test]
    fn a_session_of_a_role_that_is_gone_counts_and_is_not_touched() {
        let clients = clients(vec![
            row(&["7", "16385", "a\"b", "psql", "10.0.0.1", "f", "-1", "2.000512"]),
            row(&["8", "16386", "", "", "local", "", "", "90"]),
            row(&["9", "10", "postgres", "", "local", "t", "-1", ""]),
        ]);
        assert_eq!(clients.iter().map(|c| c.is_protected).collect::<Vec<_>>(), [false, true, true]);
        assert_eq!(clients[0].idle, Some(Duration::from_micros(2_000_512)));
        assert_eq!((clients[0].role.as_str(), clients[2].idle), ("a\"b", None));
    }

    #[test]
    fn who_waits_for_whom_is_read() {
        let start = "2026-11-25 13:00:00.123456+00";
        let processes = processes(vec![
            row(&["7", "app", "psql", "t", "", start, "9.5", "t", "8 9", "3.25", "t"]),
            row(&["8", "", "", "f", "", start, "9.5", "f", "", "", "f"]),
        ]);
        assert_eq!((processes[0].waits_for.clone(), processes[1].waits_for.clone()), (vec![8, 9], vec![]));
        assert_eq!((processes[0].waited, processes[0].transaction.as_str()), (Duration::from_millis(3250), start));
        assert!(processes[1].is_protected && processes[0].wants_all);
    }
}
