//! Who serves a certificate: a cluster that runs, or another service of the configuration.

use std::io::ErrorKind;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use shared::client::{Refusal, Rows, Session, Target, runtime};
use shared::cluster::Cluster;
use shared::config::{Certificate, Config, Protocol};
use shared::pidfile::LockFile;
use shared::process::{self, Identity, Pidfd, Process};
use shared::tls_store::Store;
use shared::{Error, Result, command, point, unit};

use crate::handshake;
use crate::pair::{Anchors, Chain};

const PATIENCE: Duration = Duration::from_secs(5);
/// A reload takes milliseconds; a busy host may be slow to show it.
const RELOAD: Duration = Duration::from_secs(20);
const SETTINGS: &str = "SELECT name, setting, coalesce(sourcefile, '') FROM pg_settings WHERE name IN ('ssl', \
    'ssl_cert_file', 'ssl_key_file', 'ssl_ca_file', 'ssl_crl_file', 'ssl_crl_dir', 'listen_addresses', 'port', \
    'primary_conninfo', 'allow_alter_system', 'ssl_passphrase_command')";

pub enum Server<'a> {
    Cluster(Box<Postgres<'a>>),
    Service(&'a Certificate),
}

/// A cluster that runs.
pub struct Postgres<'a> {
    pub cluster: Cluster,
    config: &'a Config,
    postmaster: Process,
    /// Name, value, and the file that it is from, as the server says them.
    settings: Vec<(String, String, String)>,
}

impl<'a> Postgres<'a> {
    /// `None`: no postmaster runs.
    pub fn find(cluster: &Cluster, config: &'a Config) -> Result<Option<Postgres<'a>>> {
        let LockFile::Present(file) = cluster.lock_file().0 else { return Ok(None) };
        let is_ours = matches!(process::identify(file.pid, &cluster.data_directory, &cluster.owner)?, Identity::Ours);
        let Some(postmaster) = Process::of(file.pid).filter(|_| is_ours) else { return Ok(None) };
        let mut postgres = Postgres { cluster: cluster.clone(), config, postmaster, settings: Vec::new() };
        postgres.read_settings()?;
        let value = |name: &str| postgres.setting(name).to_string();
        let running = [("port", value("port")), ("listen_addresses", value("listen_addresses"))];
        postgres.cluster = cluster.with_settings(running);
        Ok(Some(postgres))
    }

    fn ask(&self, sql: &str) -> Result<Rows> {
        let bad = |why: Refusal| {
            Error::with(
                shared::exit::Code::Unavailable,
                format!("cluster {} does not answer: {why}", self.cluster.name()),
            )
        };
        let lock_file = self.cluster.lock_file().0;
        let running = if let LockFile::Present(file) = &lock_file { Some(file) } else { None };
        let target = Target::of(&self.cluster, running, &self.config.health.database, "pg-cert-renew");
        let runtime = runtime()?;
        let answer = runtime.block_on(async {
            let session = Session::connect(&target, PATIENCE).await?;
            session.query(sql, PATIENCE).await
        });
        runtime.shutdown_background();
        answer.map_err(bad)
    }

    fn read_settings(&mut self) -> Result<()> {
        let text = |value: Option<String>| value.unwrap_or_default();
        self.settings = self
            .ask(SETTINGS)?
            .into_iter()
            .filter_map(|row| {
                let [name, value, file] = <[Option<String>; 3]>::try_from(row).ok()?;
                Some((text(name), text(value), text(file)))
            })
            .collect();
        Ok(())
    }

    pub fn setting(&self, name: &str) -> &str {
        self.settings.iter().find(|(found, ..)| found == name).map_or("", |(_, value, _)| value)
    }

    /// The file that a setting names; `None`: it names none.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        let value = self.setting(name);
        (!value.is_empty()).then(|| self.cluster.data_directory.join(value))
    }

    /// Certificate and key that are in place, read as its owner is: with all groups that he has, and no other power.
    pub fn pair_in_place(&self) -> Result<(Vec<u8>, Vec<u8>)> {
        let read = |name: &str| {
            let file = self.file(name).ok_or_else(|| Error::failed(format!("{name} is empty")))?;
            read_as(&self.cluster.owner.name, &file)
        };
        Ok((read("ssl_cert_file")?, read("ssl_key_file")?))
    }

