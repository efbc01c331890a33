//! Owner and mode of what PostgreSQL keeps in a data directory: a careless `chmod -R` or `chown -R` changes them (S7).

use std::fs::Metadata;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::cluster::Cluster;
use crate::error::Result;
use crate::evidence;
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

/// Something that the owner cannot read and write.
#[derive(Clone, Debug, PartialEq)]
pub struct Wrong {
    /// Below the data directory.
    pub path: PathBuf,
    /// Somebody else's; else the mode is wrong.
    pub is_foreign: bool,
}

impl Wrong {
    /// `base/5/16384 belongs to another user`
    pub fn describe(&self) -> String {
        let what = if self.is_foreign { "belongs to another user" } else { "cannot be read and written by its owner" };
        format!("{} {what}", self.path.display())
    }
}

/// Everything of the server in its data directory with the wrong owner or mode: what is in a folder that is wrong shows
/// when that one is right. Something of another user's that is not known to be the server's is none of it. The data
/// directory itself is looked at before each start (`prestart`). Needs root.
pub fn wrong(cluster: &Cluster) -> Result<Vec<Wrong>> {
    let mut found = in_folder(&cluster.data_directory, &cluster.owner)?;
    if found.iter().any(|(wrong, _)| wrong.is_foreign) {
        let recorded = evidence::inodes(&cluster.name());
        found.retain(|(wrong, inode)| {
            !wrong.is_foreign || recorded.contains(inode) || is_data(&cluster.data_directory, &wrong.path)
        });
    }
    Ok(found.into_iter().map(|(wrong, _)| wrong).collect())
}

fn in_folder(data_directory: &Path, owner: &Owner) -> Result<Vec<(Wrong, u64)>> {
    let mut found = Vec::new();
    each(data_directory, owner, |path, meta| {
        if let Some(is_foreign) = is_wrong(meta, owner) {
            found.push((Wrong { path: path.to_path_buf(), is_foreign }, meta.ino()));
        }
    })?;
    Ok(found)
}

/// A file too new to be recorded: whoever can write here could have moved somebody else's to this place, so its content
/// has to show that it is the server's. It begins and ends with a page of a table or an index, or with zeros, or it begins
/// with a page of WAL.
fn is_data(data_directory: &Path, path: &Path) -> bool {
    const PAGE: usize = 8192;
    let looks_like = || -> std::io::Result<bool> {
        let folder = std::fs::File::open(data_directory)?;
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let file = std::fs::File::from(openat2(&folder, path, how)?);
        let meta = file.metadata()?;
        if !meta.is_file() || meta.nlink() != 1 || meta.len() % PAGE as u64 != 0 {
            return Ok(false);
        }
        if meta.len() == 0 {
            return Ok(true);
        }
        let mut first = [0; PAGE];
        let mut last = [0; PAGE];
        file.read_exact_at(&mut first, 0)?;
        file.read_exact_at(&mut last, meta.len() - PAGE as u64)?;
        // XLOG_PAGE_MAGIC has been 0xD1xx since 9.5 (access/xlog_internal.h).
        let is_wal = path.starts_with("pg_wal") && first[1] == 0xd1;
        Ok(is_wal || (is_page(&first) && is_page(&last)))
    };
    looks_like().unwrap_or(false)
}

/// `pd_pagesize_version`: 8192, layout 4 since 8.3 (storage/bufpage.h); a page that was never written is zero.
fn is_page(page: &[u8]) -> bool {
    page[18..20] == [0x04, 0x20] || page.iter().all(|byte| *byte == 0)
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

/// `Some(true)`: the owner is wrong; `Some(false)`: the mode is.
pub fn is_wrong(meta: &Metadata, owner: &Owner) -> Option<bool> {
    let needs = if meta.is_dir() { 0o700 } else { 0o600 };
    if meta.uid() != owner.uid.as_raw() { Some(true) } else { (meta.mode() & needs != needs).then_some(false) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_that_its_owner_cannot_use_is_found_and_a_link_is_not_followed() {
        let root = std::env::temp_dir().join(format!("pg-recovery-modes-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        std::fs::create_dir_all(root.join("base/5")).unwrap();
        std::fs::create_dir_all(root.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(root.join("elsewhere"), root.join("pg_wal")).unwrap();
        for (name, mode) in [("PG_VERSION", 0o600), ("base/5/1", 0o640), ("base/5/2", 0o400), ("elsewhere/x", 0)] {
            std::fs::write(root.join(name), "").unwrap();
            std::fs::set_permissions(root.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let me = Owner::of_uid(nix::unistd::Uid::effective().as_raw()).unwrap();
        let found: Vec<Wrong> = in_folder(&root, &me).unwrap().into_iter().map(|(wrong, _)| wrong).collect();
        assert_eq!(found, [Wrong { path: "base/5/2".into(), is_foreign: false }]);
        let mut seen = 0;
        each(&root, &me, |_, _| seen += 1).unwrap();
        assert_eq!(seen, 5);
        // Too new to be recorded: an empty file, a page, WAL, and a secret that was moved here.
        let mut page = vec![7; 8192];
        page[18..20].copy_from_slice(&[0x04, 0x20]);
        let mut wal = vec![7; 8192];
        wal[1] = 0xd1;
        for (name, content, is_ours) in [
            ("base/5/3", vec![], true),
            ("base/5/4", vec![0; 16384], true),
            ("base/5/5", page, true),
            ("base/5/6", wal.clone(), false),
            ("base/5/7", b"secret".to_vec(), false),
            ("base/5/8", vec![b's'; 8192], false),
        ] {
            std::fs::write(root.join(name), content).unwrap();
            assert_eq!(is_data(&root, Path::new(name)), is_ours, "{name}");
        }
        std::fs::remove_dir_all(&root).unwrap();
    }
}
