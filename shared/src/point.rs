//! Recovery points: copies of the configuration files of a cluster and of its TLS key and certificate, kept in `/var/lib/pg-recovery/points/ID/`.
//!
//! A point is a folder with `manifest.json` (why, when, and for each file its path, SHA-256, owner and mode) and the
//! copies as `0`, `1`, ... in the order of the manifest. It is built under another name and renamed when it is complete,
//! so what is there is whole. Points of the kind `good` hold a configuration that a server was seen to run with, those of
//! the kind `before` what one of our programs was about to change, `asked` what a person wanted kept, `guard` what comes
//! back unless a change is confirmed. Files are read and written with no more power than the owner of the cluster has; the
//! folder itself is for root only.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::clock::{self, Stamp};
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::state;

/// Points kept for each cluster and kind, as far as they take no more than this many bytes.
const KEEP: usize = 10;
const BUDGET: u64 = 16 << 20;
/// No configuration file is larger; what is, is not one.
const LIMIT: u64 = 1 << 20;

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Manifest {
    pub id: String,
    /// `good`, `before`, `asked` or `guard`.
    pub kind: String,
    pub cluster: String,
    pub at: Stamp,
    pub why: String,
    pub files: Vec<Entry>,
    /// What a program has made of these files by itself, as SHA-256 (none: removed). Then the point holds nothing else;
    /// empty: it holds all that there was.
    #[serde(default)]
    pub made: Vec<(PathBuf, Option<String>)>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Entry {
    pub path: PathBuf,
    pub sha256: String,
    /// With [`LINK`] for a symbolic link, whose target is its content.
    pub mode: u32,
    /// Ids of its user and its group; `None`: those of the owner of the cluster.
    #[serde(default)]
    pub owner: Option<(u32, u32)>,
    /// A key or certificate, which a server was seen to start with.
    #[serde(default)]
    pub tls: bool,
    #[serde(default)]
    pub part: Part,
}

/// What a file is for.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The server reads it.
    #[default]
    Server,
    /// It says whether and how the server is started: start.conf, units and their drop-ins.
    Start,
    /// The same of our own units.
    Ours,
    /// Roles and their settings as SQL, to look at.
    Roles,
}

/// S_IFLNK of inode(7).
pub const LINK: u32 = 0o120_000;

/// A file of a point with its content.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Copy {
    pub path: PathBuf,
    pub mode: u32,
    pub owner: Option<(u32, u32)>,
    pub bytes: Vec<u8>,
    pub tls: bool,
    pub part: Part,
}

/// Stands for the cluster in points of our own units.
pub const HOST: &str = "host";

fn directory() -> PathBuf {
    Path::new(state::DIRECTORY).join("points")
}

/// The configuration files of a cluster that exist now: those in its configuration directory and in folders in it,
/// postgresql.auto.conf, and what these include from elsewhere as far as the owner of the cluster could replace it.
/// `start.conf` is not among them: it is the operator's word, not the server's configuration.
pub fn files(cluster: &Cluster) -> Vec<PathBuf> {
    let found = cluster.owner.act(|| {
        let mut files = Vec::new();
        if cluster.is_debian {
            walk(&cluster.config_directory, 2, &mut files);
        } else {
            // Its configuration is in the data directory, among everything else.
            for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
                files.push(cluster.config_directory.join(name));
            }
            walk(&cluster.config_directory.join("conf.d"), 0, &mut files);
        }
        files.push(cluster.data_directory.join("postgresql.auto.conf"));
        let rules = [Some(cluster.hba_file()), cluster.setting("ident_file").map(PathBuf::from)];
        files.extend(rules.into_iter().flatten());
        files.retain(|f| f.is_file());
        let mut included_files = Vec::new();
        files.iter().for_each(|file| includes(file, &mut included_files, 0));
        files.extend(included_files.into_iter().filter(|file| may_replace(cluster, file)));
        files.sort();
        files.dedup();
        files
    });
    found.unwrap_or_default()
}

