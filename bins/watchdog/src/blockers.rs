//! What is done about sessions that others wait for: left open in a transaction (L2), at the head of a queue for locks (L3);
//! and about one whose temporary files fill the volume (L4). Pure: facts in, one step out.
//!
//! Gentlest first: the waiting statement that keeps the most others waiting is cancelled, then the one at the head of the queue,
//! then its session is ended. Superusers, replication, backups, and whatever is no client's session are never touched.

use std::time::Duration;

use shared::config::Sessions as Rule;

use crate::spill::Spill;

/// A transaction that only holds back the cleaning up of dead rows is no matter of minutes.
const HOLDS_BACK: Duration = Duration::from_secs(3600);
/// Clients that are idle in a transaction for good reason: pg_dump -j keeps its snapshot that way.
const BACKUPS: [&str; 6] = ["pg_dump", "pg_dumpall", "pg_basebackup", "pgbackrest", "pgBackRest", "barman"];

/// One process of the server that is in a transaction.
#[derive(Clone, Debug, Default)]
pub struct Process {
    pub pid: i32,
    pub role: String,
    pub application: String,
    /// Of a superuser, of a role for replication, or no client's at all.
    pub is_protected: bool,
    /// `None`: it is at work.
    pub idle: Option<Duration>,
    /// `xact_start`, as the server writes it: with the PID it names one transaction.
    pub transaction: String,
    pub age: Duration,
    /// It has a snapshot or a transaction id of its own.
    pub holds_back: bool,
    /// Those it waits for, directly; 0 is a prepared transaction.
    pub waits_for: Vec<i32>,
    /// How long its statement has been running.
    pub waited: Duration,
    /// It waits for a lock that nobody else can share: that of ALTER TABLE, DROP, TRUNCATE, VACUUM FULL ...
    pub wants_all: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Cancel the statement of this transaction.
    Cancel(i32, String),
    /// End the session with this transaction.
    End(i32, String),
    /// Not ours to touch.
    Person,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub fault: &'static str,
    pub step: Step,
    pub why: String,
}

impl Process {
    fn is_untouchable(&self) -> bool {
        self.is_protected || BACKUPS.iter().any(|name| self.application.starts_with(name))
    }

    fn describe(&self) -> String {
        // Quoted the way of Rust: clients choose these names, and terminals are shown them.
        format!("PID {} (role {:?}, application {:?})", self.pid, self.role, self.application)
    }
}

/// Everybody who waits for `pid`, directly or behind others.
fn behind(pid: i32, all: &[Process]) -> Vec<i32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(blocker) = found.get(next).copied() {
        let new = all.iter().filter(|process| process.waits_for.contains(&blocker)).map(|process| process.pid);
        let new: Vec<i32> = new.filter(|pid| !found.contains(pid)).collect();
        found.extend(new);
        next += 1;
    }
    found.split_off(1)
}

/// A session that has been idle in its transaction for too long, while others wait for it or dead rows cannot be removed:
/// the one with most behind it, then the oldest.
pub fn left_open(all: &[Process], rule: &Rule) -> Option<Planned> {
    let harms = |process: &&Process| {
        process.idle.is_some_and(|idle| idle >= rule.idle_in_transaction_for)
            && (!behind(process.pid, all).is_empty() || (process.holds_back && process.age >= HOLDS_BACK))
    };
    let may = |process: &&Process| !process.is_untouchable();
    let worst =
        all.iter().filter(harms).max_by_key(|process| (may(process), behind(process.pid, all).len(), process.age))?;
    let (who, waiters, idle) = (worst.describe(), behind(worst.pid, all).len(), worst.idle.unwrap_or_default());
    let harm = match waiters {
        0 => "no dead row that it might still see can be removed".into(),
        waiters => format!("{waiters} sessions wait for it"),
    };
    let why = format!("{who} has been idle in a transaction for {}s, and {harm}", idle.as_secs());
    let step = if may(&worst) { Step::End(worst.pid, worst.transaction.clone()) } else { Step::Person };
    Some(Planned { fault: "L2", step, why })
}

