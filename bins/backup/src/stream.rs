//! The WAL of every cluster as it is written: one pg_receivewal for each, with a slot of our own, so that the server keeps
//! what was not received yet, and a bound on that, so that it never keeps too much.
//!
//! Each cluster has a thread that looks every few seconds: is there a server to receive from, does its slot keep back no
//! more than it may, is there room. What is above the bound is given up: the slot is dropped and made anew, the new run of
//! WAL says that there is a gap, and `pg-backup now --due` makes the base backup that the gap calls for.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use shared::args::Args;
use shared::cluster::Cluster;
use shared::config::{Config, Engine};
use shared::exit::Code;
use shared::{Error, Result, unit};

use crate::encryption::Recipients;
use crate::server::{self, SLOT, STREAM, Server};
use crate::store::{self, PARTIAL, Run, Store};
use crate::synchronous::{self, Synchronous};
use crate::{child, expire, now};

/// How often new clusters are looked for, and how often each is looked at.
const ROUND: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_millis(500);
/// How long WAL is encrypted in one round.
const ENCRYPT: Duration = Duration::from_secs(3);
/// Segments for which old backups make room on a volume that is full.
const MAKE_ROOM: u64 = 64;

pub fn run(args: &Args) -> Result<Code> {
    // Refuses at the start what a later round only warns of.
    Recipients::of(&args.load_config()?)?;
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.add(Signal::SIGINT);
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut streams: BTreeMap<String, (Arc<AtomicBool>, JoinHandle<()>)> = BTreeMap::new();
    let mut complaint = String::new();
    loop {
        match args.load_config().and_then(|new| Ok((crate::ours(&new, &args.clusters)?.0, new))) {
            Err(error) if error.message == complaint => {}
            Err(error) => {
                log::warn!("{}; going on with what was configured", error.message);
                complaint = error.message;
            }
            Ok((clusters, new)) => {
                complaint.clear();
                streams.retain(|name, (gone, _)| {
                    let is_there = clusters.iter().any(|cluster| cluster.name() == *name);
                    gone.store(!is_there, Ordering::Relaxed);
                    is_there
                });
                for cluster in clusters {
                    let is_running = streams.get(&cluster.name()).is_some_and(|(_, thread)| !thread.is_finished());
                    if !is_running {
                        let gone = Arc::new(AtomicBool::new(false));
                        let (name, over, stop) = (cluster.name(), gone.clone(), stop.clone());
                        let (config, file) = (new.clone(), args.config.clone());
                        let thread =
                            std::thread::spawn(move || Stream::new(name).tend(file.as_deref(), config, &stop, &over));
                        streams.insert(cluster.name(), (gone, thread));
                    }
                }
            }
        }
        let timeout = PollTimeout::try_from(ROUND).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], timeout);
        if matches!(signals.read_signal(), Ok(Some(_))) {
            break;
        }
    }
    let ours = || Ok::<_, Error>(crate::ours(&args.load_config().unwrap_or_default(), &args.clusters)?.0);
    synchronous::release(&ours()?, "it is stopped")?;
    stop.store(true, Ordering::Relaxed);
    for (_, (_, thread)) in streams {
        let _ = thread.join();
    }
    release(&ours()?)
}

/// Drops our slots, because nobody receives any more: a slot that is left behind fills the server's disk. At a shutdown of
/// the host it stays, for the stream goes on where it was.
fn release(clusters: &[Cluster]) -> Result<Code> {
    if unit::is_stopping() {
        return Ok(Code::Ok);
    }
    crate::each(clusters, |cluster| {
        let name = cluster.name();
        match Server::ask(cluster) {
            Ok(server) if server.slot.is_some() => {
                drop_slot(cluster)?;
                log::info!(PG_CLUSTER = name; "nobody receives WAL of cluster {name} any more, its slot {SLOT} is dropped");
            }
            Err(why) if cluster.data_directory.join("pg_replslot").join(SLOT).exists() => {
                log::warn!(PG_CLUSTER = name; "could not drop the slot {SLOT} of cluster {name}, which keeps WAL for nobody \
                    when it runs again: {}", why.message);
                log::warn!(
                    "HINT: Start pg-wal-stream.service, or run there: SELECT pg_drop_replication_slot('{SLOT}')"
                );
            }
            _ => {}
        }
        Ok(Code::Ok)
    })
}

