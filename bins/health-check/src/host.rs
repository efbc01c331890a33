//! Memory and pressure of the host, and what is configured for clusters that it does not have: the same for all its clusters.

use shared::cluster::Cluster;
use shared::config::{Config, Health};
use shared::{Result, pressure};

use crate::score::Finding;

pub fn check(config: &Config, asked: &[Cluster]) -> Result<Vec<Finding>> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let pressure = pressure::KINDS.map(|kind| (kind, pressure::some(kind, "avg60")));
    let mut findings = vec![judge_memory(read("/proc/meminfo").as_deref().and_then(memory), &config.health)];
    findings.extend(judge_pressure(&pressure, &config.health));
    findings.extend(strangers(config, asked)?);
    Ok(findings)
}

/// A `[[cluster]]` section whose name fits no cluster is most likely misspelt, and what it should keep us from is done.
fn strangers(config: &Config, asked: &[Cluster]) -> Result<Option<Finding>> {
    let mut names = config.strangers(|name| asked.iter().any(|cluster| cluster.name() == name));
    if !names.is_empty() {
        // Only some of the clusters may have been asked for.
        let all = Cluster::discover(config)?;
        names.retain(|name| all.iter().all(|cluster| cluster.name() != *name));
    }
    if names.is_empty() {
        return Ok(None);
    }
    let message = format!(
        "the configuration has a [[cluster]] section for {}, which is not on this host: correct its name, or remove it",
        names.join(", ")
    );
    if asked.is_empty() {
        log::warn!("{message}");
    }
    Ok(Some(Finding::warning("cluster_sections", message)))
}

/// Total and available memory in kB (proc(5)).
fn memory(text: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some((field("MemTotal")?, field("MemAvailable")?)).filter(|(total, _)| *total > 0)
}

fn judge_memory(memory: Option<(u64, u64)>, config: &Health) -> Finding {
    let Some((total, available)) = memory else {
        return Finding::unknown("memory", "/proc/meminfo does not tell how much memory is available");
    };
    let used = 100.0 * (total.saturating_sub(available)) as f64 / total as f64;
    let message = format!("{used:.0}% of memory is used, {} MB are available", available >> 10);
    Finding::level("memory", used, "%", (config.memory_warn.into(), config.memory_fail.into()), message)
}

/// Pressure is a warning at most: a busy host is slow, not broken. Kernels without it say nothing.
fn judge_pressure(pressure: &[(&str, Option<f64>)], config: &Health) -> Option<Finding> {
    let worst = pressure.iter().filter_map(|(kind, share)| Some((*kind, (*share)?))).max_by(|a, b| a.1.total_cmp(&b.1));
    let (kind, share) = worst?;
    let message = format!("for {share:.0}% of the last minute some task waited for {kind}");
    let limit = f64::from(config.pressure_warn);
    let finding = if share >= limit { Finding::warning("pressure", message) } else { Finding::ok("pressure", message) };
    Some(finding.value(share, "%").limits(limit, 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::health::Status;

    #[test]
    fn memory_is_judged_by_what_is_available() {
        let text = "MemTotal:       1000 kB\nMemFree:         10 kB\nMemAvailable:     80 kB\n";
        let judged = judge_memory(memory(text), &Health::default());
        assert_eq!((judged.check.status, judged.check.value), (Status::Warning, Some(92.0)));
        assert_eq!(judge_memory(memory(""), &Health::default()).check.status, Status::Unknown);
    }

    #[test]
    fn the_highest_pressure_counts_and_is_never_critical() {
        let judged = judge_pressure(&[("cpu", Some(1.0)), ("io", Some(99.5))], &Health::default()).unwrap();
        assert_eq!(judged.check.status, Status::Warning);
        assert!(judged.check.message.ends_with("waited for io"), "{}", judged.check.message);
        assert_eq!(judge_pressure(&[("cpu", None)], &Health::default()), None);
    }
}
