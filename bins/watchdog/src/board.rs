//! Who serves, and since when: each thread puts up what it watches, and those that depend on it look there.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::post::lock;

/// A client that lost its server needs a moment to find it again.
const SETTLED: Duration = Duration::from_secs(5);

/// A look at a board; cheap.
const LOOK: Duration = Duration::from_millis(50);

/// Clusters by `16/main`, services by their names.
#[derive(Default)]
pub struct Board(Mutex<BTreeMap<String, Option<Serving>>>);

struct Serving {
    since: Instant,
    /// When that was last looked at.
    seen: Instant,
}

impl Board {
    pub fn put(&self, name: &str, serves: bool) {
        let seen = Instant::now();
        let mut all = lock(&self.0);
        let before = all.insert(name.into(), None).flatten();
        if serves {
            let since = before.map_or(seen, |before| before.since);
            all.insert(name.into(), Some(Serving { since, seen }));
        }
    }

    /// Waits until all of these that serve were looked at after this moment; false when that takes too long. A server that
    /// hangs shows that to its clients seconds before anybody knows why.
    pub fn are_seen_after<'a>(
        &self,
        names: impl Iterator<Item = &'a String> + Clone,
        moment: Instant,
        patience: Duration,
    ) -> bool {
        let is_seen = |name| match lock(&self.0).get(name) {
            Some(Some(serving)) => serving.seen >= moment,
            _ => true,
        };
        while !names.clone().all(is_seen) {
            if moment.elapsed() > patience {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }

    pub fn remove(&self, name: &str) {
        lock(&self.0).remove(name);
    }

    /// Why nobody who needs all of these can serve; reads on from "it depends on".
    pub fn missing(&self, needed: &[String]) -> Option<String> {
        let all = lock(&self.0);
        needed.iter().find_map(|name| match all.get(name) {
            None => Some(format!("{name}, which is not watched here")),
            Some(None) => Some(format!("{name}, which does not serve")),
            Some(Some(serving)) if serving.since.elapsed() < SETTLED => {
                Some(format!("{name}, which has only begun to serve"))
            }
            Some(Some(_)) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_only_begun_to_serve_is_waited_for() {
        let (board, needed) = (Board::default(), ["16/main".to_string()]);
        assert!(board.missing(&[]).is_none());
        assert!(board.missing(&needed).is_some_and(|why| why.contains("not watched")));
        board.put("16/main", false);
        assert!(board.missing(&needed).is_some_and(|why| why.contains("does not serve")));
        board.put("16/main", true);
        assert!(board.missing(&needed).is_some_and(|why| why.contains("begun")));
        if let Some(Some(serving)) = lock(&board.0).get_mut("16/main") {
            serving.since = serving.since.checked_sub(SETTLED).expect("this computer was booted earlier");
        }
        board.put("16/main", true);
        assert_eq!(board.missing(&needed), None);
        board.put("16/main", false);
        assert!(board.missing(&needed).is_some());
    }

    #[test]
    fn what_was_seen_before_says_nothing_about_now() {
        let (board, needed) = (Board::default(), ["16/main".to_string()]);
        let seen = |moment| board.are_seen_after(needed.iter(), moment, Duration::from_millis(10));
        let before = Instant::now();
        board.put("16/main", true);
        assert!(seen(before));
        std::thread::sleep(Duration::from_millis(1));
        assert!(!seen(Instant::now()));
        board.put("16/main", false);
        assert!(seen(Instant::now()), "that is known already");
    }
}
