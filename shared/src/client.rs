//! A PostgreSQL client with an exact deadline on every step.
//!
//! A stopped postmaster still lets the kernel complete connects from its backlog, so nothing here waits without a
//! deadline: connecting, authenticating and each query are under one timeout, and whoever runs into it drops the
//! connection.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use tokio::net::TcpStream;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{TlsConnect, TlsStream};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::cluster::Cluster;
use crate::owner::Owner;
use crate::pidfile::PidFile;

/// Why there is no answer, in the terms of pg_isready: accepting is `Ok`, `Starting` is rejecting, the rest no response.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// No socket file.
    NoSocket,
    /// Nobody listens.
    Refused,
    /// Connected or queued, and no answer in time.
    Timeout,
    /// The backlog is full of connections that nobody takes: hung, not refused.
    BacklogFull,
    /// SQLSTATE 57P03: starting up, shutting down, or in crash recovery.
    Starting(String),
    /// SQLSTATE 53300.
    OutOfSlots(String),
    /// The server answered, and wants a password we do not have or let us in for another reason.
    NotAllowed(String),
    /// Any other answer of the server, with its SQLSTATE.
    Server(String, String),
    /// The connection broke, or the operating system refused it.
    Broken(String),
}

impl Refusal {
    /// The server itself spoke: it is alive.
    pub fn is_answer(&self) -> bool {
        matches!(self, Refusal::Starting(_) | Refusal::OutOfSlots(_) | Refusal::NotAllowed(_) | Refusal::Server(..))
    }

    /// The server lets others in: our role may not log in here, or the database of the probes does not exist
    /// (invalid_catalog_name).
    pub fn is_ours_alone(&self) -> bool {
        matches!(self, Refusal::NotAllowed(_)) || matches!(self, Refusal::Server(code, _) if code == "3D000")
    }

    /// Nobody took the connection in time.
    pub fn is_silence(&self) -> bool {
        matches!(self, Refusal::Timeout | Refusal::BacklogFull)
    }

    /// Worth another try soon: serialization failures, deadlocks, lost connections, no slot, ended by an administrator or
    /// by the crash of another backend, starting (SQLSTATE classes 40 and 08, 53300, 57P01 to 57P03; manual, appendix A).
    pub fn is_transient(&self) -> bool {
        match self {
            Refusal::Server(code, _) => {
                ["40", "08"].iter().any(|class| code.starts_with(class)) || code == "57P01" || code == "57P02"
            }
            Refusal::Starting(_) | Refusal::OutOfSlots(_) | Refusal::Broken(_) => true,
            _ => false,
        }
    }

    fn from_error(error: &tokio_postgres::Error) -> Refusal {
        let text = |e: &tokio_postgres::error::DbError| format!("{}: {}", e.severity(), e.message());
        match error.as_db_error() {
            Some(e) if *e.code() == SqlState::CANNOT_CONNECT_NOW => Refusal::Starting(text(e)),
            Some(e) if *e.code() == SqlState::TOO_MANY_CONNECTIONS => Refusal::OutOfSlots(text(e)),
            Some(e) if e.code().code().starts_with("28") => Refusal::NotAllowed(text(e)),
            Some(e) => Refusal::Server(e.code().code().to_string(), text(e)),
            None => {
                use std::error::Error;
                let cause = error.source().map(|s| format!(": {s}")).unwrap_or_default();
                match format!("{error}{cause}") {
                    // "invalid configuration: password missing": the server asked for one.
                    text if text.contains("password missing") => Refusal::NotAllowed("a password is wanted".into()),
                    text => Refusal::Broken(text),
                }
            }
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::NoSocket => f.write_str("there is no socket file"),
            Refusal::Refused => f.write_str("nobody listens"),
            Refusal::Timeout => f.write_str("no answer in time"),
            Refusal::BacklogFull => f.write_str("nobody takes new connections, the backlog is full"),
            Refusal::Server(code, text) => write!(f, "{text} ({code})"),
            Refusal::Starting(t) | Refusal::OutOfSlots(t) | Refusal::NotAllowed(t) | Refusal::Broken(t) => {
                f.write_str(t)
            }
        }
    }
}

#[derive(Clone, Debug)]
pub enum Address {
    /// The socket directory and the port that is part of the file's name.
    Socket(PathBuf, u16),
    Tcp(String, u16),
}

/// Whom to connect to, and as whom.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: Address,
    /// Peer authentication sees this user; only sockets have it.
    pub owner: Owner,
    pub role: String,
    pub database: String,
    pub password: Option<String>,
    pub application_name: &'static str,
}

impl Target {
    /// How our own sessions reach a cluster: by its socket, as its owner, in the database of the probes.
    pub fn of(cluster: &Cluster, running: Option<&PidFile>, database: &str, application_name: &'static str) -> Target {
        let (directory, port) = cluster.socket(running);
        Target {
            address: Address::Socket(directory, port),
            owner: cluster.owner.clone(),
            role: cluster.owner.name.clone(),
            database: database.into(),
            password: None,
            application_name,
        }
    }
}

/// One connection.
pub struct Session {
    client: Client,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Rows of text values.
pub type Rows = Vec<Vec<Option<String>>>;

impl Session {
    /// Connects and logs in within `patience`.
    pub async fn connect(target: &Target, patience: Duration) -> Result<Session, Refusal> {
        Self::connect_over(target, patience, NoTls).await
    }

    /// The same with TLS where the server has it; on its socket it never has.
    pub async fn connect_over<T>(target: &Target, patience: Duration, tls: T) -> Result<Session, Refusal>
    where
        T: TlsConnect<TcpStream>,
        T::Stream: Send + 'static,
    {
        match tokio::time::timeout(patience, Self::log_in(target, tls)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Refusal::Timeout),
        }
    }

