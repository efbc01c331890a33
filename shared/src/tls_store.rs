//! Keys with their certificates as pg-cert-renew keeps them: `/var/lib/pg-recovery-tls/16-main/`.
//!
//! Each pair is a folder of its own with `server.crt` and `server.key`, which is complete before it has its name and does
//! not change after. `current` is a link to the one that the server reads, so that one rename changes both files, and a
//! crash never leaves a key beside another one's certificate; `last-good` is a link to the one that was last seen to be
//! served: where it differs, a run did not come to its end. The folder belongs to the owner of the key and is touched
//! with no more power than his. It is outside of `/var/lib/pg-recovery`, because a server goes on using it when this
//! package is gone.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use crate::clock::Stamp;
use crate::error::{Error, Result};
use crate::owner::Owner;
use crate::state;

pub const DIRECTORY: &str = "/var/lib/pg-recovery-tls";
pub const CERTIFICATE: &str = "server.crt";
pub const KEY: &str = "server.key";
const CURRENT: &str = "current";
const LAST_GOOD: &str = "last-good";
/// The current one, and those before it that are still there to go back to.
const KEEP: usize = 3;
const LIMIT: u64 = 1 << 20;

#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    owner: Owner,
}

impl Store {
    /// Of a cluster (`16/main`) or another service. Nothing is made yet.
    pub fn of(name: &str, owner: &Owner) -> Store {
        Store { folder: Path::new(DIRECTORY).join(crate::cluster::file_name(name)), owner: owner.clone() }
    }

    /// The one that these two settings of a server lead to; after pg_upgradecluster it has the name of the old cluster.
    pub fn named_by(certificate: &Path, key: &Path, owner: &Owner) -> Option<Store> {
        let folder = certificate.parent()?.parent()?;
        let store = Store { folder: folder.into(), owner: owner.clone() };
        let is_ours =
            folder.parent() == Some(Path::new(DIRECTORY)) && (certificate, key) == (&store.certificate(), &store.key());
        is_ours.then_some(store)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn certificate(&self) -> PathBuf {
        self.folder.join(CURRENT).join(CERTIFICATE)
    }

    pub fn key(&self) -> PathBuf {
        self.folder.join(CURRENT).join(KEY)
    }

    /// Name of the pair that the server reads.
    pub fn current(&self) -> Option<String> {
        self.link(CURRENT)
    }

    /// Name of the pair that was last seen to be served.
    pub fn last_good(&self) -> Option<String> {
        self.link(LAST_GOOD)
    }

    fn link(&self, name: &str) -> Option<String> {
        let target = self.owner.act(|| std::fs::read_link(self.folder.join(name))).ok()?.ok()?;
        let target = target.into_os_string().into_string().ok()?;
        is_version(&target).then_some(target)
    }

    /// Certificate and key of one pair.
    pub fn read(&self, version: &str) -> Result<(Vec<u8>, Vec<u8>)> {
        let folder = self.folder.join(version);
        let read = |name: &str| state::read(&folder.join(name), LIMIT);
        let pair = self.owner.act(|| read(CERTIFICATE).and_then(|certificate| Ok((certificate, read(KEY)?))))?;
        pair.map_err(|e| Error::failed(format!("could not read the pair in {}: {e}", folder.display())))
    }

    /// All pairs, the oldest first.
    pub fn versions(&self) -> Vec<String> {
        let names = self.owner.act(|| {
            let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| is_version(name)).collect()
        });
        let mut names: Vec<String> = names.unwrap_or_default();
        names.sort();
        names
    }

    /// Adds a pair, which nobody reads yet; its name.
    pub fn add(&self, certificate: &[u8], key: &[u8]) -> Result<String> {
        let bad = |e: io::Error| {
            Error::failed(format!("could not put a new pair into {}: {e}", self.folder.display()))
                .hint("The server goes on with the pair that it has.")
        };
        self.make_folder().map_err(bad)?;
        let (last, now) = (self.versions().pop(), Stamp::now().compact());
        // Names sort by age, also when the clock was set back.
        let version = match last {
            Some(last) if last >= now => format!("{last}+"),
            _ => now,
        };
        let temporary = self.folder.join(format!(".{version}"));
        let made = self.owner.act(|| {
            let _ = std::fs::remove_dir_all(&temporary);
            let made = (|| {
                DirBuilder::new().mode(0o700).create(&temporary)?;
                write(&temporary.join(CERTIFICATE), certificate, 0o644)?;
                write(&temporary.join(KEY), key, 0o600)?;
                state::sync_folder(&temporary)?;
                std::fs::rename(&temporary, self.folder.join(&version))?;
                state::sync_folder(&self.folder)
            })();
            if made.is_err() {
                let _ = std::fs::remove_dir_all(&temporary);
            }
            made
        })?;
        made.map(|()| version).map_err(bad)
    }

