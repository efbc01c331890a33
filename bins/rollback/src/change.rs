//! What has to change in the files of a cluster for them to be as they were at a recovery point, and how that is done.
//!
//! All new files are written beside the old ones under names of their own first, so that a full disk changes nothing. Then
//! each changes places with its old one, which keeps that name until the run is proven or undone.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, faccessat};
use shared::clock::Stamp;
use shared::cluster::Cluster;
use shared::owner::Owner;
use shared::point::{self, Copy, LINK, Part};
use shared::{Error, Result, state};

use crate::units;

/// No configuration file is larger.
const LIMIT: u64 = 1 << 20;

/// Which files of a point count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Level {
    /// What the server reads its settings from, and how it is started.
    Config,
    /// Its keys and certificates.
    Security,
    All,
}

impl Level {
    fn has(self, copy: &Copy) -> bool {
        let of_cluster = matches!(copy.part, Part::Server | Part::Start);
        match self {
            Level::Config => of_cluster && !copy.tls,
            Level::Security => of_cluster && copy.tls,
            Level::All => of_cluster,
        }
    }
}

/// What a cluster goes back to.
#[derive(Clone, Debug, PartialEq)]
pub struct Goal {
    pub id: String,
    pub copies: Vec<Copy>,
    /// They are all that there was: what is there besides has come since.
    pub whole: bool,
}

impl Goal {
    pub fn find(id: &str) -> Result<Goal> {
        let (manifest, copies) = point::find(id)?;
        Ok(Goal { id: id.into(), copies, whole: manifest.made.is_empty() })
    }

    pub fn files(&self) -> Vec<Change> {
        let of_cluster = self.copies.iter().filter(|copy| Level::All.has(copy));
        of_cluster.map(|copy| Change::of(&copy.path)).collect()
    }
}

/// One file that differs.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub path: PathBuf,
    /// As it is now; `None`: it is not there.
    pub old: Option<Copy>,
    /// As it was at the point; `None`: it was not there.
    pub new: Option<Copy>,
    /// It is there, and nobody can read it.
    pub unreadable: bool,
}

impl Change {
    /// What becomes of a file whose content does not matter here.
    pub fn of(path: &Path) -> Change {
        Change { path: path.into(), old: None, new: None, unreadable: false }
    }

    pub fn part(&self) -> Part {
        self.old.iter().chain(&self.new).map(|copy| copy.part).next().unwrap_or_default()
    }

    /// What is done, and the difference; what is in a key is nobody's business.
    pub fn describe(&self) -> String {
        let path = self.path.display();
        let what = match (&self.old, &self.new) {
            (_, None) => format!("remove {path}, which was not there"),
            _ if self.unreadable => return format!("put back {path}; the one that cannot be read is kept beside it"),
            (_, Some(new)) if is_link(new) => {
                return format!("put back {path} -> {}", String::from_utf8_lossy(&new.bytes));
            }
            (None, Some(_)) => format!("put back {path}, which is missing"),
            (Some(old), Some(new)) if old.bytes == new.bytes && old.mode == new.mode => {
                return format!("give {path} its owner {} back, it has {}", owner(new), owner(old));
            }
            (Some(old), Some(new)) if old.bytes == new.bytes => {
                return format!("give {path} its mode {:04o} back, it has {:04o}", new.mode, old.mode);
            }
            (Some(_), Some(_)) => format!("put back {path}"),
        };
        if self.old.iter().chain(&self.new).any(|copy| copy.tls || is_link(copy)) {
            return what;
        }
        let bytes = |copy: &Option<Copy>| copy.as_ref().map_or(Vec::new(), |copy| copy.bytes.clone());
        format!("{what}; the difference:\n{}", point::difference(&bytes(&self.old), &bytes(&self.new)))
    }

    /// Writes what is to be there beside it.
    pub fn stage(&self, cluster: &Cluster) -> Result<()> {
        let Some(copy) = &self.new else { return Ok(()) };
        stage(cluster, &self.path, copy)
            .map_err(|e| Error::failed(format!("could not write what is to become {}: {e}", self.path.display())))
    }

