//! Touching a path that may lie on a volume which never answers, such as one on a file server that is gone.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

/// A look at a path needs little.
const STACK: usize = 256 << 10;

/// So many may wait; a unit has no endless number of threads.
const MOST: usize = 8;

/// Paths at which somebody still waits.
static STUCK: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn stuck() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    STUCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What `look` finds at `path`, or `None` when that takes longer than `patience`. The thread that waits is left behind
/// (nothing ends a wait for the disk), and until it comes back nobody else looks at the same path.
pub fn within<T: Send + 'static>(
    path: &Path,
    patience: Duration,
    look: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let waiting = stuck();
    if waiting.contains(path) || waiting.len() >= MOST {
        return None;
    }
    drop(waiting);
    let (give, take) = mpsc::channel();
    let theirs = path.to_path_buf();
    let work = move || {
        let _ = give.send(look());
        stuck().remove(&theirs);
    };
    std::thread::Builder::new().name("look".into()).stack_size(STACK).spawn(work).ok()?;
    if let Ok(found) = take.recv_timeout(patience) {
        return Some(found);
    }
    stuck().insert(path.to_path_buf());
    // It may have come back in this moment.
    let found = take.try_recv().ok();
    if found.is_some() {
        stuck().remove(path);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_twice_for_what_does_not_answer() {
        let (path, patience) = (Path::new("/dead"), Duration::from_millis(20));
        let (answer, wait) = mpsc::channel::<()>();
        assert_eq!(within(path, patience, move || wait.recv().is_ok()), None);
        assert_eq!(within(path, patience, || true), None);
        assert_eq!(within(Path::new("/alive"), Duration::from_secs(60), || true), Some(true));
        answer.send(()).unwrap();
        let came_back = || within(path, Duration::from_secs(60), || true) == Some(true);
        assert!((0..1000).any(|_| came_back() || {
            std::thread::sleep(Duration::from_millis(10));
            false
        }));
    }
}
