//! cert-renew: has certificates renewed before they expire, and sees that the new ones are served.

mod acme;
mod all;
mod handshake;
mod pair;
mod plan;
mod renew;
mod server;
mod source;

use std::process::ExitCode;

use shared::args::Args;
use shared::cluster::Cluster;
use shared::exit::{self, Code};
use shared::{Error, Result};

const HELP: &str = include_str!("help.txt");

fn main() -> ExitCode {
    shared::log::init("pg-cert-renew");
    exit::with(run())
}

fn run() -> Result<Code> {
    let args = Args::parse(HELP, &["check", "plan", "force"])?;
    args.no_words()?;
    if !nix::unistd::Uid::effective().is_root() {
        return Err(Error::with(Code::NoPerm, "keys are for root and their owners alone").hint("Run it with sudo."));
    }
    let config = args.load_config()?;
    let clusters = Cluster::select(&config, &args.clusters)?;
    if args.has("check") || args.has("plan") {
        return all::show(&clusters, &config, &args);
    }
    all::renew(&clusters, &config, &args)
}
