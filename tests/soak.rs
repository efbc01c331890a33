//! soak: two or three random faults on top of each other, again and again, on a host under load that nobody helps.
//!
//! What happens in a round is decided by the seed and the round's number alone; what comes of it is not, since computers differ.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use host::faults::overlapping::{choose, overlap};
use host::{Host, Suite};

struct Options {
    seed: u64,
    minutes: u64,
    /// Only this one.
    round: Option<u64>,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args_os().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\nusage: tests/soak [--seed N] [--minutes M] [--round N]");
            return ExitCode::from(64);
        }
    };
    println!("seed {}", options.seed);
    let options = &options;
    let passed = std::thread::scope(|scope| {
        let runs = [Suite::Bookworm, Suite::Trixie].map(|suite| scope.spawn(move || soak(suite, options)));
        runs.map(|run| run.join().is_ok())
    });
    if passed == [true, true] { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Options, lexopt::Error> {
    use lexopt::{Arg::Long, ValueExt};
    let mut options = Options { seed: u64::from(std::process::id()), minutes: 10, round: None };
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("seed") => options.seed = parser.value()?.parse()?,
            Long("minutes") => options.minutes = parser.value()?.parse()?,
            Long("round") => options.round = Some(parser.value()?.parse()?),
            _ => return Err(argument.unexpected()),
        }
    }
    Ok(options)
}

fn soak(suite: Suite, options: &Options) {
    let end = Instant::now() + Duration::from_secs(options.minutes * 60);
    let host = Host::boot(suite);
    host.trace_actors();
    let (mut rounds, mut done, mut gaps) = (0, 0, Vec::new());
    let first = options.round.unwrap_or(1);
    for round in first.. {
        if rounds > 0 && (options.round.is_some() || Instant::now() >= end) {
            break;
        }
        println!("{} round {round}", suite.name());
        let (injected, gap) = overlap(&host, choose(options.seed, round));
        rounds += 1;
        done += injected;
        gaps.push(gap);
    }
    gaps.sort();
    println!(
        "{}: {rounds} rounds, {done} faults, 0 commits lost, no forbidden act; longest time without a commit in a round: median {:.1} s, worst {:.1} s",
        suite.name(),
        gaps[gaps.len() / 2].as_secs_f64(),
        gaps[gaps.len() - 1].as_secs_f64()
    );
}
