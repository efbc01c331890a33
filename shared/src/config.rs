//! File text -> values with defaults -> a checked `Config`.
//!
//! `/etc/pg-recovery/config.toml`, then `config.d/*.toml` beside it in the order of their names; a later file wins key
//! by key, `[[cluster]]` and `[[service]]` entries are merged by `name`. Every key is optional. Each file is read by
//! itself, then the merged whole is checked for values that are out of range or contradict each other; an error names
//! file, line and key.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

pub const DEFAULT_PATH: &str = "/etc/pg-recovery/config.toml";
/// What each of the times in `[recover]` may be at most, so that pg-recovery.service does not end a recovery that waits
/// for all of them (TimeoutStartSec=).
pub const LONGEST_STEP: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Actors act.
    #[default]
    Heal,
    /// Actors stop at their plan and report it.
    Observe,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum OnCleanStop {
    /// A cluster that is meant to run but was stopped cleanly is started after `health.max_failures` checks.
    #[default]
    Start,
    /// It stays stopped until a person starts it.
    Leave,
}

/// When a server whose socket file is gone, and has no second name, may be restarted: nothing else makes it anew.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum SocketRestart {
    /// While no session is at work. Clients on TCP lose connections that are idle, those on the socket are locked out.
    #[default]
    Idle,
    /// A person does it.
    Never,
}

/// What is done about one kind of fault that only some would want healed.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Nobody looks.
    Off,
    /// What would be done is said, and left to a person.
    Advise,
    Act,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub mode: Mode,
    pub on_clean_stop: OnCleanStop,
    pub health: Health,
    pub watchdog: Watchdog,
    pub recover: Recover,
    pub backup: Backup,
    pub notify: Notify,
    pub tls: Tls,
    pub cluster: Vec<ClusterEntry>,
    pub service: Vec<Service>,
}

/// `[health]`: what counts as healthy. Percentages are 0-100.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// CRITICAL results in a row after which `pg-health-check --count` asks for a recovery.
    pub max_failures: u32,
    /// Database in which the probes run and the table `pgrecovery.heartbeat` lives.
    pub database: String,
    #[serde(deserialize_with = "duration")]
    pub connect_timeout: Duration,
    /// Latency of a trivial query.
    #[serde(deserialize_with = "duration")]
    pub query_warn: Duration,
    #[serde(deserialize_with = "duration")]
    pub query_fail: Duration,
    /// Used space or inodes of a volume.
    pub disk_warn: u8,
    pub disk_fail: u8,
    /// Used memory of the host.
    pub memory_warn: u8,
    pub memory_fail: u8,
    /// Share of time in which some task waited for CPU, memory or I/O (`some avg60` of /proc/pressure).
    pub pressure_warn: u8,
    pub connections_warn: u8,
    pub connections_fail: u8,
    /// Age in transactions of the oldest transaction id or multixact id that is not frozen.
    pub xid_age_warn: u32,
    pub xid_age_fail: u32,
    /// WAL kept back by one replication slot, in bytes.
    #[serde(deserialize_with = "bytes")]
    pub slot_warn: u64,
    #[serde(deserialize_with = "bytes")]
    pub slot_fail: u64,
    #[serde(deserialize_with = "duration")]
    pub prepared_transaction_warn: Duration,
    #[serde(deserialize_with = "duration")]
    pub certificate_warn: Duration,
    #[serde(deserialize_with = "duration")]
    pub certificate_fail: Duration,
    /// Time left before something runs out at its present pace.
    #[serde(deserialize_with = "duration")]
    pub forecast_warn: Duration,
    #[serde(deserialize_with = "duration")]
    pub forecast_fail: Duration,
    /// Age of the last good base backup.
    #[serde(deserialize_with = "duration")]
    pub backup_warn: Duration,
    #[serde(deserialize_with = "duration")]
    pub backup_fail: Duration,
    /// How long no WAL was received for the backups.
    #[serde(deserialize_with = "duration")]
    pub stream_warn: Duration,
    #[serde(deserialize_with = "duration")]
    pub stream_fail: Duration,
    pub application: Option<Application>,
}

impl Default for Health {
    fn default() -> Self {
        const GIB: u64 = 1 << 30;
        Health {
            max_failures: 3,
            database: "postgres".into(),
            connect_timeout: Duration::from_secs(5),
            query_warn: Duration::from_secs(1),
            query_fail: Duration::from_secs(5),
            disk_warn: 80,
            disk_fail: 90,
            memory_warn: 90,
            memory_fail: 95,
            pressure_warn: 50,
            connections_warn: 75,
            connections_fail: 90,
            xid_age_warn: 500_000_000,
            xid_age_fail: 1_000_000_000,
            slot_warn: 10 * GIB,
            slot_fail: 50 * GIB,
            prepared_transaction_warn: Duration::from_secs(15 * 60),
            certificate_warn: Duration::from_secs(30 * 86_400),
            certificate_fail: Duration::from_secs(3 * 86_400),
            forecast_warn: Duration::from_secs(86_400),
            forecast_fail: Duration::from_secs(3600),
            backup_warn: Duration::from_secs(26 * 3600),
            backup_fail: Duration::from_secs(50 * 3600),
            stream_warn: Duration::from_secs(15 * 60),
            stream_fail: Duration::from_secs(3600),
            application: None,
        }
    }
}

/// `[health.application]`: the role whose login is tried. Its password is the credential `application-password`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Application {
    pub role: String,
    pub database: String,
    /// Host name or address to connect to; the cluster's socket when absent.
    pub host: Option<String>,
}

/// `[watchdog]`
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Watchdog {
    /// Restarts within `restart_window` before the fault is handed to pg-recovery.service.
    pub restarts: u32,
    #[serde(deserialize_with = "duration")]
    pub restart_window: Duration,
    /// Quiet time after which the restarts are forgotten.
    #[serde(deserialize_with = "duration")]
    pub quiet: Duration,
    /// How often the session is asked for a sign of life.
    #[serde(deserialize_with = "duration")]
    pub heartbeat: Duration,
    /// How often a fresh connection is made.
    #[serde(deserialize_with = "duration")]
    pub connect_every: Duration,
    /// How long an answer may take before a second signal is looked for.
    #[serde(deserialize_with = "duration")]
    pub answer_timeout: Duration,
    pub sessions: Sessions,
}

impl Default for Watchdog {
    fn default() -> Self {
        Watchdog {
            restarts: 5,
            restart_window: Duration::from_secs(600),
            quiet: Duration::from_secs(3600),
            heartbeat: Duration::from_secs(1),
            connect_every: Duration::from_secs(5),
            answer_timeout: Duration::from_secs(1),
            sessions: Sessions::default(),
        }
    }
}

/// `[watchdog.sessions]`: sessions that harm all the others.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Sessions {
    pub connection_storm: Policy,
    /// Used percentage of `max_connections` from which on the slots count as used up.
    pub slots_full: u8,
    /// Used percentage of the slots that are for everybody down to which sessions are ended then.
    pub slots_relief: u8,
    /// How long a session must have been idle to be ended.
    #[serde(deserialize_with = "duration")]
    pub idle: Duration,
    /// How long a role keeps the connection limit that it gets when ending sessions does not help.
    #[serde(deserialize_with = "duration")]
    pub connection_limit_for: Duration,
    pub idle_in_transaction: Policy,
    /// How long a session must have been idle in its transaction.
    #[serde(deserialize_with = "duration")]
    pub idle_in_transaction_for: Duration,
    pub lock_queue: Policy,
    /// How many must wait behind one session, and for how long at least one of them.
    pub lock_waiters: u32,
    #[serde(deserialize_with = "duration")]
    pub lock_wait: Duration,
    /// Of a session without which `health.disk_fail` would not be reached.
    pub temporary_files: Policy,
}

