//! How much room the temporary files of a server take on a volume that is nearly full, and whose they are.

use std::collections::BTreeMap;
use std::path::Path;

use nix::sys::statvfs::statvfs;
use shared::cluster::Cluster;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spill {
    /// Bytes that are used, and those that are free besides, as df(1) reckons.
    pub used: u64,
    pub room: u64,
    /// Of each process.
    pub bytes: BTreeMap<i32, u64>,
}

/// `None` while less than `full` percent of the data directory's volume are used: files are not even counted then. Those
/// of other tablespaces are not looked for, because their volumes may never answer.
pub fn look(cluster: &Cluster, full: u8) -> Option<Spill> {
    let folder = cluster.data_directory.join("base/pgsql_tmp");
    cluster.owner.act(|| of(&folder, full)).ok().flatten()
}

fn of(folder: &Path, full: u8) -> Option<Spill> {
    let stat = statvfs(folder).ok()?;
    let used = stat.blocks().saturating_sub(stat.blocks_free()) * stat.fragment_size();
    let room = used + stat.blocks_available() * stat.fragment_size();
    if used * 100 < room * u64::from(full) {
        return None;
    }
    let mut bytes = BTreeMap::new();
    for entry in std::fs::read_dir(folder).ok()?.flatten() {
        // pgsql_tmp4711.0, and for what parallel workers share a folder: pgsql_tmp4711.0.fileset (fd.c, sharedfileset.c).
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("pgsql_tmp")?.split('.').next()?.parse::<i32>().ok());
        let Some(pid) = pid else { continue };
        let inside = std::fs::read_dir(entry.path()).into_iter().flatten().flatten();
        let size = |entry: std::fs::DirEntry| entry.metadata().map_or(0, |meta| meta.len());
        *bytes.entry(pid).or_default() += inside.map(size).sum::<u64>() + size(entry);
    }
    Some(Spill { used, room, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_counted_for_the_process_in_their_name() {
        let folder = std::env::temp_dir().join(format!("pg-watchdog-spill-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(folder.join("pgsql_tmp7.1.fileset")).unwrap();
        for name in ["pgsql_tmp7.0", "pgsql_tmp7.1.fileset/0.0", "pgsql_tmp8.0", "pgsql_tmp.pg-recovery-ballast"] {
            std::fs::write(folder.join(name), [0; 1 << 20]).unwrap();
        }
        let bytes = of(&folder, 0).unwrap().bytes;
        assert_eq!(bytes.keys().collect::<Vec<_>>(), [&7, &8]);
        // The folder itself takes a little as well.
        assert!(bytes[&7] >> 20 == 2 && bytes[&8] == 1 << 20, "{bytes:?}");
        assert_eq!(of(&folder, 101), None);
    }
}
