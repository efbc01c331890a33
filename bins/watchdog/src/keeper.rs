//! Saves what will be needed after a crash, while the cluster is well: see shared::evidence for what and where, and
//! shared::point for the configuration that the server was seen to run with.

use std::fs::Metadata;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::{Duration, Instant};

use shared::client::Session;
use shared::clock::Stamp;
use shared::cluster::Cluster;
use shared::control::{self, Control, ControlError, Lsn};
use shared::evidence::{self, Evidence};
use shared::pidfile::{self, PidFile};
use shared::state::{self, State};
use shared::{Result, ballast, modes, point, server_log, socket};

use crate::look::Beat;

/// The flush position goes to the disk no more often than this.
const DISK_EVERY: Duration = Duration::from_secs(30);
/// All files of a cluster are looked at no more often than this, and once more soon after something was found.
const SURVEY_EVERY: Duration = Duration::from_secs(600);
const SURVEY_AGAIN: Duration = Duration::from_secs(60);
/// After a write failed: a disk that is full now will not have room in a second.
const RETRY: Duration = Duration::from_secs(60);
const SURVEY_STACK: usize = 256 << 10;
const GOOD_EVERY: Duration = Duration::from_secs(30);

/// Identities and times of files: mtime, ctime, size, inode.
type Times = Vec<(i64, i64, i64, i64, u64, u64)>;

/// Of the configuration, and of the TLS key and certificate.
type Signature = (Times, Times);

pub struct Keeper {
    name: String,
    folder: PathBuf,
    state: State<Evidence>,
    control: Option<Control>,
    control_changed: Option<(i64, i64)>,
    /// Looks in a row that found no sound pg_control, and what they found instead.
    control_lost: (u32, String),
    lock_file: Vec<u8>,
    /// On the disk, and when.
    saved: Option<(Lsn, Instant)>,
    /// In memory.
    volatile: Lsn,
    /// When the next survey is due; at once when absent.
    survey_at: Option<Instant>,
    /// A survey that is under way.
    survey: Option<Receiver<io::Result<Survey>>>,
    /// What was found with the wrong mode.
    wrong: Option<String>,
    /// Why no room could be kept when that was tried last; said once.
    no_room: Option<String>,
    /// Checkpoints completed since the sizes were taken, while `files.next` waits for them.
    checkpoints: Option<u32>,
    not_before: Option<Instant>,
    good: Option<Signature>,
    good_at: Option<Instant>,
}

