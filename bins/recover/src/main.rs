//! recover: finds out what is wrong with a cluster, and repairs it by the gentlest means that works.

mod act;
mod control_file;
mod diagnosis;
mod facts;
mod history;
mod learn;
mod operator;
mod plan;
mod recovery;
mod report;
mod server_log;
mod turns;

use std::process::ExitCode;

use shared::args::Args;
use shared::cluster::Cluster;
use shared::exit::{self, Code};
use shared::{Error, Result};

const HELP: &str = "\
Repairs the PostgreSQL clusters of this host, or says why it will not.

Usage: pg-recover [OPTION]... [--plan]
       pg-recover pause [DURATION] [REASON]   leave everything alone for a while (1h by default)
       pg-recover resume                      end the pause
       pg-recover reset                       try again after \"manual intervention required\"
       pg-recover approve STEP [--always]     allow a step that gives up data, this once or whenever it is needed
       pg-recover history                     what was done so far, and how often it helped
       pg-recover explain [ID]                one of these recoveries as a story; the last one without an ID

Options:
  --plan               say what would be done, and do nothing
  --cluster V/NAME     only this cluster; may be given more than once
  --config FILE        configuration instead of /etc/pg-recovery/config.toml
  --json               one JSON document
  --help, --version
";

fn main() -> ExitCode {
    shared::log::init("pg-recover");
    exit::with(run())
}

fn run() -> Result<Code> {
    let args = Args::parse(HELP, &["plan", "always"])?;
    let config = args.load_config()?;
    let clusters = Cluster::select(&config, &args.clusters)?;
    if args.has("always") && args.words.first().is_none_or(|word| word != "approve") {
        return Err(Error::usage("--always belongs to approve").hint("Try --help."));
    }
    match args.words.first().map(String::as_str) {
        None if args.has("plan") => report::plans(&clusters, &config, args.json),
        None => recovery::all(clusters, &config, args.json),
        Some("pause") => operator::pause(&args.words[1..], &args.clusters),
        Some("resume") => operator::resume(&args.clusters),
        Some("reset") => operator::reset(&clusters),
        Some("approve") => operator::approve(&args.words[1..], args.has("always"), &clusters),
        Some("history") => history::list(&args.clusters, args.json),
        Some("explain") => history::explain(&args.words[1..], &args.clusters, args.json),
        Some(word) => Err(Error::usage(format!("unknown command \"{word}\"")).hint("Try --help.")),
    }
}