    /// Puts it there.
    pub fn swap(&self, cluster: &Cluster) -> Result<()> {
        let done = with_power(cluster, &self.path, |real, beside| {
            match self.new {
                None => std::fs::rename(real, beside),
                Some(_) => match renameat2(AT_FDCWD, beside, AT_FDCWD, real, RenameFlags::RENAME_EXCHANGE) {
                    // It was missing, or this is no file system for that: the point has the old one.
                    Err(Errno::ENOENT | Errno::EINVAL) => std::fs::rename(beside, real),
                    done => done.map_err(io::Error::from),
                },
            }?;
            sync_folder_of(real)
        })?;
        done.map_err(|e| Error::failed(format!("could not put back {}: {e}", self.path.display())))
    }

    /// Removes the old one, or what was never put there. With `keep`, and where no point could have it, the old one stays.
    pub fn finish(&self, cluster: &Cluster, keep: bool) -> Result<()> {
        let done = with_power(cluster, &self.path, |real, beside| match keep || self.unreadable {
            true if beside.symlink_metadata().is_ok() => {
                let mut kept = real.as_os_str().to_owned();
                kept.push(format!(".replaced-{}", Stamp::now().compact()));
                std::fs::rename(beside, PathBuf::from(kept))
            }
            _ => remove(beside),
        })?;
        done.map_err(|e| Error::failed(format!("could not remove what is left beside {}: {e}", self.path.display())))
    }

    /// Makes the file what it was before `swap`: the old one changes places again, or is written anew.
    pub fn undo(&self, cluster: &Cluster) -> Result<()> {
        let kept = with_power(cluster, &self.path, |_, beside| beside.to_path_buf())?;
        let is_old = |kept: &Copy| self.old.as_ref().is_some_and(|old| mark(cluster, old) == mark(cluster, kept));
        let is_old = present(cluster, &kept).ok().flatten().is_some_and(|kept| is_old(&kept));
        let back = Change { old: self.new.clone(), new: self.old.clone(), ..self.clone() };
        if !is_old {
            back.stage(cluster)?;
        }
        back.swap(cluster)
    }
}

fn is_link(copy: &Copy) -> bool {
    copy.mode == LINK
}

fn owner(copy: &Copy) -> String {
    let (uid, gid) = copy.owner.unwrap_or_default();
    let group = nix::unistd::Group::from_gid(gid.into()).ok().flatten();
    let user = Owner::of_uid(uid).map_or_else(|| uid.to_string(), |user| user.name);
    format!("{user}:{}", group.map_or_else(|| gid.to_string(), |group| group.name))
}

/// `.pg_hba.conf.pg-rollback`: no include_dir reads it, nor systemd.
fn beside(real: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(real.file_name().unwrap_or_default());
    name.push(".pg-rollback");
    real.with_file_name(name)
}

/// With the file that counts (the owner's own links lead to it), the one beside it, and no more power than the owner of the
/// cluster has; in systemd's folder, where nobody but root writes, with root's.
fn with_power<T>(cluster: &Cluster, path: &Path, f: impl FnOnce(&Path, &Path) -> T) -> Result<T> {
    if path.starts_with(units::FOLDER) {
        return Ok(f(path, &beside(path)));
    }
    cluster.owner.act(|| {
        let real = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        f(&real, &beside(&real))
    })
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), state::sync_folder)
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Nobody else may read it before it has its owner and its mode.
fn stage(cluster: &Cluster, path: &Path, copy: &Copy) -> Result<()> {
    let write = |real: &Path, beside: &Path| -> io::Result<_> {
        remove(beside)?;
        real.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        if is_link(copy) {
            symlink(OsString::from_vec(copy.bytes.clone()), beside)?;
            return Ok(None);
        }
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside)?;
        file.write_all(&copy.bytes)?;
        Ok(Some(file))
    };
    let written = with_power(cluster, path, |real, beside| write(real, beside).inspect_err(|_| drop(remove(beside))))?;
    let Some(file) = written? else { return Ok(()) };
    let meta = file.metadata()?;
    let (uid, gid) = copy.owner.unwrap_or((meta.uid(), meta.gid()));
    if (uid, gid) != (meta.uid(), meta.gid()) {
        fchown(&file, Some(uid), Some(gid))?;
    }
    // With the power of whom it belongs to now. Neither set-user-id nor its like is ever put back.
    let mode = std::fs::Permissions::from_mode(copy.mode & 0o777);
    match Owner::of_uid(uid) {
        Some(owner) if uid != 0 => owner.act(|| file.set_permissions(mode))??,
        _ => file.set_permissions(mode)?,
    }
    Ok(file.sync_all()?)
}

