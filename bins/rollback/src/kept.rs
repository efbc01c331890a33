//! What a run that is cut short leaves to the next: on the disk or nowhere, for it has to outlast a reboot.

use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::{Error, Result, point, state};

const LIMIT: u64 = 1 << 20;

/// `None`: there is nothing of that name.
pub fn load<T: DeserializeOwned>(name: &str) -> Result<Option<T>> {
    let path = point::unfinished().join(name);
    let bad = |why: &dyn std::fmt::Display| {
        Error::failed(format!("could not read {}: {why}", path.display()))
            .hint("Compare the files with their recovery points (pg-rollback list, show ID), then remove that file.")
    };
    match state::read(&path, LIMIT) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| bad(&e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(bad(&e)),
    }
}

pub fn save<T: Serialize>(name: &str, value: &T) -> Result<()> {
    let path = point::unfinished().join(name);
    let text = serde_json::to_vec_pretty(value).map_err(std::io::Error::other)?;
    state::replace(&path, &text, 0o600)
        .map_err(|e| Error::failed(format!("could not write {}: {e}; nothing is changed without it", path.display())))
}

/// Works on a full disk.
pub fn remove(name: &str) -> Result<()> {
    let path = point::unfinished().join(name);
    match std::fs::remove_file(&path).and_then(|()| state::sync_folder(&point::unfinished())) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::failed(format!("could not remove {}: {e}", path.display()))
                .hint("Remove it by hand: what it tells of has come to its end."))
        }
        _ => Ok(()),
    }
}
