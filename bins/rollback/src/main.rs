//! rollback: a way back from every change of a cluster's configuration, and from this package.

mod change;
mod full;
mod guard;
mod kept;
mod monitoring;
mod points;
mod rehearsal;
mod restore;
mod server;

use std::process::ExitCode;

use shared::args::Args;
use shared::cluster::Cluster;
use shared::config::Config;
use shared::exit::{self, Code};
use shared::{Error, Result, units};

const HELP: &str = include_str!("help.txt");

fn main() -> ExitCode {
    shared::log::init("pg-rollback");
    exit::with(run())
}

fn run() -> Result<Code> {
    let args = Args::parse_with_values(HELP, &["plan", "restart", "watch"], &["only"])?;
    if !nix::unistd::Uid::effective().is_root() {
        return Err(Error::with(Code::NoPerm, "recovery points are for root alone").hint("Run it with sudo."));
    }
    let config = match args.load_config() {
        // A guard comes back, and our units go, whatever has become of the configuration.
        Err(error) if args.has("watch") || args.words.first().is_some_and(|word| word == "monitoring") => {
            exit::report(&error);
            Config::default()
        }
        config => config?,
    };
    let clusters = Cluster::select(&config, &args.clusters)?;
    let levels = ["config", "security", "monitoring", "full"];
    if args.has("plan") && !args.words.first().is_some_and(|word| levels.contains(&word.as_str())) {
        return Err(Error::usage(format!("--plan is for {}", levels.join(", "))).hint("Try --help."));
    }
    let (word, rest) = args.words.split_first().map_or(("", &[][..]), |(word, rest)| (word.as_str(), rest));
    match word {
        "list" => points::list(rest, &args),
        "show" => points::show(rest, &clusters, &config, &args),
        "point" => points::make(&rest.join(" "), &clusters, &config),
        "config" | "security" => restore::run(word, rest, &clusters, &config, &args),
        "monitoring" => monitoring::run(rest, &args),
        "full" => full::run(rest, &clusters, &config, &args),
        "guard" if args.has("watch") => guard::watch(&clusters, &config),
        "guard" => guard::begin(rest, &clusters, &config),
        "confirm" => guard::confirm(&clusters, &config),
        "" => Err(Error::usage("a command is missing").hint("Try --help.")),
        word => Err(Error::usage(format!("unknown command \"{word}\"")).hint("Try --help.")),
    }
}