/// The files of `level` (of these, those that `only` names) that are not as they were at the point. Files that were not
/// there are among them only in the folder of the configuration and in systemd's: what lies elsewhere may be somebody else's.
/// A file that cannot be read is an error unless `force`.
pub fn changes(cluster: &Cluster, goal: &Goal, level: Level, only: &[&str], force: bool) -> Result<Vec<Change>> {
    let wanted: Vec<&Copy> = goal.copies.iter().filter(|copy| level.has(copy)).collect();
    let mut paths: Vec<PathBuf> = wanted.iter().map(|copy| copy.path.clone()).collect();
    let mut is_new = |files: Vec<PathBuf>, folder: &Path| {
        let of_folder = files.into_iter().filter(|path| path.starts_with(folder));
        let new: Vec<PathBuf> = of_folder.filter(|path| !paths.contains(path)).collect();
        paths.extend(new);
    };
    let has = |part| goal.whole && wanted.iter().any(|copy| copy.part == part && !copy.tls);
    if has(Part::Server) {
        is_new(point::files(cluster), &cluster.config_directory);
    }
    if has(Part::Start) {
        is_new(units::of_cluster(cluster).into_iter().map(|copy| copy.path).collect(), Path::new(units::FOLDER));
    }
    for name in only {
        if !paths.iter().any(|path| path.ends_with(name)) {
            return Err(Error::usage(format!("cluster {} has no file {name} in that recovery point", cluster.name()))
                .hint("pg-rollback show ID names them."));
        }
    }
    paths.retain(|path| only.is_empty() || only.iter().any(|name| path.ends_with(name)));
    let mut changes = Vec::new();
    for path in paths {
        let new = wanted.iter().find(|copy| copy.path == path).map(|copy| (*copy).clone());
        let (old, unreadable) = match present(cluster, &path) {
            Ok(old) => (old, false),
            Err(_) if force => (None, true),
            Err(e) => return Err(e.hint("Give it the owner and the mode that it had, or move it away.")),
        };
        if unreadable || old.as_ref().map(|old| mark(cluster, old)) != new.as_ref().map(|new| mark(cluster, new)) {
            changes.push(Change { path, old, new, unreadable });
        }
    }
    Ok(changes)
}

/// What makes one file another than before: content, mode and owner, in one word.
pub fn mark(cluster: &Cluster, copy: &Copy) -> String {
    let sum = point::sha256(&copy.bytes);
    if is_link(copy) {
        return format!("link {sum}");
    }
    let (uid, gid) = copy.owner.unwrap_or((cluster.owner.uid.as_raw(), cluster.owner.gid.as_raw()));
    format!("{:o} {uid}:{gid} {sum}", copy.mode & 0o777)
}

pub fn present(cluster: &Cluster, path: &Path) -> Result<Option<Copy>> {
    if path.starts_with(units::FOLDER) {
        return Ok(units::copy(path, Part::Start));
    }
    if let Err(e) = cluster.owner.act(|| path.metadata())?
        && e.kind() == io::ErrorKind::NotFound
    {
        return Ok(None);
    }
    let read = point::read(cluster, &[path.to_path_buf()]).map(|mut copies| copies.pop());
    let mut copy = read.or_else(|e| as_root(path).map(Some).map_err(|_| e))?;
    if let Some(copy) = copy.as_mut().filter(|copy| copy.path == units::start_conf(cluster)) {
        copy.part = Part::Start;
    }
    Ok(copy)
}

/// What its owner put where the owner of the cluster cannot read it: by no link, for that could lead to anybody's file.
fn as_root(path: &Path) -> io::Result<Copy> {
    // openat2(2) would do it in one call, and RestrictSUIDSGID= of the units forbids it.
    let open = |folder: &OwnedFd, name: &OsStr, flags| {
        openat(folder, name, flags | OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
    };
    let mut folder: OwnedFd = std::fs::File::open("/")?.into();
    for name in path.parent().into_iter().flat_map(Path::components).skip(1) {
        folder = open(&folder, name.as_os_str(), OFlag::O_DIRECTORY)?;
    }
    let file = std::fs::File::from(open(&folder, path.file_name().unwrap_or_default(), OFlag::O_NONBLOCK)?);
    let meta = file.metadata()?;
    if !meta.is_file() || meta.nlink() != 1 || meta.len() > LIMIT {
        return Err(io::Error::other("no file of its own"));
    }
    let mut bytes = Vec::new();
    file.take(LIMIT).read_to_end(&mut bytes)?;
    let (mode, owner) = (meta.permissions().mode() & 0o7777, Some((meta.uid(), meta.gid())));
    Ok(Copy { path: path.into(), mode, owner, bytes, ..Copy::default() })
}

/// The first file of these that could not be put back, because the owner may not write in its folder.
pub fn fixed<'a>(cluster: &Cluster, copies: &'a [Copy]) -> Result<Option<&'a Path>> {
    let may = AccessFlags::W_OK | AccessFlags::X_OK;
    let is_fixed = |copy: &&Copy| {
        let real = copy.path.canonicalize().unwrap_or_else(|_| copy.path.clone());
        let folder = real.parent().unwrap_or(Path::new("/"));
        faccessat(AT_FDCWD, folder, may, AtFlags::AT_EACCESS).is_err()
    };
    let of_owner = copies.iter().filter(|copy| copy.path.is_absolute() && !copy.path.starts_with(units::FOLDER));
    cluster.owner.act(|| of_owner.clone().find(is_fixed).map(|copy| copy.path.as_path()))
}

