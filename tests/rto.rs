//! rto: does every fault of `tests/faults` again and again, and prints docs/rto.md, with figures of the computer it runs on; if asked
//! to, also once on machines that are looked after by what else people rely on.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use host::faults::{self, End, Fault, Healing, Staged};
use host::{Host, Rival, Suite, monotonic_ms, poll_until};

const SUITES: [Suite; 2] = [Suite::Bookworm, Suite::Trixie];

const HEAD: &str = "# Time to heal
What each fault costs a client, on a host with the defaults of the package that nobody helps. Made with `tests/rto`, which boots the
machines, does the faults, and prints this page; a word after the number of runs picks faults by name.

The client commits every 5 ms with a new session each time; the figure is the longest time between two acknowledged commits. Where no
session waited longer than usual, it is what one commit takes. Lost are acknowledged commits that are not in the table afterwards.
";

const BESIDE: &str = "## Beside it
What other ways make of the same faults on Debian 12, in one run each, which was made during those above; of those the column of
pg-recovery says median and worst.

Each fault was watched for 100 s at least, and for 240 s where clients were not served. \"The scripts\" are two shell scripts that a timer
runs every minute: a check with `psql`, and after three failures a restart that removes `postmaster.pid`; they are no part of this
repository. Monit 5.33 polls every 5 s, with the check of PostgreSQL that its manual shows. Their client commits every 50 ms, so that
the computer is left to the runs above: up to 0.1 s nobody has waited. What is missed later than that is not in the figure: a stopped
checkpointer or a lost `pg_control` does not keep a client waiting for a while.

| class | fault | pg-recovery | Debian as it is | the scripts | Monit |
|---|---|---|---|---|---|
";

const STAGED: &str = "## On hosts made for them
Faults that want a disk, clients or settings of their own, and faults that are not this package's to heal: those it tells a person, and
touches nothing; what it says is in pg-recover(8) and pg-health-check(8). For the healed the figure is the longest time between two
acknowledged commits of a client, as above; for the others the time from the fault to the record or to the finding of the check that
runs every minute. Each run has a fresh machine. Lost are commits that were acknowledged and are gone after the healing; who is only
told has the data directory as the fault has left it. Slots and prepared transactions are told at lower bounds here than by default, and
a transaction is left open for 10 s instead of five minutes. Sessions of L2 to L4 are only spoken of by default: the rows are for who has
said \"act\".

Without a row are what is left alone (H1, H2, H5, M2, O1 to O5) and what disturbs the programs themselves (T1 to T5): there is no time to
measure. What must hold for them is in `tests/facts`.
";

