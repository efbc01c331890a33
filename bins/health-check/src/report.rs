//! What is printed: one line for each cluster as monitoring systems read it, with performance data on the first; details
//! of what is not well; or JSON. And the same for the journal.

use serde_json::json;
use shared::health::Status;

use crate::pass::Outcome;
use crate::score::Finding;

/// The worst cluster first: monitoring systems take the first line for the answer
/// (https://www.monitoring-plugins.org/doc/guidelines.html).
pub fn human(outcomes: &[Outcome]) -> String {
    if outcomes.is_empty() {
        return "PG OK - no PostgreSQL cluster on this host\n".into();
    }
    let mut text = String::new();
    for (index, outcome) in outcomes.iter().enumerate() {
        text.push_str(&format!("PG {} - {}: {}", outcome.status, outcome.cluster, summary(outcome)));
        // A second "|" would make everything behind it performance data, so the first line has that of all clusters.
        if index == 0 {
            text.push_str(&format!(" | {}", perfdata(outcomes)));
        }
        text.push('\n');
    }
    for outcome in outcomes {
        for finding in outcome.findings.iter().filter(|f| f.check.status != Status::Ok) {
            let check = &finding.check;
            let line = format!("{} {} {}: {}", outcome.cluster, check.status, check.name, plain(&check.message));
            text.push_str(&format!("{line}\n"));
        }
    }
    text
}

/// A bar would begin performance data, a line feed another line.
fn plain(text: &str) -> String {
    text.replace('|', "/").replace(['\n', '\r'], " ")
}

fn summary(outcome: &Outcome) -> String {
    let mut ill: Vec<&Finding> = outcome.findings.iter().filter(|f| f.check.status != Status::Ok).collect();
    ill.sort_by_key(|f| std::cmp::Reverse(f.check.status));
    if let Some((worst, others)) = ill.split_first() {
        let others = match others.len() {
            0 => String::new(),
            n => format!(" (and {n} more)"),
        };
        return format!("{}{others}; score {}", plain(&worst.check.message), outcome.score);
    }
    let message = |name: &str| outcome.findings.iter().find(|f| f.check.name == name).map(|f| f.check.message.clone());
    let role = (!outcome.role.is_empty()).then(|| outcome.role.to_string());
    let service = ["write", "replay"].iter().find_map(|name| message(name));
    match (role, service) {
        (Some(role), Some(service)) => {
            let connections = message("connections").map(|m| format!(", {m}")).unwrap_or_default();
            format!("{role}, {}{connections}; score {}", plain(&service), outcome.score)
        }
        _ => plain(&message("process").or(message("socket")).unwrap_or_default()),
    }
}

/// 'label'=value[unit];[warn];[crit]
fn perfdata(outcomes: &[Outcome]) -> String {
    let mut words = Vec::new();
    for outcome in outcomes {
        let label = |name: &str| {
            if outcomes.len() == 1 { name.to_string() } else { format!("'{} {name}'", outcome.cluster) }
        };
        words.push(format!("{}={};;;0;100", label("score"), outcome.score));
        words.push(format!("{}={};;{};0", label("failures"), outcome.failures, outcome.max_failures));
        for finding in &outcome.findings {
            let Some(value) = finding.check.value else { continue };
            // Only these units are known to the readers of performance data.
            let unit = finding.check.unit.as_deref().filter(|u| ["ms", "s", "%", "B"].contains(u)).unwrap_or("");
            let limits = finding.limits.map(|(warn, fail)| format!(";{warn};{fail}")).unwrap_or_default();
            words.push(format!("{}={value}{unit}{limits}", label(&finding.check.name)));
        }
    }
    words.join(" ")
}

pub fn json(outcomes: &[Outcome]) -> String {
    let cluster = |o: &Outcome| {
        let checks: Vec<_> = o.findings.iter().map(|f| &f.check).collect();
        json!({
            "cluster": o.cluster,
            "status": o.status,
            "score": o.score,
            "failures": o.failures,
            "max_failures": o.max_failures,
            "checks": checks,
        })
    };
    format!("{:#}\n", json!({ "clusters": outcomes.iter().map(cluster).collect::<Vec<_>>() }))
}

