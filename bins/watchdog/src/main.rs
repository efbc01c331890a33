//! pg-watchdog: watches every postmaster of this host, brings back one that died, and has a hung one repaired.

mod adopt;
mod blockers;
mod board;
mod budget;
mod crash;
mod death;
mod endpoint;
mod handover;
mod host;
mod keeper;
mod look;
mod oom;
mod post;
mod restart;
mod sentry;
mod service;
mod services;
mod sessions;
mod signals;
mod spill;
mod state;
mod storm;
mod verdict;

use shared::args::Args;
use shared::exit::{self, Code};
use shared::{Error, Result};

const HELP: &str = "\
Usage: pg-watchdog [--cluster VERSION/NAME]... [--config FILE]
       pg-watchdog adopt UNIT [--yes | --plan]

Watches the postmaster of every cluster of this host: restarts one that died, within a budget, and starts
pg-recovery.service for one that hangs or cannot be started. Watches the services of the configuration, too.
Meant to be run by pg-watchdog.service.

  adopt UNIT              show the drop-in that has systemd restart UNIT when it fails, and install it when that
                          is confirmed; pg-rollback monitoring takes it back
  --yes, --plan           for adopt: install it without asking; only show it
  --cluster VERSION/NAME  watch only this cluster, such as 16/main; may be repeated
  --config FILE           read FILE instead of /etc/pg-recovery/config.toml
  --help, --version
";

fn main() -> std::process::ExitCode {
    shared::log::init("pg-watchdog");
    exit::with(run())
}

fn run() -> Result<Code> {
    let args = Args::parse(HELP, &["yes", "plan"])?;
    if let ["adopt", unit] = args.words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return adopt::run(unit, &args);
    }
    args.no_words()?;
    if !nix::unistd::Uid::effective().is_root() {
        return Err(Error::with(Code::NoPerm, "cannot watch: this program needs root")
            .hint("It is meant to be run by systemd: systemctl start pg-watchdog.service"));
    }
    let config = args.load_config()?;
    // Before the first thread, for threads inherit what is blocked.
    let signals = signals::Signals::block()?;
    post::save_memory();
    host::watch(args, config, &signals)?;
    Ok(Code::Ok)
}
