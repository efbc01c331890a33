//! `--plan`: what is found and what would be done, printed instead of carried out.

use std::time::Duration;

use serde::Serialize;
use shared::Result;
use shared::cluster::Cluster;
use shared::config::Config;
use shared::exit::Code;
use shared::standing;

use crate::diagnosis::{Diagnosis, Fault, diagnose};
use crate::facts::{self, Memory};
use crate::plan::{Planned, Risk, plan};

#[derive(Serialize)]
struct Report {
    clusters: Vec<OfCluster>,
}

#[derive(Serialize)]
struct OfCluster {
    cluster: String,
    diagnosis: Diagnosis,
    plan: Vec<Planned>,
}

pub fn plans(clusters: &[Cluster], config: &Config, json: bool) -> Result<Code> {
    let mut report = Report { clusters: Vec::new() };
    for cluster in clusters {
        let name = cluster.name();
        let cluster = &facts::whole(cluster, config, Duration::from_secs(10))?;
        let memory = Memory::of(&name, config, &standing::verdict(&name).value);
        let facts = facts::look(cluster, config, &memory)?;
        let diagnosis = diagnose(&facts, config, &name);
        let plan = plan(&facts, &diagnosis, &[]);
        report.clusters.push(OfCluster { cluster: name, diagnosis, plan });
    }
    if json {
        let json = serde_json::to_string_pretty(&report).map_err(std::io::Error::other)?;
        shared::log::print(&format!("{json}\n"))?;
        return Ok(Code::Ok);
    }
    let mut text = String::new();
    if report.clusters.is_empty() {
        text.push_str("no PostgreSQL cluster on this host\n");
    }
    for cluster in &report.clusters {
        text.push_str(&format!("{}: {}\n", cluster.cluster, cluster.diagnosis.fault.describe()));
        for line in &cluster.diagnosis.evidence {
            text.push_str(&format!("  evidence: {line}\n"));
        }
        for (number, step) in cluster.plan.iter().enumerate() {
            let name = step.step.name();
            let waits = match step.risk {
                Risk::Data => format!(
                    "; it gives up data, and waits for: pg-recover approve {name} --cluster {}",
                    cluster.cluster
                ),
                _ => String::new(),
            };
            text.push_str(&format!("  step {}: {name} ({}{waits})\n", number + 1, step.why));
        }
        if cluster.plan.is_empty() {
            let nothing = match cluster.diagnosis.fault {
                Fault::NotOurs(_)
                | Fault::Unknown
                | Fault::Configuration(_)
                | Fault::SocketGone { .. }
                | Fault::InTurns(_) => "a person has to look at it",
                _ => "nothing to do",
            };
            text.push_str(&format!("  plan: {nothing}\n"));
        }
    }
    shared::log::print(&text)?;
    Ok(Code::Ok)
}
