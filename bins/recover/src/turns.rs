//! No more than so many clusters are worked on at a time, the most urgent first.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use shared::fault::Priority;

pub struct Turns {
    most: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    at_work: usize,
    came: usize,
    /// Of equal ones, who came first.
    waiting: Vec<(Priority, usize)>,
}

/// Given back when it is dropped.
pub struct Turn<'a>(&'a Turns);

impl Turns {
    pub fn new(most: usize) -> Turns {
        Turns { most, state: Mutex::default(), changed: Condvar::new() }
    }

    pub fn take(&self, priority: Priority) -> Turn<'_> {
        let mut state = self.state();
        let me = (priority, state.came);
        state.came += 1;
        state.waiting.push(me);
        let is_next = |state: &State| state.at_work < self.most && state.waiting.iter().min() == Some(&me);
        while !is_next(&state) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting.retain(|other| *other != me);
        state.at_work += 1;
        self.changed.notify_all();
        Turn(self)
    }

    /// A thread that died while it held it left numbers that are whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state().at_work -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_those_who_wait_the_most_urgent_is_next() {
        let turns = Turns::new(2);
        let order = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            let held = [turns.take(Priority::P3), turns.take(Priority::P3)];
            for (number, priority) in [Priority::P3, Priority::P1, Priority::P0, Priority::P1].into_iter().enumerate() {
                let (turns, order) = (&turns, &order);
                scope.spawn(move || {
                    let turn = turns.take(priority);
                    order.lock().unwrap().push((priority, number));
                    drop(turn);
                });
                while turns.state().waiting.len() <= number {
                    std::thread::yield_now();
                }
            }
            assert!(order.lock().unwrap().is_empty(), "both are taken");
            // One of them stays, so that the others go one by one.
            let [one, _other] = held;
            drop(one);
            while order.lock().unwrap().len() < 4 {
                std::thread::yield_now();
            }
        });
        let expected = [(Priority::P0, 2), (Priority::P1, 1), (Priority::P1, 3), (Priority::P3, 0)];
        assert_eq!(*order.lock().unwrap(), expected);
    }
}