impl Default for Sessions {
    fn default() -> Self {
        Sessions {
            connection_storm: Policy::Act,
            slots_full: 95,
            slots_relief: 80,
            idle: Duration::from_secs(2),
            connection_limit_for: Duration::from_secs(600),
            idle_in_transaction: Policy::Advise,
            idle_in_transaction_for: Duration::from_secs(300),
            lock_queue: Policy::Advise,
            lock_waiters: 5,
            lock_wait: Duration::from_secs(30),
            temporary_files: Policy::Advise,
        }
    }
}

/// `[recover]`
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Recover {
    /// Recoveries in a row that fail, or do not hold for `watchdog.restart_window`, before a person is needed.
    pub max_attempts: u32,
    /// How long a start may take until the cluster answers; crash recovery that moves is waited for longer.
    #[serde(deserialize_with = "duration")]
    pub start_timeout: Duration,
    /// How long a fast shutdown may take before an immediate one.
    #[serde(deserialize_with = "duration")]
    pub fast_stop_timeout: Duration,
    /// How long an immediate shutdown may take before SIGKILL.
    #[serde(deserialize_with = "duration")]
    pub immediate_stop_timeout: Duration,
    /// Size of the file that is given back when the volume of pg_wal is full; 0B for none.
    #[serde(deserialize_with = "bytes")]
    pub ballast: u64,
    pub socket_restart: SocketRestart,
    /// Programs that, when their arguments name the data directory, have it to themselves.
    pub data_directory_users: Vec<String>,
}

impl Default for Recover {
    fn default() -> Self {
        let users = [
            "pg_upgrade",
            "pg_checksums",
            "pg_rewind",
            "pg_resetwal",
            "pg_basebackup",
            "pg_combinebackup",
            "pg_createsubscriber",
            "pg_upgradecluster",
            "pg_dropcluster",
            "pg_renamecluster",
            "pg_restorecluster",
            "initdb",
            "pgbackrest",
            "barman",
            "rsync",
            "tar",
            "cp",
            "mv",
            "rm",
            "dd",
        ];
        Recover {
            max_attempts: 3,
            start_timeout: Duration::from_secs(60),
            fast_stop_timeout: Duration::from_secs(10),
            immediate_stop_timeout: Duration::from_secs(10),
            ballast: 64 << 20,
            socket_restart: SocketRestart::default(),
            data_directory_users: users.map(String::from).to_vec(),
        }
    }
}

/// `[backup]`
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Backup {
    pub engine: Engine,
    /// A commit may wait until the stream has it on disk, see bins/backup/src/synchronous.rs.
    pub synchronous_stream: bool,
    /// Public keys of age; with any of them backups are encrypted, see bins/backup/src/encryption.rs.
    pub recipients: Vec<String>,
    /// So many incremental base backups are made upon a full one, where the server summarizes its WAL.
    pub incrementals: u32,
    /// A base backup goes when so many newer ones are there and it is older than `keep_for`.
    pub keep: u32,
    #[serde(deserialize_with = "duration")]
    pub keep_for: Duration,
    /// All backups of a cluster with their WAL may take so many bytes; 0B for no limit. The newest `keep_min` stay anyway.
    #[serde(deserialize_with = "bytes")]
    pub budget: u64,
    pub keep_min: u32,
    /// Percentage of a volume that backups leave free.
    pub leave_free: u8,
    /// WAL that the server may keep for the stream.
    #[serde(deserialize_with = "bytes")]
    pub slot_max: u64,
    /// Bytes a second that a base backup may read; 0B for no limit.
    #[serde(deserialize_with = "bytes")]
    pub max_rate: u64,
    /// What must be true of a cluster that a drill has restored.
    pub drill_queries: Vec<DrillQuery>,
}

/// Who copies.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// pg_basebackup and pg_receivewal.
    #[default]
    Builtin,
    /// pgBackRest, with a stanza that a person has made; WAL comes to it by `archive_command`.
    Pgbackrest,
}

/// One statement that returns one row with one column, which is true.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct DrillQuery {
    /// `health.database` when absent.
    pub database: Option<String>,
    pub query: String,
}

impl Default for Backup {
    fn default() -> Self {
        Backup {
            engine: Engine::Builtin,
            synchronous_stream: false,
            recipients: Vec::new(),
            incrementals: 6,
            keep: 7,
            keep_for: Duration::from_secs(7 * 86_400),
            budget: 0,
            keep_min: 2,
            leave_free: 10,
            slot_max: 2 << 30,
            max_rate: 0,
            drill_queries: Vec::new(),
        }
    }
}

/// `[tls]`: certificates, see bins/cert-renew.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Percentage of its lifetime that is left of a certificate when it is renewed.
    pub renew_left: u8,
    /// How long a certificate is good for that this host signs itself.
    #[serde(deserialize_with = "duration")]
    pub lifetime: Duration,
    /// Further files with certificates and revocation lists whose end is told.
    pub watch: Vec<PathBuf>,
    pub certificate: Vec<Certificate>,
}

impl Default for Tls {
    fn default() -> Self {
        Tls { renew_left: 33, lifetime: Duration::from_secs(90 * 86_400), watch: Vec::new(), certificate: Vec::new() }
    }
}

/// Where a new key with its certificate comes from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A certificate authority that speaks ACME (RFC 8555).
    Acme,
    /// What another program renews there: certbot, lego.
    Directory,
    /// A program that writes them.
    Command,
    /// A certificate authority on this host.
    Ca,
    /// Nobody signs it but itself.
    SelfSigned,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum KeyKind {
    /// P-256.
    #[default]
    Ecdsa,
    /// 3072 bits.
    Rsa,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TLS begins behind an SSLRequest, as PostgreSQL and its poolers have it.
    #[default]
    Postgresql,
    /// TLS from the first byte on.
    Tls,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
pub enum Challenge {
    #[default]
    #[serde(rename = "http-01")]
    Http,
    #[serde(rename = "dns-01")]
    Dns,
}

/// `[[tls.certificate]]`: one certificate, of a cluster or of another service.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// `16/main`, or a word of one's own for what is no cluster.
    #[serde(deserialize_with = "certificate_name")]
    pub name: String,
    pub source: Source,
    /// DNS names and addresses that it must cover; empty: those that the one in place covers.
    #[serde(default)]
    pub names: Vec<String>,
    /// What clients verify it with; absent: the certificates that the host trusts.
    pub ca_file: Option<PathBuf>,
    #[serde(default)]
    pub key: KeyKind,
    /// command: the program and its arguments.
    #[serde(default)]
    pub command: Vec<String>,
    /// directory: where the other program leaves them.
    pub directory: Option<PathBuf>,
    /// acme: the address of the directory of the authority, what signed its own certificate, whom it may write to.
    #[serde(default)]
    pub acme_directory: String,
    pub acme_ca_file: Option<PathBuf>,
    #[serde(default)]
    pub acme_contact: String,
    #[serde(default)]
    pub challenge: Challenge,
    /// http-01: the folder that a web server shows as `/.well-known/acme-challenge`; absent: our own listener.
    pub webroot: Option<PathBuf>,
    #[serde(default = "port_80")]
    pub listen: String,
    /// dns-01: the program that makes and removes the record, with its arguments.
    #[serde(default)]
    pub hook: Vec<String>,
    /// What is no cluster: the user whose key it is, the unit that reads it again, and where it is served.
    #[serde(default)]
    pub owner: String,
    #[serde(default)]
    pub reload: String,
    #[serde(default)]
    pub addresses: Vec<String>,
    #[serde(default)]
    pub protocol: Protocol,
}

fn port_80() -> String {
    "[::]:80".into()
}

impl Certificate {
    pub fn is_of_cluster(&self) -> bool {
        self.name.contains('/')
    }