fn drop_slot(cluster: &Cluster) -> Result<()> {
    // Whoever still reads with it is ours too.
    let sql = format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{SLOT}' AND active;
         SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
         WHERE slot_name = '{SLOT}' AND slot_type = 'physical'"
    );
    let deadline = Instant::now() + ROUND;
    loop {
        match server::query(cluster, &sql) {
            // "is active": the one that was told to end has not ended yet.
            Err(_) if Instant::now() < deadline => std::thread::sleep(SOON / 2),
            dropped => return dropped.map(drop),
        }
    }
}

struct Receiver {
    child: Child,
    how: How,
    since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct How {
    with_slot: bool,
    /// What is received is flushed and confirmed at once.
    synchronous: bool,
}

/// The stream of one cluster.
struct Stream {
    name: String,
    receiver: Option<Receiver>,
    /// How often in a row it ended soon after its start, and when it is worth another try.
    failures: u32,
    not_before: Instant,
    synchronous: Synchronous,
    /// The last thing that was said; the same is not said every few seconds.
    said: String,
}

#[derive(Debug, PartialEq)]
enum Step {
    /// All is well.
    Go,
    /// Nothing can or should be received, and nothing is kept for it.
    Stand(String),
    /// Drop the slot.
    GiveUp(String),
    Receive(How),
}

/// What is known of one cluster, for the decision.
#[derive(Clone, Debug)]
struct Facts<'a> {
    server: &'a Server,
    engine: Engine,
    /// Commits may wait for it.
    synchronous: bool,
    slot_max: u64,
    /// Bytes beyond what is to stay free.
    room_for_server: u64,
    room_for_backups: u64,
    receives: Option<How>,
}

fn decide(facts: &Facts) -> Step {
    let server = facts.server;
    if let Some(why) = now::cannot(server) {
        return Step::Stand(why);
    }
    if facts.engine == Engine::Pgbackrest {
        return Step::Stand("it is archived for pgBackRest (backup.engine)".into());
    }
    if server.slot.as_ref().is_some_and(|slot| slot.restart.is_none()) {
        return Step::GiveUp("the server keeps no WAL for it any more (max_slot_wal_keep_size)".into());
    }
    let kept = server.slot.as_ref().map_or(0, |slot| slot.kept);
    if kept > facts.slot_max {
        return Step::GiveUp(format!("{} MB of WAL are kept for it (backup.slot_max)", kept >> 20));
    }
    // Two segments are kept as a matter of course; giving those up would free nothing.
    let backlog = kept > 4 * server.segment_size;
    if facts.room_for_server == 0 && backlog {
        return Step::GiveUp(format!("the volume of pg_wal is filling up, and {} MB are kept for it", kept >> 20));
    }
    if facts.room_for_backups == 0 {
        let why = "the volume of the backups is filling up (backup.leave_free)".to_string();
        return if server.slot.is_some() { Step::GiveUp(why) } else { Step::Stand(why) };
    }
    let synchronous = facts.synchronous;
    let with_slot = !server.would_wait_for_us() || (synchronous && synchronous::is_ours(&server.standby_names));
    let how = How { with_slot, synchronous };
    match facts.receives {
        Some(present) if present == how => Step::Go,
        _ if !with_slot && server.slot.is_some() => {
            Step::GiveUp("synchronous_standby_names would have commits wait for us".into())
        }
        _ if facts.room_for_server == 0 => Step::Stand("the volume of pg_wal is filling up (backup.leave_free)".into()),
        _ => Step::Receive(how),
    }
}

/// Encrypts what is whole of all WAL, and what was left half received. pg_receivewal goes on from the names that it finds: of the
/// run that it writes to, whatever comes before the segment that it receives.
fn encrypt(store: &Store, server: &Server, config: &Config) -> Result<()> {
    let Some(recipients) = Recipients::of(config)? else { return Ok(()) };
    let Some(_removing) = store.try_removing()? else { return Ok(()) };
    let until = Instant::now() + ENCRYPT;
    let current =
        store.wal(server.system, server.timeline, server.segment_size).newest_run().map(|run| run.path.clone());
    for run in store.runs() {
        let mut files = store::names(&run.path);
        files.retain(|name| is_plain_segment(name));
        if current.as_ref() == Some(&run.path) {
            let received = files.iter().filter(|name| name.ends_with(PARTIAL)).max().cloned().unwrap_or_default();
            files.retain(|name| *name < received);
        }
        for file in &files {
            recipients.encrypt(&run.path.join(file), || Ok(()))?;
            if Instant::now() > until {
                break;
            }
        }
    }
    Ok(())
}

