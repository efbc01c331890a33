//! `backup.engine = "pgbackrest"`: the same verbs, and pgBackRest does the copying.
//!
//! What it has in its repositories is its own, by its own configuration, locks and retention, and WAL comes to it by
//! `archive_command`, so there is no stream and no slot. Here each of its backups, whoever had it made, has a folder with
//! `backup.json` only: what is known of it, with the verdicts, is where all others look. One that it has removed loses its
//! folder.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::Deserialize;
use shared::backup::Set;
use shared::clock::Stamp;
use shared::cluster::Cluster;
use shared::config::{Config, Engine};
use shared::control::{Control, Lsn};
use shared::exit::Code;
use shared::{Error, Result, command, wal};

use crate::child;
use crate::restore::Point;
use crate::store::{Base, Info, PARTIAL, Store, Verdict, parse_segment, remove_tree};

const PROGRAM: &str = "pgbackrest";
const PATIENCE: Duration = Duration::from_secs(10);
/// What it says when another of its processes holds its lock (its manual, "Exit codes" of src/build/error/error.yaml).
const BUSY: &str = "[050]";

/// A stanza as `pgbackrest info` tells it.
#[derive(Debug, Deserialize)]
pub struct Stanza {
    name: String,
    #[serde(default)]
    archive: Vec<Archive>,
    #[serde(default)]
    backup: Vec<Backup>,
    #[serde(default)]
    db: Vec<Database>,
    #[serde(default)]
    repo: Vec<Place>,
    /// Bytes of a WAL segment; not told, but known of the cluster.
    #[serde(skip)]
    segment_size: u64,
}

/// A repository. One that does not answer looks as if it had nothing.
#[derive(Debug, Deserialize)]
struct Place {
    key: u32,
    status: State,
}

#[derive(Debug, Deserialize)]
struct State {
    code: u32,
    message: String,
}

/// The present and earlier clusters of a stanza: it goes on through pg_upgrade.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Database {
    #[serde(flatten)]
    key: Key,
    system_id: u64,
    version: String,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
struct Key {
    id: u32,
    repo_key: u32,
}

#[derive(Debug, Deserialize)]
struct Archive {
    /// Such as `17-1`, the name of its folder.
    id: String,
    database: Key,
    /// The last segment, `null` when there is none.
    max: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Backup {
    archive: Span<Option<String>>,
    database: Key,
    /// Pages whose checksum was wrong when they were copied.
    #[serde(default)]
    error: bool,
    info: Sizes,
    label: String,
    lsn: Option<Span<String>>,
    /// What it builds upon.
    prior: Option<String>,
    timestamp: Span<u64>,
}

#[derive(Debug, Deserialize)]
struct Span<T> {
    start: T,
    stop: T,
}

#[derive(Debug, Deserialize)]
struct Sizes {
    /// Of the cluster.
    size: u64,
    repository: Repository,
}

#[derive(Debug, Deserialize)]
struct Repository {
    /// What this backup has added; newer versions do not tell the rest for a backup of bundled files.
    #[serde(default)]
    delta: u64,
}

/// With what a person's own configuration and environment say, which this program does not know.
fn program(stanza: Option<&str>) -> Command {
    let mut command = Command::new(PROGRAM);
    command.current_dir("/").env("LC_ALL", "C");
    command.args(stanza.map(|name| format!("--stanza={name}")));
    child::dies_with_us(&mut command, Signal::SIGTERM);
    command
}

fn of_set(set: &Set) -> Command {
    let mut command = program(Some(&set.stanza));
    command.arg(format!("--repo={}", set.repo));
    command
}

impl Place {
    /// Anything but `ok` and `no valid backups`: its path is not there, or it could not be read (src/command/info/info.c).
    fn is_unreadable(&self) -> bool {
        !matches!(self.status.code, 0 | 2)
    }