/// The cheapest way to end a queue of many who have waited for long. `cancelled` has the transactions whose statement was
/// cancelled before, which did not help.
pub fn queue(all: &[Process], rule: &Rule, cancelled: &[(i32, String)]) -> Option<Planned> {
    let find = |pid: i32| all.iter().find(|process| process.pid == pid);
    let waits = |pid: i32| find(pid).is_some_and(|process| !process.waits_for.is_empty());
    // A cycle is a deadlock, which the server ends itself, and has no head.
    let mut heads: Vec<i32> =
        all.iter().flat_map(|process| &process.waits_for).copied().filter(|pid| !waits(*pid)).collect();
    heads.sort_unstable();
    heads.dedup();
    let (head, waiters) =
        heads.into_iter().map(|pid| (pid, behind(pid, all))).max_by_key(|(_, behind)| behind.len())?;
    let longest = waiters.iter().filter_map(|pid| find(*pid)).map(|process| process.waited).max()?;
    if waiters.len() < rule.lock_waiters as usize || longest < rule.lock_wait {
        return None;
    }
    let queue = format!("{} sessions wait, for up to {}s, behind", waiters.len(), longest.as_secs());
    let was_cancelled = |process: &Process| cancelled.contains(&(process.pid, process.transaction.clone()));
    // Everybody else could go on beside the head of the queue, but for this one.
    let jam = waiters
        .iter()
        .filter_map(|pid| find(*pid))
        .filter(|process| process.wants_all && !process.is_untouchable() && !was_cancelled(process))
        .max_by_key(|process| behind(process.pid, all).len())
        .filter(|process| 2 * behind(process.pid, all).len() >= waiters.len());
    if let Some(jam) = jam {
        let why =
            format!("{queue} {}, which itself waits for a lock on its table that excludes everybody", jam.describe());
        return Some(Planned { fault: "L3", step: Step::Cancel(jam.pid, jam.transaction.clone()), why });
    }
    let Some(process) = find(head) else {
        let why = format!("{queue} a prepared transaction (SELECT * FROM pg_prepared_xacts)");
        return (head == 0).then_some(Planned { fault: "L3", step: Step::Person, why });
    };
    let why = format!("{queue} {}, in a transaction for {}s", process.describe(), process.age.as_secs());
    let transaction = process.transaction.clone();
    let step = match () {
        () if process.is_untouchable() => Step::Person,
        () if process.idle.is_some() || was_cancelled(process) => Step::End(head, transaction),
        () => Step::Cancel(head, transaction),
    };
    Some(Planned { fault: "L3", step, why })
}

