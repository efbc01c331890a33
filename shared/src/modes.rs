//! Mode of what PostgreSQL keeps in a data directory: a careless `chmod -R` changes it (S7).

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};

use crate::error::Result;
use crate::owner::Owner;

/// Folders of the server, in which nobody else has anything (manual, "Database File Layout").
const FOLDERS: &[&str] = &[
    "base",
    "global",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_logical",
    "pg_multixact",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal",
    "pg_xact",
];

/// Files of the server at the top.
const FILES: &[&str] = &["PG_VERSION", "postgresql.auto.conf", "postmaster.opts", "postmaster.pid"];

/// The server's folders are nested no deeper than `pg_logical/snapshots/X`.
pub const DEPTH: u8 = 2;

/// Everything of the server in its data directory that its owner has, and cannot use: what is in a folder that is wrong
/// shows when that one is right. What belongs to somebody else is not among it: whoever can write here could have moved it
/// to this place. The data directory itself is looked at before each start (`prestart`).
pub fn wrong(data_directory: &Path, owner: &Owner) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    each(data_directory, owner, |path, meta| {
        if is_wrong(meta, owner) {
            found.push(path.to_path_buf());
        }
    })?;
    Ok(found)
}

/// Everything of the server in its data directory that its owner cannot read and write because it is somebody else's, with the
/// number of that user: a copy made by root without `-a` leaves such. It is told, not changed.
pub fn foreign(data_directory: &Path, owner: &Owner) -> Result<Vec<(PathBuf, u32)>> {
    let mut found = Vec::new();
    each(data_directory, owner, |path, meta| {
        // The visit has the owner's power.
        let may_use = || {
            let access = AccessFlags::R_OK | AccessFlags::W_OK;
            faccessat(AT_FDCWD, &data_directory.join(path), access, AtFlags::AT_EACCESS).is_ok()
        };
        if meta.uid() != owner.uid.as_raw() && !may_use() {
            found.push((path.to_path_buf(), meta.uid()));
        }
    })?;
    Ok(found)
}

/// Visits each folder and file of the server below `data_directory`, folders first, with the owner's power.
pub fn each(data_directory: &Path, owner: &Owner, mut visit: impl FnMut(&Path, &Metadata)) -> Result<()> {
    owner.act(|| {
        for name in FOLDERS.iter().chain(FILES) {
            look(data_directory, Path::new(name), DEPTH, &mut visit);
        }
    })
}

fn look(root: &Path, path: &Path, depth: u8, visit: &mut impl FnMut(&Path, &Metadata)) {
    // A link, such as a pg_wal elsewhere, is not followed: what is behind it is not this folder's.
    let Ok(meta) = root.join(path).symlink_metadata() else { return };
    if !meta.is_dir() && !meta.is_file() {
        return;
    }
    visit(path, &meta);
    if meta.is_dir() && depth > 0 {
        for entry in std::fs::read_dir(root.join(path)).into_iter().flatten().flatten() {
            look(root, &path.join(entry.file_name()), depth - 1, visit);
        }
    }
}

/// Files need only be readable: WAL that was brought back from an archive may be read-only.
fn is_wrong(meta: &Metadata, owner: &Owner) -> bool {
    let needs = if meta.is_dir() { 0o700 } else { 0o400 };
    meta.uid() == owner.uid.as_raw() && meta.mode() & needs != needs
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_of_somebody_else_is_found_unless_the_owner_can_use_it() {
        let Some(nobody) = Owner::named("nobody").filter(|_| nix::unistd::Uid::effective().is_root()) else {
            return; // needs root
        };
        let root = std::env::temp_dir().join(format!("pg-recovery-foreign-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        std::fs::create_dir_all(root.join("base/5")).unwrap();
        for folder in ["", "base", "base/5"] {
            std::os::unix::fs::chown(root.join(folder), Some(nobody.uid.as_raw()), None).unwrap();
        }
        for (name, mode) in [("PG_VERSION", 0o600), ("base/5/1", 0o644), ("base/5/2", 0o666)] {
            std::fs::write(root.join(name), "").unwrap();
            std::fs::set_permissions(root.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let mut found = foreign(&root, &nobody).unwrap();
        found.sort();
        assert_eq!(found, [("PG_VERSION".into(), 0), ("base/5/1".into(), 0)]);
        assert!(wrong(&root, &nobody).unwrap().is_empty());
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_file_that_its_owner_cannot_use_is_found_and_a_link_is_not_followed() {
        let root = std::env::temp_dir().join(format!("pg-recovery-modes-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        std::fs::create_dir_all(root.join("base/5")).unwrap();
        std::fs::create_dir_all(root.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(root.join("elsewhere"), root.join("pg_wal")).unwrap();
        for (name, mode) in
            [("PG_VERSION", 0o600), ("base/5/1", 0o640), ("base/5/2", 0o200), ("base/5/3", 0o400), ("elsewhere/x", 0)]
        {
            std::fs::write(root.join(name), "").unwrap();
            std::fs::set_permissions(root.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let me = Owner::of_uid(nix::unistd::Uid::effective().as_raw()).unwrap();
        assert_eq!(wrong(&root, &me).unwrap(), [PathBuf::from("base/5/2")]);
        let mut seen = 0;
        each(&root, &me, |_, _| seen += 1).unwrap();
        assert_eq!(seen, 6);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
