//! The clusters of this host, the way postgresql-common keeps them (`/etc/postgresql/VERSION/NAME`), and those that the
//! configuration describes.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Uid;

use crate::config::{ClusterEntry, Config};
use crate::error::{Error, Result};
use crate::owner::Owner;
use crate::pidfile::{LockFile, PidFile};
use crate::{deadline, state};

const ROOT: &str = "/etc/postgresql";
/// A disk that answers at all does so within this time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// `start.conf` (pg_createcluster(8), STARTUP CONTROL).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Auto,
    Manual,
    Disabled,
}

#[derive(Clone, Debug)]
pub struct Cluster {
    /// Major version, such as `16`.
    pub version: String,
    pub cluster: String,
    pub unit: String,
    pub start: Start,
    pub owner: Owner,
    /// Canonical when it exists.
    pub data_directory: PathBuf,
    /// Holds postgresql.conf, pg_hba.conf and pg_ident.conf.
    pub config_directory: PathBuf,
    pub bin_directory: PathBuf,
    pub log_file: Option<PathBuf>,
    /// The clusters of postgresql-common have a start.conf and are grouped by postgresql.service.
    pub is_debian: bool,
    /// False when its volume did not answer in time: what lies there, such as the settings of ALTER SYSTEM, is missing here.
    pub is_whole: bool,
    settings: HashMap<String, String>,
}

impl Cluster {
    /// `16/main`
    pub fn name(&self) -> String {
        format!("{}/{}", self.version, self.cluster)
    }

    /// `16-main`
    pub fn file_name(&self) -> String {
        file_name(&self.name())
    }