    /// Lets it read its files again. With the power of its owner, so that the signal reaches nobody else's process.
    pub fn reload(&self) -> Result<()> {
        let gone = || Error::failed(format!("the postmaster of cluster {} has ended", self.cluster.name()));
        let pidfd = Pidfd::open(&self.postmaster).ok_or_else(gone)?;
        self.cluster.owner.act(|| pidfd.send(Signal::SIGHUP))?.map_err(|_| gone())
    }

    /// What leads to its certificate and its key, to be put back by [`Self::take_back`].
    pub fn before(&self) -> Vec<(&'static str, Option<String>)> {
        let by_alter_system = |name: &str| {
            let (_, value, file) = self.settings.iter().find(|(found, ..)| found == name)?;
            file.ends_with("/postgresql.auto.conf").then(|| value.clone())
        };
        ["ssl_cert_file", "ssl_key_file"].map(|name| (name, by_alter_system(name))).to_vec()
    }

    /// Why its settings are not for us to change, or what they lead to; `None`: they are.
    pub fn refusal(&self) -> Option<String> {
        let name = self.cluster.name();
        match shared::standing::manager(&self.cluster) {
            Some(manager) => Some(format!("the settings of cluster {name} are {manager}'s")),
            None if self.setting("allow_alter_system") == "off" => {
                Some(format!("cluster {name} has allow_alter_system = off"))
            }
            None => None,
        }
    }

    /// Its key is encrypted on disk, which nothing here can do.
    pub fn keeps_key_encrypted(&self) -> bool {
        !self.setting("ssl_passphrase_command").is_empty()
    }

    /// Has it read its pair from `store`.
    pub fn lead_to(&mut self, store: &Store) -> Result<()> {
        let paths = [("ssl_cert_file", store.certificate()), ("ssl_key_file", store.key())];
        for (setting, path) in &paths {
            self.alter_system(setting, path.to_str())?;
        }
        self.reload()?;
        self.wait_for(&paths.map(|(name, path)| (name, path.display().to_string())))
    }

