//! What has to change in the files of a cluster for them to be as they were at a recovery point.

use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};
use shared::clock::Stamp;
use shared::cluster::Cluster;
use shared::point::{self, Copy};
use shared::{Error, Result, state};

/// Which files of a point count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Level {
    /// What the server reads its settings from.
    Config,
    /// Its key and certificate.
    Security,
    All,
}

impl Level {
    fn has(self, copy: &Copy) -> bool {
        match self {
            Level::Config => !copy.tls,
            Level::Security => copy.tls,
            Level::All => true,
        }
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
    /// It is there, and its owner cannot read it.
    pub unreadable: bool,
}

impl Change {
    /// What is done, and the difference; what is in a key is nobody's business.
    pub fn describe(&self) -> String {
        let path = self.path.display();
        let what = match (&self.old, &self.new) {
            (_, None) => format!("remove {path}, which was not there"),
            _ if self.unreadable => return format!("put back {path}; the one that cannot be read is kept beside it"),
            (None, Some(_)) => format!("put back {path}, which is missing"),
            (Some(old), Some(new)) if old.bytes == new.bytes => {
                return format!("give {path} its mode {:04o} back, it has {:04o}", new.mode, old.mode);
            }
            (Some(_), Some(_)) => format!("put back {path}"),
        };
        if self.old.iter().chain(&self.new).any(|copy| copy.tls) {
            return what;
        }
        let bytes = |copy: &Option<Copy>| copy.as_ref().map_or(Vec::new(), |copy| copy.bytes.clone());
        format!("{what}; the difference:\n{}", point::difference(&bytes(&self.old), &bytes(&self.new)))
    }

    /// Makes the file what it was, with no more power than the owner of the cluster has.
    pub fn apply(&self, cluster: &Cluster) -> Result<()> {
        if self.unreadable {
            let mut beside = self.path.clone().into_os_string();
            beside.push(format!(".unreadable-{}", Stamp::now().compact()));
            cluster.owner.act(|| std::fs::rename(&self.path, beside))??;
        }
        put(cluster, &self.path, self.new.as_ref())
    }
}

/// Replaces the file whole, or removes it. The owner's own links lead to the file that counts.
pub fn put(cluster: &Cluster, path: &Path, content: Option<&Copy>) -> Result<()> {
    let done = cluster.owner.act(|| {
        let real = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        match content {
            Some(copy) => state::replace(&real, &copy.bytes, copy.mode),
            None => match std::fs::remove_file(path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
                _ => path.parent().map_or(Ok(()), state::sync_folder),
            },
        }
    })?;
    done.map_err(|e| Error::failed(format!("could not put back {}: {e}", path.display())))
}

/// The files of `level` (of these, those that `only` names) that are not as they were at the point. Files that were not
/// there are among them only in the folder of the configuration: what lies elsewhere may be somebody else's.
/// A file that its owner cannot read is an error unless `force`.
pub fn changes(cluster: &Cluster, goal: &[Copy], level: Level, only: &[&str], force: bool) -> Result<Vec<Change>> {
    let mut paths: Vec<PathBuf> = goal.iter().filter(|copy| level.has(copy)).map(|copy| copy.path.clone()).collect();
    if level != Level::Security && goal.iter().any(|copy| !copy.tls) {
        let folder = &cluster.config_directory;
        let is_new = |path: &PathBuf| path.starts_with(folder) && !goal.iter().any(|copy| copy.path == *path);
        paths.extend(point::files(cluster).into_iter().filter(is_new));
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
        let new = goal.iter().find(|copy| copy.path == path).cloned();
        let (old, unreadable) = match present(cluster, &path) {
            Ok(old) => (old, false),
            Err(_) if force => (None, true),
            Err(e) => return Err(e.hint("Give it the owner and the mode that it had, or move it away.")),
        };
        let content = |copy: &Option<Copy>| copy.as_ref().map(|copy| (copy.mode, point::sha256(&copy.bytes)));
        if unreadable || content(&old) != content(&new) {
            changes.push(Change { path, old, new, unreadable });
        }
    }
    Ok(changes)
}

pub fn present(cluster: &Cluster, path: &Path) -> Result<Option<Copy>> {
    match cluster.owner.act(|| path.metadata())? {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        _ => Ok(point::read(cluster, &[path.to_path_buf()])?.pop()),
    }
}

/// The first file of these that could not be put back, because the owner may not write in its folder.
pub fn fixed<'a>(cluster: &Cluster, copies: &'a [Copy]) -> Result<Option<&'a Path>> {
    let may = AccessFlags::W_OK | AccessFlags::X_OK;
    let is_fixed = |copy: &&Copy| {
        let real = copy.path.canonicalize().unwrap_or_else(|_| copy.path.clone());
        let folder = real.parent().unwrap_or(Path::new("/"));
        faccessat(AT_FDCWD, folder, may, AtFlags::AT_EACCESS).is_err()
    };
    cluster.owner.act(|| copies.iter().find(is_fixed).map(|copy| copy.path.as_path()))
}

/// The configuration as it is now, key and certificate as well.
pub fn now(cluster: &Cluster) -> Result<Vec<Copy>> {
    let mut files = point::files(cluster);
    files.extend(point::tls_files(cluster));
    point::read(cluster, &files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(text: &str, tls: bool) -> Option<Copy> {
        Some(Copy { path: "/etc/x".into(), mode: 0o640, bytes: text.into(), tls })
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
    }
}
