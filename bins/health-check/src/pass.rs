//! One pass over the clusters: each in a thread of its own, so that one that hangs delays no other.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use shared::client::{self, Refusal};
use shared::clock::Stamp;
use shared::cluster::{Cluster, Start};
use shared::config::Config;
use shared::health::{self, Damage, Health, Startup, Status};
use shared::pidfile::LockFile;
use shared::state::State;
use shared::{Error, process, standing, unit};

use crate::count::Count;
use crate::postmaster::{self, Facts};
use crate::probe::{self, Answers, Questions};
use crate::score::{self, Finding};
use crate::startup::{self, Progress};
use crate::{backup, certificate, count, damage, files, forecast, settings, standby, volume};

/// After that time a cluster's thread is given up, and its pass has failed; the unit has 50 s.
const PATIENCE: Duration = Duration::from_secs(40);

/// How long a file system may take to tell how full it is.
const DISK_PATIENCE: Duration = Duration::from_secs(5);

/// What all clusters are asked with.
pub struct Pass {
    pub config: Config,
    /// Findings about the host.
    pub host: Vec<Finding>,
    pub password: Result<Option<String>, Error>,
    /// Keep the score.
    pub counts: bool,
    /// Clusters whose pass is entered: a thread that was given up may still come to its end.
    pub entered: Mutex<HashSet<String>>,
}

/// What was found about one cluster.
pub struct Outcome {
    pub cluster: String,
    pub status: Status,
    pub score: u8,
    pub failures: u32,
    pub max_failures: u32,
    pub findings: Vec<Finding>,
    /// primary, standby; empty when it is not known.
    pub role: &'static str,
    /// A recovery is due.
    pub is_due: bool,
}

/// The outcomes, the worst first.
pub fn run(clusters: Vec<Cluster>, pass: Pass) -> Vec<Outcome> {
    let deadline = Instant::now() + PATIENCE;
    let (pass, (sender, receiver)) = (Arc::new(pass), mpsc::channel());
    let mut waiting = clusters.clone();
    for cluster in clusters {
        let (pass, sender) = (pass.clone(), sender.clone());
        std::thread::spawn(move || {
            // The receiver is gone only when the program ends.
            let _ = sender.send(pass.one(&cluster));
        });
    }
    let mut outcomes: Vec<Outcome> = Vec::new();
    while !waiting.is_empty() {
        let Ok(outcome) = receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) else { break };
        waiting.retain(|cluster| cluster.name() != outcome.cluster);
        outcomes.push(outcome);
    }
    outcomes.extend(waiting.iter().map(|cluster| pass.give_up(cluster)));
    outcomes.sort_by(|a, b| (b.is_due, b.status, &a.cluster).cmp(&(a.is_due, a.status, &b.cluster)));
    outcomes
}

impl Outcome {
    fn of(cluster: String, findings: Vec<Finding>, config: &Config, failures: u32) -> Outcome {
        Outcome {
            cluster,
            status: score::overall(&findings),
            score: score::score(&findings),
            failures,
            max_failures: config.health.max_failures,
            findings,
            role: "",
            is_due: false,
        }
    }
}

impl Pass {
    fn one(&self, cluster: &Cluster) -> Outcome {
        let (name, now) = (cluster.name(), Stamp::now());
        if let Err(why) = cluster.owner.act(|| ()) {
            let finding = Finding::unknown("process", why.message);
            return Outcome::of(name, vec![finding], &self.config, 0);
        }
        let mut state = health::state(&name);
        if let Some(why) = at_rest(cluster) {
            let finding = Finding::ok("process", format!("cluster {name} {why}, leaving it alone"));
            let mut outcome = Outcome::of(name, vec![finding], &self.config, state.value.failures);
            self.enter(&mut outcome, &mut state, false, now, || None);
            return outcome;
        }
        let disks = look_at_disks(cluster, &state.value.damage);
        let facts = Facts::look(cluster);
        let last = &mut state.value;
        let (findings, role, progress) = self.examine(cluster, &facts, &disks, last, &now);
        let mut outcome = Outcome { role, ..Outcome::of(name, findings, &self.config, last.failures) };
        let hold = || count::hold(cluster, &self.config, &facts, progress.as_ref());
        self.enter(&mut outcome, &mut state, facts.stopped_cleanly(), now, hold);
        outcome
    }