    fn make_folder(&self) -> io::Result<()> {
        // Only root writes where it is.
        match DirBuilder::new().mode(0o700).create(&self.folder) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            // Killed in between, it is root's and empty; root's and not empty it is the store of a service of root's.
            _ => chown(&self.folder, Some(self.owner.uid.as_raw()), Some(self.owner.gid.as_raw())),
        }
    }

    /// The server reads this pair from now on; in one step.
    pub fn switch(&self, version: &str) -> Result<()> {
        self.point(CURRENT, version)
    }

    /// It was seen to be served.
    pub fn mark_good(&self, version: &str) -> Result<()> {
        self.point(LAST_GOOD, version)
    }

    fn point(&self, name: &str, version: &str) -> Result<()> {
        let temporary = self.folder.join(format!(".{name}"));
        let done = self.owner.act(|| {
            let _ = std::fs::remove_file(&temporary);
            symlink(version, &temporary)?;
            std::fs::rename(&temporary, self.folder.join(name))?;
            state::sync_folder(&self.folder)
        })?;
        done.map_err(|e| Error::failed(format!("could not point {}/{name} at {version}: {e}", self.folder.display())))
    }

    /// Removes what a run has left that was cut short, and the oldest pairs that no link leads to.
    pub fn forget_old(&self) {
        let in_use = [self.current(), self.last_good()];
        let versions = self.versions();
        let old = versions.iter().rev().skip(KEEP).filter(|version| !in_use.contains(&Some((*version).clone())));
        let _ = self.owner.act(|| {
            for version in old {
                let _ = std::fs::remove_dir_all(self.folder.join(version));
            }
            for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with('.') {
                    let _ = std::fs::remove_dir_all(entry.path()).or_else(|_| std::fs::remove_file(entry.path()));
                }
            }
        });
    }
}

/// `20261126T093134Z`, with a `+` for each that followed it within its second.
fn is_version(name: &str) -> bool {
    let name = name.trim_end_matches('+');
    name.len() == 16 && name.bytes().all(|b| b.is_ascii_digit() || b == b'T' || b == b'Z')
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let options = OpenOptions::new().write(true).create_new(true).mode(mode).custom_flags(libc::O_CLOEXEC).open(path);
    let mut file = options?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_pair_is_whole_or_not_there_and_the_oldest_go() {
        let folder = std::env::temp_dir().join(format!("pg-recovery-tls-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        let owner = Owner::of_uid(nix::unistd::Uid::effective().as_raw()).unwrap();
        let store = Store { folder: folder.clone(), owner: owner.clone() };
        assert_eq!((store.current(), store.versions().len()), (None, 0));
        let first = store.add(b"c0", b"k0").unwrap();
        store.switch(&first).unwrap();
        store.mark_good(&first).unwrap();
        for n in 1..=KEEP + 1 {
            let version = store.add(format!("c{n}").as_bytes(), format!("k{n}").as_bytes()).unwrap();
            assert_eq!(store.current(), Some(first.clone()), "nobody reads it yet");
            assert_eq!(store.versions().last(), Some(&version));
        }
        std::fs::create_dir(folder.join(".20200101T000000Z")).unwrap();
        store.forget_old();
        assert_eq!(store.versions().len(), KEEP + 1);
        assert_eq!(store.read(&first).unwrap(), (b"c0".to_vec(), b"k0".to_vec()));
        let newest = store.versions().pop().unwrap();
        store.switch(&newest).unwrap();
        assert_ne!(store.current(), store.last_good());
        assert_eq!(std::fs::read(store.key()).unwrap(), format!("k{}", KEEP + 1).as_bytes());
        let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(folder.clone()), mode(folder.join(&newest)), mode(store.key())), (0o700, 0o700, 0o600));
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), KEEP + 1 + 2, "nothing else is left");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_store_is_known_by_the_settings_that_lead_to_it() {
        let owner = Owner::of_uid(nix::unistd::Uid::effective().as_raw()).unwrap();
        let named = |c: &str, k: &str| Store::named_by(Path::new(c), Path::new(k), &owner).is_some();
        let base = format!("{DIRECTORY}/15-main/current");
        assert!(named(&format!("{base}/server.crt"), &format!("{base}/server.key")));
        assert!(!named(&format!("{base}/server.crt"), "/etc/ssl/private/ssl-cert-snakeoil.key"));
        assert!(!named("/d/15-main/current/server.crt", "/d/15-main/current/server.key"));
        assert!(!named("server.crt", "server.key"));
    }
}
