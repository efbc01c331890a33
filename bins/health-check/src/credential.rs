//! What a check may see: the password of the application's role, from systemd's credentials under the unit, from its file
//! by hand; and the clusters.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use shared::cluster::Cluster;
use shared::exit::Code;
use shared::owner::Owner;
use shared::{Error, Result, state};

const NAME: &str = "application-password";
const FILE: &str = "/etc/pg-recovery/credentials/application-password";

/// `None` when there is none, or none that this user may read.
pub fn password() -> Result<Option<String>> {
    match std::env::var_os("CREDENTIALS_DIRECTORY") {
        // systemd keeps others out of that folder, with access lists that look like group permissions here.
        Some(folder) => read(&PathBuf::from(folder).join(NAME), 0),
        None => read(Path::new(FILE), 0o077),
    }
}

fn read(path: &Path, forbidden: u32) -> Result<Option<String>> {
    let refuse = |why: String| Err(Error::config(format!("cannot use the credential {}: {why}", path.display())));
    let mode = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta.permissions().mode(),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => return Ok(None),
        Err(e) => return refuse(e.to_string()),
    };
    if mode & forbidden != 0 {
        return refuse(format!("others than its owner may read it (mode {:04o})", mode & 0o7777))
            .map_err(|e| e.hint(format!("Run: chmod 600 {}", path.display())));
    }
    match state::read(path, 4096) {
        Ok(text) => match String::from_utf8(text) {
            Ok(text) => Ok(Some(text.trim_end_matches(['\r', '\n']).to_string()).filter(|t| !t.is_empty())),
            Err(_) => refuse("it is not text in UTF-8".into()),
        },
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => Ok(None),
        Err(e) => refuse(e.to_string()),
    }
}

/// Refuses when this user may look at none of the clusters, or cannot see whether there are any.
pub fn may_look(clusters: &[Cluster]) -> Result<()> {
    let (me, root) = (nix::unistd::Uid::effective(), Path::new("/etc/postgresql"));
    let is_owner = if clusters.is_empty() {
        !root.exists() || Owner::named("postgres").is_some_and(|owner| owner.uid == me)
    } else {
        clusters.iter().any(|cluster| cluster.owner.uid == me)
    };
    if me.is_root() || is_owner {
        return Ok(());
    }
    Err(Error::with(Code::NoPerm, "cannot look at the clusters of this host: this program runs as another user")
        .hint("Run it as root or as postgres."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_that_others_may_read_is_refused() {
        let path = std::env::temp_dir().join(format!("pg-health-check-credential-{}", std::process::id()));
        let with = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            read(&path, 0o077)
        };
        assert_eq!(with("secret\n", 0o600).unwrap().as_deref(), Some("secret"));
        assert_eq!(with("\n", 0o600).unwrap(), None, "the unit's stand-in for a missing file");
        for mode in [0o644, 0o640, 0o602] {
            let error = with("secret", mode).unwrap_err();
            assert!(error.message.contains("may read it") && !error.message.contains("secret"), "{}", error.message);
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read(&path, 0o077).unwrap(), None);
    }
}