/// The key and the certificates of the server that its owner owns, and so can replace; none without TLS.
pub fn tls_files(cluster: &Cluster) -> Vec<PathBuf> {
    let owner = &cluster.owner;
    let is_ours = |path: &PathBuf| path.metadata().is_ok_and(|meta| meta.is_file() && meta.uid() == owner.uid.as_raw());
    owner.act(|| tls_names(cluster).into_iter().filter(is_ours).collect()).unwrap_or_default()
}

fn tls_names(cluster: &Cluster) -> Vec<PathBuf> {
    if !matches!(cluster.setting("ssl"), Some("on" | "true" | "yes" | "1")) {
        return Vec::new();
    }
    let of = |setting, default: &str| cluster.data_directory.join(cluster.setting(setting).unwrap_or(default));
    vec![of("ssl_cert_file", "server.crt"), of("ssl_key_file", "server.key")]
}

fn walk(folder: &Path, depth: u8, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if path.is_dir() {
            if depth > 0 {
                walk(&path, depth - 1, files);
            }
        } else if name.ends_with(".conf") && name != "start.conf" || name == "environment" {
            files.push(path);
        }
    }
}

/// With the power of the owner.
fn may_replace(cluster: &Cluster, file: &Path) -> bool {
    let may = AccessFlags::W_OK | AccessFlags::X_OK;
    let folder = file.parent().unwrap_or(Path::new("/"));
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.uid() == cluster.owner.uid.as_raw())
        && faccessat(AT_FDCWD, folder, may, AtFlags::AT_EACCESS).is_ok()
}

/// The files that this one includes. Settings and, since PostgreSQL 16, rules of access have the same three words for it.
fn includes(file: &Path, found: &mut Vec<PathBuf>, depth: u8) {
    let text = file.canonicalize().and_then(|file| state::read(&file, LIMIT)).unwrap_or_default();
    for (word, value) in String::from_utf8_lossy(&text).lines().filter_map(crate::cluster::parse_line) {
        let path = included(file, &value);
        let more = match word.as_str() {
            "include" | "include_if_exists" => vec![path],
            "include_dir" => {
                let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
                entries.filter(|entry| entry.file_name().as_bytes().ends_with(b".conf")).map(|e| e.path()).collect()
            }
            _ => continue,
        };
        for file in more {
            // The server stops at ten levels too (conffiles.h, CONF_FILE_MAX_DEPTH).
            if depth < 10 && !found.contains(&file) {
                found.push(file.clone());
                includes(&file, found, depth + 1);
            }
        }
    }
}

/// Where the path of an `include` in this file leads.
pub fn included(file: &Path, value: &str) -> PathBuf {
    let path = file.parent().unwrap_or(Path::new("/")).join(value.trim_matches('"'));
    let climbs = path.components().any(|part| part == Component::ParentDir);
    if climbs { path.canonicalize().unwrap_or(path) } else { path }
}

/// Reads the files as they are now.
pub fn read(cluster: &Cluster, files: &[PathBuf]) -> Result<Vec<Copy>> {
    let tls = tls_names(cluster);
    cluster.owner.act(|| {
        files
            .iter()
            .map(|path| {
                let bad = |e: std::io::Error| Error::failed(format!("could not read {}: {e}", path.display()));
                // The owner's own links lead to the file that counts.
                let real = path.canonicalize().map_err(bad)?;
                let meta = std::fs::metadata(&real).map_err(bad)?;
                let bytes = state::read(&real, LIMIT + 1).map_err(bad)?;
                if bytes.len() as u64 > LIMIT {
                    return Err(Error::failed(format!("could not copy {}: it is larger than 1 MiB", path.display())));
                }
                Ok(Copy {
                    path: path.clone(),
                    mode: meta.permissions().mode() & 0o7777,
                    owner: Some((meta.uid(), meta.gid())),
                    bytes,
                    tls: tls.contains(path),
                    part: Part::Server,
                })
            })
            .collect()
    })?
}

