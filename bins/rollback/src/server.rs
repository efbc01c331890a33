//! The running server: what it makes of its files, and the proof that it serves.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use shared::client::{Refusal, Session, Target, runtime};
use shared::cluster::Cluster;
use shared::config::Config;
use shared::pidfile::LockFile;
use shared::point::{Copy, Part};
use shared::process::{self, Identity, Pidfd, Process};
use shared::verify::{Proof, Unproven, verify};
use shared::{Error, Result, command, evidence, prestart, server_log, unit};

const PATIENCE: Duration = Duration::from_secs(5);
/// A reload takes milliseconds; a busy server may be slow to start a session that shows it.
const RELOAD: Duration = Duration::from_secs(15);
/// The same when no session of ours shows it.
const UNSEEN: Duration = Duration::from_secs(2);

const ROLES: Duration = Duration::from_secs(10);

/// The postmaster of a cluster that runs.
pub struct Server<'a> {
    cluster: &'a Cluster,
    config: &'a Config,
    pub postmaster: Process,
    /// When it last read its files, as it says itself; `None`: our role is not let in.
    pub loaded: Option<String>,
}

impl<'a> Server<'a> {
    /// `None`: no postmaster runs.
    pub fn find(cluster: &'a Cluster, config: &'a Config) -> Option<Server<'a>> {
        let LockFile::Present(file) = cluster.lock_file().0 else { return None };
        let is_ours =
            matches!(process::identify(file.pid, &cluster.data_directory, &cluster.owner), Ok(Identity::Ours));
        let postmaster = Process::of(file.pid).filter(|_| is_ours)?;
        let mut server = Server { cluster, config, postmaster, loaded: None };
        server.loaded = server.ask("SELECT pg_conf_load_time()").ok().flatten();
        Some(server)
    }

    fn target(&self) -> Target {
        let lock_file = self.cluster.lock_file().0;
        let running = if let LockFile::Present(file) = &lock_file { Some(file) } else { None };
        Target::of(self.cluster, running, &self.config.health.database, "pg-rollback")
    }

    /// The first value of the first row.
    fn ask(&self, sql: &str) -> Result<Option<String>, Refusal> {
        let runtime = runtime().map_err(|e| Refusal::Broken(e.to_string()))?;
        let answer = runtime.block_on(async {
            let session = Session::connect(&self.target(), PATIENCE).await?;
            session.query(sql, PATIENCE).await
        });
        runtime.shutdown_background();
        Ok(answer?.into_iter().next().and_then(|row| row.into_iter().next()).flatten())
    }

    pub fn prove(&self) -> Result<Proof> {
        // The files may name other addresses, which it will listen on after a restart.
        let said =
            self.ask("SELECT current_setting('port') || ' ' || current_setting('listen_addresses')").ok().flatten();
        let said = said.as_deref().and_then(|said| said.split_once(' '));
        let cluster = match said {
            Some((port, addresses)) => {
                self.cluster.with_settings([("port", port.into()), ("listen_addresses", addresses.into())])
            }
            None => self.cluster.clone(),
        };
        verify(&cluster, &self.target(), evidence::load(&cluster.name()).as_ref()).map_err(|unproven| {
            let (Unproven::Silent(why) | Unproven::Lost(why)) = unproven;
            Error::failed(why)
        })
    }

    /// Lets it read its files, and waits until a new session shows that it has. The settings that need a restart; an error
    /// when it refuses one of the files, for then it goes on with what it had.
    pub fn reload(&self) -> Result<Vec<String>> {
        let mark = server_log::lengths(self.cluster);
        let pidfd = Pidfd::open(&self.postmaster).ok_or_else(|| Error::failed("its postmaster has ended"))?;
        // With the power of its owner, so that it reaches no process of anybody else.
        self.cluster.owner.act(|| pidfd.send(Signal::SIGHUP))?.map_err(|e| {
            Error::failed(format!("could not send SIGHUP to its postmaster (PID {}): {e}", self.postmaster.pid))
        })?;
        let began = Instant::now();
        loop {
            match self.ask("SELECT pg_conf_load_time()") {
                Ok(loaded) if loaded != self.loaded => break,
                // The rules that are in force from now on do not let us in.
                Err(why) if why.is_ours_alone() && began.elapsed() > UNSEEN => break,
                answer if began.elapsed() > RELOAD => {
                    let seen = answer.err().map_or("the old settings".to_string(), |why| why.to_string());
                    return Err(Error::failed(format!(
                        "{}s after a reload a new session sees {seen}",
                        RELOAD.as_secs()
                    )));
                }
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        let log = server_log::written(self.cluster, &mark);
        // Of key and certificate nothing but the log tells (postmaster.c); of the others it tells as well. A setting that
        // waits for a restart is an error there too, with other words.
        let is_refusal = |line: &&str| line.contains("was not reloaded") || line.contains("no changes were applied");
        if let Some(line) = log.lines().find(is_refusal) {
            return Err(Error::failed(format!("the server refused it: {}", line.trim())));
        }
        self.accept_rules()?;
        let pending = self.ask("SELECT string_agg(name, ' ') FROM pg_settings WHERE pending_restart").ok().flatten();
        Ok(pending.unwrap_or_default().split_whitespace().map(str::to_string).collect())
    }

    /// An error when it would refuse pg_hba.conf as it is now; as far as it can be asked.
    pub fn accept_rules(&self) -> Result<()> {
        match self.ask("SELECT string_agg(error, '; ') FROM pg_hba_file_rules WHERE error IS NOT NULL") {
            Ok(Some(why)) => {
                Err(Error::failed(format!("the server refuses {}: {why}", self.cluster.hba_file().display())))
            }
            _ => Ok(()),
        }
    }

    /// Roles and their settings, without passwords; `None`: it cannot be asked, which is no reason to do without a point.
    pub fn roles(&self) -> Option<Copy> {
        self.loaded.as_ref()?;
        let (directory, port) = match self.cluster.lock_file().0 {
            LockFile::Present(file) => self.cluster.socket(Some(&file)),
            _ => return None,
        };
        let owner = &self.cluster.owner;
        let mut command = Command::new(self.cluster.bin_directory.join("pg_dumpall"));
        command.args(["--roles-only", "--no-role-passwords", "--no-password"]).arg("--host").arg(directory);
        command.args([
            "--port",
            &port.to_string(),
            "--username",
            &owner.name,
            "--database",
            &self.config.health.database,
        ]);
        command.env_clear().env("LC_ALL", "C").current_dir("/");
        if nix::unistd::Uid::effective().is_root() {
            command.uid(owner.uid.as_raw()).gid(owner.gid.as_raw());
        }
        let asked = command::run(&mut command, ROLES).ok().filter(|asked| asked.status.success())?;
        // The key words of psql are others each time.
        let is_sql = |line: &&str| !line.is_empty() && !line.starts_with("--") && !line.starts_with('\\');
        let sql: String = asked.stdout.lines().filter(is_sql).flat_map(|line| [line, "\n"]).collect();
        Some(Copy { path: "roles.sql".into(), mode: 0o600, bytes: sql.into(), part: Part::Roles, ..Copy::default() })
    }

    /// Stops and starts it through its unit.
    pub fn restart(&self) -> Result<()> {
        let cluster = self.cluster;
        if self.postmaster.unit().is_some_and(|unit| unit != cluster.unit) {
            return Err(Error::failed(format!("not restarted: the postmaster does not run in {}", cluster.unit)));
        }
        let obstacles = prestart::obstacles(cluster, evidence::load(&cluster.name()).as_ref())?;
        // That its processes run (P9) is in the way of a start, and not of a restart.
        if let Some(obstacle) = obstacles.iter().find(|obstacle| obstacle.fault != "P9") {
            return Err(Error::failed(format!("not restarted: {}", obstacle.message)));
        }
        unit::restart(&cluster.unit)?;
        let recover = &self.config.recover;
        let patience = recover.fast_stop_timeout + recover.start_timeout;
        let deadline = Instant::now() + patience;
        loop {
            let is_new = |server: &Server| server.postmaster.pid != self.postmaster.pid;
            if Server::find(cluster, self.config).filter(is_new).is_some_and(|server| server.prove().is_ok()) {
                return Ok(());
            }
            let state = unit::show_one(&cluster.unit)?;
            if !state.job && matches!(state.active.as_str(), "failed" | "inactive") {
                return Err(Error::failed(format!("systemd says that the start failed ({})", state.result)));
            }
            if Instant::now() > deadline {
                return Err(Error::failed(format!("it did not answer within {}s", patience.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