/// How long a fault is watched that a client has not noticed yet, and how long one is waited for that it has.
const WATCHED: Duration = Duration::from_secs(100);
const NEVER: Duration = Duration::from_secs(240);
/// Of a staged fault that takes longer than this there are fewer runs.
const SLOW: Duration = Duration::from_secs(20);
/// So many rows at a time.
const AT_A_TIME: usize = 3;
const FAILED: &str = "FAILED";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (runs, only, scripts) = match words[..] {
        [] => (Ok(20), "", None),
        [runs] => (runs.parse(), "", None),
        [runs, only] => (runs.parse(), only, None),
        [runs, only, scripts] => (runs.parse(), only, Some(Path::new(scripts))),
        _ => ("".parse::<usize>(), "", None),
    };
    let Ok(runs @ 1..) = runs else {
        eprintln!("usage: tests/rto [RUNS [FAULT [SCRIPTS]]]");
        return ExitCode::from(64);
    };
    let all_measured = [unstaged(runs, only, scripts), staged(runs, only)];
    if all_measured == [true, true] { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The table of what happens to any host, and what the rivals make of it; and whether they are without a gap.
fn unstaged(runs: usize, only: &str, scripts: Option<&Path>) -> bool {
    println!("{HEAD}\nTaken on {}, {runs} runs each: median, worst.\n", computer());
    println!("| class | fault | it imitates | it is not | what was done | Debian 12 | Debian 13 | lost |");
    println!("|---|---|---|---|---|---|---|---|");
    let faults: Vec<&Fault> = faults::all().filter(|fault| fault.name.contains(only)).collect();
    let mut beside = BESIDE.to_owned();
    let mut failed = false;
    for faults in faults.chunks(AT_A_TIME) {
        std::thread::scope(|scope| {
            let rivals = |fault| {
                scripts.map(|scripts| {
                    [Rival::Debian, Rival::Scripts(scripts), Rival::Monit]
                        .map(|rival| scope.spawn(move || outcome(fault, &rival.boot(Suite::Bookworm))))
                })
            };
            let rivals: Vec<_> = faults.iter().map(|fault| rivals(*fault)).collect();
            // Ours one fault at a time, since they keep both cores busy; what the rivals do is waiting.
            let rows: Vec<_> = faults.iter().map(|fault| row(fault, runs)).collect();
            for ((Fault { class, name, .. }, rivals), ours) in faults.iter().zip(rivals).zip(rows) {
                failed |= ours == FAILED;
                if let Some(rivals) = rivals {
                    let theirs = rivals.map(|rival| rival.join().unwrap_or_else(|_| FAILED.into())).join(" | ");
                    failed |= theirs.contains(FAILED);
                    beside += &format!("| {class} | {name} | {ours} | {theirs} |\n");
                }
            }
        });
    }
    if scripts.is_some() {
        print!("\n{beside}");
    }
    !failed
}

/// Prints the row of a fault; says what Debian 12 took, or that not all of it was measured.
fn row(fault: &Fault, runs: usize) -> String {
    let healings = std::thread::scope(|scope| {
        SUITES
            .map(|suite| scope.spawn(move || heal(fault, suite, runs)))
            .map(|healings| healings.join().unwrap_or_default())
    });
    let ways = ways(&healings);
    let lost: u64 = healings.iter().flatten().map(|healing| healing.tally.lost).sum();
    let [bookworm, trixie] =
        healings.map(|healings| median_and_worst(healings.iter().map(|healing| healing.tally.longest_gap()).collect()));
    let Fault { class, name, imitates, is_not, .. } = fault;
    println!("| {class} | {name} | {imitates} | {is_not} | {ways} | {bookworm} | {trixie} | {lost} |");
    if trixie == FAILED { trixie } else { bookworm }
}

/// The table of the staged ones, and whether it is without a gap.
fn staged(runs: usize, only: &str) -> bool {
    let of_slow_ones = runs.div_ceil(4);
    println!(
        "\n{STAGED}\nTaken on {}, {runs} runs each, {of_slow_ones} of what takes over {} s: median, worst.\n",
        computer(),
        SLOW.as_secs()
    );
    println!("| class | fault | it imitates | it is not | how it ends | Debian 12 | Debian 13 | lost |");
    println!("|---|---|---|---|---|---|---|---|");
    let faults: Vec<&Staged> = faults::staged().filter(|fault| fault.name.contains(only)).collect();
    let mut failed = false;
    for faults in faults.chunks(AT_A_TIME) {
        std::thread::scope(|scope| {
            let run = |fault: &'static Staged, suite| {
                scope.spawn(move || {
                    let mut times = Vec::new();
                    while times.len() < of_slow_ones || (times.len() < runs && median(&mut times) < SLOW) {
                        times.push(fault.run(suite));
                    }
                    times
                })
            };
            let rows: Vec<_> = faults.iter().map(|fault| (fault, SUITES.map(|suite| run(fault, suite)))).collect();
            for (Staged { class, name, imitates, is_not, end, .. }, times) in rows {
                let times = times.map(|times| median_and_worst(times.join().unwrap_or_default()));
                failed |= times.iter().any(|times| times == FAILED);
                let (end, lost) = match end {
                    End::Healed(_) => ("healed".to_owned(), "0"),
                    End::Unnoticed => ("by itself; clients are served on".to_owned(), "-"),
                    End::OnRecord("recovered", _) => ("healed; no client waits".to_owned(), "-"),
                    End::OnRecord("declined", _) => ("by itself; on record".to_owned(), "-"),
                    End::OnRecord(..) => ("a person is told".to_owned(), "-"),
                    End::Told(check, status) => (format!("told: {check} is {status}"), "-"),
                };
                println!("| {class} | {name} | {imitates} | {is_not} | {end} | {} | {} | {lost} |", times[0], times[1]);
            }
        });
    }
    !failed
}

/// Runs that failed have no times.
fn median_and_worst(mut times: Vec<Duration>) -> String {
    if times.is_empty() {
        return FAILED.into();
    }
    format!("{}, {}", seconds(median(&mut times)), seconds(times[times.len() - 1]))
}

/// They are sorted afterwards.
fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn heal(fault: &Fault, suite: Suite, runs: usize) -> Vec<Healing> {
    let host = Host::boot(suite);
    (0..runs).map(|_| fault.heal(&host)).collect()
}

/// What a fault costs a client on a host that is looked after otherwise, or not at all.
fn outcome(fault: &Fault, host: &Host) -> String {
    let ledger = host.ledger_of_rare_sessions();
    ledger.wait_for_commits(20);
    (fault.inject)(host);
    let injected = Instant::now();
    let healed = poll_until(NEVER, || {
        (injected.elapsed() > WATCHED && ledger.has_committed_since(monotonic_ms() - 1000)).then_some(())
    });
    if healed.is_none() {
        return format!("not within {} s", NEVER.as_secs());
    }
    let tally = ledger.stop_and_check();
    match tally.lost {
        0 => seconds(tally.longest_gap()),
        lost => format!("{}, {lost} commits lost", seconds(tally.longest_gap())),
    }
}

/// What was done, each way once: who saw it, and the steps in their order.
fn ways(healings: &[Vec<Healing>]) -> String {
    let way = |Healing { record, .. }: &Healing| {
        let Some(record) = record else { return "its start by the distribution".into() };
        let steps = record["steps"].as_array().into_iter().flatten();
        let steps: Vec<&str> = steps.filter_map(|step| step["step"].as_str()).collect();
        format!("{}: {}", record["detected_by"].as_str().unwrap_or("?"), steps.join(", "))
    };
    let ways: BTreeSet<String> = healings.iter().flatten().map(way).collect();
    ways.into_iter().collect::<Vec<_>>().join("; or ")
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// The date, and the size of this computer.
fn computer() -> String {
    let command = "echo \"$(date +%F) on a computer with $(nproc) cores and $(free -g | awk '/^Mem/ { print $2 }') GiB, kernel $(uname -r)\"";
    let output = std::process::Command::new("sh").args(["-c", command]).output().expect("there is a shell");
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}
