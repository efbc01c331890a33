//! Reads a backup as a restore would: each file against the manifest, each WAL record from the backup's start on.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};
use shared::clock::Stamp;
use shared::cluster::Cluster;
use shared::config::Config;
use shared::control::Lsn;
use shared::exit::Code;
use shared::{Result, wal};

use crate::encryption::{self, AGE};
use crate::manifest::{Manifest, hex};
use crate::pgbackrest;
use crate::store::{self, Base, PARTIAL, Store, Verdict, Wal};

const WAL_TAR: &str = "pg_wal.tar";

pub fn all(clusters: &[Cluster], config: &Config, id: Option<&str>) -> Result<Code> {
    crate::each(clusters, |cluster| {
        let store = Store::open(cluster)?;
        pgbackrest::refresh(cluster, &store, config);
        let _reading = store.reading()?;
        let bases = match id {
            Some(_) => vec![store.base(id)?],
            None => store.bases(),
        };
        if bases.is_empty() {
            log::info!(PG_CLUSTER = store.cluster; "there is no backup of cluster {}", store.cluster);
        }
        let (mut worst, mut read) = (Code::Ok, Found::default());
        for mut base in bases {
            let found = one(&store, &mut base, &mut read)?;
            if found == Code::Ok {
                log::info!(PG_CLUSTER = store.cluster; "backup {} of cluster {} is good", base.id, store.cluster);
            }
            worst = Code::worst([worst, found].into_iter());
        }
        Ok(worst)
    })
}

/// What was found of the files of each backup that was read so far, by its id: several may stand upon one.
pub type Found = HashMap<String, Result<(), String>>;

/// Verifies one and keeps the verdict.
pub fn one(store: &Store, base: &mut Base, read: &mut Found) -> Result<Code> {
    let error = check(store, base, read)?.err();
    if let Some(why) = &error {
        log::error!(PG_CLUSTER = store.cluster; "backup {} of cluster {} is not good: {why}", base.id, store.cluster);
    }
    let code = if error.is_none() { Code::Ok } else { Code::Failed };
    base.info.verified = Some(Verdict { at: Stamp::now(), error, seconds: None });
    base.save()?;
    Ok(code)
}

/// Whether all that a restore reads is there and whole, in the backups that this one stands upon too; an error when that
/// cannot be found out.
pub fn check(store: &Store, base: &Base, known: &mut Found) -> Result<Result<(), String>> {
    if let Some(set) = &base.info.pgbackrest {
        return pgbackrest::verify(&base.info, set);
    }
    let info = &base.info;
    let received = store.wal(info.system, info.timeline, info.segment_size);
    let chain = match store.chain(base) {
        Ok(chain) => chain,
        Err(why) => return Ok(Err(why)),
    };
    must_open(&chain, received.paths_from(info.start.0 / info.segment_size))?;
    let files = chain.iter().try_for_each(|member| {
        let found = known.entry(member.id.clone()).or_insert_with(|| read(&member.path, None).map(drop));
        found.clone().map_err(|why| of_member(base, member, why))
    });
    Ok(files.and_then(|()| wal(base, &received)))
}

/// What is wrong with one of those that a backup stands upon, or with itself.
pub fn of_member(base: &Base, member: &Base, why: String) -> String {
    if member.id == base.id { why } else { format!("it stands upon backup {}: {why}", member.id) }
}

/// Refuses when what is encrypted of a backup, of those it stands upon and of its WAL is not for an identity that is here.
pub fn must_open<'a>(chain: &[Base], wal: impl Iterator<Item = &'a Path>) -> Result<()> {
    let files = chain.iter().flat_map(|base| ["base.tar.zst", WAL_TAR].map(|name| base.path.join(name)));
    let files: Vec<PathBuf> = files.map(|path| encryption::find(&path)).collect();
    let base_opens = encryption::must_open(files.iter().map(PathBuf::as_path));
    base_opens.and_then(|()| encryption::must_open(wal)).map_err(|mut why| {
        if let Some(base) = chain.last() {
            why.message = format!("backup {} of cluster {}: {}", base.id, base.info.cluster, why.message);
        }
        why
    })
}

/// Where a restore puts what it reads.
pub struct Target<'a> {
    pub data: &'a Path,
    /// One folder for each tablespace, by its OID.
    pub tablespaces: &'a Path,
}

