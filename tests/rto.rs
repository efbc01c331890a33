//! rto: does every fault of `tests/faults` again and again, and prints docs/rto.md, with figures of the computer it runs on.

use std::process::ExitCode;
use std::time::Duration;

use host::faults::{self, Fault, Healing};
use host::{Host, Suite};

const SUITES: [Suite; 2] = [Suite::Bookworm, Suite::Trixie];

const HEAD: &str = "# Time to heal
What each fault costs a client, on a host with the defaults of the package that nobody helps. Made with `tests/rto`, which boots the
machines, does the faults, and prints this page; a word after the number of runs picks faults by name.

The client commits every 5 ms with a new session each time; the figure is the longest time between two acknowledged commits. Where no
session waited longer than usual, it is what one commit takes. Lost are acknowledged commits that are not in the table afterwards.
";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (runs, only) = match words[..] {
        [] => (Ok(20), ""),
        [runs] => (runs.parse(), ""),
        [runs, only] => (runs.parse(), only),
        _ => ("".parse::<usize>(), ""),
    };
    let Ok(runs @ 1..) = runs else {
        eprintln!("usage: tests/rto [RUNS [FAULT]]");
        return ExitCode::from(64);
    };
    println!("{HEAD}\nTaken on {}, {runs} runs each: median, worst.\n", computer());
    println!("| class | fault | it imitates | it is not | what was done | Debian 12 | Debian 13 | lost |");
    println!("|---|---|---|---|---|---|---|---|");
    for fault in faults::all().filter(|fault| fault.name.contains(only)) {
        println!("{}", row(fault, runs));
    }
    ExitCode::SUCCESS
}

fn row(fault: &Fault, runs: usize) -> String {
    // Both machines at the same time: most of it is waiting.
    let healed = std::thread::scope(|scope| {
        SUITES.map(|suite| scope.spawn(move || heal(fault, suite, runs))).map(|run| run.join().expect("it is healed"))
    });
    let mut done: Vec<String> = Vec::new();
    let mut lost = 0;
    let times = healed.map(|healings| {
        let mut gaps = Vec::new();
        for Healing { tally, record } in healings {
            lost += tally.lost;
            gaps.push(tally.longest_gap());
            let way = record.as_ref().map_or("its start by the distribution".into(), way);
            if !done.contains(&way) {
                done.push(way);
            }
        }
        gaps.sort();
        format!("{}, {}", seconds(gaps[runs / 2]), seconds(gaps[runs - 1]))
    });
    let Fault { class, name, imitates, is_not, .. } = fault;
    format!(
        "| {class} | {name} | {imitates} | {is_not} | {} | {} | {} | {lost} |",
        done.join("; or "),
        times[0],
        times[1]
    )
}

fn heal(fault: &Fault, suite: Suite, runs: usize) -> Vec<Healing> {
    let host = Host::boot(suite);
    (0..runs).map(|_| fault.heal(&host)).collect()
}

/// Who saw it, and the steps in their order.
fn way(record: &serde_json::Value) -> String {
    let steps = record["steps"].as_array().into_iter().flatten();
    let steps: Vec<&str> = steps.filter_map(|step| step["step"].as_str()).collect();
    format!("{}: {}", record["detected_by"].as_str().unwrap_or("?"), steps.join(", "))
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
