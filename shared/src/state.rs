//! Read a state file; replace it whole (temporary file in the same folder, fsync, rename, fsync of the folder).
//!
//! A file that is missing, empty, torn or of an unknown version never stops a recovery: it is set aside as `NAME.bad`
//! with a warning, and the default is used. When the state disk is full or read-only the file goes to
//! `/run/pg-recovery/state` instead, so that counters keep counting; of the two copies the one with the higher serial
//! number is read. The files of the programs that run as root are in folders only root can write; the folder `health`
//! belongs to postgres, which is why files are opened without following links and read up to a limit.

use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub const DIRECTORY: &str = "/var/lib/pg-recovery";
pub const FALLBACK: &str = "/run/pg-recovery/state";
const LIMIT: u64 = 4 << 20;
const VERSION: u32 = 1;

#[derive(Deserialize, Serialize)]
struct Envelope<T> {
    version: u32,
    serial: u64,
    #[serde(flatten)]
    value: T,
}

/// A value that outlives the process, kept in one JSON file.
#[derive(Debug)]
pub struct State<T> {
    primary: PathBuf,
    fallback: PathBuf,
    serial: u64,
    pub value: T,
}

impl<T: Default + Serialize + DeserializeOwned> State<T> {
    /// Reads `/var/lib/pg-recovery/NAME`, such as `recover/16-main.json`.
    pub fn load(name: &str) -> Self {
        Self::load_from(Path::new(DIRECTORY).join(name), Path::new(FALLBACK).join(name))
    }

    fn load_from(primary: PathBuf, fallback: PathBuf) -> Self {
        let newest = [&primary, &fallback]
            .into_iter()
            .filter_map(|path| read_envelope::<T>(path))
            .max_by_key(|envelope| envelope.serial);
        let (serial, value) = newest.map_or((0, T::default()), |e| (e.serial, e.value));
        State { primary, fallback, serial, value }
    }

    /// Replaces the file. `Err` when neither place could be written; the caller goes on and says so.
    pub fn save(&mut self) -> io::Result<()> {
        self.serial += 1;
        let envelope = Envelope { version: VERSION, serial: self.serial, value: &self.value };
        let mut text = serde_json::to_vec_pretty(&envelope).map_err(io::Error::other)?;
        text.push(b'\n');
        match replace(&self.primary, &text, 0o644) {
            Ok(()) => {
                let _ = std::fs::remove_file(&self.fallback);
                Ok(())
            }
            Err(why) => {
                log::warn!(
                    "could not write {}: {why}; keeping it in {}",
                    self.primary.display(),
                    self.fallback.display()
                );
                if let Some(folder) = self.fallback.parent() {
                    std::fs::create_dir_all(folder)?;
                }
                replace(&self.fallback, &text, 0o644)
            }
        }
    }

    /// Saves, and logs instead of failing: for state that must not stop a recovery.
    pub fn save_or_warn(&mut self) {
        if let Err(why) = self.save() {
            log::warn!("could not write {}: {why}; going on without it", self.fallback.display());
        }
    }
}

fn read_envelope<T: DeserializeOwned>(path: &Path) -> Option<Envelope<T>> {
    let text = match read(path, LIMIT) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
        Err(e) => {
            log::warn!("could not read {}: {e}; going on without it", path.display());
            return None;
        }
    };
    let why = match serde_json::from_slice::<Envelope<T>>(&text) {
        Ok(envelope) if envelope.version == VERSION => return Some(envelope),
        Ok(envelope) => format!("unknown version {}", envelope.version),
        Err(_) if text.is_empty() => "it is empty".to_string(),
        Err(e) => e.to_string(),
    };
    let mut aside = path.as_os_str().to_owned();
    aside.push(".bad");
    let aside = PathBuf::from(aside);
    let set_aside = std::fs::rename(path, &aside).map_or_else(|e| e.to_string(), |()| aside.display().to_string());
    log::warn!("cannot use the state file {}: {why}; set aside: {set_aside}", path.display());
    None
}

/// Reads at most `limit` bytes of a regular file, without following a link in its last component and without blocking
/// on a pipe that somebody put there.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Replaces a file whole, with exactly this mode, or leaves the old one as it was.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("no folder"))?;
    let name = path.file_name().ok_or_else(|| io::Error::other("no file name"))?;
    let temporary = folder.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let written = (|| {
        let _ = std::fs::remove_file(&temporary);
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(&temporary)?;
        // Whatever the mask of the process.
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written.and_then(|()| sync_folder(folder))
}

pub fn sync_folder(folder: &Path) -> io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
    struct Score {
        failures: u32,
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("pg-recovery-state-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn what_was_saved_is_read_again() {
        let f = folder("again");
        let (a, b) = (f.join("a.json"), f.join("b/a.json"));
        let mut state: State<Score> = State::load_from(a.clone(), b.clone());
        state.value.failures = 2;
        state.save().unwrap();
        assert_eq!(State::<Score>::load_from(a, b).value.failures, 2);
        assert_eq!(std::fs::read_dir(&f).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_torn_empty_or_future_file_is_set_aside_and_the_default_used() {
        let f = folder("torn");
        for text in ["", "{\"version\":1,\"serial\":1,\"fail", "{\"version\":7,\"serial\":1,\"failures\":2}", "\0\0\0"]
        {
            let path = f.join("s.json");
            std::fs::write(&path, text).unwrap();
            let state = State::<Score>::load_from(path.clone(), f.join("none"));
            assert_eq!(state.value, Score::default(), "{text:?}");
            assert!(!path.exists() && f.join("s.json.bad").exists());
        }
    }

    #[test]
    fn a_state_disk_that_cannot_be_written_does_not_stop_the_counting() {
        let f = folder("full");
        // A folder that does not exist stands for any disk that refuses the write.
        let (a, b) = (f.join("missing/a.json"), f.join("run/a.json"));
        let mut state: State<Score> = State::load_from(a.clone(), b.clone());
        state.value.failures = 3;
        state.save().unwrap();
        let mut state: State<Score> = State::load_from(a.clone(), b.clone());
        assert_eq!(state.value.failures, 3);
        std::fs::create_dir(f.join("missing")).unwrap();
        state.value.failures = 4;
        state.save().unwrap();
        assert_eq!(State::<Score>::load_from(a, b.clone()).value.failures, 4);
        assert!(!b.exists());
    }

    #[test]
    fn a_file_gets_the_mode_that_was_asked_for() {
        let f = folder("mode");
        // Wider than any mask leaves it.
        replace(&f.join("x"), b"", 0o666).unwrap();
        assert_eq!(std::fs::metadata(f.join("x")).unwrap().permissions().mode() & 0o7777, 0o666);
    }

    #[test]
    fn a_link_is_not_followed() {
        let f = folder("link");
        std::fs::write(f.join("secret"), "x").unwrap();
        std::os::unix::fs::symlink(f.join("secret"), f.join("s")).unwrap();
        assert!(read(&f.join("s"), 10).is_err());
    }
}
