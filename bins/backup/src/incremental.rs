//! Incremental base backups: upon which one the next is made, and how a whole data directory comes of them again.
//!
//! A server that summarizes its WAL (PostgreSQL 17, `summarize_wal`) sends only what has changed since an earlier backup,
//! whose manifest it is given. An incremental backup stands upon that one, and that may stand upon another; the first of such
//! a chain is a full one. `pg_combinebackup` makes a data directory of a whole chain.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::Path;

use shared::cluster::Cluster;

use crate::server::Server;
use crate::store::{self, Base, Store};
use crate::verify::{self, Target};
use crate::{child, manifest};

/// What a restore unpacks before it is combined, in the directory that is restored into: on the volume that was wanted.
const PARTS: &str = "pg_recovery.parts";

/// The backup that the next one may stand upon, or why it must be a full one. The server itself may still refuse: it alone
/// knows how far its summaries reach back.
pub fn parent(store: &Store, newest: Option<&Base>, server: &Server, most: u32) -> Result<Base, String> {
    let newest = newest.ok_or("there is none yet")?;
    if (newest.info.system, newest.info.timeline) != (server.system, server.timeline) {
        return Err("the last one is of another cluster or timeline".into());
    }
    let chain = store.chain(newest)?;
    if let Some(bad) = chain.iter().find(|base| !base.info.is_good()) {
        return Err(format!("backup {} is not good", bad.id));
    }
    if chain.len() > most as usize {
        return Err(format!("{} incremental ones stand upon the last (backup.incrementals)", chain.len() - 1));
    }
    Ok(newest.clone())
}

/// Makes a data directory of a chain of backups, each of which is compared with its manifest.
pub fn combine(cluster: &Cluster, chain: &[Base], target: &Target) -> Result<(), String> {
    let text = |e: io::Error| format!("could not combine backups: {e}");
    let parts = target.data.join(PARTS);
    let whole = parts.join("whole");
    let mut command = child::of(cluster, "pg_combinebackup");
    // What it writes was compared, and is flushed with the rest.
    command.args(["--no-manifest", "--no-sync"]).arg("--output").arg(&whole);
    let (Some(last), mut oids) = (chain.last(), Vec::new()) else { return Err("there is no backup".into()) };
    for base in chain {
        let (data, tablespaces) = (parts.join(&base.id), parts.join(format!("{}.tablespaces", base.id)));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&data).map_err(text)?;
        verify::read(&base.path, Some(&Target { data: &data, tablespaces: &tablespaces }))
            .map_err(|why| verify::of_member(last, base, why))?;
        fs::copy(base.path.join(manifest::NAME), data.join(manifest::NAME)).map_err(text)?;
        // It finds tablespaces as a running server does.
        oids = store::names(&tablespaces);
        for oid in &oids {
            symlink(tablespaces.join(oid), data.join("pg_tblspc").join(oid)).map_err(text)?;
        }
        command.arg(&data);
    }
    for oid in oids {
        let from = parts.join(format!("{}.tablespaces", last.id)).join(&oid);
        command.arg("--tablespace-mapping");
        command.arg(format!("{}={}", escaped(&from), escaped(&target.tablespaces.join(oid))));
    }
    child::run(command, || Ok(())).map_err(|why| why.message)?;
    for name in store::names(&whole) {
        fs::rename(whole.join(&name), target.data.join(&name)).map_err(text)?;
    }
    store::remove_tree(&parts).map_err(|why| why.message)
}

/// As `--tablespace-mapping` reads a path.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace('=', "\\=")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Info, Verdict, tests};
    use shared::control::Lsn;

    #[test]
    fn an_incremental_backup_stands_upon_the_last_one_if_all_is_well_with_it() {
        let store = tests::store("incremental");
        let server = Server { system: 7, timeline: 1, ..Server::default() };
        let day = |day: u64| format!("202611{day:02}T020000Z");
        let write = |at: u64, parent: Option<u64>, error: Option<&str>| {
            let verified = Some(Verdict { error: error.map(String::from), ..Verdict::default() });
            let parent = parent.map(day);
            let info = Info { system: 7, timeline: 1, start: Lsn(at), verified, parent, ..Info::default() };
            let base = Base { id: day(at), path: store.path.join("base").join(day(at)), info };
            fs::create_dir_all(&base.path).unwrap();
            base.save().unwrap();
        };
        let upon = |most: u32| parent(&store, store.bases().last(), &server, most).map(|base| base.id);
        assert_eq!(upon(6), Err("there is none yet".into()));
        write(1, None, None);
        write(2, Some(1), None);
        assert_eq!(upon(2), Ok(day(2)));
        assert!(upon(1).unwrap_err().starts_with("1 incremental ones stand upon the last"));
        let promoted = Server { timeline: 2, ..server.clone() };
        assert!(parent(&store, store.bases().last(), &promoted, 6).unwrap_err().contains("timeline"));
        write(1, None, Some("damaged"));
        assert_eq!(upon(6), Err(format!("backup {} is not good", day(1))));
        fs::remove_dir_all(store.path.join("base").join(day(1))).unwrap();
        assert_eq!(upon(6), Err(format!("it stands upon backup {}, which is not there", day(1))));
        fs::remove_dir_all(&store.path).unwrap();
    }

    #[test]
    fn a_path_with_an_equals_sign_is_one_path() {
        assert_eq!(escaped(Path::new("/srv/a=b")), "/srv/a\\=b");
    }
}
