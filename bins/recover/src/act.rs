//! The steps, carried out. Each one looks again before it touches anything, and may be repeated.

use std::fs::Permissions;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, RenameFlags, ResolveFlag, openat2, renameat2};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{Gid, fchown};
use shared::client::Refusal;
use shared::cluster::Cluster;
use shared::config::Config;
use shared::control::Control;
use shared::evidence;
use shared::modes;
use shared::pidfile::{self, LockFile};
use shared::point::Copy;
use shared::process::{self, Pidfd, Process};
use shared::standing::Standing;
use shared::{
    Error, Result, ballast, command, meaning, point, prestart, server_log, socket, standing, state, terminals, unit,
    wal,
};

use crate::control_file;
use crate::diagnosis::is_stopping;
use crate::facts::{self, Facts, Memory};
use crate::plan::Step;

/// Crash recovery that moves is waited for this long; after that it is left to itself.
const LONG_RECOVERY: Duration = Duration::from_secs(600);
const CERT_RENEW: &str = "pg-cert-renew.service";
/// An authority takes seconds, and DNS minutes; it goes on when nobody waits any more.
const RENEWAL: Duration = Duration::from_secs(120);

pub struct Actor<'a> {
    pub cluster: &'a Cluster,
    pub config: &'a Config,
    /// The recovery's id; its evidence is kept under this name.
    pub id: &'a str,
}

