//! What a person says to the healing: pause, resume, reset.

use std::time::Duration;

use shared::clock::Stamp;
use shared::cluster::Cluster;
use shared::config::parse_duration;
use shared::exit::Code;
use shared::pause::{self, Pause};
use shared::standing::{self, Verdict};
use shared::{Error, Result};

/// Nobody means a pause of more than a month.
const LONGEST: Duration = Duration::from_secs(31 * 86_400);

/// `pause [DURATION] [REASON]`
pub fn pause(words: &[String], clusters: &[String]) -> Result<Code> {
    let (duration, reason) = match words.split_first() {
        None => (Duration::from_secs(3600), String::new()),
        Some((first, rest)) => match parse_duration(first) {
            Some(duration) => (duration, rest.join(" ")),
            None if first.starts_with(|c: char| c.is_ascii_digit()) => {
                return Err(Error::usage(format!("\"{first}\" is not a time")).hint("Write 30min, 2h or 1d."));
            }
            None => (Duration::from_secs(3600), words.join(" ")),
        },
    };
    if duration.is_zero() || duration > LONGEST {
        return Err(Error::usage("a pause lasts between a second and 31 days")
            .hint("A host that nobody heals for longer wants mode = \"observe\"."));
    }
    need_root()?;
    keep_others(clusters, "replace")?;
    let reason = if reason.is_empty() { "no reason given".to_string() } else { reason };
    let by = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_else(|_| "root".into());
    let pause = Pause { since: Stamp::now(), seconds: duration.as_secs(), reason, by, clusters: clusters.to_vec() };
    pause.save()?;
    let what = if clusters.is_empty() { "all clusters".to_string() } else { clusters.join(", ") };
    log::warn!("paused for {}min: {what}: {}", duration.as_secs().div_ceil(60), pause.reason);
    Ok(Code::Ok)
}

/// There is one pause at a time; what it protects beyond `clusters` must not be lost in passing.
fn keep_others(clusters: &[String], verb: &str) -> Result<()> {
    let Some(pause) = Pause::in_force().filter(|pause| !pause.is_within(clusters)) else { return Ok(()) };
    let whom = if pause.clusters.is_empty() { "all clusters".to_string() } else { pause.clusters.join(", ") };
    Err(Error::usage(format!("cannot {verb} the pause of {whom} by {}: {}", pause.by, pause.reason))
        .hint("End it with pg-recover resume, or name at least the same clusters."))
}

pub fn resume(clusters: &[String]) -> Result<Code> {
    need_root()?;
    keep_others(clusters, "end")?;
    match std::fs::remove_file(pause::path()) {
        Ok(()) => log::warn!("the pause has ended"),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => log::info!("nothing is paused"),
        Err(e) => return Err(Error::failed(format!("could not remove {}: {e}", pause::path().display()))),
    }
    Ok(Code::Ok)
}

pub fn reset(clusters: &[Cluster]) -> Result<Code> {
    need_root()?;
    for cluster in clusters {
        let mut verdict = standing::verdict(&cluster.name());
        verdict.value = Verdict { reset: Stamp::now().rfc3339(), ..Verdict::default() };
        verdict.save().map_err(|e| Error::failed(format!("could not reset cluster {}: {e}", cluster.name())))?;
        log::warn!(PG_CLUSTER = cluster.name(); "reset: failed recoveries are forgotten, the next one may act");
    }
    Ok(Code::Ok)
}

pub fn need_root() -> Result<()> {
    if nix::unistd::Uid::effective().is_root() {
        return Ok(());
    }
    Err(Error::with(Code::NoPerm, "cannot change anything: this program needs root")
        .hint("Run it with sudo, or start pg-recovery.service."))
}
