//! backup: base backups and the WAL after them, proven by reading and restoring them, and the way back.

mod child;
mod drill;
mod encryption;
mod expire;
mod incremental;
mod manifest;
mod now;
mod pgbackrest;
mod report;
mod restore;
mod server;
mod store;
mod stream;
mod synchronous;
mod verify;

use std::process::ExitCode;

use shared::args::Args;
use shared::cluster::Cluster;
use shared::config::Config;
use shared::exit::{self, Code};
use shared::{Error, Result};

const HELP: &str = include_str!("help.txt");

fn main() -> ExitCode {
    shared::log::init("pg-backup");
    exit::with(run())
}

fn run() -> Result<Code> {
    let flags = ["due", "full", "latest", "plan"];
    let args = Args::parse_with_values(HELP, &flags, &["to", "time", "lsn", "name", "backup"])?;
    let verb = match args.words.as_slice() {
        [verb] => verb.as_str(),
        _ => return Err(Error::usage("one command is needed").hint("Try --help.")),
    };
    encryption::init();
    store::become_postgres()?;
    if verb == "stream" {
        return stream::run(&args);
    }
    if verb == "release" {
        let config = args.load_config().unwrap_or_default();
        return synchronous::release(&ours(&config, &args.clusters)?.0, "nobody receives");
    }
    let config = args.load_config()?;
    let (clusters, others) = ours(&config, &args.clusters)?;
    for cluster in others {
        log::info!("cluster {} belongs to user {}, leaving it alone", cluster.name(), cluster.owner.name);
    }
    match verb {
        "now" => now::all(&clusters, &config, &args),
        "list" => report::list(&clusters, &config, args.json),
        "verify" => verify::all(&clusters, &config, args.value("backup")),
        "drill" => drill::all(&clusters, &config, args.value("backup")),
        "restore" => restore::run(&clusters, &config, &args),
        "expire" => expire::all(&clusters, &config, args.has("plan")),
        word => Err(Error::usage(format!("unknown command \"{word}\"")).hint("Try --help.")),
    }
}

/// The clusters of the user postgres; and those of other users, which are somebody else's.
fn ours(config: &Config, names: &[String]) -> Result<(Vec<Cluster>, Vec<Cluster>)> {
    let me = nix::unistd::Uid::effective();
    Ok(Cluster::select(config, names)?.into_iter().partition(|cluster| cluster.owner.uid == me))
}

/// Does the same to each cluster; an error of one is reported and does not keep the others from their turn.
fn each(clusters: &[Cluster], mut act: impl FnMut(&Cluster) -> Result<Code>) -> Result<Code> {
    Ok(Code::worst(clusters.iter().map(|cluster| act(cluster).unwrap_or_else(|error| exit::report(&error)))))
}
