//! What a person says to the healing: pause, resume, reset, approve.

use std::time::Duration;

use shared::clock::Stamp;
use shared::cluster::Cluster;
use shared::config::parse_duration;
use shared::exit::Code;
use shared::lock::Lock;
use shared::pause::{self, Pause};
use shared::standing::{self, Approval, Verdict};
use shared::{Error, Result, unit};

use crate::plan::Step;

/// Nobody means a pause of more than a month.
const LONGEST: Duration = Duration::from_secs(31 * 86_400);
/// How long an approval waits for whoever is at work on the cluster.
const PATIENCE: Duration = Duration::from_secs(10);

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
    let pause =
        Pause { since: Stamp::now(), seconds: duration.as_secs(), reason, by: person(), clusters: clusters.to_vec() };
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
        let approved = verdict.value.lasting_approvals();
        verdict.value = Verdict { reset: Stamp::now().rfc3339(), approved, ..Verdict::default() };
        verdict.save().map_err(|e| Error::failed(format!("could not reset cluster {}: {e}", cluster.name())))?;
        log::warn!(PG_CLUSTER = cluster.name(); "reset: failed recoveries are forgotten, the next one may act");
    }
    Ok(Code::Ok)
}

/// `approve STEP [--always]`: allows a step that gives up data, and has pg-recovery.service take it. Without `--always` it has to be
/// waiting.
pub fn approve(words: &[String], always: bool, clusters: &[Cluster]) -> Result<Code> {
    let [step] = words else {
        return Err(Error::usage("approve takes one step").hint("pg-recover --plan names it."));
    };
    if !Step::NEED_APPROVAL.contains(&step.as_str()) {
        return Err(Error::usage(format!("no step \"{step}\" needs an approval"))
            .hint(format!("Those that do: {}.", Step::NEED_APPROVAL.join(", "))));
    }
    need_root()?;
    let mut approved = 0;
    for cluster in clusters {
        let name = cluster.name();
        let Some(_held) = Lock::take(&name, PATIENCE)? else {
            return Err(Error::with(Code::TempFail, format!("another program is at work on cluster {name}"))
                .hint("Try again when it is done."));
        };
        let mut verdict = standing::verdict(&name);
        if !always && verdict.value.waiting != *step {
            continue;
        }
        let approval = Approval { step: step.clone(), always, by: person(), at: Stamp::now() };
        let value = &mut verdict.value;
        value.approved.retain(|given| given.step != *step);
        log::warn!(PG_CLUSTER = name, PG_STEP = step.as_str(); "cluster {name}: {} approves step {step}{}", approval.by, if always { ", always" } else { "" });
        value.approved.push(approval);
        // It is no longer for a person.
        (value.manual, value.attempts, value.handed_over) = (false, 0, String::new());
        verdict.save().map_err(|e| Error::failed(format!("could not save the approval for cluster {name}: {e}")))?;
        approved += 1;
    }
    if approved == 0 {
        return Err(Error::failed(format!("step {step} waits for approval on no cluster"))
            .hint("pg-recover --plan says what is found and would be done."));
    }
    unit::start("pg-recovery.service")?;
    Ok(Code::Ok)
}

fn person() -> String {
    std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_else(|_| "root".into())
}

pub fn need_root() -> Result<()> {
    if nix::unistd::Uid::effective().is_root() {
        return Ok(());
    }
    Err(Error::with(Code::NoPerm, "cannot change anything: this program needs root")
        .hint("Run it with sudo, or start pg-recovery.service."))
}