/// Reads every file of a base backup and compares it with the manifest; writes it as well when there is a target.
pub fn read(base: &Path, target: Option<&Target>) -> Result<Manifest, String> {
    let manifest = Manifest::read(base)?;
    let mut missing: HashMap<&str, &(u64, String)> = manifest.files.iter().map(|(k, v)| (k.as_str(), v)).collect();
    for (tar, tablespace) in tars(base)? {
        let prefix = tablespace.as_ref().map_or(String::new(), |oid| format!("pg_tblspc/{oid}/"));
        let folder =
            target.map(|target| tablespace.as_ref().map_or(target.data.into(), |oid| target.tablespaces.join(oid)));
        if let Some(folder) = &folder {
            make_folder(folder, 0o700).map_err(|e| format!("could not make {}: {e}", folder.display()))?;
        }
        entries(&tar, |name, kind, mode, content| {
            let to = folder.as_ref().map(|folder| folder.join(name));
            let written = |e: io::Error| format!("could not write {name}: {e}");
            match (kind, &to) {
                (tar::EntryType::Directory, Some(to)) => return make_folder(to, mode | 0o700).map_err(written),
                (tar::EntryType::Directory, None) => return Ok(()),
                (tar::EntryType::Regular, _) => {}
                _ => return Err(format!("{name} is neither a file nor a folder")),
            }
            let mut file = match &to {
                Some(to) => Some(create(to, mode).map_err(written)?),
                None => None,
            };
            let (size, checksum) = copy(content, file.as_mut()).map_err(|e| format!("{name}: {e}"))?;
            let path = format!("{prefix}{name}");
            match missing.remove(path.as_str()) {
                Some((s, c)) if *s == size && *c == checksum => Ok(()),
                Some(_) => Err(format!("{path} is not what the manifest says")),
                // What pg_basebackup adds is not in the manifest.
                None if path.starts_with("pg_wal/") || path == "tablespace_map" => Ok(()),
                None => Err(format!("{path} is not in the manifest, or there twice")),
            }
        })?;
    }
    if let Some(target) = target {
        let wal = target.data.join("pg_wal");
        entries(&encryption::find(&base.join(WAL_TAR)), |name, kind, _, content| {
            if kind == tar::EntryType::Regular {
                let written = |e: io::Error| format!("could not write {name}: {e}");
                let path = wal.join(name);
                copy(content, Some(&mut create(&path, 0o600).map_err(written)?)).map_err(written)?;
            }
            Ok(())
        })?;
    }
    match missing.keys().min() {
        Some(path) => Err(format!("{path} is missing, and {} more", missing.len() - 1)),
        None => Ok(manifest),
    }
}

/// `base.tar.zst`, then `OID.tar.zst` for each tablespace.
fn tars(base: &Path) -> Result<Vec<(PathBuf, Option<String>)>, String> {
    let unreadable = |e: io::Error| format!("could not read {}: {e}", base.display());
    let mut tars = vec![(encryption::find(&base.join("base.tar.zst")), None)];
    for entry in fs::read_dir(base).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        let plain = name.to_str().map(|name| name.strip_suffix(AGE).unwrap_or(name));
        let oid = plain.and_then(|name| name.strip_suffix(".tar.zst"));
        if let Some(oid) = oid.filter(|oid| oid.bytes().all(|byte| byte.is_ascii_digit())) {
            tars.push((base.join(&name), Some(oid.to_string())));
        }
    }
    Ok(tars)
}

fn entries(
    path: &Path,
    mut visit: impl FnMut(&str, tar::EntryType, u32, &mut dyn Read) -> Result<(), String>,
) -> Result<(), String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let damaged = |e: io::Error| format!("could not read {name}: {e}");
    let file = encryption::open(path).map_err(damaged)?;
    let stream: Box<dyn Read> = if name.trim_end_matches(AGE).ends_with(".zst") {
        Box::new(zstd::Decoder::new(file).map_err(damaged)?)
    } else {
        Box::new(BufReader::new(file))
    };
    let mut archive = tar::Archive::new(stream);
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let (kind, mode) = (entry.header().entry_type(), entry.header().mode().map_err(damaged)?);
        let path = entry.path().map_err(damaged)?.into_owned();
        let inside = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        let Some(path) = path.to_str().filter(|_| inside) else {
            return Err(format!("{name} has a file of the name {}", path.display()));
        };
        visit(path.trim_start_matches("./").trim_end_matches('/'), kind, mode & 0o700, &mut entry)
            .map_err(|why| format!("{name}: {why}"))?;
    }
    Ok(())
}

fn copy(from: &mut dyn Read, mut to: Option<&mut File>) -> io::Result<(u64, String)> {
    let (mut hasher, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 128 << 10]);
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok((size, hex(&hasher.finalize())));
        }
        hasher.update(&buffer[..read]);
        size += read as u64;
        if let Some(file) = &mut to {
            file.write_all(&buffer[..read])?;
        }
    }
}

