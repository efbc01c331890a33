//! Not a fault: two or three of them on top of each other, on a host under load.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::{Host, Ledger, Signal, monotonic_ms, poll_until};

/// Three faults may take three recoveries, one after the other, and a pass of the health check's timer.
const WELL_AGAIN: Duration = Duration::from_secs(300);

/// Something that is done to a host, and its name.
pub type Act = (&'static str, fn(&Host));

/// What comes on top of the faults: it is no fault of the server, or one that it heals itself.
const DISTURBANCES: [Act; 6] = [
    ("power cut", Host::power_cut_and_boot),
    ("backend killed", super::p4_backend_killed::inject),
    ("pg-watchdog killed", |host| host.signal(main_pid(host, "pg-watchdog.service"), Signal::SIGKILL)),
    ("pg-recover killed", |host| {
        let running =
            poll_until(Duration::from_secs(10), || Some(main_pid(host, "pg-recovery.service")).filter(|pid| *pid > 0));
        host.signal(running.expect("a recovery runs"), Signal::SIGKILL);
    }),
    ("state files torn", |host| {
        // What is written anew all the time. Without evidence and recovery points too, what is lost as well is a person's matter.
        host.sh(
            "cd /var/lib/pg-recovery && find health recover watchdog notify -name '*.json' -exec truncate -s 40 {} +",
        );
    }),
    ("restart by hand", |host| {
        host.run(&format!("systemctl restart {}", host.unit()));
    }),
];

/// Lost again as soon as it is back, it is on a disk that does not keep what it is given: that is a person's matter.
const CONTROL: &str = "pg_control ";

/// Two or three that a seed and the number of a round decide, with pauses of up to three seconds, in which a repair may have
/// begun. With other faults in the table the same seed draws others.
pub fn choose(seed: u64, round: u64) -> Vec<(Duration, Act)> {
    let mut acts: Vec<Act> = all().collect();
    let random = |what: u64| {
        let hash = Sha256::digest([seed, round, what].map(u64::to_be_bytes).concat());
        u64::from_be_bytes(hash[..8].try_into().expect("eight bytes"))
    };
    (0..2 + random(0) % 2)
        .map(|nth| {
            let act = acts.swap_remove(usize::try_from(random(2 * nth + 1)).unwrap_or(0) % acts.len());
            if act.0.starts_with(CONTROL) {
                acts.retain(|other| !other.0.starts_with(CONTROL));
            }
            (Duration::from_millis(random(2 * nth + 2) % 3000), act)
        })
        .collect()
}

/// The ones of these names, one after the other.
pub fn named(names: &[&str]) -> Vec<(Duration, Act)> {
    let act = |name: &&str| all().find(|act| act.0 == *name).unwrap_or_else(|| panic!("there is no fault {name}"));
    names.iter().map(|name| (Duration::from_millis(200), act(name))).collect()
}

fn all() -> impl Iterator<Item = Act> {
    super::all().map(|fault| (fault.name, fault.inject)).chain(DISTURBANCES)
}

/// Does them, waits until all is well, and looks at everything: commits, indexes, what was done meanwhile. Returns how many
/// were done, and how long the client waited.
#[track_caller]
pub fn overlap(host: &Host, acts: Vec<(Duration, Act)>) -> (usize, Duration) {
    host.run("systemctl disable --now squatter.service");
    host.settle();
    let ledger = host.ledger_of_fresh_sessions();
    ledger.wait_for_commits(20);
    let healings = host.recoveries().len();
    let mut names = Vec::new();
    for (pause, (name, inject)) in acts {
        std::thread::sleep(pause);
        // It may find nothing left to break.
        let done = catch_unwind(AssertUnwindSafe(|| inject(host))).is_ok();
        if !host.is_up() {
            host.boot_again();
        }
        names.push(if done { name.to_owned() } else { format!("({name})") });
    }
    let what = format!("{}: {}", host.suite().name(), names.join(" + "));
    let mut waits_for = String::new();
    let well = poll_until(WELL_AGAIN, || {
        waits_for = what_is_not_well(host, &ledger)?;
        waits_for.is_empty().then_some(())
    });
    assert!(well.is_some(), "{what}: not well again: {waits_for}");
    let records = host.recoveries().split_off(healings.min(host.recoveries().len()));
    let manual = records.iter().find(|record| record["outcome"] == "manual");
    assert!(manual.is_none(), "{what}: given up: {manual:#?}");
    let tally = ledger.stop_and_check();
    tally.assert_nothing_lost();
    let amcheck = host.main_cluster().program("pg_amcheck");
    let checked = host.as_postgres(&format!("{amcheck} --all --install-missing --heapallindexed"));
    assert!(checked.success(), "{what}: {checked}");
    assert!(host.assert_nothing_forbidden() > 0, "{what}: nothing was traced");
    let how: Vec<String> =
        records.iter().map(|r| format!("{} {}", r["fault"], r["outcome"]).replace('"', "")).collect();
    // A wait to be looked into.
    if tally.longest_gap() > Duration::from_secs(60) {
        eprintln!("{what}: {}", host.run("journalctl --no-pager --output short-precise --lines 1000").stdout);
    }
    println!("{what}: {:.1} s without a commit; {}", tally.longest_gap().as_secs_f64(), how.join(", "));
    (names.iter().filter(|name| !name.starts_with('(')).count(), tally.longest_gap())
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