impl Keeper {
    pub fn new(name: &str) -> Keeper {
        let folder = evidence::directory(name);
        if let Err(why) = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder) {
            log::warn!(PG_CLUSTER = name; "could not make {}: {why}", folder.display());
        }
        Keeper {
            name: name.into(),
            folder,
            state: evidence::state(name),
            control: None,
            control_changed: None,
            control_lost: (0, String::new()),
            lock_file: Vec::new(),
            saved: None,
            volatile: Lsn::default(),
            survey_at: None,
            survey: None,
            wrong: None,
            no_room: None,
            checkpoints: None,
            not_before: None,
            good: None,
            good_at: None,
        }
    }

    /// How long the server's log was when the cluster was last known to be well.
    pub fn log(&self) -> server_log::Mark {
        self.state.value.log.clone()
    }

    /// A new postmaster: whatever was saved about the last one is saved anew.
    pub fn begin(&mut self) {
        self.control = None;
        self.control_changed = None;
        self.control_lost.0 = 0;
        self.lock_file.clear();
        self.saved = None;
        self.volatile = Lsn::default();
        self.survey_at = None;
        self.survey = None;
        self.wrong = None;
        self.checkpoints = None;
        self.good = None;
    }

    /// Called once for each beat of a cluster that is well. `ballast` is the room to reserve; `None` leaves it as it is.
    pub fn keep(
        &mut self,
        cluster: &Cluster,
        lock_file: Option<&(PidFile, Vec<u8>)>,
        beat: Beat,
        ballast: Option<u64>,
    ) {
        if let Some((file, bytes)) = lock_file
            && *bytes != self.lock_file
            && matches!(file.status.as_str(), "ready" | "standby")
        {
            self.state.value.postmaster_pid = file.pid;
            self.state.value.postmaster_started = file.started;
            if self.write(pidfile::NAME, bytes) {
                self.lock_file.clone_from(bytes);
            }
            if let Some(Err(why)) = file.socket().map(|path| socket::keep(cluster, &path)) {
                log::info!(PG_CLUSTER = self.name.as_str();
                    "the socket of cluster {} has no second name, and is lost if its file is removed: {}", self.name, why.message);
            }
        }
        let checkpoint = self.keep_control(cluster);
        let value = &mut self.state.value;
        value.standby = beat.standby;
        if let Some(lsn) = beat.flush_lsn {
            value.flush_lsn = lsn;
        }
        let lsn = value.flush_lsn;
        let due = self.saved.is_none_or(|(at, when)| checkpoint || (at != lsn && when.elapsed() >= DISK_EVERY));
        if due {
            self.describe(cluster);
        }
        if due || lsn != self.volatile {
            self.state.value.at = Stamp::now();
            self.volatile = lsn;
            if let Err(why) = evidence::save_volatile(&self.name, &self.state.value) {
                self.complain("the flush position in /run", &why);
            }
        }
        if due && self.may_write() {
            self.saved = Some((lsn, Instant::now()));
            let saved = self.state.save();
            let fallback = Path::new(state::FALLBACK).join("evidence").join(shared::cluster::file_name(&self.name));
            // It has already said so.
            if saved.is_err() || fallback.join("evidence.json").exists() {
                self.not_before = Some(Instant::now() + RETRY);
            }
        }
        self.survey(cluster, checkpoint, ballast);
    }

    /// Why the running server has no pg_control to write its next checkpoint into (S9); seen twice.
    pub fn control_lost(&self) -> Option<&str> {
        (self.control_lost.0 >= 2).then_some(self.control_lost.1.as_str())
    }

    /// Copies pg_control when it has changed; true when a checkpoint was completed.
    fn keep_control(&mut self, cluster: &Cluster) -> bool {
        let path = cluster.data_directory.join(control::NAME);
        let read = cluster.owner.act(|| {
            let changed = std::fs::metadata(&path).map_or((0, 0), |meta| (meta.mtime(), meta.mtime_nsec()));
            (self.control_changed != Some(changed)).then(|| (changed, Control::read(&cluster.data_directory)))
        });
        if let Ok(Some((_, Err(why @ (ControlError::Missing | ControlError::Corrupt(_)))))) = &read {
            self.control_lost = (self.control_lost.0 + 1, why.to_string());
        } else {
            self.control_lost.0 = 0;
        }
        let Ok(Some((changed, Ok((control, bytes))))) = read else { return false };
        self.control_changed = Some(changed);
        if self.control.as_ref() == Some(&control) {
            return false;
        }
        let is_checkpoint = self.control.as_ref().is_none_or(|old| old.checkpoint != control.checkpoint);
        if self.may_write() {
            let current = self.folder.join("pg_control");
            // The last one stays beside it. A crash in between leaves it as pg_control.1 only.
            let _ = std::fs::rename(&current, self.folder.join("pg_control.1"));
            self.write("pg_control", &bytes);
        }
        self.state.value.system_identifier = control.system_identifier;
        self.state.value.timeline = control.timeline;
        self.control = Some(control);
        is_checkpoint
    }

    /// What changes seldom.
    fn describe(&mut self, cluster: &Cluster) {
        let value = &mut self.state.value;
        value.log = server_log::lengths(cluster);
        value.data_directory.clone_from(&cluster.data_directory);
        if let Ok(Ok(meta)) = cluster.owner.act(|| std::fs::metadata(&cluster.data_directory)) {
            value.mode = meta.mode() & 0o7777;
            value.uid = meta.uid();
            value.gid = meta.gid();
        }
    }

    /// What of the cluster's files has the wrong mode (S7), if that is news.
    pub fn take_wrong(&mut self) -> Option<String> {
        let wrong = self.wrong.take()?;
        self.survey_at = Some(Instant::now() + SURVEY_AGAIN);
        Some(wrong)
    }

    /// Looks at all files now and then, in a thread of its own: there may be many.
    ///
    /// Sizes seen are sure to be on the disk when a checkpoint that began after it is completed. The first one that is
    /// completed may have begun before, the second has not; until then they wait as `files.next`.
    fn survey(&mut self, cluster: &Cluster, checkpoint: bool, ballast: Option<u64>) {
        let next = self.folder.join("files.next");
        if checkpoint {
            self.checkpoints = self.checkpoints.map(|n| n + 1);
        }
        if self.checkpoints.is_some_and(|n| n >= 2) && self.may_write() {
            self.checkpoints = None;
            let renamed = std::fs::rename(&next, self.folder.join("files"));
            if let Err(why) = renamed.and_then(|()| state::sync_folder(&self.folder)) {
                self.complain("the list of files", &why);
            }
        }
        if let Some(answer) = self.survey.as_ref().map(Receiver::try_recv) {
            match answer {
                Err(TryRecvError::Empty) => return,
                Ok(Ok(survey)) => {
                    self.wrong = survey.wrong;
                    if survey.has_list {
                        self.checkpoints = Some(0);
                    }
                }
                Ok(Err(why)) => self.complain("the list of files", &why),
                Err(TryRecvError::Disconnected) => {}
            }
            self.survey = None;
        }
        if self.survey_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.survey_at = Some(Instant::now() + SURVEY_EVERY);
        let no_room = ballast.and_then(|want| ballast::keep(cluster, want).err()).map(|why| {
            let hint = why.hint.map(|hint| format!("\nHINT: {hint}")).unwrap_or_default();
            format!("{}{hint}", why.message)
        });
        if let Some(why) = no_room.as_ref().filter(|_| no_room != self.no_room) {
            log::warn!(PG_CLUSTER = self.name.as_str(); "{why}");
        }
        self.no_room = no_room;
        let (give, take) = mpsc::channel();
        let (cluster, list) = (cluster.clone(), (self.checkpoints.is_none() && self.may_write()).then_some(next));
        let work = move || {
            let _ = give.send(survey(&cluster, list.as_deref()));
        };
        let started = std::thread::Builder::new().name("survey".into()).stack_size(SURVEY_STACK).spawn(work);
        self.survey = started.is_ok().then_some(take);
    }

    /// Makes a recovery point of the configuration when the server is known to run with exactly these files.
    pub async fn keep_good(&mut self, cluster: &Cluster, session: &Session, patience: Duration) {
        if self.good_at.is_some_and(|at| at.elapsed() < GOOD_EVERY) || !self.may_write() {
            return;
        }
        self.good_at = Some(Instant::now());
        if point::is_in_flux(&self.name) {
            return;
        }
        // Which files are key and certificate may have changed.
        let cluster = &cluster.again();
        let Some(signature) = signature(cluster) else { return };
        if self.good.as_ref() == Some(&signature) {
            return;
        }
        let (true, started_with_tls) = runs_with(session, &signature, patience).await else { return };
        match point::remember_good(cluster, "started with it", started_with_tls) {
            Ok(is_new) => {
                self.good = Some(signature);
                if is_new {
                    log::info!(PG_CLUSTER = self.name.as_str(); "cluster {} runs with this configuration: kept as a \
                        recovery point", self.name);
                }
            }
            Err(why) => self.complain("the configuration", &io::Error::other(why.message)),
        }
    }

    fn may_write(&self) -> bool {
        self.not_before.is_none_or(|at| Instant::now() >= at)
    }

    /// False when it was not written.
    fn write(&mut self, file: &str, bytes: &[u8]) -> bool {
        if !self.may_write() {
            return false;
        }
        let written = state::replace(&self.folder.join(file), bytes, 0o600);
        if let Err(why) = &written {
            self.complain(file, why);
        }
        written.is_ok()
    }

    /// Says it, and leaves the disk alone for a while.
    fn complain(&mut self, what: &str, why: &io::Error) {
        self.not_before = Some(Instant::now() + RETRY);
        log::warn!(PG_CLUSTER = self.name.as_str();
            "could not save {what} of cluster {}: {why}; going on without it, next try in 1min", self.name);
    }
}