    /// A setting as the configuration files have it now; a server that runs may use another value.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(String::as_str)
    }

    /// The same with settings that its server says it has, whatever the files say.
    pub fn with_settings(&self, settings: impl IntoIterator<Item = (&'static str, String)>) -> Cluster {
        let mut cluster = self.clone();
        cluster.settings.extend(settings.into_iter().map(|(name, value)| (name.to_string(), value)));
        cluster
    }

    pub fn port(&self) -> u16 {
        self.setting("port").and_then(|p| p.parse().ok()).unwrap_or(5432)
    }

    pub fn socket_directory(&self) -> PathBuf {
        match self.setting("unix_socket_directories").and_then(|list| list.split(',').next()).map(str::trim) {
            Some(first) if !first.is_empty() => first.into(),
            // Debian's built-in default (postgresql-common's and the package's).
            _ => "/var/run/postgresql".into(),
        }
    }

    /// Where clients of this host reach it by TCP: each of `listen_addresses`, wildcards as loopback; empty when it
    /// listens on sockets only.
    pub fn tcp_addresses(&self) -> Vec<String> {
        let list = self.setting("listen_addresses").unwrap_or("localhost");
        let mut addresses: Vec<String> = list
            .split(',')
            .map(str::trim)
            .filter(|a| !a.is_empty())
            .map(|a| match a {
                "*" | "0.0.0.0" => "127.0.0.1".to_string(),
                "::" => "::1".to_string(),
                other => other.to_string(),
            })
            .collect();
        addresses.dedup();
        addresses
    }

    pub fn hba_file(&self) -> PathBuf {
        self.setting("hba_file").map_or_else(|| self.config_directory.join("pg_hba.conf"), PathBuf::from)
    }

    /// Its lock file, read with the owner's power.
    pub fn lock_file(&self) -> (LockFile, Vec<u8>) {
        let read = self.owner.act(|| LockFile::read(&self.data_directory));
        read.unwrap_or_else(|e| (LockFile::Unreadable(e.message), Vec::new()))
    }

    /// Port and socket directory that the running server has, else those of the configuration files.
    pub fn socket(&self, running: Option<&PidFile>) -> (PathBuf, u16) {
        let directory = running.and_then(|f| f.socket_directory.clone()).unwrap_or_else(|| self.socket_directory());
        (directory, running.and_then(|f| f.port).unwrap_or_else(|| self.port()))
    }

    /// The same with its settings as the files have them now.
    pub fn again(&self) -> Cluster {
        let mut settings = HashMap::new();
        let file = self.config_directory.join("postgresql.conf");
        let _ = with_power_of(&self.owner, || read_settings(&file, &mut settings, 0));
        Cluster { settings, ..self.clone() }.finished()
    }

    /// Finds the clusters of this host, sorted by name.
    pub fn discover(config: &Config) -> Result<Vec<Cluster>> {
        Self::discover_in(Path::new(ROOT), config)
    }

    /// The clusters with these names, or all.
    pub fn select(config: &Config, names: &[String]) -> Result<Vec<Cluster>> {
        let mut all = Self::discover(config)?;
        for name in names {
            if !all.iter().any(|c| c.name() == *name) {
                let known: Vec<String> = all.iter().map(Cluster::name).collect();
                let known = if known.is_empty() { "none".to_string() } else { known.join(", ") };
                return Err(Error::usage(format!("cannot find cluster {name}"))
                    .hint(format!("Clusters of this host: {known}.")));
            }
        }
        if !names.is_empty() {
            all.retain(|c| names.contains(&c.name()));
        }
        Ok(all)
    }

    fn discover_in(root: &Path, config: &Config) -> Result<Vec<Cluster>> {
        let mut clusters = Vec::new();
        for version in subfolders(root)? {
            for folder in subfolders(&version)? {
                let (Some(v), Some(n)) = (text_name(&version), text_name(&folder)) else { continue };
                // Without its postgresql.conf it is still a cluster, and a broken one, as long as it has a start.conf.
                if folder.join("postgresql.conf").symlink_metadata().is_ok() || folder.join("start.conf").exists() {
                    clusters.extend(Self::debian(v, n, folder));
                }
            }
        }
        for entry in config.cluster.iter().filter(|e| e.unit.is_some()) {
            clusters.push(Self::described(entry)?);
        }
        clusters.sort_by_key(Cluster::name);
        Ok(clusters)
    }

    fn debian(version: String, name: String, config_directory: PathBuf) -> Option<Cluster> {
        // A link's owner, not its target's: postgres can make one that leads to a file of anybody.
        let owner = owner_of(config_directory.join("postgresql.conf").symlink_metadata())
            .or_else(|| owner_of(config_directory.metadata()))
            .or_else(|| Owner::named("postgres"))?;
        let start = match with_power_of(&owner, || state::read(&config_directory.join("start.conf"), 65536)) {
            Ok(text) => parse_start(&String::from_utf8_lossy(&text)),
            // As postgresql-common's generator: no file means auto.
            Err(_) => Start::Auto,
        };
        let mut settings = HashMap::new();
        let _ = with_power_of(&owner, || read_settings(&config_directory.join("postgresql.conf"), &mut settings, 0));
        let data_directory = settings
            .get("data_directory")
            .map(PathBuf::from)
            // A configuration that is missing or empty does not say where; it is where it was.
            .or_else(|| crate::evidence::load(&format!("{version}/{name}")).map(|evidence| evidence.data_directory))
            .unwrap_or_else(|| PathBuf::from(format!("/var/lib/postgresql/{version}/{name}")));
        let bin_directory = PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"));
        let log_file = PathBuf::from(format!("/var/log/postgresql/postgresql-{version}-{name}.log"));
        let unit = format!("postgresql@{version}-{name}.service");
        let cluster = Cluster {
            version,
            cluster: name,
            unit,
            start,
            owner,
            data_directory,
            config_directory,
            bin_directory,
            log_file: Some(log_file),
            is_debian: true,
            is_whole: false,
            settings,
        };
        Some(cluster.finished())
    }

    fn described(entry: &ClusterEntry) -> Result<Cluster> {
        let (version, name) = entry.name.split_once('/').unwrap_or((&entry.name, "main"));
        let data_directory = entry.data_directory.clone().unwrap_or_default();
        let folder = data_directory.clone();
        let look = move || {
            let owner = owner_of(folder.metadata()).or_else(|| Owner::named("postgres"));
            let mut settings = HashMap::new();
            if let Some(owner) = &owner {
                let file = folder.join("postgresql.conf");
                let _ = with_power_of(owner, || read_settings(&file, &mut settings, 0));
            }
            (owner, settings)
        };
        let (owner, mut settings) = deadline::within(&data_directory, PATIENCE, look).unwrap_or_default();
        let owner = owner.or_else(|| Owner::named("postgres")).ok_or_else(|| {
            Error::config(format!(
                "cannot tell who owns cluster {}: no folder {}",
                entry.name,
                data_directory.display()
            ))
            .hint("Correct data_directory in its [[cluster]] entry.")
        })?;
        settings.entry("unix_socket_directories".into()).or_insert_with(|| "/run/postgresql".into());
        let cluster = Cluster {
            version: version.into(),
            cluster: name.into(),
            unit: entry.unit.clone().unwrap_or_default(),
            start: Start::Auto,
            owner,
            config_directory: data_directory.clone(),
            data_directory,
            bin_directory: entry.bin_directory.clone().unwrap_or_default(),
            log_file: entry.log_file.clone(),
            is_debian: false,
            is_whole: false,
            settings,
        };
        Ok(cluster.finished())
    }

    /// With what has to be looked up where the data is; without it when that volume does not answer. Whoever then has to
    /// do with this cluster will find out that it does not.
    fn finished(self) -> Cluster {
        let mut cluster = self.clone();
        let look = move || {
            cluster.finish();
            cluster.is_whole = true;
            cluster
        };
        deadline::within(&self.data_directory, PATIENCE, look).unwrap_or(self)
    }

    /// What ALTER SYSTEM wrote wins, except where the data directory is.
    fn finish(&mut self) {
        let canonical = with_power_of(&self.owner, || self.data_directory.canonicalize().ok());
        self.data_directory = canonical.unwrap_or_else(|| self.data_directory.clone());
        if self.is_debian {
            // The link that pg_createcluster makes where the log is elsewhere.
            self.log_file = self.config_directory.join("log").canonicalize().ok().or(self.log_file.take());
        }
        let mut settings = std::mem::take(&mut self.settings);
        let auto = self.data_directory.join("postgresql.auto.conf");
        let _ = with_power_of(&self.owner, || read_settings(&auto, &mut settings, 0));
        self.settings = settings;
    }
}