    /// A pass that did not end in time: the file system of the data directory hangs, or all that is asked takes its full
    /// deadline. Nothing is looked at here that could hang as well; if it does, systemd ends the unit, and that starts a
    /// recovery too.
    fn give_up(&self, cluster: &Cluster) -> Outcome {
        let name = cluster.name();
        let message = format!("the check itself did not end within {}s", PATIENCE.as_secs());
        let mut state = health::state(&name);
        let finding = Finding::critical("process", message);
        let mut outcome = Outcome::of(name.clone(), vec![finding], &self.config, state.value.failures);
        let hold = || count::excuse(&name).or_else(|| standing::off_in_files(cluster));
        self.enter(&mut outcome, &mut state, false, Stamp::now(), hold);
        outcome
    }

    /// Keeps the score, when that is asked for.
    fn enter(
        &self,
        outcome: &mut Outcome,
        state: &mut State<Health>,
        stopped: bool,
        now: Stamp,
        hold: impl FnOnce() -> Option<String>,
    ) {
        if !self.counts {
            return;
        }
        let count = count::decide(&outcome.findings, outcome.status, hold);
        if !self.entered.lock().unwrap_or_else(PoisonError::into_inner).insert(outcome.cluster.clone()) {
            return;
        }
        let health = &mut state.value;
        outcome.is_due = count::enter(health, &count, stopped, outcome.max_failures);
        let has_expired = count == Count::Reset && certificate::has_expired(&outcome.findings);
        if count::enter_expired(health, has_expired, outcome.max_failures) && count::excuse(&outcome.cluster).is_none()
        {
            log::error!(PG_CLUSTER = outcome.cluster; "the certificate of cluster {} has expired: its renewal is due", outcome.cluster);
            outcome.is_due = true;
        }
        outcome.failures = health.failures;
        health.status = outcome.status;
        health.score = outcome.score;
        health.trends.note_score(&now, outcome.score);
        let times = outcome
            .findings
            .iter()
            .map(|finding| &finding.check)
            .filter(|check| health::TIMES.contains(&check.name.as_str()));
        health.trends.note_times(
            &now,
            times.filter_map(|check| Some((check.name.as_str(), Duration::from_secs_f64(check.value? / 1000.0)))),
        );
        health.checks = outcome.findings.iter().map(|f| f.check.clone()).collect();
        health.at = now;
        count::tell(&outcome.cluster, &count, stopped, outcome.failures, outcome.max_failures);
        state.save_or_warn();
    }

    /// All findings about one cluster, its role, and how its start comes on if it is starting.
    fn examine(
        &self,
        cluster: &Cluster,
        facts: &Facts,
        disks: &mpsc::Receiver<Disks>,
        last: &mut Health,
        now: &Stamp,
    ) -> (Vec<Finding>, &'static str, Option<Progress>) {
        let config = &self.config.health;
        let running = match &facts.lock {
            LockFile::Present(file) if facts.runs() => Some(file),
            _ => None,
        };
        let mut answers = match client::runtime() {
            Ok(runtime) => {
                let questions =
                    Questions::of(cluster, running, config, self.password.as_ref().ok(), files::next(&last.files));
                let answers = runtime.block_on(probe::ask(&questions));
                // Looking up a name may still hang in a thread.
                runtime.shutdown_background();
                answers
            }
            Err(e) => Answers::none(Refusal::Broken(format!("could not create a runtime: {e}"))),
        };
        let progress = progress(cluster, facts, running.map(|f| f.status.as_str()), &answers, last);
        let mut findings = vec![postmaster::judge(cluster, facts)];
        if is_cold_standby(cluster, running.map(|f| f.status.as_str()), &answers) {
            findings.push(Finding::ok("replay", "a standby that takes no connections (hot_standby is off)"));
        } else {
            findings.extend(probe::judge(&answers, cluster, config, self.password.as_ref().err()));
        }
        if let Some(Ok(standby)) = &answers.standby {
            findings.push(standby::judge(standby, &last.replay, now));
            last.replay = standby::remember(&last.replay, standby, now);
        } else if let Some(Err(why)) = &answers.standby {
            findings.push(Finding::unknown("replay", format!("could not be asked: {why}")));
        }
        match disks.recv_timeout(DISK_PATIENCE) {
            Ok(disks) => {
                damage::note(&mut last.damage, disks.log, now);
                findings.extend(volume::judge(&disks.volumes, config));
                last.rehearsal = settings::rehearsal(cluster, &last.rehearsal, disks.signature, facts.runs());
                findings.extend(settings::judge(facts.runs(), answers.catalog.as_ref(), Some(&last.rehearsal)));
            }
            Err(_) => {
                let message = format!("a file system of the cluster gave no answer for {}s", DISK_PATIENCE.as_secs());
                findings.push(Finding::critical("disk_unexamined", message));
            }
        }
        findings.push(damage::judge(cluster, &last.damage, &answers, now));
        if let Some(survey) = answers.files.take() {
            files::note(&mut last.files, survey);
        }
        findings.push(files::judge(cluster, &last.files));
        if let Some(file) = certificate_file(cluster, &answers) {
            let looked = shared::certificate::read(&cluster.owner, &file);
            findings.push(certificate::judge(&looked, now.wall as i64, config));
        }
        findings.extend(certificate::judge_others(cluster, answers.identity.as_ref(), &self.config, now.wall as i64));
        let is_standby = answers.identity.as_ref().map(|identity| identity.is_standby);
        let catalog = answers.catalog.as_ref();
        findings.extend(backup::judge_all(cluster, is_standby, catalog, &mut last.backups, now, &self.config));
        let left: Vec<_> = findings.iter().filter_map(|finding| Some((finding, finding.left.as_ref()?))).collect();
        last.trends.note(now, left.iter().map(|(finding, left)| (finding.check.name.as_str(), left.amount)));
        let forecasts: Vec<_> =
            left.into_iter().map(|(finding, left)| forecast::judge(finding, left, &last.trends, config)).collect();
        forecast::of_wal(&mut findings, &forecasts);
        findings.extend(forecasts);
        findings.extend(self.host.iter().cloned());
        let role = match answers.identity {
            Some(identity) if identity.is_standby => "standby",
            Some(_) => "primary",
            None => "",
        };
        (findings, role, progress)
    }
}