/// Saves the configuration that the server is known to run with, unless the newest good point has the same; true when
/// a new point was made. Key and certificate are good when the server has started with them: at a reload it keeps its old
/// ones if it cannot use the new. Else those of the last point stay.
pub fn remember_good(cluster: &Cluster, why: &str, started_with_tls: bool) -> Result<bool> {
    let mut now = read(cluster, &files(cluster))?;
    let last = newest(&cluster.name(), "good");
    if started_with_tls {
        now.extend(read(cluster, &tls_files(cluster))?);
    } else {
        let names = tls_names(cluster);
        now.extend(last.iter().flatten().filter(|copy| copy.tls && names.contains(&copy.path)).cloned());
    }
    if last.is_some_and(|old| old == now) {
        return Ok(false);
    }
    save(cluster, "good", why, &now)?;
    Ok(true)
}

/// The key and the certificate that the server was just seen to serve are good; of all else the last good copies stay.
pub fn remember_good_tls(cluster: &Cluster, why: &str) -> Result<()> {
    // pg-watchdog makes the first one, of all that there is.
    let Some(last) = newest(&cluster.name(), "good") else { return Ok(()) };
    let mut now: Vec<Copy> = last.iter().filter(|copy| !copy.tls).cloned().collect();
    now.extend(read(cluster, &tls_files(cluster))?);
    if last == now { Ok(()) } else { save(cluster, "good", why, &now).map(drop) }
}

/// Makes a point of these copies, which are all that there is, and forgets the oldest of its kind.
pub fn save(cluster: &Cluster, kind: &str, why: &str, copies: &[Copy]) -> Result<String> {
    save_in(&directory(), &cluster.name(), kind, why, copies, &[])
}

/// The same of what is of no cluster.
pub fn save_of_host(kind: &str, why: &str, copies: &[Copy]) -> Result<String> {
    save_in(&directory(), HOST, kind, why, copies, &[])
}

/// Makes a point of the files that a program is about to change by itself, and what it will make of them. The last of each
/// file is kept for good, so that the change can be taken back.
pub fn save_before(
    cluster: &Cluster,
    why: &str,
    copies: &[Copy],
    made: &[(PathBuf, Option<String>)],
) -> Result<String> {
    save_in(&directory(), &cluster.name(), "before", why, copies, made)
}

fn save_in(
    root: &Path,
    cluster: &str,
    kind: &str,
    why: &str,
    copies: &[Copy],
    made: &[(PathBuf, Option<String>)],
) -> Result<String> {
    let at = Stamp::now();
    let last = list(root, cluster, kind).pop();
    let id = format!("{}-{}-{kind}", stamp_behind(last.as_deref(), &at), crate::cluster::file_name(cluster));
    let bad = |e: std::io::Error| Error::failed(format!("could not save recovery point {id}: {e}"));
    let temporary = root.join(format!(".{id}"));
    let made = (|| {
        std::fs::DirBuilder::new().mode(0o700).recursive(true).create(root)?;
        std::fs::DirBuilder::new().mode(0o700).create(&temporary)?;
        let mut entries = Vec::new();
        for (index, copy) in copies.iter().enumerate() {
            state::replace(&temporary.join(index.to_string()), &copy.bytes, 0o600)?;
            entries.push(Entry {
                path: copy.path.clone(),
                sha256: sha256(&copy.bytes),
                mode: copy.mode,
                owner: copy.owner,
                tls: copy.tls,
                part: copy.part,
            });
        }
        let manifest = Manifest {
            id: id.clone(),
            kind: kind.into(),
            cluster: cluster.into(),
            at: at.clone(),
            why: why.into(),
            files: entries,
            made: made.to_vec(),
        };
        state::replace(
            &temporary.join("manifest.json"),
            &serde_json::to_vec_pretty(&manifest).map_err(std::io::Error::other)?,
            0o600,
        )?;
        std::fs::rename(&temporary, root.join(&id))?;
        state::sync_folder(root)
    })();
    if let Err(e) = made {
        let _ = std::fs::remove_dir_all(&temporary);
        return Err(bad(e));
    }
    let (mut bytes, mut seen) = (0, std::collections::HashSet::new());
    for (age, old) in list(root, cluster, kind).iter().rev().enumerate() {
        let files = std::fs::read_dir(root.join(old)).into_iter().flatten().flatten();
        bytes += files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum::<u64>();
        let made = manifest(&root.join(old)).map(|manifest| manifest.made).unwrap_or_default();
        let is_last_word = made.into_iter().filter(|(path, _)| seen.insert(path.clone())).count() > 0;
        if !is_last_word && (age >= KEEP || age > 0 && bytes > BUDGET) {
            let _ = std::fs::remove_dir_all(root.join(old));
        }
    }
    Ok(id)
}

