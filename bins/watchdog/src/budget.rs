//! How often one cluster may be restarted, kept on disk: `/var/lib/pg-recovery/watchdog/16-main.json`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::clock::Stamp;
use shared::config::Watchdog;
use shared::counter::Counter;
use shared::state::{self, State};

/// The pause before the first, second, ... restart since the last quiet time.
const PAUSES: [u64; 5] = [0, 1, 5, 15, 60];

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Budget {
    restarts: Counter,
    /// Ends of its processes for want of memory (M1).
    memory: Counter,
    /// When a person was last told that it dies again and again.
    told: Option<Stamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// Now; it would be this one of the window.
    Now(u32),
    /// After this time.
    In(Duration),
    /// So many were made within the window.
    Exhausted(u32),
}

impl Budget {
    pub fn allows(&self, rule: &Watchdog, now: &Stamp) -> Allowance {
        let Some(since) = self.restarts.quiet(now).filter(|since| *since < rule.quiet) else {
            return Allowance::Now(1);
        };
        let made = self.restarts.within(rule.restart_window, now);
        if made >= rule.restarts {
            return Allowance::Exhausted(made);
        }
        let in_a_row = self.restarts.within(Duration::MAX, now) as usize;
        let pause = Duration::from_secs(PAUSES[in_a_row.min(PAUSES.len() - 1)]);
        match pause.checked_sub(since) {
            Some(left) if !left.is_zero() => Allowance::In(left),
            _ => Allowance::Now(made + 1),
        }
    }

    /// Enters a restart. Returns how many were made within `quiet`, when a person is to be told of them: each of them may be
    /// quick and within the budget, and together they are no service.
    pub fn spend(&mut self, rule: &Watchdog, now: Stamp) -> Option<u32> {
        if self.restarts.quiet(&now).is_some_and(|since| since >= rule.quiet) {
            self.restarts.clear();
        }
        self.restarts.add(now.clone());
        let made = self.restarts.within(rule.quiet, &now);
        let is_news = self.told.as_ref().is_none_or(|told| now.since(told) >= rule.quiet);
        (made >= rule.restarts && is_news).then(|| {
            self.told = Some(now);
            made
        })
    }

    /// Enters an end for want of memory; returns how many there were within `quiet`.
    pub fn out_of_memory(&mut self, rule: &Watchdog, now: Stamp) -> u32 {
        self.memory.add(now.clone());
        self.memory.within(rule.quiet, &now)
    }
}

pub fn load(cluster: &str) -> State<Budget> {
    // A folder that cannot be made shows when the file is written; the state then goes to memory.
    let _ = std::fs::create_dir_all(std::path::Path::new(state::DIRECTORY).join("watchdog"));
    State::load(&format!("watchdog/{}.json", shared::cluster::file_name(cluster)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(boot: f64) -> Stamp {
        Stamp { wall: 1e9 + boot, boot, boot_id: "a".into() }
    }

    #[test]
    fn pauses_grow_and_the_budget_ends() {
        let (rule, mut budget) = (Watchdog::default(), Budget::default());
        let mut now = 0.0;
        for (n, pause) in PAUSES.into_iter().enumerate() {
            if pause > 0 {
                assert_eq!(budget.allows(&rule, &at(now)), Allowance::In(Duration::from_secs(pause)));
            }
            now += pause as f64;
            assert_eq!(budget.allows(&rule, &at(now)), Allowance::Now(n as u32 + 1));
            budget.spend(&rule, at(now));
        }
        assert_eq!(budget.allows(&rule, &at(now + 100.0)), Allowance::Exhausted(5));
    }

    #[test]
    fn a_server_that_dies_every_three_minutes_is_started_each_time_and_told_once_an_hour() {
        let (rule, mut budget) = (Watchdog::default(), Budget::default());
        let told: Vec<u32> = (0..50)
            .filter_map(|n| {
                let now = at(180.0 * f64::from(n));
                assert!(matches!(budget.allows(&rule, &now), Allowance::Now(_)), "{n}");
                budget.spend(&rule, now)
            })
            .collect();
        assert_eq!(told, [5, 21, 21]);
    }

    #[test]
    fn ends_for_want_of_memory_are_counted_for_an_hour() {
        let (rule, mut budget) = (Watchdog::default(), Budget::default());
        let counts = [0.0, 60.0, 3700.0].map(|second| budget.out_of_memory(&rule, at(second)));
        assert_eq!(counts, [1, 2, 1]);
    }

    #[test]
    fn a_quiet_hour_forgets_all() {
        let (rule, mut budget) = (Watchdog::default(), Budget::default());
        for n in 0..5 {
            budget.spend(&rule, at(f64::from(n)));
        }
        assert_eq!(budget.allows(&rule, &at(60.0)), Allowance::Exhausted(5));
        // The window has passed, the quiet time has not: one at a time, with the longest pause.
        assert_eq!(budget.allows(&rule, &at(700.0)), Allowance::Now(1));
        assert_eq!(budget.allows(&rule, &at(3605.0)), Allowance::Now(1));
        budget.spend(&rule, at(3605.0));
        assert_eq!(budget.allows(&rule, &at(3605.0)), Allowance::In(Duration::from_secs(1)));
    }
}