struct Disks {
    volumes: Vec<Result<volume::Volume, String>>,
    signature: String,
    log: damage::Log,
}

/// In a thread of its own: a dead network file system never answers.
fn look_at_disks(cluster: &Cluster, damage: &Damage) -> mpsc::Receiver<Disks> {
    let (sender, receiver) = mpsc::channel();
    let (cluster, read) = (cluster.clone(), damage.read.clone());
    std::thread::spawn(move || {
        let looked = cluster.owner.act(|| Disks {
            volumes: volume::look(&cluster),
            signature: settings::signature(&cluster),
            log: damage::read(&cluster, &read),
        });
        let nothing = |why: Error| Disks {
            volumes: vec![Err(why.message)],
            signature: String::new(),
            log: damage::Log::default(),
        };
        let disks = looked.unwrap_or_else(nothing);
        let _ = sender.send(disks);
    });
    receiver
}

/// Why it does not run: it is not meant to. It is not touched then, for it may be on a volume that never answers.
fn at_rest(cluster: &Cluster) -> Option<String> {
    // Asking systemd costs more than all that follows.
    if cluster.start == Start::Auto && unit::control_group(&cluster.unit).is_some() {
        return None;
    }
    let family = process::family(&cluster.data_directory, &cluster.owner).ok()?;
    if family.postmaster.is_some() || !family.unclear.is_empty() {
        return None;
    }
    standing::off(cluster).ok().flatten()
}

/// How the start comes on; `None` when the cluster is not starting.
fn progress(
    cluster: &Cluster,
    facts: &Facts,
    status: Option<&str>,
    answers: &Answers,
    last: &mut Health,
) -> Option<Progress> {
    let is_rejecting = matches!(answers.connect, Err(Refusal::Starting(_))) && status != Some("stopping");
    // Between fork and listen(2) there is a postmaster and no socket.
    let is_new = status == Some("starting") && matches!(answers.connect, Err(Refusal::NoSocket | Refusal::Refused));
    if !is_rejecting && !is_new && !facts.is_being_started() {
        last.startup = Startup::default();
        return None;
    }
    let (progress, memory) = startup::watch(cluster, &last.startup);
    last.startup = memory;
    Some(progress)
}

fn is_cold_standby(cluster: &Cluster, status: Option<&str>, answers: &Answers) -> bool {
    matches!(answers.connect, Err(Refusal::Starting(_)))
        && status == Some("standby")
        && cluster.setting("hot_standby") == Some("off")
}

/// The file with the certificate, as the running server knows it or as the files say; `None` without TLS.
fn certificate_file(cluster: &Cluster, answers: &Answers) -> Option<PathBuf> {
    match &answers.identity {
        Some(identity) => {
            let file = identity.certificate.as_ref().filter(|_| identity.ssl);
            file.map(|file| cluster.data_directory.join(file))
        }
        None => shared::certificate::file_of(cluster),
    }
}