/// The moment as an ID begins with it, to the thousandth. IDs sort by age; one from before the clock was set back must not
/// stay the newest, so the next one begins a thousandth behind it.
fn stamp_behind(last: Option<&str>, at: &Stamp) -> String {
    let mut millis = (at.wall * 1000.0) as i64;
    if let Some(last) = last.and_then(millis_of) {
        millis = millis.max(last + 1);
    }
    let second = Stamp { wall: (millis / 1000) as f64, ..Stamp::default() };
    format!("{}.{:03}", second.compact(), millis % 1000)
}

/// Thousandths of seconds since 1970 of `20261122T015732Z.123-...`.
fn millis_of(id: &str) -> Option<i64> {
    let part = |from: usize, to: usize| id.get(from..to);
    let (date, time) = ((part(0, 4)?, part(4, 6)?, part(6, 8)?), (part(9, 11)?, part(11, 13)?, part(13, 15)?));
    let rfc3339 = format!("{}-{}-{}T{}:{}:{}Z", date.0, date.1, date.2, time.0, time.1, time.2);
    Some(clock::seconds_of(&rfc3339)? * 1000 + part(17, 20)?.parse::<i64>().ok()?)
}

/// IDs of the points of one kind, oldest first.
fn list(root: &Path, cluster: &str, kind: &str) -> Vec<String> {
    let end = format!("-{}-{kind}", crate::cluster::file_name(cluster));
    let mut ids: Vec<String> = std::fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|id| !id.starts_with('.') && id.strip_suffix(end.as_str()).is_some_and(|stamp| !stamp.contains('-')))
        .collect();
    ids.sort();
    ids
}

/// Where pg-rollback keeps what is not finished: `guard.json`, and `16-main.json` while it changes the files of a cluster.
pub fn unfinished() -> PathBuf {
    Path::new(state::DIRECTORY).join("rollback")
}

/// What the files of this cluster are may be undone yet: it is under guard, or a rollback has not come to its end.
pub fn is_in_flux(cluster: &str) -> bool {
    let has = |name: String| unfinished().join(name).symlink_metadata().is_ok();
    has("guard.json".into()) || has(format!("{}.json", crate::cluster::file_name(cluster)))
}

/// All points of these clusters (none: of all), the newest first.
pub fn all(clusters: &[String]) -> Result<Vec<Manifest>> {
    let root = directory();
    let bad = |e: std::io::Error| {
        Error::from(std::io::Error::new(e.kind(), format!("could not read {}: {e}", root.display())))
    };
    let mut ids: Vec<String> = match std::fs::read_dir(&root) {
        Ok(entries) => entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(bad(e).hint("Recovery points are for root alone.")),
    };
    ids.retain(|id| !id.starts_with('.'));
    ids.sort();
    let manifests = ids.iter().rev().filter_map(|id| manifest(&root.join(id)));
    Ok(manifests.filter(|m| clusters.is_empty() || clusters.contains(&m.cluster)).collect())
}