    fn error(&self) -> Error {
        Error::failed(format!("could not read repository {} of pgBackRest: {}", self.key, self.status.message))
            .hint("What it has, and why not: pgbackrest info")
    }
}

impl Stanza {
    /// The stanza that has this cluster in it, by its system identifier; of a cluster whose data directory is gone, the one
    /// that had it last.
    pub fn of(cluster: &Cluster, store: &Store) -> Result<Stanza> {
        let known = store.bases().pop().map(|base| base.info);
        let control = Control::read(&cluster.data_directory).ok().map(|(control, _)| control);
        let system = control.as_ref().map(|control| control.system_identifier).or(known.as_ref().map(|i| i.system));
        let segment_size =
            control.map(|control| u64::from(control.wal_segment_size)).or(known.as_ref().map(|i| i.segment_size));
        let last = known.as_ref().and_then(|info| info.pgbackrest.clone());
        let mut stanzas = Self::ask(None)?;
        let found = match system {
            Some(system) => stanzas.iter().position(|one| one.db.iter().any(|db| db.system_id == system)),
            None if stanzas.len() == 1 => Some(0),
            None => None,
        };
        let mut found = found.map(|at| stanzas.swap_remove(at)).ok_or_else(|| {
            stanzas.extend(last.and_then(|set| Self::ask(Some(&set.stanza)).ok()).into_iter().flatten());
            let mut places = stanzas.iter().flat_map(|stanza| &stanza.repo);
            if let Some(place) = places.find(|place| place.is_unreadable()) {
                return place.error();
            }
            Error::config(format!("cannot tell which stanza of pgBackRest has cluster {}", cluster.name())).hint(
                "Make one: pgbackrest --stanza=NAME stanza-create; or remove backup.engine from the configuration.",
            )
        })?;
        found.segment_size = segment_size.filter(|size| *size > 0).unwrap_or(16 << 20);
        Ok(found)
    }

    /// All that it has, or what it has of one stanza: only then it tells of a repository that is not there.
    fn ask(name: Option<&str>) -> Result<Vec<Stanza>> {
        let failed = |why: String| {
            Error::failed(format!("could not ask pgBackRest what it has: {why}"))
                .hint("It must be installed and configured for the user postgres: pgbackrest info")
        };
        let mut command = program(name);
        command.args(["--output=json", "--log-level-console=off", "info"]);
        let text = output(command).map_err(|why| failed(why.message))?;
        serde_json::from_str(&text).map_err(|e| failed(format!("an unexpected answer: {e}")))
    }

    /// Every backup of it, the oldest first.
    fn known(&self, cluster: &str) -> Vec<(String, Info)> {
        let of = |backup: &Backup| {
            let db = self.db.iter().find(|db| db.key == backup.database)?;
            let at = |seconds| Stamp { wall: seconds as f64, ..Stamp::default() };
            let started = at(backup.timestamp.start);
            let id = started.compact();
            let (timeline, first) = parse_segment(backup.archive.start.as_deref()?, self.segment_size)?;
            let (_, last) = parse_segment(backup.archive.stop.as_deref()?, self.segment_size)?;
            let lsn = |pick: fn(&Span<String>) -> &String, segment: u64| {
                let told = backup.lsn.as_ref().and_then(|span| Lsn::parse(pick(span)));
                told.unwrap_or(Lsn(segment * self.segment_size))
            };
            let info = Info {
                cluster: cluster.into(),
                version: db.version.split('.').next()?.parse().ok()?,
                started,
                finished: at(backup.timestamp.stop),
                system: db.system_id,
                timeline,
                start: lsn(|span| &span.start, first),
                end: lsn(|span| &span.stop, last + 1),
                segment_size: self.segment_size,
                bytes: backup.info.repository.delta,
                cluster_bytes: backup.info.size,
                verified: backup.error.then(|| Verdict {
                    at: Stamp::now(),
                    error: Some("pages had wrong checksums when they were copied: pgbackrest info".into()),
                    seconds: None,
                }),
                pgbackrest: Some(Set {
                    stanza: self.name.clone(),
                    repo: backup.database.repo_key,
                    label: backup.label.clone(),
                }),
                ..Info::default()
            };
            Some((id, info))
        };
        self.backup.iter().filter_map(of).collect()
    }

    /// An error when a repository does not answer.
    fn must_answer(&self, repo: u32) -> Result<()> {
        match self.repo.iter().find(|place| place.key == repo && place.is_unreadable()) {
            Some(place) => Err(place.error()),
            None => Ok(()),
        }
    }

