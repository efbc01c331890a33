//! The same for Prometheus: its text format, or OpenMetrics for whoever asks for that. Names are listed in pg-status(8).

use std::fmt::Write;

use shared::clock;
use shared::health::Status;
use shared::service::Condition;
use shared::tally::{BOUNDS, Sum, Sums};

use crate::facts::{Host, STATES, Seen, Served, UNITS};

#[derive(Clone, Copy, PartialEq)]
pub enum Format {
    /// Of Prometheus, version 0.0.4; what node_exporter reads.
    Text,
    /// OpenMetrics 1.0.0: counters are named without their suffix where they are described, units are told, and an end is.
    Open,
}

impl Format {
    /// `accept`: what the client says it takes.
    pub fn wanted(accept: Option<&str>) -> Format {
        match accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
            true => Format::Open,
            false => Format::Text,
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
            Format::Open => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A name without its prefix, which ends in its unit if it has one.
#[derive(Clone, Copy)]
struct Family {
    name: &'static str,
    kind: &'static str,
    unit: &'static str,
    help: &'static str,
}

const fn gauge(name: &'static str, unit: &'static str, help: &'static str) -> Family {
    Family { name, kind: "gauge", unit, help }
}

struct Exposition {
    text: String,
    format: Format,
}

type Labels<'a> = Vec<(&'a str, &'a str)>;

impl Exposition {
    /// Nothing at all of a family without samples.
    fn add<'a>(&mut self, family: Family, samples: impl IntoIterator<Item = (Labels<'a>, f64)>) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        self.describe(family);
        let suffix = if family.kind == "counter" { "_total" } else { "" };
        for (labels, value) in samples {
            self.sample(family.name, suffix, &labels, value);
        }
    }

    fn describe(&mut self, Family { name, kind, unit, help }: Family) {
        let suffix = if kind == "counter" && self.format == Format::Text { "_total" } else { "" };
        let _ = writeln!(self.text, "# HELP pg_recovery_{name}{suffix} {help}");
        let _ = writeln!(self.text, "# TYPE pg_recovery_{name}{suffix} {kind}");
        if self.format == Format::Open && !unit.is_empty() {
            let _ = writeln!(self.text, "# UNIT pg_recovery_{name} {unit}");
        }
    }

    fn sample(&mut self, name: &str, suffix: &str, labels: &[(&str, &str)], value: f64) {
        let _ = write!(self.text, "pg_recovery_{name}{suffix}");
        for (index, (label, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{}{label}=\"{value}\"", if index == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.text, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// `sums` have the same labels, which are these.
    fn histogram<'a>(&mut self, family: Family, sums: impl IntoIterator<Item = (Labels<'a>, &'a Sum)>) {
        let mut sums = sums.into_iter().peekable();
        if sums.peek().is_none() {
            return;
        }
        self.describe(family);
        for (labels, sum) in sums {
            let mut below = 0;
            for (index, count) in sum.durations.iter().enumerate() {
                below += count;
                let bound = BOUNDS.get(index).map(|ms| format!("{:?}", *ms as f64 / 1000.0));
                let bound = [("le", bound.as_deref().unwrap_or("+Inf"))];
                self.sample(family.name, "_bucket", &[&labels[..], &bound].concat(), below as f64);
            }
            self.sample(family.name, "_sum", &labels, sum.ms as f64 / 1000.0);
            self.sample(family.name, "_count", &labels, sum.count as f64);
        }
    }
}

pub fn text(host: &Host, sums: &Sums, format: Format) -> String {
    let mut all = Exposition { text: String::new(), format };
    let one = |seen| (vec![("cluster", name(seen))], seen);
    let of = |value: fn(&Seen) -> Option<f64>| {
        host.clusters.iter().map(one).filter_map(move |(labels, seen)| Some((labels, value(seen)?)))
    };

    all.add(
        gauge("build_info", "", "Version of pg-recovery, in a label."),
        [(vec![("version", env!("CARGO_PKG_VERSION"))], 1.0)],
    );
    all.add(
        gauge("configuration_valid", "", "Whether the configuration can be used; if not, an earlier one is in force."),
        [(vec![], f64::from(u8::from(host.mistake.is_none())))],
    );
    let is_ill = |unit: &str| host.units.iter().any(|(ill, _)| ill == unit);
    all.add(
        gauge("unit_healthy", "", "Whether a unit of pg-recovery runs as it should and has not failed."),
        UNITS.iter().map(|(unit, _)| (vec![("unit", *unit)], f64::from(u8::from(!is_ill(unit))))),
    );

    all.add(
        gauge("cluster_listening", "", "Whether somebody listens on the socket of the cluster."),
        of(|seen| seen.listening.map(|is| f64::from(u8::from(is)))),
    );
    all.add(
        gauge("cluster_state", "", "1 for the state that the cluster is in, 0 for all others."),
        host.clusters.iter().flat_map(|seen| {
            let is = |state: &str| f64::from(u8::from(seen.state == state));
            STATES.iter().map(move |state| (vec![("cluster", name(seen)), ("state", *state)], is(state)))
        }),
    );
    all.add(
        gauge("cluster_paused", "", "Whether a person has paused recoveries."),
        of(|seen| flag_of(seen.pause.is_some())),
    );
    all.add(
        gauge("manual_intervention_required", "", "Whether nothing more is tried until pg-recover reset."),
        of(|seen| flag_of(seen.manual)),
    );

    let services = |value: fn(&Served) -> f64| {
        host.services.iter().map(move |served| (vec![("service", served.service.as_str())], value(served)))
    };
    all.add(
        gauge("service_state", "", "1 for the state that the service is in, 0 for all others."),
        host.services.iter().flat_map(|served| {
            let critical = if served.critical { "true" } else { "false" };
            Condition::ALL.iter().map(move |state| {
                let labels =
                    vec![("service", served.service.as_str()), ("critical", critical), ("state", state.name())];
                (labels, f64::from(u8::from(served.state == state.name())))
            })
        }),
    );
    all.add(
        gauge("service_restart_budget_remaining", "", "Restarts of the service that are left within its window."),
        services(|served| f64::from(served.restarts.1.saturating_sub(served.restarts.0))),
    );

    all.add(
        gauge("health_score", "", "Score of the last health check, from 0 to 100."),
        of(|seen| seen.checked_s.map(|_| f64::from(seen.score))),
    );
    all.add(
        gauge("health_check_timestamp_seconds", "seconds", "When the last health check was, in seconds since 1970."),
        of(|seen| seen.checked_s.map(|_| seen.health.at.wall.floor())),
    );
    all.add(
        gauge("health_check_failures", "", "Health checks in a row that found the cluster not serving."),
        of(|seen| Some(f64::from(seen.failures))),
    );
    all.add(
        gauge("check_status", "", "What the last health check found: 0 ok, 1 warning, 2 critical, 3 unknown."),
        checks(host).map(|(seen, check)| {
            let status = match check.status {
                Status::Ok => 0.0,
                Status::Warning => 1.0,
                Status::Critical => 2.0,
                Status::Unknown => 3.0,
            };
            (vec![("cluster", name(seen)), ("check", check.name.as_str())], status)
        }),
    );
    all.add(
        gauge("resource_used_ratio", "ratio", "How much of something limited is used, from 0 to 1."),
        // What tasks wait for (PSI) has the same unit, and is no part of anything.
        checks(host).filter(|(_, check)| check.unit.as_deref() == Some("%") && check.name != "pressure").filter_map(
            |(seen, check)| {
                let ratio = (check.value? * 1000.0).round() / 100_000.0;
                Some((vec![("cluster", name(seen)), ("resource", check.name.as_str())], ratio))
            },
        ),
    );
    all.add(
        gauge(
            "resource_exhaustion_seconds",
            "seconds",
            "Time until nothing is left of something limited, at its present pace; absent while no end is in sight.",
        ),
        checks(host).filter_map(|(seen, check)| {
            let resource = check.name.strip_suffix("_forecast")?;
            Some((vec![("cluster", name(seen)), ("resource", resource)], check.value?))
        }),
    );

    let at = |rfc3339: &str| clock::seconds_of(rfc3339).map(|seconds| seconds as f64);
    let backups =
        || host.clusters.iter().filter_map(|seen| Some((vec![("cluster", name(seen))], seen.backup.as_ref()?)));
    all.add(
        gauge(
            "backup_timestamp_seconds",
            "seconds",
            "When the newest good base backup was finished, in seconds since 1970.",
        ),
        backups().filter_map(|(labels, backup)| Some((labels, at(&backup.finished)?))),
    );
    all.add(
        gauge(
            "backup_proven_timestamp_seconds",
            "seconds",
            "When a backup was last proven by restoring it, in seconds since 1970.",
        ),
        backups().filter_map(|(labels, backup)| Some((labels, at(backup.proven.as_ref()?)?))),
    );
    all.add(
        gauge("backup_restore_seconds", "seconds", "How long that restore took."),
        backups().filter_map(|(labels, backup)| Some((labels, backup.restore_s?))),
    );

    let certificates =
        || host.clusters.iter().filter_map(|seen| Some((vec![("cluster", name(seen))], seen.certificate.as_ref()?)));
    all.add(
        gauge("certificate_remaining_seconds", "seconds", "Time until the certificate of the server expires."),
        certificates().map(|(labels, certificate)| (labels, certificate.left_days * 86_400.0)),
    );
    all.add(
        gauge(
            "certificate_renewal_timestamp_seconds",
            "seconds",
            "When its next renewal is due, in seconds since 1970; absent where nothing here renews it.",
        ),
        certificates().filter_map(|(labels, certificate)| Some((labels, at(certificate.renewal.as_ref()?)?))),
    );
    all.add(
        gauge("certificate_renewal_failures", "", "Renewals in a row that failed."),
        certificates().map(|(labels, certificate)| (labels, f64::from(certificate.failures))),
    );

    all.add(
        gauge("restart_budget", "", "Restarts of a dead postmaster that may be made within the window."),
        of(|seen| Some(f64::from(seen.restarts.1))),
    );
    all.add(
        gauge("restart_budget_remaining", "", "How many of them are left."),
        of(|seen| Some(f64::from(seen.restarts.1.saturating_sub(seen.restarts.0)))),
    );
    all.add(
        gauge("attempts_remaining", "", "Recoveries in a row that may still fail before a person is needed."),
        of(|seen| Some(f64::from(seen.attempts.1.saturating_sub(seen.attempts.0)))),
    );
    let last = |seen: &Seen| seen.recoveries.first().and_then(|record| clock::seconds_of(&record.finished));
    all.add(
        gauge("last_recovery_timestamp_seconds", "seconds", "When the last recovery ended, in seconds since 1970."),
        host.clusters.iter().filter_map(|seen| Some((vec![("cluster", name(seen))], last(seen)? as f64))),
    );
    all.add(
        Family {
            name: "recoveries",
            kind: "counter",
            unit: "",
            help: "Recoveries, by class of fault and by outcome: recovered, failed, manual or declined.",
        },
        sums.sums.iter().map(|sum| (labels(sum), sum.count as f64)),
    );
    let target = |met: bool| {
        let count = move |sum: &Sum| if met { sum.met } else { sum.missed };
        let met = if met { "true" } else { "false" };
        sums.sums
            .iter()
            .filter(move |sum| count(sum) > 0)
            .map(move |sum| ([labels(sum), vec![("met", met)]].concat(), count(sum) as f64))
    };
    all.add(
        Family {
            name: "recovery_targets",
            kind: "counter",
            unit: "",
            help: "Recoveries that were over in the time that such a fault may take, and those that were not.",
        },
        target(true).chain(target(false)),
    );
    all.histogram(
        Family {
            name: "recovery_duration_seconds",
            kind: "histogram",
            unit: "seconds",
            help: "How long it took from the beginning of a fault until the recovery was over.",
        },
        sums.sums.iter().map(|sum| (labels(sum), sum)),
    );
    if format == Format::Open {
        all.text.push_str("# EOF\n");
    }
    all.text
}

fn flag_of(is: bool) -> Option<f64> {
    Some(f64::from(u8::from(is)))
}

fn name(seen: &Seen) -> &str {
    &seen.cluster
}

fn labels(sum: &Sum) -> Labels<'_> {
    vec![("cluster", &sum.cluster), ("fault", &sum.fault), ("outcome", &sum.outcome)]
}