/// One line for each check that is not well, and one for the cluster.
pub fn journal(outcomes: &[Outcome]) {
    if outcomes.is_empty() {
        log::info!("OK: no PostgreSQL cluster on this host");
    }
    for outcome in outcomes {
        let name = outcome.cluster.as_str();
        for check in outcome.findings.iter().map(|f| &f.check) {
            let level = match check.status {
                Status::Ok => continue,
                Status::Warning | Status::Unknown => log::Level::Warn,
                Status::Critical => log::Level::Error,
            };
            log::log!(
                level, PG_CLUSTER = name, PG_CHECK = check.name.as_str();
                "{name} {} {}: {}", check.status, check.name, check.message
            );
        }
        log::info!(
            PG_CLUSTER = name, PG_STATUS:% = outcome.status, PG_SCORE = outcome.score, PG_FAILURES = outcome.failures;
            "{name} {}: {}", outcome.status, summary(outcome)
        );
    }
}

/// The worst of all clusters.
pub fn exit_code(outcomes: &[Outcome]) -> u8 {
    if outcomes.iter().any(|o| o.is_due) {
        return 10;
    }
    match outcomes.iter().map(|o| o.status).max().unwrap_or(Status::Ok) {
        Status::Ok => 0,
        Status::Warning => 1,
        Status::Critical => 2,
        Status::Unknown => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(cluster: &str, findings: Vec<Finding>) -> Outcome {
        Outcome {
            cluster: cluster.into(),
            status: crate::score::overall(&findings),
            score: crate::score::score(&findings),
            failures: 1,
            max_failures: 3,
            findings,
            role: "primary",
            is_due: false,
        }
    }

    fn well() -> Outcome {
        let write = Finding::ok("write", "a write was committed in 2.0 ms").value(2.0, "ms");
        outcome("16/main", vec![write, Finding::level("connections", 5.0, "%", (75.0, 90.0), "5 of 100")])
    }

    #[test]
    fn a_healthy_cluster_is_one_line_with_performance_data() {
        assert_eq!(
            human(&[well()]),
            "PG OK - 16/main: primary, a write was committed in 2.0 ms, 5 of 100; score 100 | score=100;;;0;100 \
             failures=1;;3;0 write=2ms connections=5%;75;90\n"
        );
        assert_eq!(human(&[]), "PG OK - no PostgreSQL cluster on this host\n");
    }

    #[test]
    fn of_several_clusters_the_first_line_is_the_answer_and_has_all_numbers() {
        let ill = outcome("15/a", vec![Finding::critical("socket", "no | new\nconnection")]);
        let text = human(&[ill, well()]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("PG CRITICAL - 15/a: no / new connection; score 0 | '15/a score'=0"), "{text}");
        assert!(lines[0].contains("'16/main write'=2ms"), "{text}");
        assert!(lines[1].starts_with("PG OK - 16/main: "), "{text}");
        assert_eq!(lines[2], "15/a CRITICAL socket: no / new connection");
        assert_eq!(text.matches('|').count(), 1);
    }

    #[test]
    fn the_json_document_has_the_agreed_fields() {
        let document: serde_json::Value = serde_json::from_str(&json(&[well()])).unwrap();
        let cluster = &document["clusters"][0];
        assert_eq!((&cluster["cluster"], &cluster["status"]), (&json!("16/main"), &json!("ok")));
        assert_eq!(
            (&cluster["score"], &cluster["failures"], &cluster["max_failures"]),
            (&json!(100), &json!(1), &json!(3))
        );
        let check = cluster["checks"][0].as_object().unwrap();
        let mut keys: Vec<_> = check.keys().map(String::as_str).collect();
        keys.sort();
        assert_eq!(keys, ["message", "name", "status", "unit", "value"]);
        assert_eq!((&check["value"], &check["unit"]), (&json!(2.0), &json!("ms")));
    }
}