/// Whatever the size of segments is: an earlier cluster may have had another one.
fn is_plain_segment(name: &str) -> bool {
    let name = name.strip_suffix(PARTIAL).unwrap_or(name);
    name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a run can go on: the server still has the segment that comes next, and has got that far itself.
fn goes_on(next: Option<u64>, server: &Server, is_there: impl FnOnce(u64) -> bool) -> bool {
    next.is_some_and(|next| {
        let kept_from = server.slot.as_ref().and_then(|slot| Some(slot.restart?.0 / server.segment_size));
        next <= server.lsn.0 / server.segment_size && (kept_from.is_some_and(|first| first <= next) || is_there(next))
    })
}

impl Stream {
    fn new(name: String) -> Stream {
        Stream {
            name,
            receiver: None,
            failures: 0,
            not_before: Instant::now(),
            synchronous: Synchronous::default(),
            said: String::new(),
        }
    }

    fn tend(mut self, file: Option<&Path>, mut config: Config, stop: &AtomicBool, gone: &AtomicBool) {
        let is_over = || stop.load(Ordering::Relaxed) || gone.load(Ordering::Relaxed);
        let mut next = Instant::now();
        while !is_over() {
            let now = Instant::now();
            if now >= next {
                config = Config::load(file).unwrap_or(config);
                // Without a server there is nothing to receive, and others see to that.
                if let Err(why) = self.round(&config) {
                    self.say(log::Level::Info, format!("no WAL of cluster {} is received: {}", self.name, why.message));
                }
                next = now + ROUND;
            }
            if self.has_ended() {
                next = next.min(Instant::now() + 2 * SOON);
            }
            std::thread::sleep(SOON);
        }
        self.end();
    }

    fn round(&mut self, config: &Config) -> Result<()> {
        let clusters = Cluster::select(config, std::slice::from_ref(&self.name))?;
        let Some(cluster) = clusters.first() else { return Ok(()) };
        let store = Store::open(cluster)?;
        let server = Server::ask(cluster)?;
        let leave_free = config.backup.leave_free;
        let room_for_server = store::room(&cluster.data_directory.join("pg_wal"), leave_free)?;
        let mut room_for_backups = store.room(leave_free)?;
        if room_for_backups == 0
            && let Some(_alone) = store.try_lock()?
        {
            expire::one(&store, config, MAKE_ROOM * server.segment_size, false)?;
            room_for_backups = store.room(leave_free)?;
        }
        let (engine, slot_max, synchronous) =
            (config.backup.engine, config.backup.slot_max, config.backup.synchronous_stream);
        if !server.is_standby {
            self.synchronous.tend(cluster, synchronous)?;
        }
        let receives = self.receiver.as_ref().map(|receiver| receiver.how);
        match decide(&Facts {
            server: &server,
            engine,
            synchronous,
            slot_max,
            room_for_server,
            room_for_backups,
            receives,
        }) {
            Step::Go => {
                // It is received all the same, and its slot watched.
                if let Err(why) = encrypt(&store, &server, config) {
                    self.say(
                        log::Level::Warn,
                        format!("WAL of cluster {} is in the clear: {}", self.name, why.message),
                    );
                }
                Ok(())
            }
            Step::Stand(why) => {
                synchronous::release(clusters.as_slice(), &why)?;
                self.end();
                if server.slot.is_some() {
                    drop_slot(cluster)?;
                }
                self.say(log::Level::Info, format!("no WAL of cluster {} is received: {why}", self.name));
                Ok(())
            }
            Step::GiveUp(why) => {
                synchronous::release(clusters.as_slice(), &why)?;
                self.end();
                drop_slot(cluster)?;
                let text = format!(
                    "the slot {SLOT} of cluster {} is dropped: {why}; WAL may be missing from here on",
                    self.name
                );
                self.say(log::Level::Warn, text);
                Ok(())
            }
            Step::Receive(_) if Instant::now() < self.not_before => Ok(()),
            Step::Receive(how) => {
                self.end();
                self.receive(cluster, &store, server, how)
            }
        }
    }

    fn receive(&mut self, cluster: &Cluster, store: &Store, mut server: Server, how: How) -> Result<()> {
        if how.with_slot && server.slot.is_none() {
            let sql = format!("SELECT pg_create_physical_replication_slot('{SLOT}', immediately_reserve => true)");
            server::query(cluster, &sql)?;
            server = Server::ask(cluster)?;
        }
        let run = self.run_to_go_on(cluster, store, &server)?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&run.path)?;
        let mut command = child::client_of(cluster, "pg_receivewal");
        command.arg("--directory").arg(&run.path).arg("--no-loop").env("PGAPPNAME", STREAM);
        if how.with_slot {
            command.args(["--slot", SLOT]);
        }
        command.args(how.synchronous.then_some("--synchronous"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let started = command.spawn().map_err(|e| Error::failed(format!("could not start pg_receivewal: {e}")))?;
        self.receiver = Some(Receiver { child: started, how, since: Instant::now() });
        let how = match how {
            How { with_slot: false, .. } => {
                ", without a slot, for synchronous_standby_names would have commits wait for it"
            }
            How { synchronous: true, .. } => ", each flush at once (backup.synchronous_stream)",
            _ => "",
        };
        self.say(
            log::Level::Info,
            format!("receiving the WAL of cluster {} into {}{how}", self.name, run.path.display()),
        );
        Ok(())
    }

    fn run_to_go_on(&mut self, cluster: &Cluster, store: &Store, server: &Server) -> Result<Run> {
        let wal = store.wal(server.system, server.timeline, server.segment_size);
        let Some(run) = wal.newest_run() else {
            return Ok(store.next_run(server.system, server.timeline));
        };
        let segments = run.segments(server.segment_size);
        let next = segments.last_key_value().map(|(number, segment)| number + u64::from(segment.complete));
        let name = |number| shared::wal::segment_name(server.timeline, number, server.segment_size);
        let listed = |number| {
            let sql = format!("SELECT FROM pg_ls_waldir() WHERE name = '{}'", name(number));
            server::query(cluster, &sql).is_ok_and(|rows| !rows.is_empty())
        };
        // An empty one is as good as a new one.
        if segments.is_empty() || goes_on(next, server, listed) {
            return Ok(run.clone());
        }
        log::warn!(PG_CLUSTER = self.name; "WAL of cluster {} is missing from {} on: the next base backup makes up for it",
            self.name, next.map(name).unwrap_or_default());
        Ok(store.next_run(server.system, server.timeline))
    }

    /// Notices that the receiver is no longer there, and why.
    fn has_ended(&mut self) -> bool {
        let Some(receiver) = &mut self.receiver else { return false };
        if matches!(receiver.child.try_wait(), Ok(None)) {
            return false;
        }
        let mut said = String::new();
        let _ = receiver.child.stderr.take().map(|mut stderr| stderr.read_to_string(&mut said));
        self.failures = if receiver.since.elapsed() < 2 * ROUND { (self.failures + 1).min(6) } else { 0 };
        self.not_before = Instant::now() + SOON * 2u32.pow(self.failures);
        self.receiver = None;
        let last = said.lines().rfind(|line| line.contains("error")).unwrap_or("it was ended").to_string();
        self.say(log::Level::Info, format!("the stream of cluster {} has ended: {last}", self.name));
        true
    }

    fn end(&mut self) {
        if let Some(mut receiver) = self.receiver.take() {
            // It ends by itself after SIGINT, with what it has received flushed (pg_receivewal(1)).
            child::stop(&mut receiver.child, Signal::SIGINT);
        }
    }

    fn say(&mut self, level: log::Level, text: String) {
        if self.said != text {
            log::log!(level, PG_CLUSTER = self.name; "{text}");
            self.said = text;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Slot;
    use shared::control::Lsn;

    const SEGMENT: u64 = 16 << 20;

    const SLOTTED: How = How { with_slot: true, synchronous: false };
    const PLAIN: How = How { with_slot: false, synchronous: false };

    fn server(kept: Option<u64>) -> Server {
        let lsn = Lsn(10 * SEGMENT + 5);
        let slot = kept.map(|kept| Slot { restart: Some(Lsn(lsn.0 - kept)), kept });
        Server { version: 15, segment_size: SEGMENT, lsn, slot, ..Server::default() }
    }

    fn facts(server: &Server) -> Facts<'_> {
        Facts {
            server,
            engine: Engine::Builtin,
            synchronous: false,
            slot_max: 64 << 20,
            room_for_server: 1,
            room_for_backups: 1,
            receives: Some(SLOTTED),
        }
    }

    #[test]
    fn a_stream_that_keeps_up_is_left_alone_and_one_that_is_gone_is_made_anew() {
        let server = server(Some(SEGMENT));
        assert_eq!(decide(&facts(&server)), Step::Go);
        assert_eq!(decide(&Facts { receives: None, ..facts(&server) }), Step::Receive(SLOTTED));
        let standby = Server { is_standby: true, ..server.clone() };
        assert!(matches!(decide(&facts(&standby)), Step::Stand(_)));
        let archived = Facts { engine: Engine::Pgbackrest, ..facts(&server) };
        assert!(matches!(decide(&archived), Step::Stand(_)), "pgBackRest has it from archive_command");
    }

    #[test]
    fn a_slot_never_fills_the_disk() {
        let gives_up = |facts: &Facts| matches!(decide(facts), Step::GiveUp(_));
        assert!(gives_up(&facts(&server(Some(65 << 20)))), "above its bound");
        let lost = Server { slot: Some(Slot { restart: None, kept: 0 }), ..server(None) };
        assert!(gives_up(&facts(&lost)), "it would be refused for ever");
        let (little, much) = (server(Some(SEGMENT)), server(Some(63 << 20).map(|kept| kept + (2 << 20))));
        let wide = |server| Facts { slot_max: 1 << 40, ..facts(server) };
        assert!(gives_up(&Facts { room_for_server: 0, ..wide(&much) }));
        assert!(!gives_up(&Facts { room_for_server: 0, ..wide(&little) }), "it frees nothing");
        assert!(gives_up(&Facts { room_for_backups: 0, ..wide(&little) }), "nothing can be received");
        let none = server(None);
        for facts in [
            Facts { room_for_server: 0, receives: None, ..wide(&none) },
            Facts { room_for_backups: 0, receives: None, ..wide(&none) },
        ] {
            assert!(matches!(decide(&facts), Step::Stand(_)), "it is made anew when there is room");
        }
    }

    #[test]
    fn no_commit_ever_waits_for_us() {
        let everybody = Server { standby_names: "ANY 1 (*)".into(), ..server(Some(SEGMENT)) };
        assert!(matches!(decide(&facts(&everybody)), Step::GiveUp(_)));
        let everybody = Server { slot: None, ..everybody };
        assert_eq!(decide(&Facts { receives: None, ..facts(&everybody) }), Step::Receive(PLAIN));
        assert_eq!(decide(&Facts { receives: Some(PLAIN), ..facts(&everybody) }), Step::Go);
        let named = Server { standby_names: "db2".into(), ..server(Some(SEGMENT)) };
        assert_eq!(decide(&facts(&named)), Step::Go);
        // Unless a person has said so, here and there.
        let us = Server { standby_names: STREAM.into(), ..server(Some(SEGMENT)) };
        assert!(matches!(decide(&facts(&us)), Step::GiveUp(_)));
        let how = How { with_slot: true, synchronous: true };
        assert_eq!(decide(&Facts { synchronous: true, ..facts(&us) }), Step::Receive(how));
        assert_eq!(decide(&Facts { synchronous: true, receives: Some(how), ..facts(&us) }), Step::Go);
    }

    #[test]
    fn a_run_goes_on_only_without_a_gap() {
        let (kept, none) = (server(Some(SEGMENT)), server(None));
        assert!(goes_on(Some(9), &kept, |_| false), "the slot keeps it");
        assert!(!goes_on(Some(8), &kept, |_| false));
        assert!(goes_on(Some(8), &kept, |number| number == 8), "it is still there");
        assert!(goes_on(Some(10), &none, |_| true));
        assert!(!goes_on(Some(11), &kept, |_| true), "the server is not there yet: it was restored");
    }
}