fn create(path: &Path, mode: u32) -> io::Result<File> {
    path.parent().map_or(Ok(()), |folder| make_folder(folder, 0o700))?;
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC;
    File::options().write(true).create_new(true).mode(mode | 0o600).custom_flags(flags).open(path)
}

fn make_folder(path: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// Reads the WAL from the start of a backup to the end of the last whole segment that was received. What is missing or
/// unreadable in between would end a restore there, without a word.
fn wal(base: &Base, received: &Wal) -> Result<(), String> {
    let info = &base.info;
    let tar = encryption::find(&base.path.join(WAL_TAR));
    let own = wal_of(&tar)?;
    let open = |name: &str| {
        let number = store::parse_segment(name, info.segment_size).map(|(_, number)| number);
        match number.and_then(|number| received.path_of(number)) {
            Some(path) => match encryption::open(path) {
                // It was completed meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    encryption::open(Path::new(path.to_string_lossy().trim_end_matches(PARTIAL)))
                }
                file => file,
            }
            .map(|file| (file, 0)),
            None => match own.get(name) {
                Some(at) => Ok((encryption::open(&tar)?, *at)),
                None => Err(io::ErrorKind::NotFound.into()),
            },
        }
    };
    let last = info.end.0 / info.segment_size;
    let name = |number| wal::segment_name(info.timeline, number, info.segment_size);
    if let Some(gap) = received.gap_from(last) {
        return Err(format!("WAL segment {} is missing: nothing after it can be restored from this backup", name(gap)));
    }
    let end = Lsn(info.end.0.max(received.complete_from(last) * info.segment_size));
    wal::check_in(&open, &info.control(), end).map_err(|broken| {
        let segment = name(broken.at.0 / info.segment_size);
        format!("WAL cannot be read beyond {} in segment {segment}: {}", broken.at, broken.why)
    })
}

/// Where each segment begins in `pg_wal.tar`.
fn wal_of(path: &Path) -> Result<HashMap<String, u64>, String> {
    let damaged = |e: io::Error| format!("could not read {WAL_TAR}: {e}");
    let mut archive = tar::Archive::new(encryption::open(path).map_err(damaged)?);
    let mut segments = HashMap::new();
    for entry in archive.entries_with_seek().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        segments.insert(entry.path().map_err(damaged)?.to_string_lossy().into_owned(), entry.raw_file_position());
    }
    Ok(segments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup(name: &str, content: &[u8]) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("pg-backup-verify-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let tar = |entries: &[(&str, &[u8])]| {
            let mut tar = tar::Builder::new(Vec::new());
            for (path, content) in entries {
                let mut header = tar::Header::new_ustar();
                header.set_size(content.len() as u64);
                header.set_mode(0o600);
                tar.append_data(&mut header, path, *content).unwrap();
            }
            tar.into_inner().unwrap()
        };
        fs::write(folder.join("base.tar.zst"), zstd::encode_all(&tar(&[("base/1/2", content)])[..], 1).unwrap())
            .unwrap();
        fs::write(folder.join(WAL_TAR), tar(&[("000000010000000000000002", b"wal")])).unwrap();
        let files =
            format!("{{ \"Path\": \"base/1/2\", \"Size\": 4, \"Checksum\": \"{}\" }}", hex(&Sha256::digest(b"data")));
        fs::write(folder.join("backup_manifest"), crate::manifest::tests::sample(&files)).unwrap();
        folder
    }

    #[test]
    fn what_is_restored_is_what_the_manifest_says() {
        let folder = backup("sound", b"data");
        let (data, tablespaces) = (folder.join("to"), folder.join("tablespaces"));
        read(&folder, Some(&Target { data: &data, tablespaces: &tablespaces })).unwrap();
        assert_eq!(fs::read(data.join("base/1/2")).unwrap(), b"data");
        assert_eq!(fs::read(data.join("pg_wal/000000010000000000000002")).unwrap(), b"wal");
        assert_eq!(wal_of(&folder.join(WAL_TAR)).unwrap()["000000010000000000000002"], 512);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn changed_content_and_a_damaged_file_are_noticed() {
        let folder = backup("changed", b"dada");
        assert!(read(&folder, None).unwrap_err().contains("base/1/2 is not what the manifest says"));
        fs::write(folder.join("base.tar.zst"), "no zstd").unwrap();
        assert!(read(&folder, None).unwrap_err().contains("could not read base.tar.zst"));
        fs::remove_dir_all(&folder).unwrap();
    }
}
