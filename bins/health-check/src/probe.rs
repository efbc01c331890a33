//! What a client sees: connections on the socket and on TCP, a login of the application, a query, a commit.
//!
//! All of it is under one deadline. The row that is written is `pgrecovery.heartbeat` in `health.database`: one row,
//! updated in place (no index changes, so PostgreSQL prunes the old versions on its page), which never grows.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use shared::Error;
use shared::client::{Address, Refusal, Session, Target, retry};
use shared::cluster::Cluster;
use shared::config::{Application, Health};
use shared::pidfile::PidFile;
use shared::{meaning, tls, translation};
use tokio::net::TcpStream;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::catalog::{self, Catalog};
use crate::files::{self, Survey};
use crate::score::Finding;
use crate::standby::{self, Standby};

pub const APPLICATION_NAME: &str = "pg-health-check";

// Names of schemas that begin with "pg_" are reserved for the system (manual, 5.9.5).
const CREATE: &str = "CREATE SCHEMA IF NOT EXISTS pgrecovery; \
     CREATE TABLE IF NOT EXISTS pgrecovery.heartbeat \
     (id smallint PRIMARY KEY CHECK (id = 1), beat bigint NOT NULL, at timestamptz NOT NULL) WITH (fillfactor = 50)";
const INSERT: &str = "INSERT INTO pgrecovery.heartbeat VALUES (1, 0, clock_timestamp()) ON CONFLICT DO NOTHING";
const BEAT: &str =
    "UPDATE pgrecovery.heartbeat SET beat = beat + 1, at = clock_timestamp() WHERE id = 1 RETURNING beat";

// A check that was killed while it waited for a synchronous standby leaves a session that waits on, with the row
// locked. To cancel such a wait only ends the wait: the row is committed here already (manual, 20.6.1).
const CANCEL_LEFTOVERS: &str = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity \
     WHERE application_name = 'pg-health-check' AND usename = current_user AND wait_event = 'SyncRep' \
     AND pid <> pg_backend_pid() AND state_change < clock_timestamp() - interval '30 s'";

// The owner of the schema and the table is asked because whoever may create objects in the database could have put a
// table of that name there, with a trigger that would run with the rights of this session.
const IDENTITY: &str = "SELECT pg_backend_pid(), pg_is_in_recovery(), n.nspowner = r.oid, \
     c.relowner = r.oid AND c.relkind = 'r', current_setting('ssl'), current_setting('ssl_cert_file'), \
     current_setting('listen_addresses'), \
     (SELECT json_object_agg(name, setting) FROM pg_settings \
      WHERE name IN ('ssl_ca_file', 'ssl_crl_file', 'ssl_crl_dir', 'primary_conninfo')) \
     FROM pg_roles r LEFT JOIN pg_namespace n ON n.nspname = 'pgrecovery' \
     LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = 'heartbeat' WHERE r.rolname = current_user";

/// The unit gives the program 50 s in all; a person who set longer times still gets an answer.
const LONGEST: Duration = Duration::from_secs(30);

/// How long a new connection may take.
fn patience(config: &Health) -> Duration {
    config.connect_timeout.min(LONGEST)
}

/// The time that is left for a pass.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    deadline: Instant,
    step: Duration,
}

impl Budget {
    pub fn new(config: &Health) -> Self {
        let all = (patience(config) + config.query_fail + Duration::from_secs(1)).min(LONGEST);
        Budget { deadline: Instant::now() + all, step: config.query_fail }
    }

