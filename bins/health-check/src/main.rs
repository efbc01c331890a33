//! health-check: asks every PostgreSQL cluster of this host whether it is healthy.

mod backup;
mod catalog;
mod certificate;
mod count;
mod credential;
mod damage;
mod files;
mod forecast;
mod host;
mod pass;
mod postmaster;
mod probe;
mod report;
mod score;
mod settings;
mod standby;
mod startup;
mod volume;

use std::process::ExitCode;
use std::sync::Mutex;

use shared::args::Args;
use shared::cluster::Cluster;
use shared::{Result, exit, log};

use crate::pass::Pass;

const HELP: &str = "\
pg-health-check: asks every PostgreSQL cluster of this host whether it is healthy

  --cluster V/NAME  only this cluster, such as 16/main; may be repeated
  --config FILE     instead of /etc/pg-recovery/config.toml
  --count           keep the score of failures, as pg-health-check.service does
  --json            one JSON document
  --help, --version

Exit status: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN (also for a wrong command line or configuration);
10 with --count when a recovery is due. See pg-health-check(8).
";

fn main() -> ExitCode {
    log::init("pg-health-check");
    // Whoever reads 64 or 78 here is a monitoring system, and takes every code but 0, 1 and 2 for UNKNOWN at best.
    ExitCode::from(run().unwrap_or_else(|error| {
        exit::report(&error);
        3
    }))
}

fn run() -> Result<u8> {
    let args = Args::parse(HELP, &["count"])?;
    args.no_words()?;
    let config = args.load_config()?;
    let clusters = Cluster::select(&config, &args.clusters)?;
    credential::may_look(&clusters)?;
    let password = if config.health.application.is_some() { credential::password() } else { Ok(None) };
    let host = host::check(&config, &clusters)?;
    let counts = args.has("count");
    let outcomes = pass::run(clusters, Pass { config, host, password, counts, entered: Mutex::default() });
    if args.json {
        log::print(&report::json(&outcomes))?;
    } else if log::is_journal() {
        report::journal(&outcomes);
    } else {
        log::print(&report::human(&outcomes))?;
    }
    Ok(report::exit_code(&outcomes))
}
