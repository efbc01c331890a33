//! A file that takes up room on the volume of pg_wal, to be given back when that volume is full (S2): a server that found
//! no room for WAL cannot start, and nothing of PostgreSQL's own may be removed to make some.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

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

/// In the data directory, or beside pg_wal where that is on another volume; never in pg_wal. With the owner's power. If there
/// is no such place, why.
fn path(cluster: &Cluster) -> Result<PathBuf> {
    let data = &cluster.data_directory;
    let device = |path: &Path| path.metadata().map(|meta| meta.dev());
    let wal = data.join("pg_wal").canonicalize()?;
    if device(&wal)? == device(data)? {
        return Ok(data.join(NAME));
    }
    let beside = wal.parent().unwrap_or(&wal);
    let may_write = faccessat(AT_FDCWD, beside, AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS).is_ok();
    if device(beside)? == device(&wal)? && may_write {
        return Ok(beside.join(NAME));
    }
    Err(Error::failed(format!(
        "no room is kept on the volume of {}: {} may not write in {}",
        wal.display(),
        cluster.owner.name,
        beside.display()
    ))
    .hint("Give it that folder, move pg_wal into a folder of its own on that volume, or set recover.ballast = \"0B\"."))
}

/// Its size in bytes; 0 when there is none.
pub fn size(cluster: &Cluster) -> Result<u64> {
    cluster.owner.act(|| {
        let meta = path(cluster).ok().and_then(|path| path.symlink_metadata().ok());
        meta.filter(|meta| meta.is_file()).map_or(0, |meta| meta.blocks() * 512)
    })
}

/// Makes, enlarges or removes it, so that it takes `want` bytes, if the volume has room for more than that.
pub fn keep(cluster: &Cluster, want: u64) -> Result<()> {
    let has = size(cluster)?;
    if want == 0 {
        return if has > 0 { release(cluster).map(drop) } else { Ok(()) };
    }
    if has >= want {
        return Ok(());
    }
    cluster.owner.act(|| {
        let path = path(cluster)?;
        let stat = statvfs(path.parent().unwrap_or(&cluster.data_directory))?;
        if stat.blocks_available() * stat.fragment_size() + has < want.saturating_mul(1 + BESIDE) {
            return Ok(());
        }
        // One that is there is enlarged: until there is more room it is better than none. Not waiting for a reader, should
        // it be a pipe.
        let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
        let file =
            File::options().write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(&path)?;
        let made = fallocate(&file, FallocateFlags::empty(), 0, want as i64);
        if made.is_err() {
            let _ = if has > 0 { file.set_len(has) } else { std::fs::remove_file(&path) };
        }
        made.map_err(|e| Error::failed(format!("could not reserve room as {}: {}", path.display(), e.desc())))
    })?
}

/// Removes it, and returns how many bytes it took.
pub fn release(cluster: &Cluster) -> Result<u64> {
    let size = size(cluster)?;
    cluster.owner.act(|| {
        let path = path(cluster)?;
        std::fs::remove_file(&path)
            .map_err(|e| Error::failed(format!("could not give back the room of {}: {e}", path.display())))?;
        Ok(size)
    })?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ClusterEntry, Config};

    #[test]
    fn it_is_made_enlarged_and_kept_while_there_is_no_room_for_more() {
        let data = std::env::temp_dir().join(format!("pg-recovery-ballast-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&data);
        std::fs::create_dir_all(data.join("pg_wal")).unwrap();
        let described = ClusterEntry {
            name: "15/x".into(),
            unit: Some("x.service".into()),
            data_directory: Some(data.clone()),
            bin_directory: Some("/x".into()),
            ..ClusterEntry::default()
        };
        let config = Config { cluster: vec![described], ..Config::default() };
        // Files of root's and no user postgres: nobody could own such a cluster.
        let Ok(mut found) = Cluster::select(&config, &["15/x".into()]) else { return };
        let mut cluster = found.remove(0);
        cluster.owner = crate::owner::Owner::of_uid(nix::unistd::Uid::effective().as_raw()).unwrap();
        let kept = |want: u64| {
            keep(&cluster, want).unwrap();
            size(&cluster).unwrap()
        };
        let page = 4096;
        assert_eq!(kept(16 * page), 16 * page);
        assert_eq!(kept(32 * page), 32 * page);
        assert_eq!(kept(1 << 60), 32 * page, "there is no room for more");
        assert_eq!(kept(16 * page), 32 * page);
        assert_eq!(kept(0), 0);
        assert_eq!(kept(0), 0);
        std::fs::remove_dir_all(&data).unwrap();
    }
}
