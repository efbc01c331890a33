//! status: how the clusters are, on one screen or as a page, from what the other programs leave on disk. It asks no server
//! anything, so it answers at once, whatever is down or hangs.

mod answer;
mod door;
mod facts;
mod look;
mod metrics;
mod page;
mod plot;
mod screen;
mod serve;
mod services;
mod stats;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use shared::args::Args;
use shared::cluster::Cluster;
use shared::exit::{self, Code};
use shared::tally::Sums;
use shared::{Error, Result, log, record};

const HELP: &str = include_str!("help.txt");
const EVERY: Duration = Duration::from_secs(2);
/// To the upper left corner, and everything behind it away (console_codes(4)).
const CLEAR: &str = "\x1b[H\x1b[J";

fn main() -> ExitCode {
    log::init("pg-status");
    exit::with(run())
}

fn run() -> Result<Code> {
    let args = Args::parse_with_values(HELP, &["watch", "metrics"], &["reset"])?;
    match args.words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => show(&args),
        ["serve"] => serve::run(&args),
        ["services"] => services::run(&args),
        [word, ..] => Err(Error::usage(format!("unexpected argument \"{word}\"")).hint("Try --help.")),
    }
}

fn is_coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn show(args: &Args) -> Result<Code> {
    let colour = is_coloured();
    loop {
        let config = args.load_config()?;
        let clusters = Cluster::select(&config, &args.clusters)?;
        let records = record::all();
        let host = facts::gather(&clusters, &config, &records, facts::units());
        let text = if args.has("metrics") {
            metrics::text(&host, &Sums::with(&records), metrics::Format::Text)
        } else if args.json {
            serde_json::to_string_pretty(&host).map_err(std::io::Error::other)? + "\n"
        } else {
            screen::draw(&host, colour)
        };
        if !args.has("watch") {
            log::print(&text)?;
            return Ok(Code::Ok);
        }
        let is_screen = !args.json && !args.has("metrics");
        log::print(&if is_screen { CLEAR.to_string() + &text } else { text })?;
        std::thread::sleep(EVERY);
    }
}