    pub fn take_back(&mut self, before: &[(&'static str, Option<String>)]) -> Result<()> {
        for (setting, value) in before {
            self.alter_system(setting, value.as_deref())?;
        }
        self.reload()
    }

    fn alter_system(&self, setting: &str, value: Option<&str>) -> Result<()> {
        let sql = match value {
            Some(value) => format!("ALTER SYSTEM SET {setting} = '{}'", value.replace('\'', "''")),
            None => format!("ALTER SYSTEM RESET {setting}"),
        };
        self.ask(&sql).map(drop)
    }

    fn wait_for(&mut self, settings: &[(&str, String)]) -> Result<()> {
        let began = Instant::now();
        loop {
            self.read_settings()?;
            let other = settings.iter().find(|(name, value)| self.setting(name) != value);
            match other {
                None => return Ok(()),
                Some((name, _)) if began.elapsed() > RELOAD => {
                    return Err(Error::failed(format!(
                        "cluster {} goes on with {name} = '{}'",
                        self.cluster.name(),
                        self.setting(name)
                    )));
                }
                Some(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Saves its configuration before it is changed.
    pub fn save_point(&self) -> Result<()> {
        let copies = point::read(&self.cluster, &point::files(&self.cluster))?;
        point::save(&self.cluster, "before", "before its certificate is renewed", &copies).map(drop)
    }

    /// Lets `pg-rollback full` take back what was changed since [`Self::save_point`].
    pub fn note_change(&self) -> Result<()> {
        let auto = self.cluster.data_directory.join("postgresql.auto.conf");
        let before = point::newest(&self.cluster.name(), "before").unwrap_or_default();
        let before: Vec<_> = before.into_iter().filter(|copy| copy.path == auto).collect();
        let now = point::read(&self.cluster, std::slice::from_ref(&auto))?;
        let made: Vec<_> = now.iter().map(|copy| (auto.clone(), Some(point::sha256(&copy.bytes)))).collect();
        point::save_before(&self.cluster, "its certificate is where it can be renewed", &before, &made).map(drop)
    }
}

impl Server<'_> {
    fn protocol(&self) -> Protocol {
        match self {
            Server::Cluster(_) => Protocol::Postgresql,
            Server::Service(service) => service.protocol,
        }
    }

    /// Where it should listen. A wildcard is tried on both loopback addresses.
    fn addresses(&self) -> Vec<SocketAddr> {
        let mut found: Vec<SocketAddr> = match self {
            Server::Service(service) => service.addresses.iter().filter_map(|address| address.parse().ok()).collect(),
            Server::Cluster(postgres) => {
                let cluster = &postgres.cluster;
                let more = postgres.setting("listen_addresses").contains('*').then(|| "::1".to_string());
                let names = cluster.tcp_addresses().into_iter().chain(more);
                names.flat_map(|name| (name, cluster.port()).to_socket_addrs().into_iter().flatten()).collect()
            }
        };
        found.sort();
        found.dedup();
        found
    }

    pub fn reload(&self) -> Result<()> {
        match self {
            Server::Cluster(postgres) => postgres.reload(),
            Server::Service(service) => unit::reload(&service.reload),
        }
    }

    /// What is served on each address where somebody listens.
    pub fn served(&self) -> Vec<(SocketAddr, Result<Chain, String>)> {
        let look = |address: SocketAddr| match handshake::served(address, self.protocol()) {
            Ok(certificates) => Some((address, Chain::of(certificates))),
            // `localhost` is two addresses, and a server may have only one of them.
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => None,
            Err(e) => Some((address, Err(e.to_string()))),
        };
        self.addresses().into_iter().filter_map(look).collect()
    }

    /// Waits until each address serves exactly this chain, and verifies that as clients do. What was seen.
    pub fn prove(&self, chain: &Chain, names: &[String], anchors: Option<&Anchors>, now: i64) -> Result<String> {
        let began = Instant::now();
        loop {
            let served = self.served();
            let other = served.iter().find_map(|(address, served)| match served {
                Ok(served) if served.certificates == chain.certificates => None,
                Ok(served) => Some(format!("{address} serves {}", served.describe())),
                Err(why) => Some(format!("{address}: {why}")),
            });
            match other {
                None if served.is_empty() => {
                    return match self {
                        Server::Cluster(p) if p.setting("listen_addresses").is_empty() => {
                            Ok("it listens on no address, so that nobody sees it".into())
                        }
                        _ => Err(Error::failed("nobody listens where it should be served")),
                    };
                }
                None => {
                    if let Some(anchors) = anchors {
                        for (address, served) in &served {
                            let served = served.as_ref().map_err(|why| Error::failed(why.clone()))?;
                            let refused = |why| Error::failed(format!("clients of {address} would refuse it: {why}"));
                            served.verify(names, anchors, now).map_err(refused)?;
                        }
                    }
                    let addresses: Vec<String> = served.iter().map(|(address, _)| address.to_string()).collect();
                    return Ok(format!("served on {}", addresses.join(", ")));
                }
                Some(what) if began.elapsed() > RELOAD => {
                    return Err(Error::failed(format!("{}s after a reload {what}", RELOAD.as_secs())));
                }
                Some(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

/// Reads a file with the groups of a user, and no more power than he has: the path is from a file that he can write.
fn read_as(user: &str, file: &std::path::Path) -> Result<Vec<u8>> {
    let bad = |why: String| Error::failed(format!("could not read {} as {user}: {why}", file.display()));
    let mut command = if nix::unistd::Uid::effective().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", user, "--regid", user, "--init-groups", "--", "cat", "--"]);
        command
    } else {
        let mut command = Command::new("cat");
        command.arg("--");
        command
    };
    let out = command::run(command.arg(file), PATIENCE).map_err(|e| bad(e.to_string()))?;
    if out.status.success() { Ok(out.stdout.into_bytes()) } else { Err(bad(out.stderr.trim().into())) }
}