    /// Where the WAL of a backup is.
    fn archives<'a>(&'a self, info: &'a Info, set: &'a Set) -> impl Iterator<Item = &'a Archive> {
        self.archive.iter().filter(|archive| {
            let db = self.db.iter().find(|db| db.key == archive.database);
            archive.database.repo_key == set.repo && db.is_some_and(|db| db.system_id == info.system)
        })
    }

    /// How far WAL is archived for this backup; what is missing in between, only `verify` finds.
    pub fn archived_to(&self, info: &Info) -> Option<Lsn> {
        let set = info.pgbackrest.as_ref().filter(|set| set.stanza == self.name)?;
        let last = self.archives(info, set).filter_map(|archive| segment(archive.max.as_deref()?, info)).max()?;
        Some(Lsn((last + 1) * info.segment_size))
    }

    /// Nothing to build upon, or so many that build upon another already.
    fn wants_full(&self, incrementals: u32) -> bool {
        self.backup.iter().rev().take_while(|backup| backup.prior.is_some()).count() >= incrementals as usize
    }
}

/// Asks it what it has, and gives each of its backups its folder here. The caller holds the lock.
pub fn look(cluster: &Cluster, store: &Store) -> Result<Stanza> {
    let stanza = Stanza::of(cluster, store)?;
    let known = stanza.known(&store.cluster);
    let ours = store.bases();
    let is_same = |base: &Base, info: &Info| base.info.pgbackrest == info.pgbackrest;
    for base in ours.iter().filter(|base| base.info.pgbackrest.is_some()) {
        let answers = base.info.pgbackrest.as_ref().is_some_and(|set| stanza.must_answer(set.repo).is_ok());
        if answers && !known.iter().any(|(_, info)| is_same(base, info)) {
            log::info!(PG_CLUSTER = store.cluster; "pgBackRest has removed backup {} of cluster {}", base.id, store.cluster);
            remove_tree(&base.path)?;
        }
    }
    for (id, info) in known {
        let path = store.path.join("base").join(&id);
        if ours.iter().any(|base| is_same(base, &info)) || path.exists() {
            continue;
        }
        let partial = path.with_added_extension(&PARTIAL[1..]);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&partial)?;
        Base { id, path: partial.clone(), info }.save()?;
        fs::rename(&partial, &path)?;
    }
    Ok(stanza)
}

/// The same for a verb that reads only: what is known already is better than nothing.
pub fn refresh(cluster: &Cluster, store: &Store, config: &Config) -> Option<Stanza> {
    if config.backup.engine != Engine::Pgbackrest {
        return None;
    }
    let looked = Store::open(cluster).and_then(|store| match store.try_lock()? {
        Some(_alone) => look(cluster, &store),
        None => Err(Error::failed(format!("another program is at work on the backups of cluster {}", store.cluster))),
    });
    looked
        .inspect_err(|why| log::warn!(PG_CLUSTER = store.cluster; "{}; going on with what is known", why.message))
        .ok()
}

/// Has a backup made, with at most so many in a row that build upon another. `fast`: the checkpoint before it does not take
/// its time.
pub fn take(cluster: &Cluster, store: &Store, incrementals: u32, fast: bool) -> Result<Base> {
    let stanza = look(cluster, store)?;
    let started = Stamp::now();
    let mut command = program(Some(&stanza.name));
    command.arg(if stanza.wants_full(incrementals) { "--type=full" } else { "--type=incr" });
    command.arg(if fast { "--start-fast" } else { "--no-start-fast" });
    command.arg("backup");
    child::run(command, || Ok(())).map_err(|mut why| {
        if why.message.contains(BUSY) {
            why.code = Code::TempFail;
        }
        why.message = format!("could not back up cluster {}: {}", store.cluster, why.message);
        why
    })?;
    let before: Vec<String> = stanza.backup.into_iter().map(|backup| backup.label).collect();
    look(cluster, store)?;
    let is_new = |base: &Base| base.info.pgbackrest.as_ref().is_some_and(|set| !before.contains(&set.label));
    let mut base = store.bases().into_iter().rfind(is_new).ok_or_else(|| {
        Error::failed(format!("pgBackRest has made a backup of cluster {}, and does not list it", store.cluster))
            .hint("See what it has: pgbackrest info")
    })?;
    // By a clock that nobody sets.
    (base.info.started, base.info.finished) = (started, Stamp::now());
    base.save()?;
    Ok(base)
}