/// The session without whose temporary files the volume would not be `full` percent used.
pub fn spilling(all: &[Process], spill: &Spill, full: u8, cancelled: &[(i32, String)]) -> Option<Planned> {
    let (pid, bytes) = spill.bytes.iter().max_by_key(|(_, bytes)| **bytes)?;
    if spill.used.saturating_sub(*bytes) * 100 >= spill.room * u64::from(full) {
        return None;
    }
    let process = all.iter().find(|process| process.pid == *pid)?;
    let why = format!(
        "{} has {} MB of temporary files on a volume that is {}% used; temp_file_limit would keep it from that",
        process.describe(),
        bytes >> 20,
        spill.used * 100 / spill.room.max(1)
    );
    let transaction = (process.pid, process.transaction.clone());
    let step = match () {
        () if process.is_untouchable() => Step::Person,
        () if process.idle.is_some() || cancelled.contains(&transaction) => Step::End(transaction.0, transaction.1),
        () => Step::Cancel(transaction.0, transaction.1),
    };
    Some(Planned { fault: "L4", step, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_work(pid: i32) -> Process {
        let (role, application) = ("app".to_string(), "psql".to_string());
        let age = Duration::from_secs(100);
        Process { pid, role, application, transaction: format!("t{pid}"), age, ..Process::default() }
    }

    fn idle(pid: i32, seconds: u64) -> Process {
        Process { idle: Some(Duration::from_secs(seconds)), ..at_work(pid) }
    }

    fn waiting(pid: i32, behind: &[i32]) -> Process {
        Process { waits_for: behind.to_vec(), waited: Duration::from_secs(40), ..at_work(pid) }
    }

    fn left_open(all: &[Process]) -> Option<Step> {
        super::left_open(all, &Rule::default()).map(|planned| planned.step)
    }

    fn queue(all: &[Process]) -> Option<Step> {
        super::queue(all, &Rule::default(), &[]).map(|planned| planned.step)
    }

    fn five_behind(blocker: i32) -> Vec<Process> {
        (11..16).map(|pid| waiting(pid, &[blocker])).collect()
    }

    #[test]
    fn only_a_transaction_that_was_left_open_for_long_and_does_harm_is_ended() {
        let end = |pid: i32| Some(Step::End(pid, format!("t{pid}")));
        assert_eq!(left_open(&[idle(1, 600), waiting(2, &[1])]), end(1));
        assert_eq!(left_open(&[idle(1, 299), waiting(2, &[1])]), None);
        assert_eq!(left_open(&[idle(1, 600), waiting(2, &[3]), at_work(3)]), None);
        assert_eq!(
            left_open(&[idle(1, 600), idle(2, 900), waiting(3, &[4]), waiting(4, &[1]), waiting(5, &[2])]),
            end(1)
        );
        let old = |holds_back| Process { age: HOLDS_BACK, holds_back, ..idle(1, 3600) };
        assert_eq!((left_open(&[old(true)]), left_open(&[old(false)])), (end(1), None));
    }

    #[test]
    fn superusers_replication_and_backups_are_a_persons_matter() {
        let dump = Process { application: "pg_dump".into(), ..idle(1, 600) };
        let ruler = Process { is_protected: true, ..idle(1, 600) };
        for one in [dump, ruler] {
            assert_eq!(left_open(&[one.clone(), waiting(2, &[1])]), Some(Step::Person));
            let all = [vec![one], five_behind(1)].concat();
            assert_eq!(queue(&all), Some(Step::Person));
        }
        // Whoever may be ended comes first.
        let all = [Process { is_protected: true, ..idle(1, 900) }, idle(2, 600), waiting(3, &[1]), waiting(4, &[2])];
        assert_eq!(left_open(&all), Some(Step::End(2, "t2".into())));
    }

    #[test]
    fn a_short_queue_and_one_that_has_not_waited_long_are_left_alone() {
        let all = [vec![at_work(1)], five_behind(1)].concat();
        assert_eq!(queue(&all[..5]), None);
        let brief: Vec<Process> =
            all.iter().map(|p| Process { waited: Duration::from_secs(29), ..p.clone() }).collect();
        assert_eq!(queue(&brief), None);
        assert_eq!(queue(&all), Some(Step::Cancel(1, "t1".into())));
    }

    #[test]
    fn the_statement_that_everybody_waits_behind_is_the_cheapest_victim() {
        let ddl = Process { wants_all: true, ..waiting(2, &[1]) };
        let all = [vec![at_work(1), ddl.clone()], five_behind(2)].concat();
        assert_eq!(queue(&all), Some(Step::Cancel(2, "t2".into())));
        // Most of them wait for the head of the queue itself.
        let mut all = [vec![at_work(1), ddl], five_behind(1)].concat();
        all[6].waits_for = vec![2];
        assert_eq!(queue(&all), Some(Step::Cancel(1, "t1".into())));
    }

    #[test]
    fn what_a_cancel_did_not_help_against_is_ended_and_so_is_what_has_no_statement_to_cancel() {
        let all = [vec![at_work(1)], five_behind(1)].concat();
        let of =
            |cancelled: &[(i32, String)]| super::queue(&all, &Rule::default(), cancelled).map(|planned| planned.step);
        assert_eq!(of(&[(1, "t1".into())]), Some(Step::End(1, "t1".into())));
        assert_eq!(
            of(&[(1, "t0".into())]),
            Some(Step::Cancel(1, "t1".into())),
            "another transaction of the same session"
        );
        let all = [vec![idle(1, 40)], five_behind(1)].concat();
        assert_eq!(queue(&all), Some(Step::End(1, "t1".into())));
    }

    #[test]
    fn a_prepared_transaction_and_a_deadlock_are_not_touched() {
        assert_eq!(queue(&five_behind(0)), Some(Step::Person));
        let ring: Vec<Process> = (1..7).map(|pid| waiting(pid, &[pid % 6 + 1])).collect();
        assert_eq!(queue(&ring), None);
    }

    #[test]
    fn only_whoever_fills_the_volume_alone_is_cancelled_and_then_ended() {
        let all = [at_work(1), at_work(2)];
        let of = |used, bytes: &[(i32, u64)], cancelled: &[(i32, String)]| {
            let spill = Spill { used, room: 1000 << 20, bytes: bytes.iter().copied().collect() };
            spilling(&all, &spill, 90, cancelled).map(|planned| planned.step)
        };
        let (small, large) = (30 << 20, 60 << 20);
        assert_eq!(of(950 << 20, &[(1, small), (2, large)], &[]), Some(Step::Cancel(2, "t2".into())));
        assert_eq!(of(950 << 20, &[(2, large)], &[(2, "t2".into())]), Some(Step::End(2, "t2".into())));
        assert_eq!(of(960 << 20, &[(1, small), (2, large)], &[]), None, "it would be full without them");
        assert_eq!(of(950 << 20, &[(3, large)], &[]), None, "of nobody who is there");
    }
}