    /// Why it cannot be used as it is.
    fn mistake(&self) -> Option<String> {
        let is = |source| self.source == source;
        let is_program = |command: &[String]| command.first().is_some_and(|program| program.starts_with('/'));
        let of_service = !self.owner.is_empty() && !self.reload.is_empty() && !self.addresses.is_empty();
        let none_of_service = self.owner.is_empty() && self.reload.is_empty() && self.addresses.is_empty();
        let is_name = |name: &String| !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control());
        let is_dns = is(Source::Acme) && self.challenge == Challenge::Dns;
        let paths = [&self.ca_file, &self.directory, &self.acme_ca_file, &self.webroot];
        let why = if is(Source::Command) != is_program(&self.command) {
            "\"command\" is needed for the source command, with the whole path of a program, and for no other"
        } else if is(Source::Directory) != self.directory.is_some() {
            "\"directory\" is needed for the source directory, and for no other"
        } else if is(Source::Acme) != is_url(&self.acme_directory) || is(Source::Acme) && self.names.is_empty() {
            "\"acme_directory\", an address that begins with https://, and \"names\" are needed for the source acme, and the first for no other"
        } else if is_dns != is_program(&self.hook) {
            "\"hook\" is needed for dns-01, with the whole path of a program, and for nothing else"
        } else if is(Source::Acme) && self.webroot.is_none() && self.listen.parse::<std::net::SocketAddr>().is_err() {
            "\"listen\" is not an address with a port, such as [::]:80"
        } else if paths.into_iter().flatten().any(|path| !path.is_absolute()) {
            "a path must begin with /"
        } else if !self.names.iter().all(is_name) {
            "a name in \"names\" is not one"
        } else if if self.is_of_cluster() { !none_of_service } else { !of_service } {
            "\"owner\", \"reload\" and \"addresses\" are needed for what is no cluster (VERSION/NAME), and for nothing else"
        } else if self.addresses.iter().any(|address| address.parse::<std::net::SocketAddr>().is_err()) {
            "one of \"addresses\" is not an address with a port, such as 127.0.0.1:6432"
        } else {
            return None;
        };
        Some(format!("certificate {}: {why}", self.name))
    }
}

/// How much a message matters; a channel has those of its own and above.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// What was left alone, with a reason.
    Info,
    /// It was healed, or has time until morning.
    #[default]
    Warning,
    /// Somebody is needed.
    Critical,
}

/// `[notify]`
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Notify {
    /// How long all must have been well until an incident is over.
    #[serde(deserialize_with = "duration", serialize_with = "as_text")]
    pub calm: Duration,
    /// How long what only the health check finds must last until it is told.
    #[serde(deserialize_with = "duration", serialize_with = "as_text")]
    pub delay: Duration,
    /// Messages an hour on one channel; above that they wait, and go as one.
    pub hourly: u32,
    /// `22:00-07:00`, local time: what is not critical waits for the end of it. Empty: none.
    pub quiet_hours: String,
    /// An address that is asked every minute while all is well; or the credential that has it.
    pub heartbeat_url: String,
    pub heartbeat_credential: String,
    pub channel: Vec<Channel>,
}

impl Default for Notify {
    fn default() -> Self {
        Notify {
            calm: Duration::from_secs(120),
            delay: Duration::from_secs(240),
            hourly: 20,
            quiet_hours: String::new(),
            heartbeat_url: String::new(),
            heartbeat_credential: String::new(),
            channel: Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChannelKind {
    /// Through /usr/sbin/sendmail.
    Mail,
    /// `{"text": ...}`, as Slack, Mattermost and Rocket.Chat take it.
    Slack,
    /// The message as JSON.
    Webhook,
    /// Its text as the body, the rest in headers, as ntfy takes it.
    Ntfy,
    /// A program that gets the message as JSON on its standard input.
    Exec,
    /// The terminals of those who are logged in.
    Wall,
}

/// `[[notify.channel]]`
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Channel {
    pub name: String,
    pub kind: ChannelKind,
    #[serde(default)]
    pub severity: Severity,
    /// mail: the recipient.
    #[serde(default)]
    pub to: String,
    /// slack, webhook, ntfy: the address, or the credential that has it.
    #[serde(default)]
    pub url: String,
    #[serde(default)]
    pub url_credential: String,
    /// webhook, ntfy: the credential that has a token, sent as `Authorization: Bearer`.
    #[serde(default)]
    pub token_credential: String,
    /// exec: the program and its arguments.
    #[serde(default)]
    pub command: Vec<String>,
}

impl Channel {
    /// Why it cannot be used as it is.
    fn mistake(&self) -> Option<String> {
        use ChannelKind::*;
        let is_http = matches!(self.kind, Slack | Webhook | Ntfy);
        let has_url = !self.url.is_empty() || !self.url_credential.is_empty();
        let word = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
                && !text.starts_with('.')
        };
        let credentials = [&self.url_credential, &self.token_credential];
        let why = if !word(&self.name) {
            "its name must be of letters, digits, \".\", \"-\" and \"_\""
        } else if (self.kind == Mail) == self.to.is_empty() {
            "\"to\" is needed for mail, and for nothing else"
        } else if self.to.starts_with('-') || self.to.contains(|c: char| c.is_control() || c.is_whitespace()) {
            "\"to\" must be one address"
        } else if is_http != has_url || !self.url.is_empty() && !self.url_credential.is_empty() {
            "slack, webhook and ntfy need either \"url\" or \"url_credential\", and nothing else does"
        } else if !self.url.is_empty() && !is_url(&self.url) {
            "\"url\" must begin with https:// or http://"
        } else if !self.token_credential.is_empty() && !matches!(self.kind, Webhook | Ntfy) {
            "\"token_credential\" is for webhook and ntfy"
        } else if credentials.iter().any(|name| !name.is_empty() && !word(name)) {
            "a credential is named by its file in /etc/pg-recovery/credentials/notify"
        } else if (self.kind == Exec) != self.command.first().is_some_and(|program| program.starts_with('/')) {
            "\"command\" is needed for exec, with the whole path of a program, and for nothing else"
        } else {
            return None;
        };
        Some(format!("channel {}: {why}", self.name))
    }
}

fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(|c: char| c.is_whitespace() || c.is_control()))
}

fn is_recipient(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() == 62 && text.starts_with("age1") && text.bytes().all(is_part)
}

/// Minutes since midnight of the beginning and the end of `22:00-07:00`.
pub fn parse_hours(text: &str) -> Option<(u32, u32)> {
    let minutes = |time: &str| {
        let (hour, minute) = time.trim().split_once(':')?;
        let (hour, minute): (u32, u32) = (hour.parse().ok()?, minute.parse().ok()?);
        (hour < 24 && minute < 60).then_some(60 * hour + minute)
    };
    let (from, to) = text.split_once('-')?;
    Some((minutes(from)?, minutes(to)?))
}

/// `[[cluster]]`: exceptions for one cluster, or the description of one that postgresql-common does not know.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ClusterEntry {
    /// `16/main` or `16-main`.
    #[serde(deserialize_with = "cluster_name")]
    pub name: String,
    pub mode: Option<Mode>,
    pub on_clean_stop: Option<OnCleanStop>,
    /// The four keys of a cluster outside postgresql-common's layout.
    pub unit: Option<String>,
    pub data_directory: Option<PathBuf>,
    pub bin_directory: Option<PathBuf>,
    pub log_file: Option<PathBuf>,
}

/// Services of a host that are watched; each has a thread of its own.
const MOST_SERVICES: usize = 20;

/// Whether a service may be restarted.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Restart {
    #[default]
    Auto,
    /// It is only reported.
    Never,
}

