//! All certificates of this host, one after the other: an authority may ask for one after the other on the same port.

use std::path::Path;

use serde_json::json;
use shared::args::Args;
use shared::certificate::{self, Validity, Watched};
use shared::clock::Stamp;
use shared::cluster::Cluster;
use shared::config::{Config, Mode};
use shared::exit::{self, Code};
use shared::health::Status;
use shared::lock::Lock;
use shared::{Error, Result, log as out, pause, state, unit};

use crate::plan::{Plan, decide};
use crate::renew::Subject;
use crate::server::Server;

/// Whose lock a run has, as long as it does anything; no cluster has such a name.
const LOCK: &str = "cert-renew";
const PATH: &str = "pg-cert-renew.path";
const DROP_IN: &str = "/run/systemd/system/pg-cert-renew.path.d/directories.conf";

/// Every certificate whose server can be looked at; the others say why not.
fn subjects<'a>(clusters: &[Cluster], config: &'a Config, args: &Args) -> Vec<(String, Result<Option<Subject<'a>>>)> {
    let of_clusters = clusters.iter().map(|cluster| (cluster.name(), Subject::of_cluster(cluster, config)));
    let services = config.tls.certificate.iter().filter(|one| !one.is_of_cluster() && args.clusters.is_empty());
    let of_services = services.map(|one| (one.name.clone(), Subject::of_service(one).map(Some)));
    of_clusters.chain(of_services).collect()
}

fn watched(subject: &Subject, config: &Config, now: i64) -> Vec<Watched> {
    match &subject.server {
        Server::Cluster(postgres) => {
            certificate::watch_cluster(&postgres.cluster, |name| Some(postgres.setting(name)), config, now)
        }
        Server::Service(_) => Vec::new(),
    }
}

/// Those of the configuration.
fn watched_besides(config: &Config, now: i64) -> Vec<Watched> {
    config.tls.watch.iter().map(|file| certificate::watch(file, false, None, config, now)).collect()
}

/// Tells systemd which folders to watch, when these are others than before.
fn watch_directories(config: &Config) -> Result<()> {
    let directories = config.tls.certificate.iter().filter_map(|one| one.directory.as_ref());
    // A line of a unit; systemd expands %.
    let lines = directories.map(|folder| format!("PathChanged={}\n", folder.display().to_string().replace('%', "%%")));
    let text = lines.fold("[Path]\n".to_string(), |text, line| text + &line);
    let file = Path::new(DROP_IN);
    let known = state::read(file, 65536).unwrap_or_else(|_| b"[Path]\n".to_vec());
    if known == text.as_bytes() {
        return Ok(());
    }
    let folder = file.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder)
        .and_then(|()| state::replace(file, text.as_bytes(), 0o644))
        .map_err(|e| Error::failed(format!("could not write {DROP_IN}: {e}")))?;
    unit::daemon_reload()?;
    // One that somebody has stopped stays so.
    if unit::show_one(PATH)?.active == "active" { unit::restart(PATH) } else { Ok(()) }
}

/// Renews what is due.
pub fn renew(clusters: &[Cluster], config: &Config, args: &Args) -> Result<Code> {
    let Some(_lock) = Lock::try_take(LOCK)? else {
        return Err(Error::with(Code::TempFail, "another run is at work on the certificates of this host")
            .hint("It does all that is due: journalctl --unit pg-cert-renew.service"));
    };
    if let Err(why) = watch_directories(config) {
        log::warn!("{}; what other programs renew is only looked at every hour", why.message);
    }
    let now = Stamp::now().wall as i64;
    let mut codes = Vec::new();
    let mut files = watched_besides(config, now);
    for (name, subject) in subjects(clusters, config, args) {
        match subject {
            Ok(None) => log::info!(PG_CLUSTER = name; "cluster {name} does without TLS, nothing to do"),
            // Whether it should run is not this program's question.
            Err(why) if why.code == Code::Unavailable => log::info!(PG_CLUSTER = name; "{}", why.message),
            Err(why) => codes.push(exit::report(&why)),
            Ok(Some(mut subject)) => {
                files.extend(watched(&subject, config, now));
                codes.push(one(&mut subject, config, args.has("force")));
            }
        }
    }
    for file in files {
        let text = format!("{}: {}", file.path.display(), file.message);
        match file.status {
            Status::Ok => {}
            Status::Critical => codes.push(exit::report(&Error::failed(text).hint("Nothing renews it from here."))),
            _ => log::warn!("{text}"),
        }
    }
    Ok(Code::worst(codes.into_iter()))
}