/// Those of a health check that says something about now.
fn checks(host: &Host) -> impl Iterator<Item = (&Seen, &shared::health::Check)> {
    let fresh = host.clusters.iter().filter(|seen| seen.is_fresh);
    fresh.flat_map(|seen| seen.health.checks.iter().map(move |check| (seen, check)))
}

#[cfg(test)]
mod tests {
    use shared::health::{Check, Health};
    use shared::record::Record;

    use super::*;
    use crate::facts::Backup;

    fn exposition(format: Format) -> String {
        let check = |name: &str, value, unit: &str| Check {
            name: name.into(),
            value: Some(value),
            unit: Some(unit.into()),
            ..Check::default()
        };
        let checks = vec![check("disk_data", 81.5, "%"), check("disk_data_forecast", 7200.0, "s")];
        let seen = Seen {
            cluster: "16/ma\"in".into(),
            state: "warning".into(),
            is_fresh: true,
            restarts: (2, 5, 600),
            checked_s: Some(1),
            listening: Some(true),
            backup: Some(Backup {
                finished: "2026-11-25T02:00:00Z".into(),
                proven: Some("2026-11-25T03:00:00Z".into()),
                restore_s: Some(4.5),
                ..Backup::default()
            }),
            health: Health { checks, ..Health::default() },
            ..Seen::default()
        };
        let record = Record {
            cluster: "16/main".into(),
            fault: "P1".into(),
            outcome: "recovered".into(),
            downtime_ms: 260,
            target_met: Some(true),
            ..Record::default()
        };
        let shop = Served {
            service: "shop".into(),
            state: "down",
            critical: true,
            restarts: (2, 5, 300),
            ..Served::default()
        };
        text(&Host { clusters: vec![seen], services: vec![shop], ..Host::default() }, &Sums::with(&[record]), format)
    }

