//! One run: what happened, what of it is to be told, and what of that can be sent now.

use std::fs::File;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use shared::clock::Stamp;
use shared::config::Config;
use shared::exit::{self, Code};
use shared::{Error, Result};

use crate::{channel, events, look, outbox};

/// Two units may ask for a run at the same time.
const LOCK: &str = "/run/pg-recovery-notify/lock";
const PATIENCE: Duration = Duration::from_secs(30);
const LOOKS: usize = 4;

/// A configuration that cannot be used must not silence everybody: the last good one goes on, and that is told.
pub fn run(loaded: Result<Config>) -> Result<Code> {
    let (host, mistake) = match loaded {
        Ok(host) => (host, None),
        Err(why) => {
            exit::report(&why);
            (outbox::load().value.remembered(), Some(why.message))
        }
    };
    let config = &host.notify;
    // Only root reads the credentials by hand.
    let lines = channel::lines(config);
    let heartbeat = match config.heartbeat_credential.as_str() {
        "" => Ok(config.heartbeat_url.clone()),
        name => channel::secret(name),
    };
    if lines.is_empty() && heartbeat.as_ref().is_ok_and(String::is_empty) {
        // There is nobody to tell.
        return Ok(Code::Ok);
    }
    crate::become_own_user()?;
    let Some(_lock) = lock()? else {
        return Err(Error::with(Code::TempFail, "another run of pg-notify does not end"));
    };
    let mut state = outbox::load();
    if mistake.is_none() {
        state.value.remember(&host);
    }
    let sight = look::around(&host, mistake);
    let now = Stamp::now();
    let outbox = &mut state.value;
    // What ends a trouble may be said at this moment, and the journal takes a while to have it.
    for look in 0..LOOKS {
        for event in events::since(&mut outbox.cursor) {
            outbox.incidents.hear(&event, &now);
        }
        if look + 1 == LOOKS || !outbox.incidents.are_young() {
            break;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    for finding in &sight.findings {
        outbox.incidents.see(finding, &now);
    }
    for message in outbox.incidents.tell(&now, config) {
        outbox.post(message, &lines);
    }
    outbox.incidents.0.retain(|about, _| look::is_there(&host, about));
    outbox.tidy(&lines, &now);
    let all_well =
        sight.all_serve && outbox.incidents.0.values().all(|incident| incident.well || incident.told.is_none());
    if let Err(why) = state.save() {
        // What cannot be kept would be sent again every minute.
        return Err(Error::failed(format!("could not keep what is to be sent: {why}")));
    }
    outbox::deliver(&mut state, &lines, config);
    match heartbeat {
        Ok(url) if url.is_empty() || !all_well => {}
        Ok(url) => {
            if let Err(why) = channel::get(&url) {
                log::warn!("could not send the heartbeat: {why}");
            }
        }
        Err(why) => log::warn!("could not send the heartbeat: {why}"),
    }
    Ok(Code::Ok)
}

/// `None` when another run keeps it.
fn lock() -> Result<Option<Flock<File>>> {
    let folder = LOCK.rsplit_once('/').map_or("/", |(folder, _)| folder);
    std::fs::create_dir_all(folder).map_err(|e| Error::failed(format!("could not make {folder}: {e}")))?;
    let deadline = Instant::now() + PATIENCE;
    let mut file = File::options().create(true).append(true).open(LOCK)?;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((_, _)) if Instant::now() > deadline => return Ok(None),
            Err((file, _)) => file,
        };
        std::thread::sleep(Duration::from_millis(50));
    }
}
