//! A file that takes up room on the volume of pg_wal, to be given back when that volume is full (S2): a server that found
//! no room for WAL cannot start, and nothing of PostgreSQL's own may be removed to make some.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, faccessat};

use crate::cluster::Cluster;
use crate::error::{Error, Result};

/// pg_basebackup, pg_rewind and pg_checksums pass over what begins with `pgsql_tmp` (manual, 55.4; PG_TEMP_FILE_PREFIX),
/// and the server clears such files away in folders of relations only.
const NAME: &str = "pgsql_tmp.pg-recovery-ballast";

/// What stays free beside it, in sizes of the file: it must not be what fills the disk.
const BESIDE: u64 = 2;

/// In the data directory, or beside pg_wal where that is on another volume; never in pg_wal. With the owner's power.
fn path(cluster: &Cluster) -> Option<PathBuf> {
    let data = &cluster.data_directory;
    let device = |path: &std::path::Path| path.metadata().map(|meta| meta.dev()).ok();
    let wal = data.join("pg_wal").canonicalize().ok()?;
    if device(&wal)? == device(data)? {
        return Some(data.join(NAME));
    }
    let beside = wal.parent()?;
    let may_write = faccessat(AT_FDCWD, beside, AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS).is_ok();
    (device(beside)? == device(&wal)? && may_write).then(|| beside.join(NAME))
}

/// Its size in bytes; 0 when there is none.
pub fn size(cluster: &Cluster) -> Result<u64> {
    cluster.owner.act(|| {
        let meta = path(cluster).and_then(|path| path.symlink_metadata().ok());
        meta.filter(|meta| meta.is_file()).map_or(0, |meta| meta.blocks() * 512)
    })
}

/// Makes or removes it, so that it takes `want` bytes, if the volume has room for more than that.
pub fn keep(cluster: &Cluster, want: u64) -> Result<()> {
    let has = size(cluster)?;
    if has >= want && (want > 0 || has == 0) {
        return Ok(());
    }
    if has > 0 {
        release(cluster)?;
    }
    cluster.owner.act(|| {
        let Some(path) = path(cluster).filter(|_| want > 0) else { return Ok(()) };
        let folder = path.parent().unwrap_or(&cluster.data_directory);
        let stat = statvfs(folder)?;
        if stat.blocks_available() * stat.fragment_size() < want.saturating_mul(1 + BESIDE) {
            return Ok(());
        }
        // One that was begun when the power went has no size yet.
        let _ = std::fs::remove_file(&path);
        let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let file = File::options().write(true).create_new(true).mode(0o600).custom_flags(flags).open(&path)?;
        let made = fallocate(&file, FallocateFlags::empty(), 0, want as i64);
        if made.is_err() {
            let _ = std::fs::remove_file(&path);
        }
        made.map_err(|e| Error::failed(format!("could not reserve room as {}: {}", path.display(), e.desc())))
    })?
}

/// Removes it, and returns how many bytes it took.
pub fn release(cluster: &Cluster) -> Result<u64> {
    let size = size(cluster)?;
    cluster.owner.act(|| {
        let path = path(cluster).ok_or_else(|| Error::failed("there is no reserved room"))?;
        std::fs::remove_file(&path)
            .map_err(|e| Error::failed(format!("could not give back the room of {}: {e}", path.display())))?;
        Ok(size)
    })?
}