impl Actor<'_> {
    /// Carries out one step. `Ok` says what was done, `Err` why it could not be.
    pub fn carry_out(&self, step: &Step, facts: &Facts, memory: &mut Memory) -> Result<String> {
        match step {
            Step::Continue => self.resume(facts),
            Step::StopFast => self.stop(facts, memory, Signal::SIGINT, self.config.recover.fast_stop_timeout),
            Step::StopImmediate => {
                self.stop(facts, memory, Signal::SIGQUIT, self.config.recover.immediate_stop_timeout)
            }
            Step::KillPostmaster => self.stop(facts, memory, Signal::SIGKILL, Duration::from_secs(5)),
            Step::EndStart => self.end_start(memory),
            Step::EndOrphans => self.end_orphans(),
            Step::SetLockFileAside => self.set_lock_file_aside(),
            Step::PutLockFileBack => self.put_lock_file_back(facts),
            Step::CreateSocketDirectory => self.create_socket_directory(),
            Step::PutSocketBack => self.put_socket_back(facts),
            Step::ReleaseBallast => self.release_ballast(),
            Step::MakeFolders => self.make_folders(facts),
            Step::RestoreControlFile => self.restore_control_file(facts),
            Step::RestoreMode => {
                memory.wrong_modes.take();
                self.restore_mode()
            }
            Step::RestoreConfiguration { restore, set_aside } => self.restore_configuration(restore, set_aside),
            Step::RenewCertificate => self.renew_certificate(),
            Step::GiveUpWal => self.give_up_wal(),
            Step::Start => self.start(memory),
        }
    }

    /// Keeps what may be needed to understand this fault, before anything is changed. A full disk does not stop the
    /// recovery.
    pub fn save_evidence(&self) -> std::io::Result<PathBuf> {
        let folder = evidence::directory(&self.cluster.name()).join(self.id);
        std::fs::create_dir_all(&folder)?;
        let (_, lock_file) = self.cluster.lock_file();
        if !lock_file.is_empty() {
            state::replace(&folder.join(pidfile::NAME), &lock_file, 0o600)?;
        }
        if let Ok(Ok((_, bytes))) = self.cluster.owner.act(|| Control::read(&self.cluster.data_directory)) {
            state::replace(&folder.join("pg_control"), &bytes, 0o600)?;
        }
        state::replace(&folder.join("server.log"), server_log::as_written(self.cluster, None).as_bytes(), 0o600)?;
        let mut old: Vec<PathBuf> = std::fs::read_dir(evidence::directory(&self.cluster.name()))?
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.is_dir())
            .collect();
        old.sort();
        for folder in &old[..old.len().saturating_sub(10)] {
            let _ = std::fs::remove_dir_all(folder);
        }
        Ok(folder)
    }

    fn resume(&self, facts: &Facts) -> Result<String> {
        let is_postmaster_stopped = facts.family.postmaster.as_ref().is_some_and(Process::is_stopped);
        let stopped: Vec<&Process> = if is_postmaster_stopped {
            facts.family.all().filter(|p| p.is_stopped()).collect()
        } else {
            facts.stopped_children.iter().collect()
        };
        let goes_on = || stopped.iter().all(|p| p.again().is_none_or(|p| !p.is_stopped()));
        for process in &stopped {
            send_to(process, Signal::SIGCONT)?;
        }
        let deadline = Instant::now() + Duration::from_secs(3);
        let mut answer = self.connect(Duration::from_millis(500));
        let stops = is_stopping(facts);
        while ((answer.is_err() && !stops) || !goes_on()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            answer = self.connect(Duration::from_millis(500));
        }
        let done = format!("SIGCONT to {} processes", stopped.len());
        match answer {
            _ if stops && goes_on() => Ok(format!("{done}; its stop goes on")),
            Ok(()) if !goes_on() => Err(Error::failed(format!("{done}, but somebody stops them again"))),
            Ok(()) => Ok(format!("{done}; it answers")),
            Err(refusal) => Err(Error::failed(format!("{done}, but it does not answer: {refusal}"))),
        }
    }

    fn stop(&self, facts: &Facts, memory: &mut Memory, how: Signal, patience: Duration) -> Result<String> {
        let Some(postmaster) = &facts.family.postmaster else {
            return Err(Error::failed("there is no postmaster to stop"));
        };
        let pidfd = Pidfd::open(postmaster).ok_or_else(|| Error::failed("the postmaster is gone"))?;
        self.still_meant()?;
        memory.stopped_by_us = true;
        send(&pidfd, postmaster, how)?;
        // A stopped process takes no signal but SIGKILL and SIGCONT.
        if postmaster.is_stopped() {
            let _ = pidfd.send(Signal::SIGCONT);
        }
        if !pidfd.wait(patience) {
            return Err(Error::failed(format!(
                "{how} to PID {}, still running after {}s",
                postmaster.pid,
                patience.as_secs()
            )));
        }
        self.settle()?;
        Ok(format!("{how} to PID {}, which ended", postmaster.pid))
    }

    /// Looking takes its time, and a person may have said something meanwhile.
    fn still_meant(&self) -> Result<()> {
        let (unit, umbrella) = standing::units(self.cluster)?;
        match standing::of(self.cluster, self.config, &unit, umbrella.as_ref()) {
            Standing::Meant => Ok(()),
            Standing::Left(why) => Err(Error::failed(format!("not done: it {why}"))),
        }
    }

    /// After a death systemd is busy with the unit for a moment; a start in that moment is lost or fails.
    fn settle(&self) -> Result<unit::UnitState> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let now = unit::show_one(&self.cluster.unit)?;
            let busy = now.active == "deactivating" || now.active == "active" || now.job;
            if !busy || Instant::now() > deadline {
                return Ok(now);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn end_start(&self, memory: &mut Memory) -> Result<String> {
        let family = process::family(&self.cluster.data_directory, &self.cluster.owner)?;
        if !unit::start_is_abandoned(&self.cluster.unit, &family) {
            return Err(Error::failed("somebody works on it after all"));
        }
        self.still_meant()?;
        memory.stopped_by_us = true;
        // It did not fail for anything that the server has met, such as its configuration.
        memory.starts = 0;
        unit::stop(&self.cluster.unit)?;
        let now = self.settle()?;
        Ok(format!("{} is {}", self.cluster.unit, now.active))
    }

    fn end_orphans(&self) -> Result<String> {
        let look = || process::family(&self.cluster.data_directory, &self.cluster.owner);
        let deadline = Instant::now() + Duration::from_secs(5);
        // Children notice the death of their postmaster by themselves, unless something keeps them.
        let mut family = look()?;
        while !family.children.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
            family = look()?;
        }
        let found = family.children.len();
        for (how, patience) in [(Signal::SIGQUIT, 5), (Signal::SIGKILL, 5)] {
            let family = look()?;
            if family.postmaster.is_some() || !family.unclear.is_empty() {
                return Err(Error::failed("a postmaster may have appeared; its children are not orphans"));
            }
            for child in &family.children {
                send_to(child, how)?;
                if child.is_stopped() {
                    send_to(child, Signal::SIGCONT)?;
                }
            }
            let deadline = Instant::now() + Duration::from_secs(patience);
            while Instant::now() < deadline {
                if look()?.children.is_empty() {
                    return Ok(format!("{found} orphans ended, the last by {how} at most"));
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Err(Error::failed("orphans are left that even SIGKILL does not end; they wait for the disk"))
    }

    fn set_lock_file_aside(&self) -> Result<String> {
        let kept = self.save_evidence();
        let data = &self.cluster.data_directory;
        let (judged, bytes) = self.cluster.lock_file();
        let family = process::family(data, &self.cluster.owner)?;
        let attached = match &judged {
            LockFile::Present(file) => file.segment.and_then(process::attached_to_segment).unwrap_or(0),
            _ => 0,
        };
        if !family.is_empty() || !family.unclear.is_empty() || attached > 0 {
            return Err(Error::failed("somebody owns the lock file after all"));
        }
        self.cluster.owner.act(|| {
            let path = data.join(pidfile::NAME);
            let aside = data.join(format!("{}.{}", pidfile::NAME, self.id));
            std::fs::rename(&path, &aside)?;
            // A server that was started in this moment has written another one: give it back, without overwriting.
            if state::read(&aside, 8192).ok().as_ref() != Some(&bytes) {
                std::fs::hard_link(&aside, &path)?;
                std::fs::remove_file(&aside)?;
                return Err(Error::failed("the lock file changed while it was moved; it was put back"));
            }
            match kept {
                Ok(folder) => {
                    std::fs::remove_file(&aside)?;
                    Ok(format!("kept in {}", folder.display()))
                }
                Err(_) => Ok(format!("kept as {}", aside.display())),
            }
        })?
    }

    fn put_lock_file_back(&self, facts: &Facts) -> Result<String> {
        let Some(postmaster) = &facts.family.postmaster else {
            return Err(Error::failed("there is no postmaster any more"));
        };
        let copy = evidence::directory(&self.cluster.name()).join(pidfile::NAME);
        let bytes = state::read(&copy, 8192)?;
        let pidfd = Pidfd::open(postmaster).ok_or_else(|| Error::failed("the postmaster is gone"))?;
        let data = &self.cluster.data_directory;
        let (in_place, theirs) = self.cluster.lock_file();
        if in_place != facts.lock_file {
            return Err(Error::failed("the lock file has changed since it was looked at"));
        }
        self.cluster.owner.act(|| -> Result<()> {
            let path = data.join(pidfile::NAME);
            let temporary = data.join(format!("{}.{}", pidfile::NAME, self.id));
            state::replace(&temporary, &bytes, 0o600)?;
            let placed = if in_place == LockFile::Missing {
                // link(2) never overwrites: a lock file that has appeared meanwhile stays.
                std::fs::hard_link(&temporary, &path).map_err(Error::from)
            } else {
                exchange(&temporary, &path, &theirs)
            };
            remove_known(&temporary, &[&bytes, &theirs])?;
            placed?;
            Ok(state::sync_folder(data)?)
        })??;
        if pidfd.wait(Duration::ZERO) {
            return Err(Error::failed("the postmaster ended while its lock file was put back"));
        }
        Ok(format!("byte for byte the file of PID {}", postmaster.pid))
    }

    fn release_ballast(&self) -> Result<String> {
        let name = self.cluster.name();
        let freed = ballast::release(self.cluster)? >> 20;
        let pg_wal = self.cluster.data_directory.join("pg_wal");
        let text = format!(
            "cluster {name}: the volume of {} is full; {freed} MB that were kept for this are given back, and will not last: \
             find out what takes the room (a replication slot, wal_keep_size, a failing archive_command, other files)",
            pg_wal.display()
        );
        log::error!(PG_CLUSTER = name, PG_FAULT = "S2", PG_RECOVERY_ID = self.id; "{text}");
        terminals::tell("pg-recover", &text);
        Ok(format!("{freed} MB given back"))
    }

    fn make_folders(&self, facts: &Facts) -> Result<String> {
        let data = &self.cluster.data_directory;
        self.cluster.owner.act(|| -> std::io::Result<()> {
            // As the server makes its own: group access if the data directory has it (initdb -g).
            let mode = 0o700 | (std::fs::metadata(data)?.permissions().mode() & 0o050);
            for name in &facts.missing_folders {
                std::fs::DirBuilder::new().mode(mode).create(data.join(name))?;
            }
            state::sync_folder(data)
        })??;
        Ok(format!("made {}", facts.missing_folders.join(", ")))
    }

    fn restore_control_file(&self, facts: &Facts) -> Result<String> {
        let postmaster = facts.family.postmaster.as_ref();
        let cluster = self.cluster;
        if postmaster.is_none() && prestart::obstacles(cluster, None)?.iter().any(|obstacle| obstacle.fault == "P9") {
            return Err(Error::failed("processes of the cluster run meanwhile"));
        }
        let folder = evidence::directory(&cluster.name()).join(self.id);
        let target = facts::target(cluster, self.config, &facts.lock_file);
        let recorded = control_file::recorded(evidence::load(&cluster.name()), &target, postmaster);
        control_file::put_back(cluster, recorded.as_ref(), postmaster, &folder)
    }

    fn create_socket_directory(&self) -> Result<String> {
        let directory = self.cluster.socket_directory();
        // /var/run is a link to /run, and tmpfiles.d(5) speaks of /run.
        let directory =
            directory.strip_prefix("/var/run").map_or(directory.clone(), |rest| Path::new("/run").join(rest));
        let mut call = Command::new("systemd-tmpfiles");
        call.arg("--create").arg(format!("--prefix={}", directory.display()));
        let out = command::run(&mut call, Duration::from_secs(30))
            .map_err(|e| Error::failed(format!("could not run systemd-tmpfiles: {e}")))?;
        if !out.status.success() {
            return Err(Error::failed(format!("systemd-tmpfiles failed: {}", out.stderr.trim())));
        }
        Ok(format!("{} is as tmpfiles.d describes it", directory.display()))
    }

    fn put_socket_back(&self, facts: &Facts) -> Result<String> {
        let (Some(postmaster), LockFile::Present(file)) = (&facts.family.postmaster, &facts.lock_file) else {
            return Err(Error::failed("there is no postmaster any more"));
        };
        let path = file.socket().ok_or_else(|| Error::failed("the server has no socket"))?;
        socket::leads_to(self.cluster, postmaster).map_err(Error::failed)?;
        socket::put_back(self.cluster, &path)?;
        let pid_file = self.put_pid_file_back(postmaster).map(|path| format!(", and so does {path}"));
        Ok(format!("{} leads to PID {} again{}", path.display(), postmaster.pid, pid_file.unwrap_or_default()))
    }

    /// external_pid_file is in the same folder on Debian, and systemd takes a start for finished only when it finds the file there
    /// (systemd.service(5), PIDFile=): the server would be "activating" for ever. The server has made it as this does (postmaster.c).
    fn put_pid_file_back(&self, postmaster: &Process) -> Option<String> {
        let path = self.cluster.setting("external_pid_file").filter(|path| path.starts_with('/'))?;
        let made = self.cluster.owner.act(|| {
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o644).open(path)?;
            file.set_permissions(Permissions::from_mode(0o644))?;
            writeln!(file, "{}", postmaster.pid)
        });
        match made {
            Ok(Ok(())) => Some(path.into()),
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::AlreadyExists => None,
            failed => {
                log::warn!(PG_CLUSTER = self.cluster.name(); "could not put {path} back: {failed:?}");
                None
            }
        }
    }

    fn restore_mode(&self) -> Result<String> {
        let owner = &self.cluster.owner;
        let path = &self.cluster.data_directory;
        // The configuration, which the owner can write, says where the data directory is; root believes only the record
        // of where a server of this user was seen to run.
        let recorded = evidence::load(&self.cluster.name())
            .filter(|e| e.data_directory == *path && e.uid == owner.uid.as_raw())
            .ok_or_else(|| {
                Error::failed(format!("it was never recorded how {} was while the server ran", path.display()))
            })?;
        let mode = if recorded.mode == 0o750 { 0o750 } else { 0o700 };
        let gid = recorded.gid;
        // No link anywhere on the way: the folder above may be postgres's own.
        let how = OpenHow::new()
            .flags(OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        let bad =
            |what: &str, e: nix::Error| Error::failed(format!("could not {what} {}: {}", path.display(), e.desc()));
        let folder = openat2(AT_FDCWD, path, how).map_err(|e| bad("open", e))?;
        // Root changes the owner of nothing but the data directory that was recorded.
        let inside =
            |name: &str| PathBuf::from(format!("/proc/self/fd/{}/{name}", std::os::fd::AsRawFd::as_raw_fd(&folder)));
        let version = state::read(&inside("PG_VERSION"), 64).map(|b| String::from_utf8_lossy(&b).trim().to_string());
        if version.as_deref().ok() != Some(self.cluster.version.as_str()) {
            return Err(Error::failed(format!(
                "{} is not a data directory of PostgreSQL {}",
                path.display(),
                self.cluster.version
            )));
        }
        // Without a pg_control its WAL says whose it is.
        let control =
            state::read(&inside("global/pg_control"), 8192).ok().and_then(|bytes| Control::parse(&bytes).ok());
        let is_recorded = match control {
            Some(control) => control.system_identifier == recorded.system_identifier,
            None => wal::is_of(&inside("pg_wal"), recorded.system_identifier).unwrap_or(false),
        };
        if !is_recorded {
            return Err(Error::failed(format!("{} is not the data directory that was recorded", path.display())));
        }
        let before = fstat(folder.as_fd()).map_err(|e| bad("look at", e))?;
        let mut told = Vec::new();
        if (before.st_mode & 0o7777, before.st_uid) != (mode, owner.uid.as_raw()) {
            fchown(folder.as_fd(), Some(owner.uid), Some(Gid::from_raw(gid)))
                .map_err(|e| bad("change the owner of", e))?;
            fchmod(folder.as_fd(), Mode::from_bits_truncate(mode)).map_err(|e| bad("change the mode of", e))?;
            told.push(format!(
                "{}: was {:04o} of {}:{}, is {mode:04o} of {}:{gid}",
                path.display(),
                before.st_mode & 0o7777,
                before.st_uid,
                before.st_gid,
                owner.uid
            ));
        }
        // What is in a folder that is wrong shows when that one is right.
        for _ in 0..=modes::DEPTH {
            let wrong = modes::wrong(path, owner)?;
            if wrong.is_empty() {
                break;
            }
            for name in &wrong {
                owner.act(|| make_usable(&path.join(name), mode))??;
                if told.len() < 10 {
                    told.push(format!("{} can be used again", name.display()));
                }
            }
        }
        Ok(told.join("; "))
    }

    fn restore_configuration(&self, restore: &[PathBuf], set_aside: &[PathBuf]) -> Result<String> {
        let cluster = self.cluster;
        let good = point::newest(&cluster.name(), "good")
            .ok_or_else(|| Error::failed("the last good configuration is gone"))?;
        // What its owner cannot read cannot be what the server is to run with; the file itself is kept beside all the same.
        let read = |path: &PathBuf| point::read(cluster, std::slice::from_ref(path)).ok();
        let now: Vec<Copy> = restore.iter().chain(set_aside).filter_map(read).flatten().collect();
        let why = format!("recovery {} puts the last good configuration back", self.id);
        let sum = |path: &PathBuf| good.iter().find(|c| c.path == *path).map(|c| point::sha256(&c.bytes));
        let put = restore.iter().filter_map(|path| Some((path.clone(), Some(sum(path)?))));
        let made: Vec<_> = put.chain(set_aside.iter().map(|path| (path.clone(), None))).collect();
        if let Err(e) = point::save_before(cluster, &why, &now, &made) {
            log::warn!(PG_CLUSTER = cluster.name(); "{}; going on, because each file is also kept beside the one that is put back", e.message);
        }
        let mut told = Vec::new();
        for path in restore {
            let Some(copy) = good.iter().find(|c| c.path == *path) else { continue };
            let current = now.iter().find(|c| c.path == *path);
            let real = path.canonicalize().unwrap_or_else(|_| path.clone());
            let beside = beside(&real, self.id);
            let written = cluster.owner.act(|| {
                match current {
                    // The mode of a key may be what is wrong with it.
                    Some(current) => {
                        state::replace(&beside, &current.bytes, if copy.tls { 0o600 } else { current.mode })?
                    }
                    None if real.symlink_metadata().is_ok() => std::fs::rename(&real, &beside)?,
                    None => {}
                }
                state::replace(&real, &copy.bytes, copy.mode)
            })?;
            written.map_err(|e| {
                Error::failed(format!("could not put back {}: {e}", path.display())).hint(format!(
                    "The last good copies are in /var/lib/pg-recovery/points; cluster {} needs this file.",
                    cluster.name()
                ))
            })?;
            let old = current.map_or(&[][..], |c| &c.bytes);
            // What is in a key is nobody's business.
            let difference = if copy.tls {
                String::new()
            } else {
                format!("; the difference:\n{}", point::difference(old, &copy.bytes))
            };
            log::warn!(PG_CLUSTER = cluster.name(); "put back {}, the one that was there is {}{difference}", path.display(), beside.display());
            told.push(path.display().to_string());
        }
        for path in set_aside {
            let beside = beside(path, self.id);
            cluster.owner.act(|| std::fs::rename(path, &beside))??;
            log::warn!(PG_CLUSTER = cluster.name(); "set aside {}, which was not there when the server last ran: now {}", path.display(), beside.display());
            told.push(path.display().to_string());
        }
        Ok(told.join(", "))
    }

    /// An actor of its own does it; the cluster's lock is free meanwhile.
    fn renew_certificate(&self) -> Result<String> {
        let began = Instant::now();
        unit::start(CERT_RENEW)?;
        let ended = loop {
            let now = unit::show_one(CERT_RENEW)?;
            if !now.job && !matches!(now.active.as_str(), "activating" | "deactivating") {
                break now;
            }
            if began.elapsed() > RENEWAL {
                let waited = RENEWAL.as_secs();
                return Err(Error::failed(format!("{CERT_RENEW} is still at work after {waited}s, leaving it to it")));
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        let see = format!("journalctl --unit {CERT_RENEW}");
        // It may read its certificate elsewhere now.
        let cluster = Cluster::select(self.config, &[self.cluster.name()])?.remove(0);
        match facts::expiring(&cluster, self.config) {
            None => Ok(format!("{CERT_RENEW} has renewed it, and seen that it is served")),
            Some(expiring) if ended.active == "failed" => {
                Err(Error::failed(format!("{CERT_RENEW} has failed, and {}: {see}", expiring.seen)))
            }
            Some(expiring) => Err(Error::failed(format!("{CERT_RENEW} has not renewed it, {}: {see}", expiring.seen))),
        }
    }

    /// What was recorded is no longer what a start is measured by. It is kept first, or nothing is done.
    fn give_up_wal(&self) -> Result<String> {
        let name = self.cluster.name();
        let recorded = evidence::load(&name).unwrap_or_default();
        let flushed = recorded.flush_lsn;
        let folder = evidence::directory(&name).join(self.id);
        std::fs::create_dir_all(&folder)
            .and_then(|()| state::replace(&folder.join("evidence.json"), &serde_json::to_vec(&recorded)?, 0o600))
            .and_then(|()| evidence::forget(&name))
            .map_err(|e| Error::failed(format!("could not keep and forget that {flushed} had been flushed: {e}")))?;
        Ok(format!("as approved: commits up to {flushed} that are not in the WAL that is there are given up"))
    }

    fn start(&self, memory: &mut Memory) -> Result<String> {
        let cluster = self.cluster;
        let obstacles = prestart::obstacles(cluster, evidence::load(&cluster.name()).as_ref())?;
        if let Some(obstacle) = obstacles.first() {
            return Err(Error::failed(format!("not started: {}", obstacle.message)));
        }
        let before = self.settle()?;
        self.still_meant()?;
        if before.active == "failed" {
            // systemd refuses the sixth start within ten seconds, also a person's; ours are counted in the verdict.
            unit::reset_failed(&cluster.unit)?;
        }
        let log_mark = server_log::lengths(cluster);
        memory.log_mark = Some(log_mark.clone());
        memory.starts += 1;
        unit::start(&cluster.unit)?;
        let began = Instant::now();
        let mut moved = began;
        loop {
            let Err(last) = self.connect(Duration::from_secs(2)) else {
                return Ok(format!("it answers after {}ms", began.elapsed().as_millis()));
            };
            // Whoever stops it from now on, it may be for hours until it answers, has it stopped.
            memory.stopped_by_us &= !matches!(last, Refusal::Starting(_));
            if let Refusal::Server(code, message) = &last
                && meaning::of_refused_login(message, code).is_some()
            {
                return Err(Error::failed(format!("it runs, and nobody can log in: {last}")));
            }
            // Each question to systemd costs more than a connection that nobody takes.
            if began.elapsed() > Duration::from_millis(300) {
                let now = unit::show_one(&cluster.unit)?;
                if !now.job && matches!(now.active.as_str(), "failed" | "inactive") {
                    return Err(Error::failed(format!("systemd says that the start failed ({})", now.result)));
                }
                let log = server_log::written(cluster, &log_mark);
                if let Some((_, message)) = server_log::panics(&log) {
                    return Err(Error::failed(format!("it begins anew again and again: {message}")));
                }
                let family = process::family(&cluster.data_directory, &cluster.owner)?;
                if memory.start_is_abandoned(cluster, &now, &family) {
                    return Err(Error::failed("its postmaster died while it was started"));
                }
                if matches!(last, Refusal::Starting(_)) && facts::startup_moves(&family, Duration::from_secs(3)) {
                    moved = Instant::now();
                }
                let waited = format!("after {}s: {last}", began.elapsed().as_secs());
                // It does not answer and it is stopped: the next look has it told to go on, unless somebody holds it on purpose.
                if !last.is_answer() && family.postmaster.as_ref().is_some_and(Process::is_stopped) {
                    return Err(Error::failed(format!("its postmaster was stopped by a signal {waited}")));
                }
                if began.elapsed() > self.config.recover.start_timeout {
                    if facts::startup_waits(&family) {
                        return Err(Error::failed(format!(
                            "it waits for WAL from elsewhere, leaving it alone {waited}"
                        )));
                    }
                    if moved.elapsed() > facts::STARTUP_IS_STUCK {
                        return Err(Error::failed(format!("no answer {waited}")));
                    }
                }
                if began.elapsed() > LONG_RECOVERY {
                    return Err(Error::failed(format!("crash recovery still moves, leaving it alone {waited}")));
                }
            }
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    fn connect(&self, patience: Duration) -> Result<(), Refusal> {
        facts::connect(self.cluster, self.config, &self.cluster.lock_file().0, patience)
    }
}

/// Puts `temporary` in the place of `path` in one step. If something else than `expected` was there, it is put back.
fn exchange(temporary: &Path, path: &Path, expected: &[u8]) -> Result<()> {
    let swap = || {
        renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RenameFlags::RENAME_EXCHANGE)
            .map_err(|e| Error::failed(format!("could not replace {}: {}", path.display(), e.desc())))
    };
    swap()?;
    if state::read(temporary, 8192).ok().as_deref() == Some(expected) {
        return Ok(());
    }
    swap()?;
    Err(Error::failed(format!("{} changed while it was replaced; it was put back", path.display())))
}

/// Removes what was left over of an exchange. A third file, which could not be put back, is somebody's and stays.
fn remove_known(path: &Path, known: &[&[u8]]) -> Result<()> {
    let found = state::read(path, 8192)?;
    if !known.contains(&found.as_slice()) {
        return Err(Error::failed(format!(
            "a lock file of somebody else could not be put back; it is {}",
            path.display()
        )));
    }
    Ok(std::fs::remove_file(path)?)
}

/// `postgresql.conf` -> `postgresql.conf.broken-ID`; include_dir reads only names that end in `.conf`.
fn beside(path: &Path, id: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".broken-{id}"));
    name.into()
}

/// With the owner's power. The server gives its folders and files the mode of the data directory, 0700 or 0750, and files
/// go without the x (src/common/file_perm.c). What is gone meanwhile is fine.
fn make_usable(path: &Path, mode: u32) -> std::io::Result<()> {
    let changed = path.symlink_metadata().and_then(|meta| {
        let mode = if meta.is_dir() { mode } else { mode & 0o640 };
        std::fs::set_permissions(path, Permissions::from_mode(mode))
    });
    changed.or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

/// A process that has ended by itself meanwhile is fine.
fn send_to(process: &Process, how: Signal) -> Result<()> {
    match Pidfd::open(process).map(|pidfd| pidfd.send(how)) {
        None | Some(Ok(()) | Err(nix::Error::ESRCH)) => Ok(()),
        Some(Err(e)) => Err(Error::failed(format!("could not send {how} to PID {}: {}", process.pid, e.desc()))),
    }
}

fn send(pidfd: &Pidfd, process: &Process, how: Signal) -> Result<()> {
    pidfd.send(how).map_err(|e| Error::failed(format!("could not send {how} to PID {}: {}", process.pid, e.desc())))
}

#[cfg(test)]
mod tests {
    use shared::config::{LONGEST_STEP, parse_duration};

    use super::*;

    #[test]
    fn the_longest_recovery_that_may_be_configured_fits_its_unit() {
        let unit = include_str!("../../../units/pg-recovery.service");
        let limit =
            unit.lines().find_map(|line| line.strip_prefix("TimeoutStartSec=")).and_then(parse_duration).unwrap();
        // Both stops, a crash recovery that moves, and then the wait for it; what else a run does takes seconds.
        let longest = 3 * LONGEST_STEP + LONG_RECOVERY;
        assert!(longest + Duration::from_secs(120) <= limit, "{longest:?} in {limit:?}");
    }

    #[test]
    fn a_lock_file_that_is_not_known_is_never_removed() {
        let path = std::env::temp_dir().join(format!("pg-recovery-known-{}", std::process::id()));
        std::fs::write(&path, "third").unwrap();
        let (ours, theirs): (&[u8], &[u8]) = (b"ours", b"theirs");
        assert!(remove_known(&path, &[ours, theirs]).unwrap_err().message.contains("could not be put back"));
        assert!(path.exists());
        std::fs::write(&path, "theirs").unwrap();
        remove_known(&path, &[ours, theirs]).unwrap();
        assert!(!path.exists());
    }
}