/// The configuration as it is now: keys and certificates and how it is started as well.
pub fn now(cluster: &Cluster) -> Result<Vec<Copy>> {
    let mut files = point::files(cluster);
    files.extend(point::tls_files(cluster));
    let mut copies = Vec::new();
    for path in files {
        copies.extend(present(cluster, &path)?);
    }
    copies.extend(authorities(cluster)?);
    copies.extend(units::of_cluster(cluster));
    Ok(copies)
}

/// Whom the server trusts and whom no longer. Not in the points that pg-recover goes back to: what was revoked since would
/// be valid again.
fn authorities(cluster: &Cluster) -> Result<Vec<Copy>> {
    let settings = ["ssl_ca_file", "ssl_crl_file"].into_iter().filter_map(|name| cluster.setting(name));
    let mut copies = Vec::new();
    for path in settings.filter(|path| !path.is_empty()).map(|path| cluster.data_directory.join(path)) {
        let copy = present(cluster, &path).ok().flatten();
        let is_owners = |copy: &Copy| copy.owner.is_some_and(|(uid, _)| uid == cluster.owner.uid.as_raw());
        copies.extend(copy.filter(is_owners).map(|copy| Copy { tls: true, ..copy }));
    }
    // What could not be put back is of no use.
    copies.retain(|copy| matches!(fixed(cluster, std::slice::from_ref(copy)), Ok(None)));
    Ok(copies)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(text: &str, tls: bool) -> Option<Copy> {
        Some(Copy { path: "/etc/x".into(), mode: 0o640, bytes: text.into(), tls, ..Copy::default() })
    }

    #[test]
    fn a_change_says_what_it_does_and_shows_no_key() {
        let of = |old, new| Change { path: "/etc/x".into(), old, new, unreadable: false }.describe();
        assert!(of(copy("a = 1\n", false), copy("a = 2\n", false)).contains("-a = 1\n+a = 2"));
        assert_eq!(of(copy("SECRET", true), copy("OTHER", true)), "put back /etc/x");
        assert!(of(copy("a", false), None).starts_with("remove /etc/x, which was not there"));
        assert!(of(None, copy("a", false)).starts_with("put back /etc/x, which is missing"));
        let mut wider = copy("a", false);
        wider.as_mut().unwrap().mode = 0o644;
        assert_eq!(of(wider, copy("a", false)), "give /etc/x its mode 0640 back, it has 0644");
        let mut others = copy("a", false);
        others.as_mut().unwrap().owner = Some((7777, 0));
        assert_eq!(of(others, copy("a", false)), "give /etc/x its owner root:root back, it has 7777:root");
    }

    #[test]
    fn what_root_has_put_there_is_read_and_what_a_link_leads_to_is_not() {
        let folder = std::env::temp_dir().join(format!("pg-rollback-as-root-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
        let [file, link, other] = ["file", "link", "other"].map(|name| folder.join(name));
        std::fs::write(&file, "x").unwrap();
        symlink(&file, &link).unwrap();
        assert_eq!(as_root(&file).unwrap().bytes, b"x");
        assert!(as_root(&link).is_err());
        std::fs::hard_link(&file, &other).unwrap();
        assert!(as_root(&file).is_err(), "it has another name, where somebody else may have put it");
    }

    #[test]
    fn what_is_beside_a_file_is_read_by_nobody() {
        assert_eq!(beside(Path::new("/etc/x/y.conf")), Path::new("/etc/x/.y.conf.pg-rollback"));
    }
}