/// Whether it can read one backup again, and not its whole repository only.
pub fn can_verify_one() -> bool {
    let out = command::run(program(None).args(["help", "verify"]), PATIENCE);
    out.is_ok_and(|out| out.stdout.lines().any(|line| line.trim_start().starts_with("--set ")))
}

/// The stanza of a backup, as long as its repository answers: what cannot be reached is not known to be bad.
fn stanza_of(set: &Set) -> Result<Option<Stanza>> {
    let stanza = Stanza::ask(Some(&set.stanza))?.into_iter().find(|stanza| stanza.name == set.stanza);
    stanza.iter().try_for_each(|stanza| stanza.must_answer(set.repo))?;
    Ok(stanza)
}

/// An error when the repository of a backup does not answer.
pub fn must_answer(set: &Set) -> Result<()> {
    stanza_of(set).map(drop)
}

/// Reads a backup again with the WAL that it needs, or the whole repository, and looks whether segments are missing.
pub fn verify(info: &Info, set: &Set) -> Result<Result<(), String>> {
    let Some(stanza) = stanza_of(set)? else {
        return Ok(Err(format!("pgBackRest has no stanza {} any more", set.stanza)));
    };
    let mut command = of_set(set);
    if can_verify_one() {
        command.arg(format!("--set={}", set.label));
    }
    // Without --verbose it says nothing of what is whole, and its exit status is 0 whatever it finds.
    command.args(["--output=text", "--verbose", "--log-level-console=off", "verify"]);
    if let Err(flaw) = judge(&output(command)?, &set.label) {
        return Ok(Err(flaw));
    }
    let mut segments = Vec::new();
    for archive in stanza.archives(info, set) {
        let mut command = of_set(set);
        command.args(["--recurse", "repo-ls", &format!("archive/{}/{}", set.stanza, archive.id)]);
        segments.extend(output(command)?.lines().filter_map(|path| archived(path, info)));
    }
    let missing = gap(segments, info).map(|number| {
        let name = wal::segment_name(info.timeline, number, info.segment_size);
        format!("WAL segment {name} is missing in the archive: nothing after it can be restored from this backup")
    });
    Ok(missing.map_or(Ok(()), Err))
}

/// All that it prints, which may be a name for each WAL segment of a large archive. It has timeouts of its own.
fn output(mut command: Command) -> Result<String> {
    let out =
        command.stdin(Stdio::null()).output().map_err(|e| Error::failed(format!("could not start {PROGRAM}: {e}")))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if out.status.success() {
        return Ok(text(&out.stdout));
    }
    Err(Error::failed(format!("{PROGRAM} failed ({}): {}", out.status, text(&out.stderr).trim())))
}

/// Number of a segment of the timeline of this backup.
fn segment(name: &str, info: &Info) -> Option<u64> {
    let (timeline, number) = parse_segment(name, info.segment_size)?;
    (timeline == info.timeline).then_some(number)
}

/// The same of `0000000100000000/000000010000000000000003-3fb8c1d0.gz`, which has others such as
/// `000000010000000000000003.00000028.backup` beside it.
fn archived(path: &str, info: &Info) -> Option<u64> {
    segment(path.rsplit('/').next()?.split_once('-')?.0, info)
}

/// The first segment that is missing from the start of a backup on, although WAL goes on behind it.
fn gap(mut segments: Vec<u64>, info: &Info) -> Option<u64> {
    let first = info.start.0 / info.segment_size;
    segments.retain(|number| *number >= first);
    segments.sort_unstable();
    segments.dedup();
    (first..).zip(&segments).find(|(wanted, number)| wanted != *number).map(|(wanted, _)| wanted)
}

