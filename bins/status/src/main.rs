//! status: how the clusters are, on one screen, from what the other programs leave on disk. It asks no server anything, so it
//! answers at once, whatever is down or hangs.

mod facts;
mod screen;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use shared::args::Args;
use shared::cluster::Cluster;
use shared::exit::{self, Code};
use shared::{Result, log};

const HELP: &str = include_str!("help.txt");
const EVERY: Duration = Duration::from_secs(2);
/// To the upper left corner, and everything behind it away (console_codes(4)).
const CLEAR: &str = "\x1b[H\x1b[J";

fn main() -> ExitCode {
    log::init("pg-status");
    exit::with(run())
}

fn run() -> Result<Code> {
    let args = Args::parse(HELP, &["watch"])?;
    args.no_words()?;
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    loop {
        let config = args.load_config()?;
        let clusters = Cluster::select(&config, &args.clusters)?;
        let host = facts::gather(&clusters, &config);
        let text = match args.json {
            true => serde_json::to_string_pretty(&host).map_err(std::io::Error::other)? + "\n",
            false => screen::draw(&host, colour),
        };
        if !args.has("watch") {
            log::print(&text)?;
            return Ok(Code::Ok);
        }
        log::print(&if args.json { text } else { CLEAR.to_string() + &text })?;
        std::thread::sleep(EVERY);
    }
}
