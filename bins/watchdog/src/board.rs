//! Who serves, and since when: each thread puts up what it watches, and those that depend on it look there.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::post::lock;

/// A client that lost its server needs a moment to find it again.
const SETTLED: Duration = Duration::from_secs(5);

/// Clusters by `16/main`, services by their names.
#[derive(Default)]
pub struct Board(Mutex<BTreeMap<String, Option<Instant>>>);

impl Board {
    pub fn put(&self, name: &str, serves: bool) {
        let mut all = lock(&self.0);
        match all.get_mut(name) {
            Some(since) if serves => *since = since.or_else(|| Some(Instant::now())),
            Some(since) => *since = None,
            None => drop(all.insert(name.into(), serves.then(Instant::now))),
        }
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
            Some(Some(since)) if since.elapsed() < SETTLED => Some(format!("{name}, which has only begun to serve")),
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
        lock(&board.0).insert("16/main".into(), Instant::now().checked_sub(SETTLED));
        board.put("16/main", true);
        assert_eq!(board.missing(&needed), None);
        board.put("16/main", false);
        assert!(board.missing(&needed).is_some());
    }
}