/// A line `status: ok` or `status: error` about all that was read, then one for each archive and each backup, each with a
/// line of what is wrong with it. What is wrong with others is no fault of this one.
fn judge(said: &str, label: &str) -> Result<(), String> {
    let lines: Vec<&str> = said.lines().map(str::trim).collect();
    if lines.contains(&"status: ok") {
        return Ok(());
    }
    let is_whole = |line: &str| {
        let count = |name: &str| line.split(", ").find_map(|part| part.split_once(name)).map(|(_, count)| count);
        count("total WAL checked: ") == count("total valid WAL: ")
    };
    let of_backup = format!("backup: {label}, ");
    let is_bad = |line: &&str| match line.strip_prefix(&of_backup) {
        Some(rest) => !rest.starts_with("status: valid"),
        None => line.starts_with("archiveId: ") && !is_whole(line),
    };
    let bad: Vec<String> = (lines.iter().enumerate())
        .filter(|(_, line)| is_bad(line))
        .map(|(at, line)| format!("{line} ({})", lines.get(at + 1).unwrap_or(&"")))
        .collect();
    if bad.is_empty() && lines.iter().any(|line| line.starts_with(&of_backup)) {
        return Ok(());
    }
    let all = if bad.is_empty() { lines.join(" ") } else { bad.join("; ") };
    Err(format!("pgbackrest verify says: {}", all.trim()))
}

/// Restores into an empty directory, with the recovery to the wanted point set up.
pub fn restore(set: &Set, point: &Point, data: &Path, tablespaces: &Path) -> Result<()> {
    let mut command = of_set(set);
    command.arg(format!("--set={}", set.label)).arg(format!("--pg1-path={}", data.display()));
    command.arg(format!("--tablespace-map-all={}", tablespaces.display()));
    let target = match point {
        Point::Latest => None,
        Point::Time(_, time) => Some(("time", time.clone())),
        Point::Lsn(lsn) => Some(("lsn", lsn.to_string())),
        Point::Name(name) => Some(("name", name.clone())),
    };
    if let Some((kind, target)) = target {
        command.args([format!("--type={kind}"), format!("--target={target}"), "--target-action=promote".into()]);
    }
    command.arg("restore");
    child::run(command, || Ok(()))
}

/// How the server of a drill fetches WAL: not by the spool directory and the lock of the cluster itself.
pub fn restore_command(set: &Set, data: &Path) -> String {
    format!(
        "{PROGRAM} --stanza={} --repo={} --pg1-path={} --no-archive-async archive-get %f \"%p\"",
        set.stanza,
        set.repo,
        data.display()
    )
}

/// Has the cluster begin a new segment, and waits until what it has written so far is in the archive.
pub fn archive_now(set: &Set) -> Result<()> {
    let mut command = program(Some(&set.stanza));
    command.arg("check");
    child::run(command, || Ok(()))
}

