//! soak: two or three random faults on top of each other, again and again, on a host under load that nobody helps.
//!
//! What happens in a round is decided by the seed and the round's number alone; when it happens is not, since computers differ.

use std::cell::Cell;
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use host::{Host, Ledger, Signal, Suite, faults, monotonic_ms, poll_until};
use sha2::{Digest, Sha256};

/// Three faults may take three recoveries, one after the other, and a pass of the health check's timer.
const WELL_AGAIN: Duration = Duration::from_secs(300);

struct Options {
    seed: u64,
    minutes: u64,
    /// Only this one.
    round: Option<u64>,
}

/// Something that is done to a host.
type Act = (&'static str, fn(&Host));

/// What comes on top of the faults: it is no fault of the server, or one that it heals itself.
const DISTURBANCES: [Act; 6] = [
    ("power cut", Host::power_cut_and_boot),
    ("backend killed", faults::p4_backend_killed::inject),
    ("pg-watchdog killed", |host| host.signal(main_pid(host, "pg-watchdog.service"), Signal::SIGKILL)),
    ("pg-recover killed", |host| {
        let running =
            poll_until(Duration::from_secs(10), || Some(main_pid(host, "pg-recovery.service")).filter(|pid| *pid > 0));
        host.signal(running.expect("a recovery runs"), Signal::SIGKILL);
    }),
    ("state files torn", |host| {
        host.sh("find /var/lib/pg-recovery -name '*.json' -exec truncate -s 40 {} +");
    }),
    ("restart by hand", |host| {
        host.run(&format!("systemctl restart {}", host.unit()));
    }),
];

thread_local! {
    /// A fault may find nothing left to break; that is no failure.
    static MAY_FAIL: Cell<bool> = const { Cell::new(false) };
}

fn main() -> ExitCode {
    let options = match parse(std::env::args_os().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\nusage: tests/soak [--seed N] [--minutes M] [--round N]");
            return ExitCode::from(64);
        }
    };
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !MAY_FAIL.get() {
            print(panic);
        }
    }));
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
        let (injected, gap) = one_round(&host, options.seed, round);
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

/// Returns how many faults were done, and how long the client waited.
fn one_round(host: &Host, seed: u64, round: u64) -> (usize, Duration) {
    let suite = host.suite().name();
    host.run("systemctl disable --now squatter.service");
    host.settle();
    let ledger = host.ledger_of_fresh_sessions();
    ledger.wait_for_commits(100);
    let healings = host.recoveries().len();
    let mut names = Vec::new();
    for (pause, (name, inject)) in choose(seed, round) {
        std::thread::sleep(pause);
        MAY_FAIL.set(true);
        let done = catch_unwind(AssertUnwindSafe(|| inject(host))).is_ok();
        MAY_FAIL.set(false);
        if !host.is_up() {
            host.boot_again();
        }
        names.push(if done { name.to_owned() } else { format!("({name})") });
    }
    let faults = names.join(" + ");
    println!("{suite} round {round}: {faults}");
    let mut waits_for = String::new();
    let well = poll_until(WELL_AGAIN, || {
        waits_for = what_is_not_well(host, &ledger)?;
        waits_for.is_empty().then_some(())
    });
    assert!(well.is_some(), "{suite} seed {seed} round {round}: {faults}: not well again: {waits_for}");
    let records = host.recoveries().split_off(healings.min(host.recoveries().len()));
    let manual = records.iter().find(|record| record["outcome"] == "manual");
    assert!(manual.is_none(), "{suite} seed {seed} round {round}: {faults}: given up: {manual:#?}");
    let tally = ledger.stop_and_check();
    tally.assert_nothing_lost();
    let amcheck = host.main_cluster().program("pg_amcheck");
    let checked = host.as_postgres(&format!("{amcheck} --all --install-missing --heapallindexed"));
    assert!(checked.success(), "{suite} seed {seed} round {round}: {faults}: {checked}");
    let (forbidden, acts) = host.forbidden_acts();
    assert!(forbidden.is_empty() && acts > 0, "{suite} seed {seed} round {round}: {faults}: {forbidden:#?}");
    let how: Vec<String> =
        records.iter().map(|r| format!("{} {}", r["fault"], r["outcome"]).replace('"', "")).collect();
    println!("{suite} round {round}: {:.1} s without a commit; {}", tally.longest_gap().as_secs_f64(), how.join(", "));
    (names.iter().filter(|name| !name.starts_with('(')).count(), tally.longest_gap())
}

/// Two or three, with pauses of up to three seconds, in which a repair may have begun.
fn choose(seed: u64, round: u64) -> Vec<(Duration, Act)> {
    let mut acts: Vec<Act> = faults::all().map(|fault| (fault.name, fault.inject)).collect();
    acts.extend(DISTURBANCES);
    let random = |what: u64| {
        let hash = Sha256::digest([seed, round, what].map(u64::to_be_bytes).concat());
        u64::from_be_bytes(hash[..8].try_into().expect("eight bytes"))
    };
    (0..2 + random(0) % 2)
        .map(|nth| {
            let act = acts.swap_remove(usize::try_from(random(2 * nth + 1)).unwrap_or(0) % acts.len());
            (Duration::from_millis(random(2 * nth + 2) % 3000), act)
        })
        .collect()
}

/// Empty when nothing is left to do; nothing while that cannot be told.
fn what_is_not_well(host: &Host, ledger: &Ledger) -> Option<String> {
    if !ledger.has_committed_since(monotonic_ms() - 500) {
        return Some("the client does not commit".into());
    }
    let unit = host.run(&format!("systemctl is-active {}", host.unit())).stdout;
    if unit.trim() != "active" {
        return Some(format!("its unit is {unit}"));
    }
    if host.run("systemctl show -p ActiveState --value pg-recovery.service").stdout.trim() == "activating" {
        return Some("a recovery is under way".into());
    }
    let plan = host.run("pg-recover --plan --json");
    let plan: serde_json::Value = serde_json::from_str(&plan.stdout).ok()?;
    let well = plan["clusters"][0]["diagnosis"]["fault"] == "none";
    Some(if well { String::new() } else { format!("{plan:#}") })
}

fn main_pid(host: &Host, unit: &str) -> i32 {
    host.run(&format!("systemctl show -p MainPID --value {unit}")).stdout.trim().parse().unwrap_or(0)
}