/// `[[service]]`: what is no cluster and is watched with the same care: an application, a pooler, a tunnel.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Service {
    pub name: String,
    /// `NAME.service` when absent.
    #[serde(default)]
    pub unit: Option<String>,
    /// It is reached from outside through this: other defaults.
    #[serde(default)]
    pub tunnel: bool,
    /// An address that must answer; or `HOST:PORT` that must take a connection. Neither: the unit must run.
    #[serde(default)]
    pub http: Option<String>,
    #[serde(default)]
    pub tcp: Option<String>,
    /// With `http`: the status that it must answer with (any of 200-399 when absent), and what its body must contain.
    #[serde(default)]
    pub status: Option<u16>,
    #[serde(default)]
    pub body: Option<String>,
    /// For an answer, whole.
    #[serde(default, deserialize_with = "maybe_duration")]
    pub deadline: Option<Duration>,
    /// How often it is looked at while it is well.
    #[serde(default, deserialize_with = "maybe_duration")]
    pub interval: Option<Duration>,
    /// Looks in a row, half a second apart, in which it must have failed to answer.
    #[serde(default)]
    pub failures: Option<u32>,
    #[serde(default)]
    pub restart: Restart,
    /// So many restarts within the window; then it is left for `cool_down`, and a person is told.
    #[serde(default)]
    pub restarts: Option<u32>,
    #[serde(default, deserialize_with = "maybe_duration")]
    pub restart_window: Option<Duration>,
    #[serde(default, deserialize_with = "maybe_duration")]
    pub cool_down: Option<Duration>,
    /// How long it may take after a restart until it answers.
    #[serde(default, deserialize_with = "maybe_duration")]
    pub start_timeout: Option<Duration>,
    /// Clusters (`16/main`) and other services without which it cannot work: it is left alone while one does not serve.
    #[serde(default)]
    pub depends_on: Vec<String>,
    /// Somebody is to be woken for it.
    #[serde(default)]
    pub critical: bool,
    /// What is started, once, when the restarts do not help: a unit, or a program and its arguments.
    #[serde(default)]
    pub escalate_unit: Option<String>,
    #[serde(default)]
    pub escalate_command: Vec<String>,
}

impl Service {
    pub fn unit(&self) -> String {
        self.unit.clone().unwrap_or_else(|| format!("{}.service", self.name))
    }

    /// What lies between here and the far end of a tunnel is slower than a socket of this host.
    pub fn deadline(&self) -> Duration {
        self.deadline.unwrap_or(Duration::from_secs(if self.tunnel { 10 } else { 1 }))
    }

    pub fn interval(&self) -> Duration {
        self.interval.unwrap_or(Duration::from_secs(30))
    }

    pub fn failures(&self) -> u32 {
        self.failures.unwrap_or(3)
    }

    pub fn restarts(&self) -> u32 {
        self.restarts.unwrap_or(5)
    }

    /// Most ends of a tunnel are somebody else's, and no restart mends these.
    pub fn restart_window(&self) -> Duration {
        self.restart_window.unwrap_or(Duration::from_secs(if self.tunnel { 3600 } else { 300 }))
    }

    pub fn cool_down(&self) -> Duration {
        self.cool_down.unwrap_or(self.restart_window())
    }

    pub fn start_timeout(&self) -> Duration {
        self.start_timeout.unwrap_or(Duration::from_secs(30))
    }

    /// The key that cannot be used as it is, and why.
    fn mistake(&self, all: &[Service]) -> Option<(&'static str, String)> {
        let wrong = |key, why: &str| Some((key, why.to_string()));
        let (name, unit) = (&self.name, self.unit());
        let twice = |is: &dyn Fn(&&Service) -> bool| all.iter().filter(is).count() > 1;
        let is_word = |text: &str| {
            text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) && !text.starts_with(['.', '-'])
        };
        if name.is_empty() || !is_word(name) {
            return wrong("name", "must be of letters, digits, \".\", \"-\" and \"_\"");
        }
        if let Some(why) = no_service_unit(&unit) {
            return Some(("unit", why));
        }
        if twice(&|other| other.unit() == unit) {
            return Some(("unit", format!("{unit} is watched by another [[service]] already")));
        }
        match (&self.http, &self.tcp) {
            (Some(_), Some(_)) => return wrong("tcp", "a service has either \"http\" or \"tcp\""),
            (Some(url), None) if !is_url(url) => return wrong("http", "must begin with https:// or http://"),
            (None, Some(address)) if !is_address(address) => return wrong("tcp", "must be HOST:PORT"),
            (None, _) if self.status.is_some() => return wrong("status", "is for a service with \"http\""),
            (None, _) if self.body.is_some() => return wrong("body", "is for a service with \"http\""),
            (None, None) if self.tunnel => {
                return wrong("tunnel", "a tunnel needs \"http\" or \"tcp\": its public address");
            }
            _ => {}
        }
        if self.status.is_some_and(|status| !(100..600).contains(&status)) {
            return wrong("status", "must be between 100 and 599");
        }
        for (key, value, least, most) in [
            ("deadline", self.deadline(), "100ms", "60s"),
            ("interval", self.interval(), "1s", "1d"),
            ("restart_window", self.restart_window(), "1s", "7d"),
            ("cool_down", self.cool_down(), "1s", "7d"),
            ("start_timeout", self.start_timeout(), "1s", "1h"),
        ] {
            if parse_duration(least).is_some_and(|d| value < d) || parse_duration(most).is_some_and(|d| value > d) {
                return Some((key, format!("must be between {least} and {most}")));
            }
        }
        for (key, value) in [("failures", self.failures()), ("restarts", self.restarts())] {
            if !(1..=50).contains(&value) {
                return wrong(key, "must be between 1 and 50");
            }
        }
        for needed in &self.depends_on {
            if !needed.contains('/') && !all.iter().any(|other| other.name == *needed) {
                let why =
                    format!("\"{needed}\" is neither VERSION/NAME of a cluster, such as 16/main, nor a [[service]]");
                return Some(("depends_on", why));
            }
        }
        if self.needs(&self.name, all, all.len()) {
            return wrong("depends_on", "the service depends on itself in the end");
        }
        if self.escalate_unit.as_ref().is_some_and(|unit| !unit.contains('.') || !is_unit(unit)) {
            return wrong("escalate_unit", "must be a unit with its suffix, such as repair.service");
        }
        if self.escalate_command.first().is_some_and(|program| !program.starts_with('/')) {
            return wrong("escalate_command", "must begin with the whole path of a program");
        }
        if self.escalate_unit.is_some() && !self.escalate_command.is_empty() {
            return wrong("escalate_command", "a service has either \"escalate_unit\" or \"escalate_command\"");
        }
        None
    }

    /// Does it need `name`, over `steps` others at most?
    fn needs(&self, name: &str, all: &[Service], steps: usize) -> bool {
        let next = |needed: &String| all.iter().find(|other| other.name == *needed);
        self.depends_on.iter().any(|needed| {
            needed == name || steps > 0 && next(needed).is_some_and(|other| other.needs(name, all, steps - 1))
        })
    }
}

/// Characters of systemd.unit(5); a template alone cannot run.
fn is_unit(text: &str) -> bool {
    !text.starts_with(['-', '.'])
        && !text.contains("@.")
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b))
}

/// Why a unit is no service for `[[service]]`, and for `pg-watchdog adopt`.
pub fn no_service_unit(unit: &str) -> Option<String> {
    if !is_unit(unit) || !unit.ends_with(".service") || unit.len() == ".service".len() {
        Some(format!("\"{unit}\" is not the name of a service, such as shop.service or shop@one.service"))
    } else if unit.starts_with("postgresql@") || unit.starts_with("postgresql.") {
        Some(format!("{unit} is a PostgreSQL cluster, and watched as such"))
    } else if OURS.iter().any(|ours| unit.starts_with(&format!("pg-{ours}"))) {
        Some(format!("{unit} is of pg-recovery itself"))
    } else {
        None
    }
}