    async fn log_in<T>(target: &Target, tls: T) -> Result<Session, Refusal>
    where
        T: TlsConnect<TcpStream>,
        T::Stream: Send + 'static,
    {
        let mut config = tokio_postgres::Config::new();
        config
            .user(&target.role)
            .dbname(&target.database)
            .application_name(target.application_name)
            .ssl_mode(tokio_postgres::config::SslMode::Prefer);
        if let Some(password) = &target.password {
            config.password(password);
        }
        match &target.address {
            Address::Socket(directory, port) => {
                let stream = connect_socket(directory, *port, &target.owner)?;
                Self::start(config.connect_raw(stream, NoTls).await)
            }
            Address::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(|e| match e.kind() {
                    std::io::ErrorKind::ConnectionRefused => Refusal::Refused,
                    _ => Refusal::Broken(e.to_string()),
                })?;
                Self::start(config.connect_raw(stream, tls).await)
            }
        }
    }

    fn start<S, T>(
        connected: Result<(Client, tokio_postgres::Connection<S, T>), tokio_postgres::Error>,
    ) -> Result<Session, Refusal>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
        T: TlsStream + Unpin + Send + 'static,
    {
        let (client, connection) = connected.map_err(|e| Refusal::from_error(&e))?;
        // Its errors come back from the queries.
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Session { client, driver })
    }

    /// Runs one or more statements within `patience`; the rows of all of them.
    pub async fn query(&self, sql: &str, patience: Duration) -> Result<Rows, Refusal> {
        match tokio::time::timeout(patience, self.client.simple_query(sql)).await {
            Err(_) => Err(Refusal::Timeout),
            Ok(Err(e)) => Err(Refusal::from_error(&e)),
            Ok(Ok(messages)) => Ok(messages
                .into_iter()
                .filter_map(|message| match message {
                    SimpleQueryMessage::Row(row) => {
                        Some((0..row.len()).map(|i| row.get(i).map(String::from)).collect())
                    }
                    _ => None,
                })
                .collect()),
        }
    }
}

fn connect_socket(directory: &Path, port: u16, owner: &Owner) -> Result<tokio::net::UnixStream, Refusal> {
    let broken = |e: String| Refusal::Broken(e);
    let path = directory.join(format!(".s.PGSQL.{port}"));
    let address = UnixAddr::new(&path).map_err(|e| broken(e.desc().into()))?;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd: OwnedFd =
        socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(|e| broken(e.desc().into()))?;
    let connected = owner
        .act(|| {
            use std::os::fd::AsRawFd;
            connect(fd.as_raw_fd(), &address)
        })
        .map_err(|e| broken(e.message))?;
    match connected {
        Ok(()) => {}
        Err(Errno::ENOENT) => return Err(Refusal::NoSocket),
        Err(Errno::ECONNREFUSED) => return Err(Refusal::Refused),
        Err(Errno::EAGAIN) => return Err(Refusal::BacklogFull),
        Err(e) => return Err(broken(format!("could not connect to {}: {}", path.display(), e.desc()))),
    }
    let stream = std::os::unix::net::UnixStream::from(fd);
    tokio::net::UnixStream::from_std(stream).map_err(|e| broken(e.to_string()))
}

/// Tries again after a transient refusal: 3 tries, 100 and 200 ms apart.
pub async fn retry<T, F, Fut>(mut attempt: F) -> Result<T, Refusal>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Refusal>>,
{
    let mut pause = Duration::from_millis(100);
    for _ in 0..2 {
        match attempt().await {
            Err(refusal) if refusal.is_transient() => tokio::time::sleep(pause).await,
            outcome => return outcome,
        }
        pause *= 2;
    }
    attempt().await
}

/// A single-threaded runtime for one program or one thread of it.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::time::Instant;

    fn target(directory: &Path) -> Target {
        Target {
            address: Address::Socket(directory.into(), 1),
            owner: Owner::of_uid(nix::unistd::Uid::effective().as_raw()).unwrap(),
            role: "x".into(),
            database: "x".into(),
            password: None,
            application_name: "test",
        }
    }

    #[test]
    fn a_server_that_never_answers_costs_no_more_than_the_deadline() {
        let folder = std::env::temp_dir().join(format!("pg-recovery-client-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let connect = || {
            let began = Instant::now();
            let patience = Duration::from_millis(300);
            let refusal = runtime().unwrap().block_on(Session::connect(&target(&folder), patience)).err().unwrap();
            assert!(began.elapsed() < Duration::from_secs(2));
            refusal
        };
        assert_eq!(connect(), Refusal::NoSocket);
        let listener = UnixListener::bind(folder.join(".s.PGSQL.1")).unwrap();
        assert_eq!(connect(), Refusal::Timeout);
        drop(listener);
        assert_eq!(connect(), Refusal::Refused);
    }

    #[test]
    fn only_what_may_pass_by_itself_is_tried_again() {
        let count = std::cell::Cell::new(0);
        let run = |refusal: Refusal| {
            count.set(0);
            let outcome = runtime().unwrap().block_on(retry(|| {
                count.set(count.get() + 1);
                std::future::ready(Err::<(), _>(refusal.clone()))
            }));
            assert!(outcome.is_err());
            count.get()
        };
        assert_eq!(run(Refusal::Server("40001".into(), String::new())), 3);
        assert_eq!(run(Refusal::Server("57P02".into(), String::new())), 3, "another backend crashed");
        assert_eq!(run(Refusal::Server("42601".into(), String::new())), 1);
        assert_eq!(run(Refusal::Timeout), 1);
    }
}