/// One point with its copies. An error if there is none of that name, or if a copy is not what the manifest says.
pub fn find(id: &str) -> Result<(Manifest, Vec<Copy>)> {
    let point = directory().join(id);
    let manifest = (!id.is_empty() && !id.starts_with('.') && !id.contains('/')).then(|| manifest(&point)).flatten();
    let manifest = manifest.ok_or_else(|| {
        Error::usage(format!("there is no recovery point {id:?}")).hint("pg-rollback list has them all.")
    })?;
    let copies = load(&point).ok_or_else(|| {
        Error::failed(format!("recovery point {id} is damaged: a copy in {} is not what was saved", point.display()))
            .hint("pg-rollback list has others.")
    })?;
    Ok((manifest, copies))
}

/// The newest point of one kind whose copies are all as the manifest says.
pub fn newest(cluster: &str, kind: &str) -> Option<Vec<Copy>> {
    newest_in(&directory(), cluster, kind)
}

fn newest_in(root: &Path, cluster: &str, kind: &str) -> Option<Vec<Copy>> {
    list(root, cluster, kind).iter().rev().find_map(|id| load(&root.join(id)))
}

fn manifest(point: &Path) -> Option<Manifest> {
    serde_json::from_slice(&state::read(&point.join("manifest.json"), LIMIT).ok()?).ok()
}