/// Removes what its own retention does not keep.
pub fn expire(cluster: &Cluster, store: &Store, plan: bool) -> Result<()> {
    let stanza = look(cluster, store)?;
    let mut command = program(Some(&stanza.name));
    command.args(plan.then_some("--dry-run")).args(["--log-level-console=info", "expire"]);
    command.arg("--log-timestamp=n").arg("--log-level-stderr=off");
    for line in output(command)?.lines().map(str::trim) {
        log::info!(PG_CLUSTER = store.cluster; "pgbackrest: {line}");
    }
    look(cluster, store)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As 2.45 and 2.55 tell it, shortened.
    const INFO: &str = r#"[{"archive":[{"database":{"id":1,"repo-key":1},"id":"17-1","max":"000000010000000000000006",
        "min":"000000010000000000000001"}],"backup":[
        {"archive":{"start":"000000010000000000000002","stop":"000000010000000000000002"},
         "backrest":{"format":5,"version":"2.55.1"},"database":{"id":1,"repo-key":1},"error":false,
         "info":{"delta":23497196,"repository":{"delta":3021590,"size":3021590},"size":23497196},
         "label":"20261126-054818F","lsn":{"start":"0/2000028","stop":"0/2000120"},"prior":null,"reference":null,
         "timestamp":{"start":1795672098,"stop":1795672101},"type":"full"},
        {"archive":{"start":"000000010000000000000003","stop":"000000010000000000000004"},
         "backrest":{"format":5,"version":"2.55.1"},"database":{"id":1,"repo-key":1},"error":true,
         "info":{"delta":8450,"repository":{"delta":405},"size":23497199},
         "label":"20261126-054818F_20261126-054822I","lsn":{"start":"0/3000028","stop":"0/4000050"},
         "prior":"20261126-054818F","reference":["20261126-054818F"],
         "timestamp":{"start":1795672102,"stop":1795672104},"type":"incr"}],"cipher":"none",
        "db":[{"id":1,"repo-key":1,"system-id":7712352525590313184,"version":"17"}],"name":"main",
        "status":{"code":0,"message":"ok"}}]"#;

    fn stanza() -> Stanza {
        let stanza = serde_json::from_str::<Vec<Stanza>>(INFO).unwrap().remove(0);
        Stanza { segment_size: 16 << 20, ..stanza }
    }

    #[test]
    fn what_pgbackrest_tells_is_known_as_of_our_own_backups() {
        let known = stanza().known("17/main");
        let (id, full) = &known[0];
        assert_eq!((id.as_str(), full.version, full.timeline), ("20261126T054818Z", 17, 1));
        assert_eq!((full.start, full.end, full.bytes), (Lsn(0x2000028), Lsn(0x2000120), 3_021_590));
        assert!(full.is_good() && shared::backup::is_id(id));
        assert_eq!(stanza().archived_to(full), Some(Lsn(0x7000000)));
        let (_, next) = &known[1];
        assert!(!next.is_good(), "a page had a wrong checksum");
        assert_eq!(next.pgbackrest.as_ref().unwrap().label, "20261126-054818F_20261126-054822I");
    }

    #[test]
    fn a_repository_that_does_not_answer_is_not_an_empty_one() {
        // As 2.45 tells it of object storage without a network.
        let text = r#"[{"archive":[],"backup":[],"cipher":"none","db":[],"name":"main","repo":[{"cipher":"none","key":1,
            "status":{"code":99,"message":"[HostConnectError] unable to get address"}}],
            "status":{"code":99,"lock":{"backup":{"held":false}},"message":"other"}}]"#;
        let stanza = serde_json::from_str::<Vec<Stanza>>(text).unwrap().remove(0);
        assert!(stanza.must_answer(1).unwrap_err().message.contains("HostConnectError"));
        assert!(stanza.must_answer(2).is_ok() && super::tests::stanza().must_answer(1).is_ok());
    }

    #[test]
    fn seven_nights_have_one_full_backup() {
        let mut stanza = stanza();
        assert!(!stanza.wants_full(6) && stanza.wants_full(0));
        stanza.backup.remove(0);
        while stanza.backup.len() < 6 {
            assert!(!stanza.wants_full(6));
            stanza.backup.extend(self::stanza().backup.pop());
        }
        assert!(stanza.wants_full(6));
    }

    #[test]
    fn a_segment_that_is_missing_is_a_gap() {
        let (_, info) = stanza().known("17/main").remove(0);
        let path = |number: &str| format!("0000000100000000/0000000100000000000000{number}-3fb8c1d0.gz");
        let gap =
            |numbers: &[&str]| gap(numbers.iter().filter_map(|number| archived(&path(number), &info)).collect(), &info);
        assert_eq!(gap(&["01", "02", "03", "04"]), None);
        assert_eq!(gap(&["01", "02", "04"]), Some(3));
        assert_eq!(gap(&["03"]), Some(2));
        for other in ["00000002.history", "0000000100000000/000000010000000000000003.00000028.backup"] {
            assert_eq!(archived(other, &info), None, "{other}");
        }
    }

    #[test]
    fn what_is_wrong_with_another_backup_is_no_fault_of_this_one() {
        let said = |whole: &str, archive: &str, of_a: &str| {
            judge(
                &format!(
                    "stanza: main\nstatus: {whole}\n  archiveId: 17-1, total WAL checked: 4, total valid WAL: {archive}\n    \
                     missing: 0, other: 1\n  backup: A, status: {of_a}, total files checked: 9, total valid files: 8\n    \
                     missing: 1, other: 0\n  backup: B, status: invalid, total files checked: 9\n"
                ),
                "A",
            )
        };
        assert_eq!(said("ok", "4", "valid"), Ok(()));
        assert_eq!(said("error", "4", "valid"), Ok(()), "B is another one");
        assert!(said("error", "4", "invalid").unwrap_err().contains("missing: 1"));
        assert!(said("error", "3", "valid").unwrap_err().contains("archiveId: 17-1"));
        assert!(judge("", "A").is_err(), "it has read nothing");
    }
}