fn signature(cluster: &Cluster) -> Option<Signature> {
    let (files, tls) = (point::files(cluster), point::tls_files(cluster));
    let stat = |path: &PathBuf| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec(), meta.size(), meta.ino()))
    };
    let times = |files: &[PathBuf]| files.iter().map(stat).collect::<Option<Times>>();
    cluster.owner.act(|| Some((times(&files)?, times(&tls)?))).ok().flatten()
}

/// The server has read the configuration since it last changed, found no error in it, and waits for no restart; and it was
/// started since key and certificate last changed.
async fn runs_with(session: &Session, (files, tls): &Signature, patience: Duration) -> (bool, bool) {
    let newest = |times: &Times| {
        let newest = times.iter().map(|(_, _, seconds, nanoseconds, ..)| (*seconds, *nanoseconds)).max();
        let (seconds, nanoseconds) = newest.unwrap_or_default();
        format!("to_timestamp({seconds}.{:06})", nanoseconds / 1000)
    };
    let sql = format!(
        "SELECT pg_postmaster_start_time() >= {}, pg_conf_load_time() >= {} \
         AND NOT EXISTS (SELECT FROM pg_file_settings WHERE error IS NOT NULL) \
         AND NOT EXISTS (SELECT FROM pg_hba_file_rules WHERE error IS NOT NULL) \
         AND NOT EXISTS (SELECT FROM pg_settings WHERE pending_restart)",
        newest(tls),
        newest(files)
    );
    let rows = session.query(&sql, patience).await.unwrap_or_default();
    let is_true = |column: usize| rows.first().and_then(|row| row.get(column)?.as_deref()) == Some("t");
    (is_true(1), is_true(0))
}

