//! ledger: keeps committing numbered rows, remembers each acknowledged commit, and tells which of them are missing later.
//!
//! It runs outside of the machine, so that nothing that happens in there can make it forget.

use std::collections::HashMap;
use std::fs;
use std::io::{Error, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use host::{Book, Status, monotonic_ms};
use tokio_postgres::{Client, Config, NoTls};

/// Longer than any healthy answer, so that a hung server costs one try and not the measurement.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE_AFTER_A_FAILURE: Duration = Duration::from_millis(10);

const USAGE: &str =
    "usage: ledger run|check --socket DIR --log FILE [--port 5432] [--dbname postgres] [--user postgres]
              [--uid UID] [--rate-ms 5] [--fresh-sessions] [--deadline-ms 10000]";

static STOP: AtomicBool = AtomicBool::new(false);

struct Options {
    socket: PathBuf,
    port: u16,
    dbname: String,
    user: String,
    /// The user id that the server sees, for peer authentication.
    uid: Option<u32>,
    log: PathBuf,
    rate: Duration,
    /// A new session for each commit: the only kind of client that notices a postmaster that hangs.
    fresh_sessions: bool,
    deadline: Duration,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let verb = arguments.next().unwrap_or_default();
    let Some(options) = Options::parse(arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(64);
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    let done = match verb.as_str() {
        "run" => runtime.block_on(run(&options)),
        "check" => runtime.block_on(check(&options)),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(64);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ledger: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Option<Options> {
        let mut options = Options {
            socket: PathBuf::new(),
            port: 5432,
            dbname: "postgres".to_owned(),
            user: "postgres".to_owned(),
            uid: None,
            log: PathBuf::new(),
            rate: Duration::from_millis(5),
            fresh_sessions: false,
            deadline: Duration::from_secs(10),
        };
        while let Some(name) = arguments.next() {
            if name == "--fresh-sessions" {
                options.fresh_sessions = true;
                continue;
            }
            let value = arguments.next()?;
            match name.as_str() {
                "--socket" => options.socket = value.into(),
                "--port" => options.port = value.parse().ok()?,
                "--dbname" => options.dbname = value,
                "--user" => options.user = value,
                "--uid" => options.uid = Some(value.parse().ok()?),
                "--log" => options.log = value.into(),
                "--rate-ms" => options.rate = Duration::from_millis(value.parse().ok()?),
                "--deadline-ms" => options.deadline = Duration::from_millis(value.parse().ok()?),
                _ => return None,
            }
        }
        (!options.socket.as_os_str().is_empty() && !options.log.as_os_str().is_empty()).then_some(options)
    }
}

async fn run(options: &Options) -> Result<(), Error> {
    stop_on_signals();
    let mut log = fs::OpenOptions::new().create(true).append(true).open(&options.log)?;
    // What an earlier run had sent but not yet written down may still turn up: those ids are left out.
    let mut id = match Book::read(&options.log)?.last_id() {
        0 => 0,
        last => last + 1000,
    };
    write_line(&mut log, id, Status::Began)?;
    let mut client: Option<Client> = None;
    let mut table_is_there = false;
    while !STOP.load(Ordering::Relaxed) {
        let began = Instant::now();
        if client.is_none() || options.fresh_sessions {
            client = connect(options).await;
        }
        let Some(session) = &client else {
            tokio::time::sleep(PAUSE_AFTER_A_FAILURE).await;
            continue;
        };
        if !table_is_there {
            let create = session.batch_execute("CREATE TABLE IF NOT EXISTS ledger (id bigint NOT NULL)");
            table_is_there = matches!(tokio::time::timeout(PATIENCE, create).await, Ok(Ok(())));
            if !table_is_there {
                client = None;
                tokio::time::sleep(PAUSE_AFTER_A_FAILURE).await;
            }
            continue;
        }
        id += 1;
        let insert = format!("INSERT INTO ledger VALUES ({id})");
        let answer = tokio::time::timeout(PATIENCE, session.batch_execute(&insert)).await;
        let status = match &answer {
            Ok(Ok(())) => Status::Acked,
            // An ERROR ends the statement before its commit. A FATAL or PANIC may come after it: nobody knows.
            Ok(Err(error)) if error.as_db_error().is_some_and(|error| error.severity() == "ERROR") => Status::Failed,
            _ => Status::Unknown,
        };
        write_line(&mut log, id, status)?;
        if status == Status::Acked {
            tokio::time::sleep(options.rate.saturating_sub(began.elapsed())).await;
        } else {
            client = None;
            tokio::time::sleep(PAUSE_AFTER_A_FAILURE).await;
        }
    }
    write_line(&mut log, id, Status::Ended)
}

async fn check(options: &Options) -> Result<(), Error> {
    let book = Book::read(&options.log)?;
    let end = Instant::now() + options.deadline;
    let rows = loop {
        match rows(options).await {
            Ok(rows) => break rows,
            Err(error) if Instant::now() >= end => return Err(error),
            Err(_) => tokio::time::sleep(PAUSE_AFTER_A_FAILURE).await,
        }
    };
    println!("{}", serde_json::to_string(&book.tally(&rows))?);
    Ok(())
}

async fn rows(options: &Options) -> Result<HashMap<u64, u64>, Error> {
    let client = connect(options).await.ok_or_else(|| Error::other("could not connect"))?;
    // An index could hide a row or a duplicate, so the table itself is read.
    let query = "SET enable_indexscan = off; SET enable_bitmapscan = off; SELECT id, count(*) FROM ledger GROUP BY id";
    let answer = tokio::time::timeout(options.deadline, client.simple_query(query)).await;
    let messages = answer.map_err(|_| Error::other("the server did not answer"))?.map_err(Error::other)?;
    let number =
        |row: &tokio_postgres::SimpleQueryRow, column| row.get(column).and_then(|text| text.parse::<u64>().ok());
    Ok(messages
        .iter()
        .filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some((number(row, 0)?, number(row, 1)?)),
            _ => None,
        })
        .collect())
}

async fn connect(options: &Options) -> Option<Client> {
    let connecting = async {
        let stream = open_socket(options).await.ok()?;
        let mut config = Config::new();
        config.user(&options.user).dbname(&options.dbname).application_name("ledger");
        let (client, connection) = config.connect_raw(stream, NoTls).await.ok()?;
        tokio::spawn(connection);
        Some(client)
    };
    tokio::time::timeout(PATIENCE, connecting).await.ok().flatten()
}

async fn open_socket(options: &Options) -> Result<tokio::net::UnixStream, Error> {
    let name = format!(".s.PGSQL.{}", options.port);
    let Some(uid) = options.uid else {
        return tokio::net::UnixStream::connect(options.socket.join(name)).await;
    };
    // Only root may walk through /proc/PID/root, and only the postgres user passes peer authentication: so the folder is
    // opened as one and the socket in it as the other.
    let folder = fs::File::open(&options.socket)?;
    let path = format!("/proc/self/fd/{}/{name}", std::os::fd::AsRawFd::as_raw_fd(&folder));
    nix::unistd::seteuid(nix::unistd::Uid::from_raw(uid))?;
    // The server sees the user of this instant. Connecting to a local socket succeeds or fails at once; it never waits.
    let stream = tokio::net::UnixStream::connect(Path::new(&path)).await;
    nix::unistd::seteuid(nix::unistd::Uid::from_raw(0))?;
    stream
}

fn write_line(log: &mut fs::File, id: u64, status: Status) -> Result<(), Error> {
    // One write for one line: a reader sees all of it or none.
    log.write_all(format!("{id} {} {}\n", status.word(), monotonic_ms()).as_bytes())
}

fn stop_on_signals() {
    extern "C" fn stop(_: libc::c_int) {
        STOP.store(true, Ordering::Relaxed);
    }
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { libc::signal(signal, stop as *const () as libc::sighandler_t) };
    }
}