    #[test]
    fn each_format_has_its_own_names_for_the_same() {
        let plain = exposition(Format::Text);
        for line in [
            "# TYPE pg_recovery_recoveries_total counter\n",
            "pg_recovery_recoveries_total{cluster=\"16/main\",fault=\"P1\",outcome=\"recovered\"} 1\n",
            "pg_recovery_cluster_state{cluster=\"16/ma\\\"in\",state=\"warning\"} 1\n",
            "pg_recovery_resource_used_ratio{cluster=\"16/ma\\\"in\",resource=\"disk_data\"} 0.815\n",
            "pg_recovery_resource_exhaustion_seconds{cluster=\"16/ma\\\"in\",resource=\"disk_data\"} 7200\n",
            "pg_recovery_restart_budget_remaining{cluster=\"16/ma\\\"in\"} 3\n",
            "pg_recovery_service_state{service=\"shop\",critical=\"true\",state=\"down\"} 1\n",
            "pg_recovery_service_restart_budget_remaining{service=\"shop\"} 3\n",
            "outcome=\"recovered\",le=\"0.25\"} 0\n",
            "outcome=\"recovered\",le=\"0.5\"} 1\n",
            "outcome=\"recovered\",le=\"+Inf\"} 1\n",
            "pg_recovery_recovery_duration_seconds_sum{cluster=\"16/main\",fault=\"P1\",outcome=\"recovered\"} 0.26\n",
        ] {
            assert!(plain.contains(line), "{line} is not in\n{plain}");
        }
        assert!(!plain.contains("# UNIT") && plain.contains("pg_recovery_backup_restore_seconds{"), "{plain}");
        let open = exposition(Format::Open);
        assert!(open.contains("# TYPE pg_recovery_recoveries counter\n") && open.ends_with("# EOF\n"), "{open}");
        assert!(open.contains("# UNIT pg_recovery_recovery_duration_seconds seconds\n"), "{open}");
        let samples =
            |text: &str| text.lines().filter(|line| !line.starts_with('#')).map(String::from).collect::<Vec<_>>();
        assert_eq!(samples(&plain), samples(&open));
    }