/// Reads as the owner where that is possible, and else with what power the program has itself: a check that runs as
/// postgres sees the clusters of other users too.
fn with_power_of<T>(owner: &Owner, mut read: impl FnMut() -> T) -> T {
    match owner.act(&mut read) {
        Ok(value) => value,
        Err(_) => read(),
    }
}

/// `16/main` -> `16-main`
pub fn file_name(cluster: &str) -> String {
    cluster.replacen('/', "-", 1)
}

fn owner_of(found: std::io::Result<Metadata>) -> Option<Owner> {
    let uid = found.ok()?.uid();
    // PostgreSQL refuses to run as root, so a file of root's says nothing about the owner.
    if Uid::from_raw(uid).is_root() { None } else { Owner::of_uid(uid) }
}

fn subfolders(folder: &Path) -> Result<Vec<PathBuf>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => Ok(entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::failed(format!("could not read {}: {e}", folder.display()))),
    }
}

fn text_name(path: &Path) -> Option<String> {
    path.file_name()?.to_str().map(String::from)
}

fn parse_start(text: &str) -> Start {
    let word = text.lines().map(|l| l.split('#').next().unwrap_or("").trim()).find(|l| !l.is_empty());
    match word {
        None | Some("auto") => Start::Auto,
        Some("manual") => Start::Manual,
        // A word nobody knows is a person's wish that was misspelt, not a wish to start.
        Some(_) => Start::Disabled,
    }
}

/// Reads `name = value` lines as far as they can be understood: this is how the programs find a cluster whose
/// configuration is broken. What the server makes of it is asked from the server (`postgres -C`).
fn read_settings(file: &Path, settings: &mut HashMap<String, String>, depth: u8) -> std::io::Result<()> {
    // A link is fine here: the caller has only the owner's power.
    let bytes = std::fs::canonicalize(file).and_then(|path| state::read(&path, 4 << 20))?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    for line in String::from_utf8_lossy(&bytes).lines() {
        let Some((name, value)) = parse_line(line) else { continue };
        match name.as_str() {
            // The server stops at ten levels too (guc-file.l, CONF_FILE_MAX_DEPTH).
            "include" | "include_if_exists" if depth < 10 => {
                let _ = read_settings(&folder.join(value), settings, depth + 1);
            }
            "include_dir" if depth < 10 => {
                let entries = std::fs::read_dir(folder.join(value)).into_iter().flatten().flatten();
                let mut files: Vec<PathBuf> = entries.map(|e| e.path()).collect();
                files.retain(|p| text_name(p).is_some_and(|n| n.ends_with(".conf") && !n.starts_with('.')));
                files.sort();
                for file in files {
                    let _ = read_settings(&file, settings, depth + 1);
                }
            }
            _ => {
                settings.insert(name, value);
            }
        }
    }
    Ok(())
}