/// Units of this package, without `pg-` and what follows.
const OURS: [&str; 9] = [
    "health-check.",
    "watchdog.",
    "recovery.",
    "backup.",
    "wal-stream.",
    "restore-drill.",
    "rollback",
    "notify",
    "status.",
];

fn is_address(text: &str) -> bool {
    let port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    text.rsplit_once(':').is_some_and(|(host, number)| {
        !host.is_empty() && port(number) && !host.contains(|c: char| c.is_whitespace() || c.is_control())
    })
}

impl Config {
    /// Reads `path` and the `config.d/*.toml` beside it. A missing file at the default path is the default
    /// configuration; a missing file that was asked for is an error.
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let main = path.unwrap_or(Path::new(DEFAULT_PATH));
        let mut files = Vec::new();
        match read(main) {
            Ok(text) => files.push((main.to_path_buf(), text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && path.is_none() => {}
            Err(e) => return Err(unreadable(main, e)),
        }
        let folder = main.parent().unwrap_or(Path::new("/")).join("config.d");
        let mut names = match fs_err::read_dir(&folder) {
            Ok(entries) => entries
                .map(|entry| entry.map(|e| e.path()))
                .collect::<std::io::Result<Vec<_>>>()
                .map_err(|e| unreadable(&folder, e))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(unreadable(&folder, e)),
        };
        names.retain(|p| p.extension().is_some_and(|e| e == "toml"));
        names.sort();
        for name in names {
            let text = read(&name).map_err(|e| unreadable(&name, e))?;
            files.push((name, text));
        }
        Self::parse(&files)
    }

    fn parse(files: &[(PathBuf, String)]) -> Result<Self> {
        let mut merged = toml::Table::new();
        for (path, text) in files {
            let _alone: Config = toml::from_str(text).map_err(|e| refuse(path, text, &e))?;
            let table: toml::Table = toml::from_str(text).map_err(|e| refuse(path, text, &e))?;
            merge(&mut merged, table);
        }
        let config: Config = merged
            .try_into()
            .map_err(|e: toml::de::Error| Error::config(format!("cannot use the configuration: {}", e.message())))?;
        config.check().map_err(|(keys, why)| {
            // The last file that has the key decides.
            let find = |key: &String| {
                let (path, line) = files.iter().rev().find_map(|(path, text)| Some((path, line_of(text, key)?)))?;
                Some(format!("{}, line {line}", path.display()))
            };
            let places: Vec<String> = keys.iter().filter_map(find).collect();
            let places = if places.is_empty() { "the configuration".into() } else { places.join(" and ") };
            let key = keys.first().map_or("", String::as_str);
            Error::config(format!("cannot use {places}, key {key}: {why}"))
                .hint("Correct this key, or remove it to get its default.")
        })?;
        Ok(config)
    }

    /// Refuses values that are out of range or contradict each other: the keys, and why.
    fn check(&self) -> Result<(), (Vec<String>, String)> {
        let refuse = |key: &str, why: String| Err((vec![key.to_string()], why));
        let contradicts = |warn: &str, why: String| Err((vec![warn.to_string(), warn.replace("_warn", "_fail")], why));
        let h = &self.health;
        // A time of nothing would make every answer too late, a budget endless, or a stop a SIGKILL; one of a month would
        // never be over.
        let (w, r) = (&self.watchdog, &self.recover);
        let s = &w.sessions;
        for (key, value, least, most) in [
            ("health.connect_timeout", h.connect_timeout, "100ms", "60s"),
            ("health.query_warn", h.query_warn, "1ms", "60s"),
            ("health.query_fail", h.query_fail, "100ms", "60s"),
            ("health.prepared_transaction_warn", h.prepared_transaction_warn, "1s", "365d"),
            ("health.certificate_warn", h.certificate_warn, "1s", "3650d"),
            ("health.certificate_fail", h.certificate_fail, "1s", "3650d"),
            ("health.forecast_warn", h.forecast_warn, "0s", "4d"),
            ("health.forecast_fail", h.forecast_fail, "0s", "4d"),
            ("health.backup_warn", h.backup_warn, "1s", "3650d"),
            ("health.backup_fail", h.backup_fail, "1s", "3650d"),
            ("health.stream_warn", h.stream_warn, "1s", "3650d"),
            ("health.stream_fail", h.stream_fail, "1s", "3650d"),
            ("watchdog.restart_window", w.restart_window, "1s", "7d"),
            ("watchdog.quiet", w.quiet, "1s", "7d"),
            ("watchdog.heartbeat", w.heartbeat, "100ms", "60s"),
            ("watchdog.connect_every", w.connect_every, "100ms", "60s"),
            ("watchdog.answer_timeout", w.answer_timeout, "100ms", "60s"),
            ("watchdog.sessions.idle", s.idle, "1s", "1d"),
            ("watchdog.sessions.connection_limit_for", s.connection_limit_for, "1s", "1d"),
            ("watchdog.sessions.idle_in_transaction_for", s.idle_in_transaction_for, "1s", "7d"),
            ("watchdog.sessions.lock_wait", s.lock_wait, "1s", "1d"),
            ("backup.keep_for", self.backup.keep_for, "1h", "3650d"),
            ("notify.calm", self.notify.calm, "1s", "1d"),
            ("notify.delay", self.notify.delay, "0s", "1d"),
        ] {
            if parse_duration(least).is_some_and(|d| value < d) || parse_duration(most).is_some_and(|d| value > d) {
                return refuse(key, format!("must be between {least} and {most}"));
            }
        }
        for (key, value) in [
            ("recover.start_timeout", r.start_timeout),
            ("recover.fast_stop_timeout", r.fast_stop_timeout),
            ("recover.immediate_stop_timeout", r.immediate_stop_timeout),
        ] {
            if value < Duration::from_secs(1) || value > LONGEST_STEP {
                let why =
                    "must be between 1s and 5min: systemd ends pg-recovery.service when all steps together take longer";
                return refuse(key, why.into());
            }
        }
        for (key, warn, fail) in [
            ("health.disk_warn", h.disk_warn, h.disk_fail),
            ("health.memory_warn", h.memory_warn, h.memory_fail),
            ("health.connections_warn", h.connections_warn, h.connections_fail),
        ] {
            if warn > fail || fail > 100 {
                return contradicts(
                    key,
                    format!("{warn} must not be above the failing value {fail}, nor that above 100"),
                );
            }
        }
        if s.slots_full > 100 || !(1..s.slots_full).contains(&s.slots_relief) {
            let why = "must be at least 1 and below watchdog.sessions.slots_full, and that at most 100";
            let keys = ["watchdog.sessions.slots_relief", "watchdog.sessions.slots_full"];
            return Err((keys.map(String::from).to_vec(), why.into()));
        }
        for (key, warn, fail) in [
            ("health.query_warn", h.query_warn, h.query_fail),
            ("health.backup_warn", h.backup_warn, h.backup_fail),
            ("health.stream_warn", h.stream_warn, h.stream_fail),
        ] {
            if warn > fail {
                return contradicts(key, format!("must not be above {}", key.replace("_warn", "_fail")));
            }
        }
        if h.xid_age_warn > h.xid_age_fail || h.xid_age_fail > 2_000_000_000 {
            return contradicts(
                "health.xid_age_warn",
                "must not be above health.xid_age_fail, nor that above 2000000000".into(),
            );
        }
        if h.slot_warn > h.slot_fail {
            return contradicts("health.slot_warn", "must not be above health.slot_fail".into());
        }
        for (key, warn, fail) in [
            ("health.certificate_warn", h.certificate_warn, h.certificate_fail),
            ("health.forecast_warn", h.forecast_warn, h.forecast_fail),
        ] {
            if warn < fail {
                return contradicts(key, format!("must not be below {}", key.replace("_warn", "_fail")));
            }
        }
        for (key, value) in [
            ("health.max_failures", h.max_failures),
            ("watchdog.restarts", self.watchdog.restarts),
            ("watchdog.sessions.lock_waiters", s.lock_waiters),
            ("recover.max_attempts", self.recover.max_attempts),
            ("backup.keep", self.backup.keep),
            ("backup.keep_min", self.backup.keep_min),
            ("notify.hourly", self.notify.hourly),
        ] {
            if value == 0 {
                return refuse(key, "must be at least 1".into());
            }
        }
        let b = &self.backup;
        if b.leave_free > 90 {
            return refuse("backup.leave_free", "must not be above 90".into());
        }
        // What a slot keeps back as a matter of course: the segment that is being received, and the one before it.
        if b.slot_max < 64 << 20 {
            return refuse("backup.slot_max", "must be at least 64MB".into());
        }
        if b.drill_queries.iter().any(|one| one.query.trim().is_empty()) {
            return refuse("backup.drill_queries", "a query is empty".into());
        }
        if b.synchronous_stream && b.engine == Engine::Pgbackrest {
            let keys = ["backup.synchronous_stream", "backup.engine"];
            return Err((keys.map(String::from).to_vec(), "there is no stream with the engine pgbackrest".into()));
        }
        if !b.recipients.is_empty() && b.engine == Engine::Pgbackrest {
            let keys = ["backup.recipients", "backup.engine"];
            let why = "pgBackRest encrypts by its own repo1-cipher-type".into();
            return Err((keys.map(String::from).to_vec(), why));
        }
        // Not quoted: it may be the other half of the key.
        if !b.recipients.iter().all(|text| is_recipient(text)) {
            let why = "must be public keys as age-keygen prints them: age1, then 58 small letters and digits";
            return refuse("backup.recipients", why.into());
        }
        // pg_basebackup(1), --max-rate.
        if b.max_rate != 0 && !(32 << 10..=1 << 30).contains(&b.max_rate) {
            return refuse("backup.max_rate", "must be between 32kB and 1GB, or 0B".into());
        }
        let n = &self.notify;
        if n.hourly > 100 {
            return refuse("notify.hourly", "must not be above 100".into());
        }
        if !n.quiet_hours.is_empty() && parse_hours(&n.quiet_hours).is_none() {
            return refuse("notify.quiet_hours", format!("\"{}\" is not such as 22:00-07:00", n.quiet_hours));
        }
        if !n.heartbeat_url.is_empty() && (!n.heartbeat_credential.is_empty() || !is_url(&n.heartbeat_url)) {
            let why = "must begin with https:// or http://, and heartbeat_credential must not be there as well";
            return refuse("notify.heartbeat_url", why.into());
        }
        for (index, channel) in n.channel.iter().enumerate() {
            let is_twice = n.channel[..index].iter().any(|other| other.name == channel.name);
            let twice = is_twice.then(|| format!("channel {}: there is another one of this name", channel.name));
            if let Some(why) = channel.mistake().or(twice) {
                return refuse("notify.channel", why);
            }
        }
        let t = &self.tls;
        if !(1..=90).contains(&t.renew_left) {
            return refuse("tls.renew_left", "must be between 1 and 90".into());
        }
        if t.lifetime < Duration::from_secs(3600) || t.lifetime > Duration::from_secs(825 * 86_400) {
            return refuse("tls.lifetime", "must be between 1h and 825d".into());
        }
        if t.watch.iter().any(|path| !path.is_absolute()) {
            return refuse("tls.watch", "a path must begin with /".into());
        }
        for (index, certificate) in t.certificate.iter().enumerate() {
            let is_twice = t.certificate[..index].iter().any(|other| other.name == certificate.name);
            let twice =
                is_twice.then(|| format!("certificate {}: there is another one of this name", certificate.name));
            if let Some(why) = certificate.mistake().or(twice) {
                return refuse("tls.certificate", why);
            }
        }
        if self.service.len() > MOST_SERVICES {
            return refuse("service", format!("no more than {MOST_SERVICES} services are watched"));
        }
        for service in &self.service {
            if let Some((key, why)) = service.mistake(&self.service) {
                return refuse(&format!("service.{key} of {}", service.name), why);
            }
        }
        for entry in &self.cluster {
            if entry.unit.is_some() != (entry.data_directory.is_some() && entry.bin_directory.is_some()) {
                return refuse(
                    &format!("cluster {}", entry.name),
                    "unit, data_directory and bin_directory describe a cluster together, or not at all".into(),
                );
            }
        }
        Ok(())
    }

    /// Names of `[[cluster]]` sections that describe no cluster and fit none of this host: misspelt, or left over.
    pub fn strangers(&self, is_known: impl Fn(&str) -> bool) -> Vec<&str> {
        let names = self.cluster.iter().filter(|entry| entry.unit.is_none()).map(|entry| entry.name.as_str());
        names.filter(|name| !is_known(name)).collect()
    }

    fn entry(&self, cluster: &str) -> Option<&ClusterEntry> {
        self.cluster.iter().find(|entry| entry.name == cluster)
    }

    /// The unit of one cluster, given as `16/main`.
    pub fn unit_of(&self, cluster: &str) -> String {
        let described = self.entry(cluster).and_then(|entry| entry.unit.clone());
        described.unwrap_or_else(|| format!("postgresql@{}.service", cluster.replacen('/', "-", 1)))
    }

    /// The mode of one cluster, given as `16/main`; observing the host observes all of them.
    pub fn mode_of(&self, cluster: &str) -> Mode {
        match self.mode {
            Mode::Observe => Mode::Observe,
            Mode::Heal => self.entry(cluster).and_then(|e| e.mode).unwrap_or_default(),
        }
    }

    pub fn on_clean_stop_of(&self, cluster: &str) -> OnCleanStop {
        self.entry(cluster).and_then(|e| e.on_clean_stop).unwrap_or(self.on_clean_stop)
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    std::fs::read_to_string(path)
}

fn unreadable(path: &Path, e: std::io::Error) -> Error {
    Error::config(format!("cannot read the configuration {}: {e}", path.display()))
}

/// `cannot use /etc/pg-recovery/config.toml, line 3: unknown field `colour`, ...`
fn refuse(path: &Path, text: &str, e: &toml::de::Error) -> Error {
    let line = line_at(text, e.span().map_or(0, |span| span.start));
    let source = text.lines().nth(line - 1).unwrap_or("").trim();
    let key = source.split(['=', '#']).next().unwrap_or("").trim();
    let of = if key.is_empty() { String::new() } else { format!(", key {key}") };
    Error::config(format!("cannot use {}, line {line}{of}: {}", path.display(), e.message()))
        .hint("man pg-recovery.toml lists every key with its default.")
}

fn line_at(text: &str, offset: usize) -> usize {
    text[..offset.min(text.len())].matches('\n').count() + 1
}

/// Where a file has `health.disk_warn`, `cluster 16/main` or `service.unit of shop`; of an entry without the key, its name.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let file = toml::de::DeTable::parse(text).ok()?;
    let entry = key.strip_prefix("cluster ").map(|name| ("cluster", "name", name)).or_else(|| {
        let (key, name) = key.split_once(" of ")?;
        let (list, key) = key.split_once('.')?;
        Some((list, key, name))
    });
    let value = match entry {
        Some((list, key, wanted)) => {
            let mut entries = file.get_ref().get(list)?.get_ref().as_array()?.iter();
            let is_it = |name: &str| name == wanted || canonical(name) == wanted;
            let entry =
                entries.find(|e| e.get_ref().get("name").and_then(|n| n.get_ref().as_str()).is_some_and(is_it))?;
            entry.get_ref().get(key).or_else(|| entry.get_ref().get("name"))?
        }
        None if !key.contains('.') => file.get_ref().get(key)?,
        None => {
            let (section, name) = key.rsplit_once('.')?;
            let mut table = file.get_ref();
            for part in section.split('.') {
                table = table.get(part)?.get_ref().as_table()?;
            }
            table.get(name)?
        }
    };
    Some(line_at(text, value.span().start))
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (Some(toml::Value::Array(old)), toml::Value::Array(new)) if key == "cluster" || key == "service" => {
                merge_named(old, new);
            }
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn merge_named(old: &mut Vec<toml::Value>, new: Vec<toml::Value>) {
    let name = |value: &toml::Value| value.get("name").and_then(|n| n.as_str()).map(canonical);
    for value in new {
        let same = old.iter().position(|o| name(o) == name(&value));
        match (same.and_then(|i| old[i].as_table_mut()), value) {
            (Some(table), toml::Value::Table(changes)) => merge(table, changes),
            (_, value) => old.push(value),
        }
    }
}

/// `16-main` and `16/main` are the same cluster.
pub fn canonical(name: &str) -> String {
    if name.contains('/') { name.to_string() } else { name.replacen('-', "/", 1) }
}

fn cluster_name<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let name = canonical(&String::deserialize(d)?);
    match name.split_once('/') {
        Some((version, cluster)) if !version.is_empty() && !cluster.is_empty() => Ok(name),
        _ => Err(serde::de::Error::custom(format!("\"{name}\" is not VERSION/NAME, such as 16/main"))),
    }
}

/// `16/main`, or a word that may name a folder.
fn certificate_name<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let name = String::deserialize(d)?;
    let is_word = |word: &str| {
        !word.is_empty()
            && !word.starts_with('.')
            && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    match name.split_once('/') {
        Some((version, cluster)) if is_word(version) && is_word(cluster) => Ok(name),
        None if is_word(&name) => Ok(name),
        _ => Err(serde::de::Error::custom(format!(
            "\"{name}\" is neither VERSION/NAME of a cluster nor a word of letters, digits, \".\", \"-\" and \"_\""
        ))),
    }
}

fn duration<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(d)?;
    parse_duration(&text).ok_or_else(|| {
        serde::de::Error::custom(format!("\"{text}\" is not a time such as 250ms, 30s, 10min, 2h or 3d"))
    })
}

