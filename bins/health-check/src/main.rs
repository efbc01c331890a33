//! health-check: asks every PostgreSQL cluster of this host whether it is healthy.

mod catalog;
mod certificate;
mod count;
mod credential;
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

use shared::args::Args;
use shared::cluster::Cluster;
use shared::health::Status;
use shared::owner::Owner;
use shared::{Error, Result, exit, log};

use crate::pass::{Outcome, Pass};

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
    if clusters.is_empty() {
        may_look()?;
    }
    let password = if config.health.application.is_some() { credential::password()? } else { None };
    let host = host::check(&config.health);
    let outcomes = pass::run(clusters, Pass { config, host, password, counts: args.has("count") });
    if args.json {
        print!("{}", report::json(&outcomes));
    } else if log::is_journal() {
        report::journal(&outcomes);
    } else {
        print!("{}", report::human(&outcomes));
    }
    Ok(exit_code(&outcomes))
}

/// Refuses to call a host without clusters healthy for the only reason that this user cannot see them.
fn may_look() -> Result<()> {
    let (me, root) = (nix::unistd::Uid::effective(), std::path::Path::new("/etc/postgresql"));
    let is_owner = Owner::named("postgres").is_some_and(|owner| owner.uid == me);
    if me.is_root() || is_owner || !root.exists() {
        return Ok(());
    }
    Err(Error::with(exit::Code::NoPerm, "cannot look at the clusters of this host: this program runs as another user")
        .hint("Run it as root or as postgres."))
}

/// The worst of all clusters.
fn exit_code(outcomes: &[Outcome]) -> u8 {
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