/// One line of postgresql.conf (manual, 20.1.2): the equals sign is optional, quotes are doubled inside quotes.
pub fn parse_line(line: &str) -> Option<(String, String)> {
    let line = line.trim_start();
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.'))?;
    let (name, rest) = line.split_at(end);
    if name.is_empty() {
        return None;
    }
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let value = if let Some(quoted) = rest.strip_prefix('\'') {
        let mut value = String::new();
        let mut chars = quoted.chars().peekable();
        loop {
            match chars.next()? {
                '\'' if chars.peek() == Some(&'\'') => value.extend(chars.next()),
                '\'' => break,
                '\\' => value.extend(chars.next()),
                c => value.push(c),
            }
        }
        value
    } else {
        rest.split(|c: char| c.is_whitespace() || c == '#').next()?.to_string()
    };
    Some((name.to_ascii_lowercase(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_the_server_reads_them() {
        for (line, name, value) in [
            ("port = 5433", "port", "5433"),
            ("  Port 5433 # the second", "port", "5433"),
            ("listen_addresses = 'a, b' # c", "listen_addresses", "a, b"),
            ("x = 'it''s'", "x", "it's"),
            ("include_dir 'conf.d'", "include_dir", "conf.d"),
        ] {
            assert_eq!(parse_line(line), Some((name.into(), value.into())), "{line}");
        }
        for line in ["# port = 1", "", "   ", "x = 'open"] {
            assert_eq!(parse_line(line), None, "{line}");
        }
    }

    #[test]
    fn start_conf_is_read_as_postgresql_common_reads_it() {
        assert_eq!(parse_start("# a comment\n\n  auto  # why\n"), Start::Auto);
        assert_eq!(parse_start(""), Start::Auto);
        assert_eq!(parse_start("manual"), Start::Manual);
        assert_eq!(parse_start("disabled"), Start::Disabled);
        assert_eq!(parse_start("manuel"), Start::Disabled);
    }

    #[test]
    fn a_tree_with_two_clusters_and_drop_ins_is_found() {
        let root = std::env::temp_dir().join(format!("pg-recovery-clusters-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        for (name, port) in [("main", 5432), ("a-b", 5433)] {
            let folder = root.join("15").join(name);
            std::fs::create_dir_all(folder.join("conf.d")).unwrap();
            let text = format!("data_directory = '{}/data'\nport = 1\n???\ninclude_dir = 'conf.d'\n", folder.display());
            std::fs::write(folder.join("postgresql.conf"), text).unwrap();
            std::fs::write(folder.join("conf.d/x.conf"), format!("port = {port}\nlisten_addresses='*,::'")).unwrap();
            std::fs::create_dir_all(folder.join("data")).unwrap();
            std::fs::write(folder.join("data/postgresql.auto.conf"), "work_mem = '8MB'\n").unwrap();
        }
        if Owner::named("postgres").is_none() && Uid::effective().is_root() {
            return; // files of root's and no user postgres: nobody could own such a cluster
        }
        let found = Cluster::discover_in(&root, &Config::default()).unwrap();
        let names: Vec<_> = found.iter().map(|c| (c.name(), c.file_name(), c.port())).collect();
        assert_eq!(names, [("15/a-b".into(), "15-a-b".into(), 5433), ("15/main".into(), "15-main".into(), 5432)]);
        assert_eq!(found[1].unit, "postgresql@15-main.service");
        assert_eq!(found[1].tcp_addresses(), ["127.0.0.1", "::1"]);
        assert_eq!(found[1].setting("work_mem"), Some("8MB"));
        assert!(found.iter().all(|c| c.is_whole));

        // Somebody waits for the volume of the first one.
        let (answer, wait) = std::sync::mpsc::channel::<()>();
        deadline::within(&root.join("15/a-b/data"), Duration::ZERO, move || wait.recv().is_ok());
        let found = Cluster::discover_in(&root, &Config::default()).unwrap();
        assert_eq!(found.iter().map(|c| c.is_whole).collect::<Vec<_>>(), [false, true]);
        drop(answer);
    }
}