struct Survey {
    wrong: Option<String>,
    has_list: bool,
}

/// Looks at all files. While all are as they should be, writes "path size" for each to `list`.
fn survey(cluster: &Cluster, list: Option<&Path>) -> io::Result<Survey> {
    let wrong = modes::wrong(&cluster.data_directory, &cluster.owner).map_err(|why| io::Error::other(why.message))?;
    if let Some(first) = wrong.first() {
        let others = if wrong.len() > 1 { format!(", and {} more", wrong.len() - 1) } else { String::new() };
        return Ok(Survey {
            wrong: Some(format!("{}{others} cannot be used by their owner", first.display())),
            has_list: false,
        });
    }
    let Some(list) = list else { return Ok(Survey { wrong: None, has_list: false }) };
    let _ = std::fs::remove_file(list);
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(list)?;
    // Line by line, so that a cluster of many tables needs no memory.
    let mut out = io::BufWriter::new(file);
    let mut written = Ok(());
    let line = |path: &Path, meta: &Metadata| {
        if written.is_ok() {
            written = writeln!(out, "{} {}", path.display(), meta.len());
        }
    };
    modes::each(&cluster.data_directory, &cluster.owner, line).map_err(|why| io::Error::other(why.message))?;
    written?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    Ok(Survey { wrong: None, has_list: true })
}

/// Makes the file of the cluster's lock: sensors open it for reading only.
pub fn ensure_lock_file(name: &str) -> Result<()> {
    std::fs::create_dir_all(shared::lock::DIRECTORY)?;
    shared::lock::Lock::try_take(name).map(drop)
}
