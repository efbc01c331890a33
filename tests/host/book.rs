//! The ledger's own book: one line for each id, `ID STATUS MILLISECONDS`, by the monotonic clock.
//!
//! `acked`: the server said that it is committed. `failed`: the server said that it is not. `unknown`: no answer came, so it
//! may be there or not; its id is never used again. `began` and `ended` are lines of the ledger about itself.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What is known of one id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Acked,
    Unknown,
    Failed,
    Began,
    Ended,
}

impl Status {
    /// The word in the book.
    pub fn word(self) -> &'static str {
        match self {
            Status::Acked => "acked",
            Status::Unknown => "unknown",
            Status::Failed => "failed",
            Status::Began => "began",
            Status::Ended => "ended",
        }
    }
}

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub id: u64,
    pub status: Status,
    pub at_ms: u64,
}

/// All lines, in the order they were written.
#[derive(Clone, Debug, Default)]
pub struct Book {
    pub entries: Vec<Entry>,
}

/// The verdict on a ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    pub acked: u64,
    pub unknown: u64,
    pub failed: u64,
    /// Acknowledged, and not there.
    pub lost: u64,
    /// There more than once.
    pub duplicated: u64,
    /// Refused, and there all the same.
    pub unexpected: u64,
    /// The longest time without an acknowledged commit: the measured downtime.
    pub longest_gap_ms: u64,
    pub gap_started_at_ms: u64,
}

impl Tally {
    /// The measured downtime.
    pub fn longest_gap(&self) -> Duration {
        Duration::from_millis(self.longest_gap_ms)
    }

    /// Fails unless every acknowledged commit is there, once, and nothing that was refused.
    #[track_caller]
    pub fn assert_nothing_lost(&self) {
        assert!(self.acked > 0, "the ledger never got a commit through: {self:?}");
        assert_eq!((self.lost, self.duplicated, self.unexpected), (0, 0, 0), "{self:?}");
    }
}

impl Book {
    /// Reads what is there; a last line without its end is still being written and does not count.
    pub fn read(path: &Path) -> std::io::Result<Book> {
        Ok(Book::parse(&std::fs::read_to_string(path)?))
    }

    fn parse(text: &str) -> Book {
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        let entries = complete
            .lines()
            .filter_map(|line| {
                let mut words = line.split(' ');
                let id = words.next()?.parse().ok()?;
                let word = words.next()?;
                let all = [Status::Acked, Status::Unknown, Status::Failed, Status::Began, Status::Ended];
                let status = all.into_iter().find(|status| status.word() == word)?;
                Some(Entry { id, status, at_ms: words.next()?.parse().ok()? })
            })
            .collect();
        Book { entries }
    }

    /// How many ids have this status.
    pub fn count(&self, status: Status) -> u64 {
        self.entries.iter().filter(|entry| entry.status == status).count() as u64
    }

    /// The highest id used so far.
    pub fn last_id(&self) -> u64 {
        self.entries.iter().map(|entry| entry.id).max().unwrap_or(0)
    }

    /// The longest time without an acknowledged commit, from the first to the last one, or to `now` when given; and when it
    /// began.
    pub fn longest_gap(&self, now_ms: Option<u64>) -> (u64, u64) {
        let acks = self.entries.iter().filter(|entry| entry.status == Status::Acked).map(|entry| entry.at_ms);
        // A ledger that was stopped while the server was away has seen a gap up to its own end.
        let end =
            now_ms.or_else(|| self.entries.last().filter(|last| last.status == Status::Ended).map(|last| last.at_ms));
        let times: Vec<u64> = acks.collect();
        let Some(last) = times.last() else {
            return (0, 0);
        };
        let running = end.map(|end| (end.saturating_sub(*last), *last));
        times
            .windows(2)
            .map(|pair| (pair[1].saturating_sub(pair[0]), pair[0]))
            .chain(running)
            .max()
            .unwrap_or((0, *last))
    }

    /// Compares with what the table holds: id -> number of rows.
    pub fn tally(&self, rows: &HashMap<u64, u64>) -> Tally {
        let there = |entry: &&Entry| rows.contains_key(&entry.id);
        let of = |status| self.entries.iter().filter(move |entry| entry.status == status);
        let (longest_gap_ms, gap_started_at_ms) = self.longest_gap(None);
        Tally {
            acked: self.count(Status::Acked),
            unknown: self.count(Status::Unknown),
            failed: self.count(Status::Failed),
            lost: of(Status::Acked).filter(|entry| !there(entry)).count() as u64,
            duplicated: rows.values().filter(|count| **count > 1).count() as u64,
            unexpected: of(Status::Failed).filter(there).count() as u64,
            longest_gap_ms,
            gap_started_at_ms,
        }
    }
}

/// The clock of the book: it never jumps, and is the same in every process.
pub fn monotonic_ms() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("Linux has a monotonic clock");
    u64::try_from(now.tv_sec()).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec()).unwrap_or(0) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOK: &str =
        "0 began 5\n1 acked 10\n2 acked 15\n3 unknown 900\n4 failed 910\n5 acked 1000\n6 acked 1004\n7 ack";

    #[test]
    fn a_line_that_is_still_being_written_does_not_count() {
        assert_eq!(Book::parse(BOOK).last_id(), 6);
        assert_eq!(Book::parse("1 ack").entries, []);
    }

    #[test]
    fn an_acknowledged_row_that_is_missing_is_lost_and_an_unknown_one_is_not() {
        let rows = HashMap::from([(1, 1), (2, 2), (4, 1), (5, 1)]);
        let tally = Book::parse(BOOK).tally(&rows);
        assert_eq!((tally.acked, tally.unknown, tally.failed), (4, 1, 1));
        assert_eq!((tally.lost, tally.duplicated, tally.unexpected), (1, 1, 1));
    }

    #[test]
    fn the_longest_gap_lies_between_two_acknowledged_commits_or_after_the_last() {
        assert_eq!(Book::parse(BOOK).longest_gap(None), (985, 15));
        assert_eq!(Book::parse(BOOK).longest_gap(Some(3004)), (2000, 1004));
        assert_eq!(Book::parse("1 acked 10\n2 acked 15\n0 ended 500\n").longest_gap(None), (485, 15));
    }
}