fn load(point: &Path) -> Option<Vec<Copy>> {
    let copies = manifest(point)?.files.into_iter().enumerate().map(|(index, entry)| {
        let bytes = state::read(&point.join(index.to_string()), LIMIT).ok()?;
        (sha256(&bytes) == entry.sha256).then_some(Copy {
            path: entry.path,
            mode: entry.mode,
            owner: entry.owner,
            bytes,
            tls: entry.tls,
            part: entry.part,
        })
    });
    copies.collect()
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// The difference between two texts, as `diff -u` shows it. Lines that may hold a password are named, not shown, and of a
/// private key nothing is.
pub fn difference(old: &[u8], new: &[u8]) -> String {
    let (old, new) = (String::from_utf8_lossy(old), String::from_utf8_lossy(new));
    if old.contains("PRIVATE KEY") || new.contains("PRIVATE KEY") {
        return "(a private key)".into();
    }
    let diff = similar::TextDiff::from_lines(old.as_ref(), new.as_ref());
    let text = diff.unified_diff().context_radius(0).to_string();
    text.lines()
        .map(|line| {
            // An attribute of roles (CREATE ROLE) is no password.
            let lower = line.to_ascii_lowercase().replace("bypassrls", "");
            if ["pass", "secret", "token"].iter().any(|word| lower.contains(word)) {
                format!("{} (a line with a password)", &line[..1])
            } else {
                line.to_string()
            }
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(name: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("pg-recovery-point-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        root
    }

    fn copy(text: &str) -> Vec<Copy> {
        vec![Copy { path: "/etc/x.conf".into(), mode: 0o640, bytes: text.into(), ..Copy::default() }]
    }

    #[test]
    fn the_newest_whole_point_is_found_and_old_ones_are_forgotten() {
        let root = root("newest");
        for n in 0..KEEP + 3 {
            save_in(&root, "16/main", "good", "test", &copy(&format!("{n}")), &[]).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        save_in(&root, "16/main-2", "good", "test", &copy("other"), &[]).unwrap();
        save_in(&root, "16/main", "before", "test", &copy("before"), &[]).unwrap();
        let ids = list(&root, "16/main", "good");
        assert_eq!(ids.len(), KEEP);
        assert_eq!(newest_in(&root, "16/main", "good"), Some(copy(&format!("{}", KEEP + 2))));
        // A damaged copy is not believed; the one before it is.
        std::fs::write(root.join(ids.last().unwrap()).join("0"), "damaged").unwrap();
        assert_eq!(newest_in(&root, "16/main", "good"), Some(copy(&format!("{}", KEEP + 1))));
    }

    #[test]
    fn a_point_that_was_made_after_the_clock_was_set_back_is_the_newest() {
        let root = root("clock");
        let future = "20991231T235959Z.999-16-main-good";
        let id = save_in(&root, "16/main", "good", "test", &copy("old"), &[]).unwrap();
        std::fs::rename(root.join(id), root.join(future)).unwrap();
        for n in 0..KEEP {
            save_in(&root, "16/main", "good", "test", &copy(&n.to_string()), &[]).unwrap();
            assert_eq!(newest_in(&root, "16/main", "good"), Some(copy(&n.to_string())));
        }
        assert_eq!(list(&root, "16/main", "good")[0], "21000101T000000Z.000-16-main-good", "the oldest has gone");
        assert_eq!(millis_of("19700101T000001Z.007-16-main-good"), Some(1007));
        assert_eq!((millis_of("x"), millis_of("")), (None, None));
    }

    #[test]
    fn points_take_no_more_room_than_they_may() {
        let root = root("budget");
        let large = "x".repeat(BUDGET as usize / 3);
        for n in 0..5 {
            save_in(&root, "16/main", "good", "test", &copy(&format!("{n}{large}")), &[]).unwrap();
        }
        assert_eq!(list(&root, "16/main", "good").len(), 2);
        save_in(&root, "16/main", "good", "test", &copy(&large.repeat(4)), &[]).unwrap();
        assert_eq!(list(&root, "16/main", "good").len(), 1, "the newest is kept whatever it takes");
    }

    #[test]
    fn what_a_program_made_of_a_file_last_is_never_forgotten() {
        let root = root("made");
        let made = |name: &str| [(PathBuf::from(name), None)];
        let first = save_in(&root, "16/main", "before", "test", &copy("x"), &made("/a")).unwrap();
        for _ in 0..KEEP + 2 {
            save_in(&root, "16/main", "before", "test", &copy("x"), &made("/b")).unwrap();
        }
        let all = list(&root, "16/main", "before");
        assert_eq!((all.len(), &all[0]), (KEEP + 1, &first));
        save_in(&root, "16/main", "before", "test", &copy("x"), &made("/a")).unwrap();
        assert!(!list(&root, "16/main", "before").contains(&first));
    }

    #[test]
    fn what_a_file_includes_is_found_in_both_languages() {
        let root = root("includes");
        std::fs::create_dir_all(root.join("more.d")).unwrap();
        std::fs::write(root.join("a"), "port = 1\ninclude 'b' # c\n#include 'no'\ninclude_dir = 'more.d'\n").unwrap();
        std::fs::write(root.join("b"), "include_if_exists \"a\"\nhost all include all trust\n").unwrap();
        std::fs::write(root.join("more.d/x.conf"), "").unwrap();
        std::fs::write(root.join("more.d/x.old"), "").unwrap();
        let mut found = Vec::new();
        includes(&root.join("a"), &mut found, 0);
        assert_eq!(found, ["b", "a", "more.d/x.conf"].map(|name| root.join(name)));
    }

    #[test]
    fn points_are_for_root_only() {
        let root = root("mode");
        let id = save_in(&root, "16/main", "good", "test", &copy("x"), &[]).unwrap();
        assert_eq!(std::fs::metadata(root.join(&id)).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(std::fs::metadata(root.join(&id).join("0")).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_difference_never_shows_a_password() {
        let text = difference(b"a = 1\n", b"a = 2\nprimary_conninfo = 'password=x'\n");
        assert!(text.contains("-a = 1") && text.contains("+a = 2") && !text.contains("=x"), "{text}");
        assert_eq!(difference(b"", b"-----BEGIN PRIVATE KEY-----\nx\n"), "(a private key)");
    }
}
