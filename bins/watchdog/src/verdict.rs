//! What the signs of a service mean, and what follows from them. Pure: facts in, plan out.

use shared::clock::Stamp;
use shared::config::{Restart, Service};
use shared::service::{Allowance, Condition, Known};
use shared::unit::UnitState;

use crate::endpoint::Answer;

/// Two units that go down together do so within this time, in seconds.
const TOGETHER: f64 = 5.0;

#[derive(Clone, Debug, PartialEq)]
pub enum Sign {
    Serves,
    /// systemd is starting or stopping it.
    Working,
    /// It is not meant to run, and this is why; reads on from "service shop ".
    Off(String),
    /// It runs, and whether it serves cannot be told.
    Unseen(String),
    /// It does not run although it is meant to.
    Down(String),
    /// It ended, and systemd starts it again in a moment.
    Returning(String),
    /// It runs, and does not answer as it should.
    Silent(String),
}

/// `taken_down`: it was stopped because a cluster that it depends on went down.
pub fn judge(name: &str, unit: &UnitState, answer: Answer, taken_down: bool) -> Sign {
    if unit.load == "not-found" {
        return Sign::Off(format!("has no unit: there is no {name}"));
    }
    if unit.is_masked() {
        return Sign::Off("has its unit masked".into());
    }
    if unit.file_state == "disabled" {
        return Sign::Off(format!("is disabled (systemctl enable {name})"));
    }
    let failed = format!("({})", unit.result);
    match unit.active.as_str() {
        "activating" if unit.sub.starts_with("auto-restart") && unit.result != "success" => {
            Sign::Returning(format!("{name} has ended {failed}, and systemd is about to start it again"))
        }
        _ if unit.job => Sign::Working,
        "active" => match answer {
            Answer::Good => Sign::Serves,
            Answer::Bad(why) => Sign::Silent(format!("{name} runs, and does not serve: {why}")),
            Answer::Unseen(why) => Sign::Unseen(why),
        },
        "failed" if unit.failed_to_stop() => Sign::Off("was stopped, and failed at that".into()),
        "failed" => Sign::Down(format!("{name} has failed {failed}")),
        "inactive" if taken_down => Sign::Down(format!("{name} went down with the cluster that it depends on")),
        "inactive" => Sign::Off("was stopped".into()),
        _ => Sign::Working,
    }
}

/// Was it stopped in the same moment as the other unit?
pub fn went_together(unit: &UnitState, other: &UnitState) -> bool {
    let ends = |unit: &UnitState| [unit.active_exit, unit.inactive_since];
    let is_near = |(a, b): (f64, f64)| a > 0.0 && b > 0.0 && (a - b).abs() < TOGETHER;
    ends(unit).into_iter().any(|a| ends(other).into_iter().any(|b| is_near((a, b))))
}

/// Has the unit of this name, which takes the first one down with it, not come up since that one ended?
pub fn is_away(unit: &UnitState, name: &String, other: &UnitState) -> bool {
    let is_bound = unit.active != "active" && unit.bound_to.contains(name);
    is_bound && (other.active != "active" || other.active_enter < unit.active_exit)
}

/// What speaks against touching it now.
#[derive(Clone, Debug, Default)]
pub struct Around {
    /// What it depends on and does not serve; reads on from "depends on ".
    pub missing: Option<String>,
    /// Why nothing on this host is touched; reads on from "service shop ".
    pub left: Option<String>,
    pub is_observed: bool,
}

/// The text of each says what is wrong, or why nothing is done.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    Fine,
    /// At once: one look may be chance.
    LookAgain(String),
    /// It was restarted a moment ago.
    Wait(String),
    Leave(Condition, String),
    /// It is said, and nothing is done, for the second reason.
    Report(String, String),
    /// It would be this one within the window.
    Restart(String, u32),
    /// So many were made.
    GiveUp(String, u32),
    GivenUp(String),
}

