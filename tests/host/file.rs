//! A file of the machine, read and written from outside.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A file of the machine. Links with an absolute target lead out of the machine: use a command for those.
pub struct File {
    pub(crate) path: PathBuf,
}

impl File {
    /// Where it is, as seen from outside.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its text.
    #[track_caller]
    pub fn read(&self) -> String {
        String::from_utf8_lossy(&self.read_bytes()).into_owned()
    }

    /// Its bytes.
    #[track_caller]
    pub fn read_bytes(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap_or_else(|error| self.failed("read", &error))
    }

    /// Replaces its content in place; owner and mode of an existing file stay, a new one is root's. Makes missing folders.
    #[track_caller]
    pub fn write(&self, content: impl AsRef<[u8]>) {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder).unwrap_or_else(|error| self.failed("create the folder of", &error));
        }
        fs::write(&self.path, content).unwrap_or_else(|error| self.failed("write", &error));
    }

    /// Adds a line at its end.
    #[track_caller]
    pub fn append(&self, line: &str) {
        use std::io::Write;
        let mut file = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.path)
            .unwrap_or_else(|error| self.failed("open", &error));
        writeln!(file, "{line}").unwrap_or_else(|error| self.failed("write", &error));
    }

    /// Replaces text in it.
    #[track_caller]
    pub fn replace(&self, old: &str, new: &str) {
        let text = self.read();
        assert!(text.contains(old), "{} does not contain {old:?}:\n{text}", self.path.display());
        self.write(text.replace(old, new));
    }

    /// Removes it.
    #[track_caller]
    pub fn remove(&self) {
        fs::remove_file(&self.path).unwrap_or_else(|error| self.failed("remove", &error));
    }

    /// Whether it is there.
    pub fn exists(&self) -> bool {
        self.path.symlink_metadata().is_ok()
    }

    /// Permission bits, such as `0o700`.
    #[track_caller]
    pub fn mode(&self) -> u32 {
        let metadata = fs::metadata(&self.path).unwrap_or_else(|error| self.failed("stat", &error));
        metadata.permissions().mode() & 0o7777
    }

    /// User id of its owner.
    #[track_caller]
    pub fn owner(&self) -> u32 {
        fs::metadata(&self.path).unwrap_or_else(|error| self.failed("stat", &error)).uid()
    }

    #[track_caller]
    fn failed(&self, verb: &str, error: &std::io::Error) -> ! {
        panic!("could not {verb} {}: {error}", self.path.display())
    }
}
