//! What is secret: a copy that systemd hands over (`LoadCredential=`) under a unit, the file itself by hand.

use std::fmt::Display;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::{Error, Result, state};

const FOLDER: &str = "/etc/pg-recovery/credentials";

/// The text of `/etc/pg-recovery/credentials/FILE`, which a unit has as the credential `ID`. `None` when there is none. One
/// that cannot be read, or that others may read, is refused: what is not done because of that must not be taken for done.
pub fn read(file: &str, id: &str) -> Result<Option<String>> {
    let copy = std::env::var_os("CREDENTIALS_DIRECTORY").map(|folder| PathBuf::from(folder).join(id));
    load(&Path::new(FOLDER).join(file), copy.as_deref())
}

fn load(original: &Path, copy: Option<&Path>) -> Result<Option<String>> {
    // systemd hands over a copy, and who may read the original only the original tells. Where its folder does not let us
    // see that, it lets nobody else read it either.
    match std::fs::metadata(original) {
        Ok(meta) if !meta.is_file() => {
            let hint = "Put the password or token into a file of this name, with mode 0600.";
            return refuse(original, "it is not a regular file", hint);
        }
        Ok(meta) if meta.permissions().mode() & 0o077 != 0 => {
            let why = format!("others than its owner may read it (mode {:04o})", meta.permissions().mode() & 0o7777);
            return refuse(original, why, format!("Run: chmod 600 {}", original.display()));
        }
        // Reading says why not.
        _ => {}
    }
    let path = copy.unwrap_or(original);
    let hint = match copy {
        Some(_) => "LoadCredential= says where it comes from: systemctl cat shows that of the unit",
        None => "Run it as root, or start its unit.",
    };
    // Root may have put a link there, to wherever its secrets are.
    match std::fs::canonicalize(path).and_then(|path| state::read(&path, 4096)) {
        Ok(text) => match String::from_utf8(text) {
            Ok(text) => Ok(Some(text.trim_end_matches(['\r', '\n']).to_string()).filter(|t| !t.is_empty())),
            Err(_) => refuse(path, "it is not text in UTF-8", "Write it again."),
        },
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => refuse(path, e, hint),
    }
}

fn refuse<T>(path: &Path, why: impl Display, hint: impl Into<String>) -> Result<T> {
    Err(Error::config(format!("cannot use the credential {}: {why}", path.display())).hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_that_others_may_read_is_refused() {
        let folder = std::env::temp_dir().join(format!("pg-recovery-credential-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (path, copy) = (folder.join("original"), folder.join("copy"));
        let with = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            load(&path, None)
        };
        assert_eq!(with("secret\n", 0o600).unwrap().as_deref(), Some("secret"));
        assert_eq!(with("\n", 0o600).unwrap(), None, "the unit's stand-in for a missing file");
        std::fs::write(&copy, "secret").unwrap();
        assert_eq!(load(&path, Some(&copy)).unwrap().as_deref(), Some("secret"), "whatever the mode of the copy");
        for mode in [0o644, 0o640, 0o602] {
            for error in [with("secret", mode).unwrap_err(), load(&path, Some(&copy)).unwrap_err()] {
                assert!(
                    error.message.contains("may read it") && !error.message.contains("secret"),
                    "{}",
                    error.message
                );
            }
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(load(&path, None).unwrap(), None);
        assert_eq!(load(&path, Some(&copy)).unwrap().as_deref(), Some("secret"), "its folder hides the original");
        let error = load(&path, Some(&folder)).unwrap_err();
        assert!(error.message.ends_with("not a regular file") && error.hint.is_some(), "{}", error.message);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
