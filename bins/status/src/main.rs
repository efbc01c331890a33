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

use std::process::ExitCode;
use std::time::Duration;

use shared::args::Args;
use shared::cluster::Cluster;
use shared::config::Config;
use shared::exit::{self, Code};
use shared::tally::Sums;
use shared::{Error, Result, log, record};

use crate::facts::Host;
use crate::screen::Paper;

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

/// A mistake in the configuration keeps nobody from seeing how it is: that is shown as it would be without any.
fn show(args: &Args) -> Result<Code> {
    let is_screen = !args.json && !args.has("metrics");
    loop {
        let (config, mistake) = match args.load_config() {
            Ok(config) => (config, None),
            Err(why) => (Config::default(), Some(why)),
        };
        let clusters = Cluster::select(&config, &args.clusters)?;
        let records = record::all();
        let told = mistake.as_ref().map(|why| why.message.clone());
        let host = Host { mistake: told, ..facts::gather(&clusters, &config, &records, facts::units()) };
        let text = if args.has("metrics") {
            metrics::text(&host, &Sums::with(&records), metrics::Format::Text)
        } else if args.json {
            serde_json::to_string_pretty(&host).map_err(std::io::Error::other)? + "\n"
        } else {
            screen::draw(&host, &Paper::of_stdout())
        };
        if !args.has("watch") {
            log::print(&text)?;
            // The metrics say so themselves, to whom no status gets.
            return Ok(mistake.filter(|_| !args.has("metrics")).map_or(Code::Ok, |why| why.code));
        }
        log::print(&if is_screen { CLEAR.to_string() + &screen::watched(&host.at, &text) } else { text })?;
        std::thread::sleep(EVERY);
    }
}