/// Counts this look, and decides. `around` is asked only when something is wrong.
pub fn decide(sign: &Sign, known: &mut Known, rule: &Service, now: &Stamp, around: impl FnOnce() -> Around) -> Plan {
    let why = match sign {
        Sign::Serves => {
            known.failures = 0;
            return Plan::Fine;
        }
        Sign::Off(why) => {
            known.failures = 0;
            return Plan::Leave(Condition::Off, why.clone());
        }
        Sign::Working => return Plan::Leave(Condition::Starting, "is being started or stopped".into()),
        Sign::Unseen(why) => return Plan::Leave(Condition::Unknown, format!("cannot be looked at: {why}")),
        Sign::Down(why) | Sign::Returning(why) | Sign::Silent(why) => why.clone(),
    };
    let around = around();
    if let Some(missing) = around.missing {
        // What was seen meanwhile says nothing about the service itself.
        known.failures = 0;
        return Plan::Leave(Condition::Waiting, format!("depends on {missing}"));
    }
    if let Some(left) = around.left {
        return Plan::Leave(Condition::Down, left);
    }
    known.failures = known.failures.saturating_add(1);
    // That its process has ended is no chance.
    if known.failures < rule.failures() && !matches!(sign, Sign::Down(_)) {
        return Plan::LookAgain(why);
    }
    let only = |because: &str| Plan::Report(why.clone(), because.into());
    match known.allows(rule, now) {
        _ if matches!(sign, Sign::Returning(_)) => only("is left to systemd, which starts it again"),
        _ if rule.restart == Restart::Never => only("is only reported (restart = \"never\")"),
        _ if around.is_observed => only("is only observed; else it would be restarted now"),
        Allowance::In(_) => Plan::Wait(why),
        Allowance::Exhausted(_) if known.exhausted => Plan::GivenUp(why),
        Allowance::Exhausted(made) => Plan::GiveUp(why, made),
        Allowance::Now(nth) => Plan::Restart(why, nth),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(active: &str, result: &str) -> UnitState {
        UnitState { load: "loaded".into(), active: active.into(), result: result.into(), ..UnitState::default() }
    }

    fn sign(unit: &UnitState) -> Sign {
        judge("shop.service", unit, Answer::Bad("500".into()), false)
    }

    fn at(second: f64) -> Stamp {
        Stamp { wall: 1e9 + second, boot: second, boot_id: "a".into() }
    }

    #[test]
    fn what_a_person_has_switched_off_or_stopped_is_off() {
        let off = |unit: UnitState| matches!(sign(&unit), Sign::Off(_));
        assert!(off(unit("inactive", "success")));
        assert!(off(UnitState { file_state: "disabled".into(), ..unit("failed", "signal") }));
        assert!(off(UnitState { file_state: "masked".into(), ..unit("failed", "signal") }));
        assert!(off(UnitState { load: "not-found".into(), ..unit("inactive", "success") }));
        let stopped = UnitState { main_start: 1.0, active_exit: 8.0, main_exit: 9.0, ..unit("failed", "exit-code") };
        assert!(off(stopped.clone()));
        assert!(matches!(sign(&UnitState { active_exit: 9.1, ..stopped }), Sign::Down(_)));
    }

    #[test]
    fn a_unit_that_systemd_works_on_is_left_and_one_that_loops_is_not_well() {
        assert_eq!(sign(&UnitState { job: true, ..unit("active", "success") }), Sign::Working);
        assert_eq!(sign(&unit("deactivating", "success")), Sign::Working);
        let again = UnitState { sub: "auto-restart".into(), ..unit("activating", "exit-code") };
        assert!(matches!(sign(&again), Sign::Returning(_)));
        assert!(matches!(sign(&unit("active", "success")), Sign::Silent(_)));
    }

    #[test]
    fn it_went_down_with_its_cluster_or_by_itself() {
        let cluster = UnitState { active_exit: 100.0, inactive_since: 101.0, ..unit("active", "success") };
        let with = UnitState { active_exit: 98.0, inactive_since: 99.5, ..unit("inactive", "success") };
        assert!(went_together(&with, &cluster));
        let alone = UnitState { active_exit: 50.0, inactive_since: 51.0, ..unit("inactive", "success") };
        assert!(!went_together(&alone, &cluster) && !went_together(&unit("inactive", ""), &cluster));
        assert!(matches!(judge("x", &with, Answer::Good, true), Sign::Down(_)));
        let (name, back) =
            ("postgresql@16-main.service".to_string(), UnitState { active_enter: 120.0, ..cluster.clone() });
        let bound = UnitState { bound_to: vec![name.clone()], ..with.clone() };
        assert!(is_away(&bound, &name, &cluster) && !is_away(&bound, &name, &back) && !is_away(&with, &name, &cluster));
    }

    #[test]
    fn a_dead_one_is_restarted_at_once_and_a_silent_one_after_three_looks() {
        let (rule, now) = (Service::default(), at(0.0));
        let mut known = Known::default();
        let mut look = |sign: Sign| decide(&sign, &mut known, &rule, &now, Around::default);
        let silent = || Sign::Silent("x".into());
        assert_eq!((look(silent()), look(silent())), (Plan::LookAgain("x".into()), Plan::LookAgain("x".into())));
        assert_eq!(look(Sign::Serves), Plan::Fine);
        assert_eq!((look(silent()), look(silent())), (Plan::LookAgain("x".into()), Plan::LookAgain("x".into())));
        assert_eq!(look(silent()), Plan::Restart("x".into(), 1));
        assert_eq!(
            decide(&Sign::Down("y".into()), &mut Known::default(), &rule, &now, Around::default),
            Plan::Restart("y".into(), 1)
        );
    }

    #[test]
    fn it_is_left_alone_while_what_it_depends_on_is_missing_and_looked_at_anew_afterwards() {
        let (rule, mut known) = (Service::default(), Known { failures: 2, ..Known::default() });
        let without = || Around { missing: Some("16/main, which does not serve".into()), ..Around::default() };
        for sign in [Sign::Silent("x".into()), Sign::Down("x".into())] {
            let plan = decide(&sign, &mut known, &rule, &at(0.0), without);
            assert_eq!(plan, Plan::Leave(Condition::Waiting, "depends on 16/main, which does not serve".into()));
        }
        assert_eq!(known.failures, 0);
    }

    #[test]
    fn nobody_is_woken_during_a_pause_and_what_is_observed_is_only_told() {
        let (rule, never) = (Service::default(), Service { restart: Restart::Never, ..Service::default() });
        let down = Sign::Down("x".into());
        let decide = |rule, around: Around| decide(&down, &mut Known::default(), rule, &at(0.0), || around);
        let left = Some("is paused".to_string());
        assert!(matches!(decide(&rule, Around { left, ..Around::default() }), Plan::Leave(Condition::Down, _)));
        assert!(matches!(decide(&rule, Around { is_observed: true, ..Around::default() }), Plan::Report(..)));
        assert!(matches!(decide(&never, Around::default()), Plan::Report(..)));
    }

    #[test]
    fn a_budget_that_is_used_up_is_told_once() {
        let (rule, mut known, down) = (Service::default(), Known::default(), Sign::Down("x".into()));
        for n in 0..5 {
            known.restarts.add(at(30.0 * f64::from(n)));
        }
        let decide = |known: &mut Known, now| decide(&down, known, &rule, &at(now), Around::default);
        assert!(matches!(decide(&mut known, 125.0), Plan::Wait(_)));
        assert_eq!(decide(&mut known, 151.0), Plan::GiveUp("x".into(), 5));
        known.exhausted = true;
        assert_eq!(decide(&mut known, 152.0), Plan::GivenUp("x".into()));
        assert_eq!(decide(&mut known, 421.0), Plan::Restart("x".into(), 1));
    }
}