fn one(subject: &mut Subject, config: &Config, force: bool) -> Code {
    let name = subject.name.clone();
    subject.ask();
    let facts = subject.look();
    subject.note(&facts, config);
    let plan = decide(&facts, subject.configured, config, force);
    let (what, acts) = match &plan {
        Plan::Leave(text) => (format!("certificate of {name}: {text}; nothing to do"), false),
        Plan::Tell(text) => (format!("certificate of {name}: {text}"), false),
        Plan::Prove(text) => (format!("certificate of {name}: {text}; having it read again"), true),
        Plan::Renew(text) => (format!("certificate of {name}: {text}; renewing it"), true),
    };
    let urgent = subject.is_urgent(&facts, config);
    if let Some(why) = pause::of(&name).filter(|_| acts) {
        log::info!(PG_CLUSTER = name; "the certificate of {name} is left alone: it {why}");
        return Code::Ok;
    }
    if acts && config.mode_of(&name) == Mode::Observe {
        log::warn!(PG_CLUSTER = name; "{what}: not done, because mode is \"observe\"");
        return Code::Ok;
    }
    let acts_on_what_is_there = matches!(plan, Plan::Prove(_));
    let outcome = match plan {
        Plan::Leave(_) => {
            log::info!(PG_CLUSTER = name; "{what}");
            return Code::Ok;
        }
        Plan::Tell(_) if subject.configured.is_some() && urgent => return exit::report(&Error::failed(what)),
        Plan::Tell(_) => {
            log::warn!(PG_CLUSTER = name; "{what}");
            return Code::Ok;
        }
        Plan::Prove(_) => {
            log::warn!(PG_CLUSTER = name; "{what}");
            subject.prove(&facts).map(|seen| format!("the certificate of {name} is {seen}"))
        }
        Plan::Renew(_) => {
            log::info!(PG_CLUSTER = name; "{what}");
            let renewed = subject.renew(&facts, config, force);
            // Another program's lock is no failure of this one.
            if renewed.as_ref().err().is_none_or(|why| why.code != Code::TempFail) {
                subject.count(&facts, renewed.as_ref().err());
            }
            renewed.map(|seen| format!("{name} has a new certificate, {seen}"))
        }
    };
    match outcome {
        Ok(done) => {
            subject.note(&subject.look(), config);
            log::warn!(PG_CLUSTER = name; "{done}");
            Code::Ok
        }
        Err(why) if urgent || subject.touched || acts_on_what_is_there || why.code != Code::Failed => {
            exit::report(&why)
        }
        // There is time for many more tries until it matters to anybody.
        Err(why) => {
            let hint = why.hint.map(|hint| format!(" {hint}")).unwrap_or_default();
            log::warn!(PG_CLUSTER = name; "{}; the one in place is good for long enough, trying again later.{hint}", why.message);
            Code::Ok
        }
    }
}

/// One line of what is shown.
struct Line {
    name: String,
    status: Status,
    message: String,
    validity: Option<Validity>,
    plan: Option<String>,
}

/// How long each is good for, and what would be done; changes nothing.
pub fn show(clusters: &[Cluster], config: &Config, args: &Args) -> Result<Code> {
    let now = Stamp::now().wall as i64;
    let of_file = |file: Watched| Line {
        name: file.path.display().to_string(),
        status: file.status,
        message: file.message,
        validity: file.validity,
        plan: None,
    };
    let mut lines = Vec::new();
    let mut files = watched_besides(config, now);
    for (name, subject) in subjects(clusters, config, args) {
        let (status, message) = match subject {
            Ok(Some(subject)) => {
                files.extend(watched(&subject, config, now));
                lines.push(line(&subject, config, args.has("force"), now));
                continue;
            }
            Ok(None) => (Status::Ok, "it does without TLS".into()),
            Err(why) => (Status::Unknown, why.message),
        };
        lines.push(Line { name, status, message, validity: None, plan: None });
    }
    lines.extend(files.into_iter().map(of_file));
    if args.json {
        let until = |validity: &Validity| Stamp { wall: validity.until as f64, ..Stamp::default() }.rfc3339();
        let certificates: Vec<_> = lines
            .iter()
            .map(|line| {
                let validity = line.validity.as_ref();
                json!({
                    "name": line.name, "status": line.status, "message": line.message, "plan": line.plan,
                    "subject": validity.map(|validity| &validity.subject), "until": validity.map(until),
                })
            })
            .collect();
        out::print(&format!("{}\n", json!({ "certificates": certificates })))?;
    } else {
        for line in &lines {
            let plan =
                line.plan.as_ref().filter(|_| args.has("plan")).map(|plan| format!("; {plan}")).unwrap_or_default();
            out::print(&format!("{:8} {}: {}{plan}\n", line.status.to_string(), line.name, line.message))?;
        }
    }
    let is_well = |line: &Line| matches!(line.status, Status::Ok | Status::Warning);
    Ok(if args.has("plan") || lines.iter().all(is_well) { Code::Ok } else { Code::Failed })
}

fn line(subject: &Subject, config: &Config, force: bool, now: i64) -> Line {
    let facts = subject.look();
    let (mut status, message) = match &facts.in_place {
        Ok(in_place) => certificate::judge(&in_place.validity, config, now),
        Err(why) => (Status::Warning, why.clone()),
    };
    let plan = match decide(&facts, subject.configured, config, force) {
        Plan::Leave(_) => "nothing to do".into(),
        Plan::Tell(text) => format!("nothing is done by itself: {text}"),
        Plan::Prove(text) => format!("to be read again: {text}"),
        Plan::Renew(text) => format!("to be renewed: {text}"),
    };
    let message = match &facts.served {
        Some(served) => {
            status = Status::Critical;
            format!("{message}; but {served}")
        }
        None => message,
    };
    Line {
        name: subject.name.clone(),
        status,
        message,
        validity: facts.in_place.ok().map(|chain| chain.validity),
        plan: Some(plan),
    }
}