    #[test]
    fn a_name_ends_in_its_unit_and_each_line_belongs_to_the_family_above_it() {
        let mut family = String::new();
        for line in exposition(Format::Open).lines().filter(|line| *line != "# EOF") {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["#", "HELP", name, ..] => family = name.into(),
                ["#", "UNIT", name, unit] => assert!(name == family && name.ends_with(&format!("_{unit}")), "{line}"),
                ["#", _, name, ..] => assert_eq!(name, family),
                _ => assert!(line.starts_with(&family), "{line} is not of {family}"),
            }
        }
    }

    #[test]
    fn alerts_and_dashboard_ask_for_what_there_is() {
        let alerts = include_str!("../../../packaging/monitoring/prometheus-alerts.yml");
        let dashboard = include_str!("../../../packaging/monitoring/grafana.json");
        let there = exposition(Format::Text);
        let mut asked = 0;
        for text in [alerts, dashboard] {
            for (at, _) in text.match_indices("pg_recovery_") {
                let name =
                    text[at..].split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
                assert!(there.contains(&format!("\n{name}{{")) || there.contains(&format!("\n{name} ")), "{name}");
                asked += 1;
            }
        }
        assert!(asked > 20);
    }

    #[test]
    fn whoever_takes_openmetrics_gets_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";
        assert!(Format::wanted(Some(prometheus)) == Format::Open);
        assert!(Format::wanted(Some("text/html,*/*")) == Format::Text && Format::wanted(None) == Format::Text);
    }
}