fn maybe_duration<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    duration(d).map(Some)
}

fn as_text<S: Serializer>(time: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&format!("{}ms", time.as_millis()))
}

/// A number and a unit, spelled as in systemd and PostgreSQL: ms, s, min, h, d.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let factor = match unit {
        "ms" => return Some(Duration::from_millis(number)),
        "s" => 1,
        "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number.checked_mul(factor).map(Duration::from_secs)
}

fn bytes<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    let text = String::deserialize(d)?;
    let parse = || {
        let (number, unit) = split_unit(&text)?;
        // PostgreSQL's spelling and its factor of 1024 (manual, 20.1.1).
        let shift = match unit {
            "B" => 0,
            "kB" => 10,
            "MB" => 20,
            "GB" => 30,
            "TB" => 40,
            _ => return None,
        };
        number.checked_mul(1 << shift)
    };
    parse().ok_or_else(|| serde::de::Error::custom(format!("\"{text}\" is not a size such as 512MB or 10GB")))
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    Some((text[..digits].parse().ok()?, text[digits..].trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(files: &[(&str, &str)]) -> Result<Config> {
        Config::parse(&files.iter().map(|(p, t)| (PathBuf::from(p), t.to_string())).collect::<Vec<_>>())
    }

    #[test]
    fn nothing_configured_is_the_default() {
        assert_eq!(parse(&[]).unwrap(), Config::default());
    }

    #[test]
    fn an_unknown_key_is_refused_with_file_line_and_key() {
        let e = parse(&[("/etc/x.toml", "mode = \"heal\"\n[health]\ncolour = 3\n")]).unwrap_err();
        assert!(e.message.contains("/etc/x.toml, line 3, key colour"), "{}", e.message);
        assert_eq!(e.code, crate::exit::Code::Config);
    }

    #[test]
    fn a_wrong_type_is_refused_with_file_line_and_key() {
        for (text, line) in [
            ("[health]\nmax_failures = \"three\"\n", "line 2, key max_failures"),
            ("[watchdog]\n\nheartbeat = \"1 fortnight\"", "line 3, key heartbeat"),
            ("mode = \"maybe\"", "line 1, key mode"),
            ("[watchdog.sessions]\nconnection_storm = \"heal\"", "line 2, key connection_storm"),
            ("[health\n", "line 1"),
        ] {
            let e = parse(&[("c", text)]).unwrap_err();
            assert!(e.message.contains(line), "{text:?}: {}", e.message);
        }
    }

    #[test]
    fn values_out_of_range_are_refused_with_file_line_and_key() {
        for (text, place) in [
            ("[health]\ndisk_warn = 95", "line 2, key health.disk_warn"),
            ("[health]\nquery_warn = \"6s\"", "line 2, key health.query_warn"),
            ("[health]\n\ndisk_fail = 70", "line 3, key health.disk_warn"),
            ("[health]\nquery_fail = \"0s\"", "line 2, key health.query_fail"),
            ("health = { query_warn = \"1ms\", query_fail = \"30d\" }", "line 1, key health.query_fail"),
            ("[health]\nconnect_timeout = \"18446744073709551615s\"", "line 2, key health.connect_timeout"),
            ("[health]\nprepared_transaction_warn = \"0min\"", "line 2, key health.prepared_transaction_warn"),
            ("[health]\nforecast_warn = \"5d\"", "line 2, key health.forecast_warn"),
            ("[health]\nforecast_warn = \"30min\"", "line 2, key health.forecast_warn"),
            ("[health]\nbackup_warn = \"51h\"", "line 2, key health.backup_warn"),
            ("[health]\n\nstream_fail = \"10min\"", "line 3, key health.stream_warn"),
            (
                "[backup]\nengine = \"pgbackrest\"\nsynchronous_stream = true",
                "line 3 and c, line 2, key backup.synchronous_stream",
            ),
            ("[watchdog]\nheartbeat = \"0s\"", "line 2, key watchdog.heartbeat"),
            ("[watchdog]\nrestart_window = \"0s\"", "line 2, key watchdog.restart_window"),
            ("[watchdog.sessions]\nidle = \"0s\"", "line 2, key watchdog.sessions.idle"),
            ("[watchdog]\nsessions.slots_relief = 96", "line 2, key watchdog.sessions.slots_relief"),
            ("[watchdog.sessions]\n\nslots_full = 101", "line 3, key watchdog.sessions.slots_relief"),
            ("[recover]\nimmediate_stop_timeout = \"0s\"", "line 2, key recover.immediate_stop_timeout"),
            ("[recover]\nfast_stop_timeout = \"301s\"", "line 2, key recover.fast_stop_timeout"),
            ("[recover]\nstart_timeout = \"1h\"", "line 2, key recover.start_timeout"),
            ("[recover]\nmax_attempts = 0", "line 2, key recover.max_attempts"),
            ("[backup]\ndrill_queries = [{ query = \" \" }]", "line 2, key backup.drill_queries"),
            ("[backup]\nrecipients = [\"AGE-SECRET-KEY-1\"]", "line 2, key backup.recipients"),
            ("[notify]\nquiet_hours = \"22-7\"", "line 2, key notify.quiet_hours"),
            ("[notify]\nheartbeat_url = \"ftp://x\"", "line 2, key notify.heartbeat_url"),
            ("[[notify.channel]]\nname = \"a\"\nkind = \"mail\"", "line 1, key notify.channel"),
            ("[[notify.channel]]\nname = \"a\"\nkind = \"wall\"\nto = \"b\"", "line 1, key notify.channel"),
            ("notify.channel = [{ name = \"a b\", kind = \"wall\" }]", "line 1, key notify.channel"),
            (
                "notify.channel = [{ name = \"a\", kind = \"wall\" }, { name = \"a\", kind = \"wall\" }]",
                "line 1, key notify.channel",
            ),
            ("notify.channel = [{ name = \"a\", kind = \"mail\", to = \"-Xfile\" }]", "line 1, key notify.channel"),
            (
                "notify.channel = [{ name = \"a\", kind = \"slack\", url_credential = \"../x\" }]",
                "line 1, key notify.channel",
            ),
            ("notify.channel = [{ name = \"a\", kind = \"exec\", command = [\"sh\"] }]", "line 1, key notify.channel"),
            ("[tls]\nrenew_left = 95", "line 2, key tls.renew_left"),
            ("[tls]\nlifetime = \"1min\"", "line 2, key tls.lifetime"),
            ("[[tls.certificate]]\nname = \"16/main\"\nsource = \"command\"", "line 1, key tls.certificate"),
            ("[[tls.certificate]]\nname = \"web\"\nsource = \"ca\"", "line 1, key tls.certificate"),
            (
                "tls.certificate = [{ name = \"16/main\", source = \"acme\", acme_directory = \"https://ca/dir\" }]",
                "line 1, key tls.certificate",
            ),
            ("[[cluster]]\nname = \"16-red\"\nunit = \"x\"", "line 2, key cluster 16/red"),
            ("[[service]]\nname = \"a b\"", "line 2, key service.name of a b"),
            ("[[service]]\nname = \"a\"\n\ninterval = \"0s\"", "line 4, key service.interval of a"),
            ("[[service]]\nname = \"a\"\ntunnel = true", "line 3, key service.tunnel of a"),
            ("[[service]]\nname = \"a\"\nunit = \"postgresql@16-main.service\"", "line 3, key service.unit of a"),
            ("[[service]]\nname = \"pg-watchdog\"", "line 2, key service.unit of pg-watchdog"),
            ("[[service]]\nname = \"a\"\nhttp = \"x\"", "line 3, key service.http of a"),
            ("[[service]]\nname = \"a\"\ntcp = \"x:0\"", "line 3, key service.tcp of a"),
            ("[[service]]\nname = \"a\"\nbody = \"x\"", "line 3, key service.body of a"),
            ("[[service]]\nname = \"a\"\nrestarts = 0", "line 3, key service.restarts of a"),
            ("[[service]]\nname = \"a\"\ndepends_on = [\"b\"]", "line 3, key service.depends_on of a"),
            (
                "[[service]]\nname = \"a\"\ndepends_on = [\"b\"]\n[[service]]\nname = \"b\"\ndepends_on = [\"a\"]",
                "line 3, key service.depends_on of a",
            ),
            ("[[service]]\nname = \"a\"\nescalate_command = [\"x\"]", "line 3, key service.escalate_command of a"),
            (
                "[[service]]\nname = \"a\"\n[[service]]\nname = \"b\"\nunit = \"a.service\"",
                "line 2, key service.unit of a",
            ),
        ] {
            let e = parse(&[("a", ""), ("c", text), ("d", "mode = \"heal\"")]).unwrap_err();
            assert!(e.message.contains(&format!("cannot use c, {place}: ")), "{text}: {}", e.message);
        }
        for number in ["18446744073709551616s", "18446744073709551615d"] {
            let e = parse(&[("c", &format!("[watchdog]\nquiet = \"{number}\""))]).unwrap_err();
            assert!(e.message.contains("cannot use c, line 2, key quiet: "), "{}", e.message);
        }
    }

    #[test]
    fn a_section_for_a_cluster_that_is_not_there_is_noticed() {
        let text = "[[cluster]]\nname = \"16/mian\"\n[[cluster]]\nname = \"16/main\"\n[[cluster]]\nname = \"9/own\"\n\
                    unit = \"u\"\ndata_directory = \"/d\"\nbin_directory = \"/b\"";
        assert_eq!(parse(&[("c", text)]).unwrap().strangers(|name| name == "16/main"), ["16/mian"]);
    }

    #[test]
    fn what_is_kept_of_a_configuration_is_read_again() {
        let text = "[notify]\nhourly = 7\n[[notify.channel]]\nname = \"a\"\nkind = \"mail\"\nto = \"b\"";
        let notify = parse(&[("c", text)]).unwrap().notify;
        let kept = serde_json::to_string(&notify).unwrap();
        assert_eq!(serde_json::from_str::<Notify>(&kept).unwrap(), notify);
    }

    #[test]
    fn quiet_hours_are_minutes_of_the_day() {
        assert_eq!(parse_hours("22:00-07:30"), Some((1320, 450)));
        for text in ["", "22:00", "24:00-07:00", "22:60-07:00", "a:b-c:d"] {
            assert_eq!(parse_hours(text), None, "{text}");
        }
    }

    #[test]
    fn files_that_contradict_each_other_are_both_named() {
        let files = [("a", "[health]\ndisk_warn = 88"), ("b", "[health]\ndisk_fail = 85"), ("c", "mode = \"heal\"")];
        let e = parse(&files).unwrap_err();
        assert!(e.message.starts_with("cannot use a, line 2 and b, line 2, key health.disk_warn: 88"), "{}", e.message);
    }

    #[test]
    fn the_example_shows_the_defaults() {
        let text = include_str!("../../packaging/config.toml");
        // A comment has a space behind its #, a key has none.
        let keys = text.lines().filter_map(|line| match line.strip_prefix('#') {
            Some(key) if !key.starts_with(' ') || key.starts_with("    ") => Some(key),
            Some(_) => None,
            None => Some(line),
        });
        let mut config = parse(&[("example", &keys.collect::<Vec<_>>().join("\n"))]).unwrap();
        // All are examples of what has no default.
        config.health.application = None;
        config.notify.channel.clear();
        config.tls.certificate.clear();
        config.cluster.clear();
        config.service.clear();
        assert_eq!(config, Config::default());
    }

    #[test]
    fn a_service_has_defaults_and_a_tunnel_others() {
        let files = [
            ("a", "[[service]]\nname = \"shop\"\n[[service]]\nname = \"cf\"\ntunnel = true\nhttp = \"https://x\""),
            ("b", "[[service]]\nname = \"shop\"\nrestarts = 2\nrestart = \"never\""),
        ];
        let services = parse(&files).unwrap().service;
        let [shop, tunnel] = &services[..] else { panic!("{services:?}") };
        let seconds = |time: Duration| time.as_secs();
        assert_eq!((shop.unit().as_str(), shop.restarts(), shop.restart), ("shop.service", 2, Restart::Never));
        let of = |one: &Service| [one.deadline(), one.interval(), one.restart_window(), one.cool_down()].map(seconds);
        assert_eq!((of(shop), of(tunnel)), ([1, 30, 300, 300], [10, 30, 3600, 3600]));
        let e = parse(&[("c", "[[service]]\nname = \"a\"\ndeadline = 3")]).unwrap_err();
        assert!(e.message.contains("c, line 3, key deadline"), "{}", e.message);
    }

    #[test]
    fn a_drop_in_changes_only_what_it_names() {
        let config = parse(&[
            ("a", "[health]\ndisk_warn = 70\n[[cluster]]\nname = \"16/main\"\nmode = \"observe\""),
            ("b", "[health]\ndisk_fail = 95\n[[cluster]]\nname = \"16-main\"\non_clean_stop = \"leave\""),
        ])
        .unwrap();
        assert_eq!((config.health.disk_warn, config.health.disk_fail), (70, 95));
        assert_eq!(config.cluster.len(), 1);
        assert_eq!(config.mode_of("16/main"), Mode::Observe);
        assert_eq!(config.mode_of("16/other"), Mode::Heal);
        assert_eq!(config.on_clean_stop_of("16/main"), OnCleanStop::Leave);
    }
}
