//! soak: two or three random faults on top of each other, again and again, on a host under load that nobody helps; or every fault
//! with its repair interrupted at every step.
//!
//! What happens in a round is decided by the seed and the round's number alone; what comes of it is not, since computers differ.

use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use host::faults;
use host::faults::overlapping::{choose, overlap};
use host::{Host, Suite, trace_actors};

struct Options {
    seed: u64,
    minutes: u64,
    /// Only this one.
    round: Option<u64>,
    /// Every fault of which this is a part of the name, at every step, instead of random ones.
    steps: Option<String>,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args_os().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!(
                "{error}\nusage: tests/soak [--seed N] [--minutes M] [--round N]\n       tests/soak --steps FAULT"
            );
            return ExitCode::from(64);
        }
    };
    trace_actors(true);
    let options = &options;
    let passed = std::thread::scope(|scope| {
        let runs = [Suite::Bookworm, Suite::Trixie].map(|suite| {
            scope.spawn(move || match &options.steps {
                Some(only) => at_every_step(suite, only),
                None => soak(suite, options),
            })
        });
        runs.map(|run| run.join().is_ok())
    });
    if passed == [true, true] { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Options, lexopt::Error> {
    use lexopt::{Arg::Long, ValueExt};
    let mut options = Options { seed: u64::from(std::process::id()), minutes: 10, round: None, steps: None };
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("seed") => options.seed = parser.value()?.parse()?,
            Long("minutes") => options.minutes = parser.value()?.parse()?,
            Long("steps") => options.steps = Some(parser.value()?.parse()?),
            Long("round") => options.round = Some(parser.value()?.parse()?),
            _ => return Err(argument.unexpected()),
        }
    }
    Ok(options)
}

/// A fault that is not healed in spite of everything does not keep the others from being tried.
fn at_every_step(suite: Suite, only: &str) {
    let mut failed = Vec::new();
    for ladder in faults::at_every_step::all().filter(|ladder| ladder.name.contains(only)) {
        let host = Host::boot(suite);
        match catch_unwind(AssertUnwindSafe(|| ladder.climb(&host))) {
            Ok((killed, full)) => println!(
                "{}: {} {}: killed before each of {killed} steps, state disk full at each of {full} uses: healed, 0 commits lost",
                suite.name(),
                ladder.class,
                ladder.name
            ),
            Err(_) => failed.push(ladder.name),
        }
    }
    assert!(failed.is_empty(), "{}: not healed: {failed:?}", suite.name());
}

fn soak(suite: Suite, options: &Options) {
    println!("{}: seed {}", suite.name(), options.seed);
    let end = Instant::now() + Duration::from_secs(options.minutes * 60);
    let host = Host::boot(suite);
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