    /// For anything at all.
    fn rest(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// For the next question.
    pub fn left(&self) -> Duration {
        self.step.min(self.rest())
    }

    /// The same, with something left for a question about its failure.
    fn left_but(&self, reserve: Duration) -> Duration {
        self.left().min(self.deadline.saturating_duration_since(Instant::now() + reserve))
    }
}

/// What is asked of one cluster.
#[derive(Clone, Debug)]
pub struct Questions {
    pub socket: Target,
    pub tcp: Vec<Target>,
    pub application: Option<Target>,
    pub connect_timeout: Duration,
    pub budget: Budget,
    /// The oid from which on the next database is taken whose files are looked at.
    pub files_from: u32,
}

impl Questions {
    /// Without a usable `password` the application's login is not tried.
    pub fn of(
        cluster: &Cluster,
        running: Option<&PidFile>,
        config: &Health,
        password: Option<&Option<String>>,
        files_from: u32,
    ) -> Self {
        let (_, port) = cluster.socket(running);
        let socket = Target::of(cluster, running, &config.database, APPLICATION_NAME);
        let tcp = cluster.tcp_addresses().into_iter();
        let tcp = tcp.map(|host| Target { address: Address::Tcp(host, port), ..socket.clone() }).collect();
        let application = config.application.as_ref().zip(password);
        let application = application.map(|(Application { role, database, host }, password)| Target {
            address: host.clone().map_or_else(|| socket.address.clone(), |host| Address::Tcp(host, port)),
            role: role.clone(),
            database: database.clone(),
            password: password.clone(),
            ..socket.clone()
        });
        Questions {
            socket,
            tcp,
            application,
            connect_timeout: patience(config),
            budget: Budget::new(config),
            files_from,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Identity {
    pub pid: i32,
    pub is_standby: bool,
    /// Whether schema and table belong to our role; `None`: there is none.
    schema: Option<bool>,
    table: Option<bool>,
    pub ssl: bool,
    pub certificate: Option<String>,
    pub listen_addresses: String,
    /// What of its settings names files whose end matters, by their names.
    pub files: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    Committed(Duration),
    /// Another session holds the row or the table.
    Locked,
    /// No end within this time; what the server says it waits for.
    Waits(Duration, Option<String>),
    /// Schema or table belong to another role.
    Foreign,
    Refused(Refusal),
}

#[derive(Debug)]
pub struct Answers {
    pub connect: Result<Duration, Refusal>,
    pub query: Option<Result<Duration, Refusal>>,
    pub identity: Option<Identity>,
    pub write: Option<Write>,
    pub standby: Option<Result<Standby, Refusal>>,
    pub catalog: Option<Catalog>,
    pub files: Option<Survey>,
    pub tcp: Vec<(String, Result<(), Refusal>)>,
    pub application: Option<Result<(), Refusal>>,
}

impl Answers {
    /// Nothing was asked, because there is no connection.
    pub fn none(why: Refusal) -> Answers {
        Answers {
            connect: Err(why),
            query: None,
            identity: None,
            write: None,
            standby: None,
            catalog: None,
            files: None,
            tcp: Vec::new(),
            application: None,
        }
    }
}

/// Asks everything, the three ways of connecting at the same time.
pub async fn ask(questions: &Questions) -> Answers {
    let patience = questions.connect_timeout;
    let knock = |target: &Target| {
        let target = target.clone();
        tokio::spawn(async move { Session::connect(&target, patience).await.map(drop) })
    };
    let tcp: Vec<_> = questions.tcp.iter().map(|target| (host_of(target), knock(target))).collect();
    let application = questions.application.clone();
    let application = application.map(|target| tokio::spawn(async move { log_in(&target, patience).await }));
    let mut answers = converse(questions).await;
    let lost = |e: tokio::task::JoinError| Err(Refusal::Broken(e.to_string()));
    for (host, task) in tcp {
        answers.tcp.push((host, task.await.unwrap_or_else(lost)));
    }
    if let Some(task) = application {
        answers.application = Some(task.await.unwrap_or_else(lost));
    }
    answers
}

/// As clients do unless told otherwise (sslmode=prefer of libpq): by TCP with TLS where there is any, without where that is refused.
async fn log_in(target: &Target, patience: Duration) -> Result<(), Refusal> {
    let Address::Tcp(host, _) = &target.address else { return Session::connect(target, patience).await.map(drop) };
    let deadline = Instant::now() + patience;
    let mut tls = MakeRustlsConnect::new(tls::any_server().0);
    let tls = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut tls, host);
    let tls = tls.map_err(|e| Refusal::Broken(e.to_string()))?;
    match Session::connect_over(target, patience, tls).await {
        Err(refused @ Refusal::NotAllowed(_)) => {
            let rest = deadline.saturating_duration_since(Instant::now());
            Session::connect(target, rest).await.map(drop).map_err(|_| refused)
        }
        outcome => outcome.map(drop),
    }
}

fn host_of(target: &Target) -> String {
    match &target.address {
        Address::Tcp(host, port) => format!("{host}:{port}"),
        Address::Socket(directory, port) => format!("{}/.s.PGSQL.{port}", directory.display()),
    }
}

/// The session on the socket, a second one when that was lost: after the crash of one backend the server ends all sessions
/// and is back in a moment, which is no failure.
async fn converse(questions: &Questions) -> Answers {
    let answers = session(questions).await;
    let is_lost = match (&answers.query, &answers.write) {
        (Some(Err(refusal)), _) | (_, Some(Write::Refused(refusal))) => refusal.is_transient(),
        _ => false,
    };
    if !is_lost {
        return answers;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    session(questions).await
}

/// Whoever did not answer one question in time is not asked the next.
async fn session(questions: &Questions) -> Answers {
    let budget = questions.budget;
    let mut answers = Answers::none(Refusal::Timeout);
    let began = Instant::now();
    let connect = retry(|| Session::connect(&questions.socket, questions.connect_timeout.min(budget.rest()))).await;
    answers.connect = connect.as_ref().map(|_| began.elapsed()).map_err(Clone::clone);
    let Ok(session) = connect else { return answers };

    // The limits end on the server what a client that is gone cannot end any more.
    let set = format!(
        "SET statement_timeout = {}; SET lock_timeout = {}; SET default_transaction_read_only = off; \
         SELECT set_config('synchronous_commit', 'local', false) WHERE current_setting('synchronous_commit') = 'off'",
        budget.step.as_millis() + 1000,
        budget.step.as_millis() / 2 + 1,
    );
    let began = Instant::now();
    let set = session.query(&set, budget.left()).await;
    answers.query = Some(set.map(|_| began.elapsed()));
    if matches!(answers.query, Some(Err(_))) {
        return answers;
    }
    let identity = match session.query(IDENTITY, budget.left()).await {
        Ok(rows) => identify(&rows.into_iter().next().unwrap_or_default()),
        Err(refusal) => {
            answers.query = Some(Err(refusal));
            return answers;
        }
    };
    if identity.is_standby {
        answers.standby = Some(standby::ask(&session, &budget).await);
    } else {
        answers.write = Some(write(&session, questions, &identity).await);
    }
    answers.identity = Some(identity);
    if !matches!(answers.write, Some(Write::Waits(..))) {
        answers.catalog = Some(Catalog::ask(&session, &budget).await);
    }
    if matches!(answers.write, Some(Write::Committed(_))) {
        // A database that does not answer is told by those who need it.
        answers.files = files::survey(&session, questions).await.ok();
    }
    answers
}

fn identify(row: &[Option<String>]) -> Identity {
    let text = |column: usize| row.get(column).and_then(Option::as_deref);
    let truth = |column: usize| text(column).map(|t| t == "t");
    Identity {
        pid: text(0).and_then(|t| t.parse().ok()).unwrap_or_default(),
        is_standby: truth(1) == Some(true),
        schema: truth(2),
        table: truth(3),
        ssl: text(4) == Some("on"),
        certificate: text(5).map(String::from),
        listen_addresses: text(6).unwrap_or_default().into(),
        files: text(7).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default(),
    }
}

async fn write(session: &Session, questions: &Questions, identity: &Identity) -> Write {
    if identity.schema == Some(false) || identity.table == Some(false) {
        return Write::Foreign;
    }
    // For the question what it waits for.
    let reserve = Duration::from_secs(1);
    let budget = &questions.budget;
    let began = Instant::now();
    let beat = async {
        session.query(CANCEL_LEFTOVERS, budget.left_but(reserve)).await?;
        if identity.table.is_none() {
            create(session, budget.left_but(reserve)).await?;
        }
        let rows = retry(|| session.query(BEAT, budget.left_but(reserve))).await?;
        if rows.is_empty() {
            session.query(INSERT, budget.left_but(reserve)).await?;
        }
        Ok(())
    };
    match beat.await {
        Ok(()) => Write::Committed(began.elapsed()),
        // lock_not_available
        Err(Refusal::Server(code, _)) if code == "55P03" => Write::Locked,
        Err(Refusal::Timeout) => Write::Waits(began.elapsed(), waits_for(questions, identity.pid).await),
        Err(refusal) => Write::Refused(refusal),
    }
}

async fn create(session: &Session, patience: Duration) -> Result<(), Refusal> {
    match session.query(CREATE, patience).await {
        // Another check made it at the same moment (unique_violation in the catalog): IF NOT EXISTS does not see that.
        Err(Refusal::Server(code, _)) if code == "23505" => {}
        outcome => drop(outcome?),
    }
    session.query(INSERT, patience).await.map(drop)
}

/// Asks on a second connection what the session waits for, and ends the wait: a session that waits for a synchronous
/// standby would go on doing so without its client.
async fn waits_for(questions: &Questions, pid: i32) -> Option<String> {
    let patience = Duration::from_millis(500);
    let session = Session::connect(&questions.socket, patience).await.ok()?;
    let sql = format!(
        "SELECT wait_event, wait_event_type, pg_cancel_backend(pid) FROM pg_stat_activity \
         WHERE pid = {pid} AND application_name = '{APPLICATION_NAME}'"
    );
    let rows = session.query(&sql, patience).await.ok()?;
    rows.into_iter().next()?.into_iter().next()?
}

pub fn judge(answers: &Answers, cluster: &Cluster, config: &Health, refused: Option<&Error>) -> Vec<Finding> {
    let has_socket = cluster.setting("unix_socket_directories") != Some("");
    let mut findings = vec![judge_socket(&answers.connect, has_socket, config)];
    findings.extend(judge_tcp(answers, cluster.setting("listen_addresses")));
    let wants_certificate =
        |why: &str| translation::has(cluster, why, "connection requires a valid client certificate");
    findings.push(judge_login(answers.application.as_ref(), refused, wants_certificate, config));
    findings.extend(answers.query.as_ref().map(|query| judge_query(query, config)));
    findings.extend(answers.write.as_ref().map(judge_write));
    findings.extend(judge_synchronous(answers));
    if let Some(catalog) = &answers.catalog {
        findings.extend(catalog::judge(catalog, config));
    }
    findings
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn judge_socket(connect: &Result<Duration, Refusal>, has_socket: bool, config: &Health) -> Finding {
    let name = "socket";
    match connect {
        Ok(time) => {
            let ms = milliseconds(*time);
            Finding::ok(name, format!("a new connection took {ms:.1} ms")).value(ms, "ms")
        }
        Err(_) if !has_socket => {
            Finding::unknown(name, "unix_socket_directories is empty, and this check needs a socket to log in")
        }
        // invalid_catalog_name, or a database that takes no connections (object_not_in_prerequisite_state): the server
        // is well, the configuration of this program is not.
        Err(Refusal::Server(code, text)) if code == "3D000" || code == "55000" => {
            Finding::unknown(name, format!("{text}: correct health.database"))
        }
        // It answers, and others may be let in; pg_hba.conf itself is judged by the check of the configuration.
        Err(Refusal::NotAllowed(text)) => {
            Finding::unknown(name, format!("{text}: pg_hba.conf must let the owner of the cluster in on its socket"))
        }
        Err(silence) if silence.is_silence() => {
            let message = format!("no new connection within {}s: {silence}", patience(config).as_secs_f64());
            Finding::critical(name, message)
        }
        Err(refusal) => Finding::critical(name, format!("no new connection: {refusal}")),
    }
}

/// TCP is judged apart from the socket: when only this fails, some clients are locked out, and no restart is due.
fn judge_tcp(answers: &Answers, configured: Option<&str>) -> Option<Finding> {
    let name = "tcp";
    let failed: Vec<String> = answers
        .tcp
        .iter()
        .filter_map(|(host, outcome)| match outcome {
            Err(refusal) if !refusal.is_answer() => Some(format!("{host}: {refusal}")),
            _ => None,
        })
        .collect();
    let hosts = || answers.tcp.iter().map(|(host, _)| host.as_str()).collect::<Vec<_>>().join(", ");
    Some(match (answers.tcp.as_slice(), failed.as_slice()) {
        ([], _) => Finding::ok(name, "skipped, the cluster does not listen on TCP"),
        (_, []) => Finding::ok(name, format!("it answers at {}", hosts())),
        // The files say what the next start will do.
        _ if answers
            .identity
            .as_ref()
            .is_some_and(|i| Some(i.listen_addresses.as_str()) != configured.or(Some("localhost"))) =>
        {
            Finding::ok(name, format!("skipped, it will listen at {} after a restart", hosts()))
        }
        _ => Finding::critical(name, format!("no answer at {}", failed.join("; "))),
    })
}

/// `refused`: why there is no password to try it with. That the role cannot log in is not said by that.
/// `wants_certificate`: whether that is why the server refuses.
fn judge_login(
    login: Option<&Result<(), Refusal>>,
    refused: Option<&Error>,
    wants_certificate: impl Fn(&str) -> bool,
    config: &Health,
) -> Finding {
    let name = "application_login";
    let role = config.application.as_ref().map_or("?", |a| a.role.as_str());
    if let Some(why) = refused {
        let hint = why.hint.as_deref().map(|hint| format!(". {hint}")).unwrap_or_default();
        return Finding::unknown(name, format!("the login of role {role} was not tried: {}{hint}", why.message));
    }
    match login {
        None => Finding::ok(name, "skipped, [health.application] is not configured"),
        Some(Ok(())) => Finding::ok(name, format!("role {role} can log in")),
        Some(Err(Refusal::NotAllowed(text))) if text == "a password is wanted" => {
            Finding::ok(name, format!("skipped, the server wants a password of role {role} and there is no credential"))
        }
        Some(Err(Refusal::NotAllowed(text))) if wants_certificate(text) => {
            Finding::unknown(name, format!("the server wants a certificate of role {role}, and this check has none"))
        }
        Some(Err(refusal)) => Finding::critical(name, format!("role {role} cannot log in: {refusal}")),
    }
}

fn judge_query(query: &Result<Duration, Refusal>, config: &Health) -> Finding {
    let name = "query";
    match query {
        Ok(time) => {
            let ms = milliseconds(*time);
            let limits = (milliseconds(config.query_warn), milliseconds(config.query_fail));
            Finding::level(name, ms, "ms", limits, format!("a trivial query took {ms:.1} ms"))
        }
        Err(Refusal::Timeout) => Finding::critical(
            name,
            format!("a trivial query had no answer within {}s", config.query_fail.as_secs_f64()),
        ),
        Err(refusal) => {
            let finding = Finding::critical(name, format!("a trivial query failed: {refusal}"));
            if of_storage(refusal).is_some() { finding.without_recovery() } else { finding }
        }
    }
}

/// The class of an answer that is about the disk or damaged files: the server is alive, and no restart makes it better.
fn of_storage(refusal: &Refusal) -> Option<&'static str> {
    let Refusal::Server(code, text) = refusal else { return None };
    meaning::class_of(text, Some(code)).filter(|class| meaning::is_of_storage(class))
}

/// The first answer of that kind, with its class.
pub fn met_damage(answers: &Answers) -> Option<(&'static str, String)> {
    let login = answers.connect.as_ref().err().and_then(|refusal| match refusal {
        Refusal::Server(code, text) => Some((meaning::of_refused_login(text, code)?, refusal)),
        _ => None,
    });
    let query = answers.query.as_ref().and_then(|query| query.as_ref().err());
    let write = answers.write.as_ref().and_then(|write| if let Write::Refused(why) = write { Some(why) } else { None });
    let later = [query, write].into_iter().flatten().find_map(|refusal| Some((of_storage(refusal)?, refusal)));
    login.or(later).map(|(class, refusal)| (class, refusal.to_string()))
}

fn judge_write(write: &Write) -> Finding {
    let name = "write";
    match write {
        Write::Committed(time) => {
            let ms = milliseconds(*time);
            Finding::ok(name, format!("a write was committed in {ms:.1} ms")).value(ms, "ms")
        }
        Write::Locked => Finding::warning(name, "pgrecovery.heartbeat is locked by another session"),
        Write::Waits(_, Some(event)) if event == "SyncRep" => {
            Finding::warning(name, "the write is on disk here, its commit waits for a synchronous standby")
        }
        Write::Waits(time, event) => {
            let event = event.as_ref().map(|e| format!(", it waits for {e}")).unwrap_or_default();
            Finding::critical(name, format!("a write was not committed within {:.1}s{event}", time.as_secs_f64()))
        }
        Write::Foreign => Finding::warning(
            name,
            "no write was tried: the schema pgrecovery or its table heartbeat belongs to another role; drop it, or \
             give it to the owner of the cluster",
        ),
        // 53: insufficient resources, a full disk first of all; 54000: no transaction ids left. A restart makes
        // neither better.
        Write::Refused(Refusal::Server(code, text)) if code.starts_with("53") || code == "54000" => {
            Finding::critical(name, format!("a write failed: {text} ({code})")).without_recovery()
        }
        Write::Refused(refusal) if of_storage(refusal).is_some() => {
            Finding::critical(name, format!("a write failed: {refusal}")).without_recovery()
        }
        Write::Refused(refusal) => Finding::critical(name, format!("a write failed: {refusal}")),
    }
}

/// A commit that waits for a synchronous standby which is not there: the server is well, and a restart could take
/// commits for granted that the standby never saw.
fn judge_synchronous(answers: &Answers) -> Option<Finding> {
    let others = answers.catalog.as_ref().map_or(0, Catalog::waiting_for_standby);
    let ours = matches!(&answers.write, Some(Write::Waits(_, Some(event))) if event == "SyncRep");
    (ours || others > 0).then(|| {
        let message = format!(
            "sessions whose commits wait for a synchronous standby that does not confirm them (wait event SyncRep): {}. \
             Repair the standby or the way to it, {}; only a person may change synchronous_standby_names",
            others + u64::from(ours),
            catalog::sql("SELECT application_name, client_addr, state, sync_state FROM pg_stat_replication")
        );
        Finding::critical("synchronous_standby", message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::health::Status;

    fn answers() -> Answers {
        let millisecond = Duration::from_millis(1);
        Answers { connect: Ok(millisecond), query: Some(Ok(millisecond)), ..Answers::none(Refusal::Timeout) }
    }

    #[test]
    fn silence_and_refusal_on_the_socket_ask_for_a_recovery() {
        let config = Health::default();
        for refusal in [
            Refusal::Timeout,
            Refusal::BacklogFull,
            Refusal::NoSocket,
            Refusal::Refused,
            Refusal::Starting("FATAL".into()),
            Refusal::OutOfSlots("FATAL".into()),
        ] {
            let finding = judge_socket(&Err(refusal.clone()), true, &config);
            assert!(finding.escalates, "{refusal:?}");
        }
        let no_database = Err(Refusal::Server("3D000".into(), "FATAL: database \"x\" does not exist".into()));
        assert_eq!(judge_socket(&no_database, true, &config).check.status, Status::Unknown);
        assert_eq!(judge_socket(&Err(Refusal::NotAllowed("no".into())), true, &config).check.status, Status::Unknown);
        assert_eq!(judge_socket(&Err(Refusal::NoSocket), false, &config).check.status, Status::Unknown);
    }

    #[test]
    fn a_server_that_refuses_a_login_on_tcp_is_alive() {
        let mut answers = answers();
        answers.tcp = vec![("::1:5432".into(), Err(Refusal::NotAllowed("no".into()))), ("a:5432".into(), Ok(()))];
        assert_eq!(judge_tcp(&answers, None).unwrap().check.status, Status::Ok);
        answers.tcp.push(("b:5432".into(), Err(Refusal::Refused)));
        let deaf = judge_tcp(&answers, None).unwrap();
        assert_eq!((deaf.check.status, deaf.escalates), (Status::Critical, false));
        answers.identity = Some(Identity { listen_addresses: "a".into(), ..Identity::default() });
        assert_eq!(judge_tcp(&answers, Some("a,b")).unwrap().check.status, Status::Ok, "it waits for a restart");
        assert_eq!(judge_tcp(&answers, Some("a")).unwrap().check.status, Status::Critical);
        answers.tcp.clear();
        assert!(judge_tcp(&answers, None).unwrap().check.message.starts_with("skipped"));
    }

    #[test]
    fn a_commit_that_waits_for_its_standby_is_told_apart_from_a_dead_server() {
        let mut answers = answers();
        answers.write = Some(Write::Waits(Duration::from_secs(5), Some("SyncRep".into())));
        let write = judge_write(answers.write.as_ref().unwrap());
        assert_eq!((write.check.status, write.escalates), (Status::Warning, false));
        let standby = judge_synchronous(&answers).unwrap();
        assert_eq!((standby.check.status, standby.escalates), (Status::Critical, false));
        answers.write = Some(Write::Waits(Duration::from_secs(5), Some("WALWrite".into())));
        assert!(judge_write(answers.write.as_ref().unwrap()).escalates);
        assert!(judge_synchronous(&answers).is_none());
        answers.catalog = Some(Catalog::of(&[&["connections", "5", "100", "2"]]));
        assert!(judge_synchronous(&answers).is_some(), "the commits of others count too");
    }

    #[test]
    fn a_write_that_fails_for_want_of_space_or_for_damage_asks_for_no_restart() {
        let refused = |code: &str| judge_write(&Write::Refused(Refusal::Server(code.into(), String::new())));
        for (code, escalates) in
            [("53100", false), ("54000", false), ("58030", false), ("XX001", false), ("XX000", true)]
        {
            let finding = refused(code);
            assert_eq!((finding.check.status, finding.escalates), (Status::Critical, escalates), "{code}");
        }
        assert_eq!(judge_write(&Write::Locked).check.status, Status::Warning);
        assert_eq!(judge_write(&Write::Foreign).check.status, Status::Warning);
    }

    #[test]
    fn the_application_is_judged_by_its_login() {
        let config = Health {
            application: Some(Application { role: "app".into(), database: "app".into(), host: None }),
            ..Health::default()
        };
        let status = |login: Result<(), Refusal>| {
            judge_login(Some(&login), None, |why| why.contains("certificate"), &config).check.status
        };
        let denied = |text: &str| Err(Refusal::NotAllowed(text.into()));
        assert_eq!(status(Ok(())), Status::Ok);
        assert_eq!(status(denied("a password is wanted")), Status::Ok);
        assert_eq!(status(denied("FATAL: password authentication failed for user \"app\"")), Status::Critical);
        assert_eq!(status(denied("FATAL: no pg_hba.conf entry for host \"::1\", SSL encryption")), Status::Critical);
        assert_eq!(status(denied("FATAL: connection requires a valid client certificate")), Status::Unknown);
        let refused = Error::config("cannot use it").hint("Run: chmod 600 it");
        let finding = judge_login(None, Some(&refused), |_| false, &config);
        assert_eq!((finding.check.status, finding.escalates), (Status::Unknown, false));
        assert!(finding.check.message.ends_with("not tried: cannot use it. Run: chmod 600 it"));
    }

    #[test]
    fn no_question_gets_more_time_than_is_left() {
        let second = Duration::from_secs(1);
        let budget = Budget { deadline: Instant::now() + 3 * second, step: 5 * second };
        assert!(budget.left() <= 3 * second && budget.left_but(second) <= 2 * second);
        assert_eq!(Budget { deadline: Instant::now(), step: second }.left_but(second), Duration::ZERO);
    }
}
