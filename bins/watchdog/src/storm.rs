//! What is done about a server whose connection slots are used up (L1). Pure: facts in, steps out.
//!
//! Gentlest first: idle sessions are ended, then the role with most sessions gets a connection limit, then a person is told.
//! Sessions at work, superusers and roles for replication are never touched.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::clock::Stamp;
use shared::config::Sessions as Rule;

/// Slots that are used up again within this time are held by clients that come back.
const AGAIN: Duration = Duration::from_secs(60);
/// Slots that are nearly used up still let everybody in, and a pool of just that size fills them again each time.
const NEARLY_AGAIN: Duration = Duration::from_secs(3600);
/// How long idle sessions that are too young are waited for.
const GROWING_UP: Duration = Duration::from_secs(5);
/// A peak may pass by itself before a person is told of what could not be helped.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slots {
    /// `max_connections`
    pub max: u32,
    /// Without those that are reserved for superusers and others.
    pub ordinary: u32,
}

impl Slots {
    /// From so many sessions on the slots count as used up.
    pub fn full(&self, rule: &Rule) -> u32 {
        (self.max * u32::from(rule.slots_full)).div_ceil(100).min(self.ordinary)
    }

    fn relief(&self, rule: &Rule) -> u32 {
        self.ordinary * u32::from(rule.slots_relief) / 100
    }
}

/// One session of a client.
#[derive(Clone, Debug, Default)]
pub struct Client {
    pub pid: i32,
    pub role_oid: u32,
    pub role: String,
    pub application: String,
    /// Where it comes from; "local" by the socket.
    pub address: String,
    /// Of a superuser or of a role for replication.
    pub is_protected: bool,
    /// `rolconnlimit` of its role.
    pub connection_limit: i32,
    /// `None`: it is at work, or holds an advisory lock.
    pub idle: Option<Duration>,
}

/// A connection limit that this program has given a role for a while.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Limit {
    pub role_oid: u32,
    pub role: String,
    pub before: i32,
    pub now: i32,
    pub at: Stamp,
}

pub struct Facts<'a> {
    pub slots: Slots,
    pub clients: &'a [Client],
    /// A connection of our own, and we may use what is reserved, was refused for want of a slot.
    pub refused: bool,
    pub standby: bool,
    /// Not taken back yet.
    pub limit: Option<&'a Limit>,
    /// Since idle sessions were last ended.
    pub ended: Option<Duration>,
    /// For how long the slots have been used up.
    pub full: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// End these sessions, given by process and role, if they are still idle then.
    End(Vec<(i32, u32)>),
    Limit {
        role_oid: u32,
        role: String,
        before: i32,
        now: i32,
    },
    /// Nothing is left to be done but by a person.
    Person,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub step: Step,
    pub why: String,
}

/// What is to be done now, in this order; nothing while there is room, and while it is too early to tell.
pub fn decide(facts: &Facts, rule: &Rule) -> Vec<Planned> {
    let used = facts.clients.len() as u32;
    let ended_within = |window| facts.ended.is_some_and(|since| since <= window);
    let is_used_up = facts.refused || used >= facts.slots.ordinary;
    if !is_used_up && (used < facts.slots.full(rule) || ended_within(NEARLY_AGAIN)) {
        return Vec::new();
    }
    let level = facts.slots.relief(rule);
    let open = facts.clients.iter().filter(|client| !client.is_protected);
    let end_beyond = |role_oid, limit: i32| {
        let of_role = open.clone().filter(|client| client.role_oid == role_oid);
        end(of_role.clone(), (of_role.count() as u32).saturating_sub(limit as u32), rule)
    };
    let is_in_force =
        |limit: &&Limit| open.clone().any(|one| one.role_oid == limit.role_oid && one.connection_limit == limit.now);
    if let Some(limit) = facts.limit.filter(is_in_force) {
        return or_person(end_beyond(limit.role_oid, limit.now), facts);
    }
    if is_used_up && ended_within(AGAIN) {
        let Some(planned) = limit(facts, level) else { return or_person(None, facts) };
        let end = match planned.step {
            Step::Limit { role_oid, now, .. } => end_beyond(role_oid, now),
            _ => None,
        };
        return [Some(planned), end].into_iter().flatten().collect();
    }
    let surplus = used.saturating_sub(level);
    let ripe = open.clone().filter(|client| client.idle.is_some_and(|idle| idle >= rule.idle)).count() as u32;
    let idle = open.clone().filter(|client| client.idle.is_some()).count() as u32;
    if ripe < surplus.min(idle) && facts.full < GROWING_UP {
        return Vec::new();
    }
    or_person(end(open, surplus, rule), facts)
}

fn or_person(step: Option<Planned>, facts: &Facts) -> Vec<Planned> {
    let person = || {
        let why = match facts.clients.len() as u32 {
            logged_in if logged_in < facts.slots.ordinary => format!(
                "only {logged_in} sessions are logged in; the other slots are held by connections that have not logged in \
                 yet, which authentication_timeout ends"
            ),
            _ => "there is no idle session left that may be ended".into(),
        };
        (facts.full >= PATIENCE).then_some(Planned { step: Step::Person, why })
    };
    step.or_else(person).into_iter().collect()
}

/// Ends `surplus` idle sessions, each time the one that has been idle longest of whoever has most sessions then.
fn end<'a>(clients: impl Iterator<Item = &'a Client>, surplus: u32, rule: &Rule) -> Option<Planned> {
    let mut of_role: BTreeMap<u32, usize> = BTreeMap::new();
    let mut offenders: BTreeMap<_, (usize, Vec<&Client>)> = BTreeMap::new();
    for client in clients {
        *of_role.entry(client.role_oid).or_default() += 1;
        let (sessions, ripe) = offenders.entry(offender(client)).or_default();
        *sessions += 1;
        if client.idle.is_some_and(|idle| idle >= rule.idle) {
            ripe.push(client);
        }
    }
    for (_, ripe) in offenders.values_mut() {
        ripe.sort_by_key(|client| client.idle);
    }
    let mut chosen = Vec::new();
    for _ in 0..surplus {
        let worst = offenders
            .values_mut()
            .filter_map(|(sessions, ripe)| {
                Some(((*sessions, of_role[&ripe.last()?.role_oid], ripe.last()?.idle), (sessions, ripe)))
            })
            .max_by_key(|(rank, _)| *rank);
        let Some((_, (sessions, ripe))) = worst else { break };
        *sessions -= 1;
        let Some(client) = ripe.pop() else { break };
        of_role.entry(client.role_oid).and_modify(|sessions| *sessions -= 1);
        chosen.push(client);
    }
    let why = format!("idle for {}s and longer: {}", rule.idle.as_secs(), holders(chosen.iter().copied()));
    let pids: Vec<_> = chosen.iter().map(|client| (client.pid, client.role_oid)).collect();
    (!pids.is_empty()).then_some(Planned { step: Step::End(pids), why })
}

/// A limit for the role of the worst offender, if that alone brings the server down to `level`.
fn limit(facts: &Facts, level: u32) -> Option<Planned> {
    let of_role = |oid| facts.clients.iter().filter(|client| client.role_oid == oid).count() as u32;
    let mut offenders: BTreeMap<_, (usize, Option<&Client>)> = BTreeMap::new();
    for client in facts.clients.iter().filter(|client| !client.is_protected) {
        let (sessions, one) = offenders.entry(offender(client)).or_default();
        (*sessions, *one) = (*sessions + 1, Some(client));
    }
    let worst = offenders.into_iter().max_by_key(|((oid, ..), (sessions, _))| (*sessions, of_role(*oid)))?.1.1?;
    let of_role = of_role(worst.role_oid);
    let others = facts.clients.len() as u32 - of_role;
    let now = level.checked_sub(others).filter(|now| (1..of_role).contains(now))?;
    let before = worst.connection_limit;
    // Not on a standby, which takes its roles from the primary; and there is one limit at a time.
    if facts.standby || facts.limit.is_some() || (0..=now as i32).contains(&before) {
        return None;
    }
    let (role_oid, role) = (worst.role_oid, worst.role.clone());
    let why = format!(
        "the slots were used up again within a minute, and role {role:?} has {of_role} of {} sessions",
        facts.clients.len()
    );
    Some(Planned { step: Step::Limit { role_oid, role, before, now: now as i32 }, why })
}

fn offender(client: &Client) -> (u32, &str, &str) {
    (client.role_oid, &client.application, &client.address)
}

/// Who has how many of these sessions; those with most of them first, and no more than three.
pub fn holders<'a>(clients: impl Iterator<Item = &'a Client>) -> String {
    let mut of: BTreeMap<_, (usize, usize, &str)> = BTreeMap::new();
    for client in clients {
        let (sessions, idle, role) = of.entry(offender(client)).or_default();
        *sessions += 1;
        *idle += usize::from(client.idle.is_some());
        *role = &client.role;
    }
    let mut of: Vec<_> = of.into_iter().collect();
    of.sort_by_key(|(_, (sessions, ..))| std::cmp::Reverse(*sessions));
    let more = of.len().saturating_sub(3);
    // Quoted the way of Rust: clients choose these names, and terminals are shown them.
    let mut texts: Vec<String> = of
        .into_iter()
        .take(3)
        .map(|((_, application, address), (sessions, idle, role))| {
            format!("{sessions} of role {role:?}, application {application:?}, {address} ({idle} idle)")
        })
        .collect();
    if more > 0 {
        texts.push(format!("and {more} others"));
    }
    texts.join("; ")
}

/// What becomes of a limit whose time is over, by the role's name and limit as they are now.
#[derive(Clone, Debug, PartialEq)]
pub enum TakeBack {
    Restore,
    /// It is as it was before; so it was when the limit never came to be set.
    AsBefore,
    /// The role was dropped.
    Dropped,
    /// A person has given it this limit meanwhile.
    Theirs(i32),
    /// A standby changes no role.
    OnStandby,
}

pub fn take_back(limit: &Limit, now: Option<i32>, standby: bool) -> TakeBack {
    match now {
        None => TakeBack::Dropped,
        Some(now) if now == limit.before => TakeBack::AsBefore,
        Some(now) if now != limit.now => TakeBack::Theirs(now),
        Some(_) if standby => TakeBack::OnStandby,
        Some(_) => TakeBack::Restore,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOTS: Slots = Slots { max: 20, ordinary: 17 };
    const APP: u32 = 1;
    const OTHER: u32 = 2;
    const SUPER: u32 = 10;

    fn clients(role_oid: u32, count: i32, idle: Option<u64>) -> Vec<Client> {
        let one = |n| Client {
            pid: role_oid as i32 * 1000 + n,
            role_oid,
            role: format!("role{role_oid}"),
            application: "psql".into(),
            address: "local".into(),
            is_protected: role_oid == SUPER,
            connection_limit: -1,
            // The later ones have been idle for less.
            idle: idle.map(|seconds| Duration::from_millis(seconds * 1000 + 999 - n as u64)),
        };
        (0..count).map(one).collect()
    }

    fn facts(clients: &[Client]) -> Facts<'_> {
        let full = Duration::from_secs(1);
        Facts { slots: SLOTS, clients, refused: false, standby: false, limit: None, ended: None, full }
    }

    fn of(facts: &Facts) -> Vec<Step> {
        decide(facts, &Rule::default()).into_iter().map(|planned| planned.step).collect()
    }

    fn ended(facts: &Facts) -> Vec<i32> {
        match of(facts).pop() {
            Some(Step::End(pids)) => pids.into_iter().map(|(pid, _)| pid).collect(),
            other => panic!("{other:?}"),
        }
    }

    const A_MOMENT: Option<Duration> = Some(Duration::from_secs(5));

    #[test]
    fn as_long_as_there_is_room_nothing_is_done() {
        assert_eq!(of(&facts(&clients(APP, 16, Some(60)))), []);
        // 95 % of 100 are fewer than the 97 for everybody.
        let large = Slots { max: 100, ordinary: 97 };
        let with = |count| of(&Facts { slots: large, ..facts(&clients(APP, count, Some(60))) }).len();
        assert_eq!((with(94), with(95)), (0, 1));
    }

    #[test]
    fn idle_sessions_are_ended_down_to_a_level_and_the_longest_idle_first() {
        let all = clients(APP, 17, Some(60));
        // 80 % of 17 are 13.
        assert_eq!(ended(&facts(&all)), [1000, 1001, 1002, 1003]);
    }

    #[test]
    fn whoever_has_most_sessions_loses_one_again_and_again() {
        let all = [clients(APP, 9, Some(60)), clients(OTHER, 8, Some(600))].concat();
        assert_eq!(ended(&facts(&all)), [1000, 2000, 1001, 2001]);
        let all = [clients(APP, 13, Some(3)), clients(OTHER, 4, Some(600))].concat();
        assert_eq!(ended(&facts(&all)), [1000, 1001, 1002, 1003]);
        // One role under many names: none of them has more than one session.
        let mut all = [clients(OTHER, 2, Some(600)), clients(APP, 15, Some(60))].concat();
        for client in &mut all {
            client.application = format!("worker {}", client.pid);
        }
        assert_eq!(ended(&facts(&all)), [1000, 1001, 1002, 1003]);
        let steps = of(&Facts { ended: A_MOMENT, ..facts(&all) });
        assert!(matches!(steps[0], Step::Limit { role_oid: APP, now: 11, .. }), "{steps:?}");
    }

    #[test]
    fn sessions_at_work_superusers_and_replication_are_left_alone() {
        let all = [clients(SUPER, 12, Some(600)), clients(APP, 4, None), clients(OTHER, 1, Some(60))].concat();
        assert_eq!(ended(&facts(&all)), [2000]);
        let all = [clients(SUPER, 12, Some(600)), clients(APP, 5, None)].concat();
        assert_eq!(of(&facts(&all)), [], "a peak may pass");
        assert_eq!(of(&Facts { full: PATIENCE, ..facts(&all) }), [Step::Person]);
        // Nor does a role get a limit for what superusers have taken.
        let all = [clients(SUPER, 14, Some(600)), clients(APP, 3, Some(60))].concat();
        assert_eq!(of(&Facts { full: PATIENCE, ended: A_MOMENT, ..facts(&all) }), [Step::Person]);
    }

    #[test]
    fn sessions_that_have_only_just_become_idle_are_waited_for_and_not_for_ever() {
        let young = clients(APP, 17, Some(0));
        assert_eq!(of(&facts(&young)), []);
        let mixed = [clients(APP, 15, Some(0)), clients(OTHER, 2, Some(3))].concat();
        assert_eq!(of(&facts(&mixed)), []);
        assert_eq!(ended(&Facts { full: GROWING_UP, ..facts(&mixed) }), [2000, 2001]);
    }

    #[test]
    fn used_up_again_within_a_minute_is_answered_by_a_limit_that_leaves_room_for_everybody_else() {
        let all = [clients(APP, 14, Some(3)), clients(OTHER, 3, Some(60))].concat();
        let steps = of(&Facts { ended: A_MOMENT, ..facts(&all) });
        let limit = Step::Limit { role_oid: APP, role: "role1".into(), before: -1, now: 10 };
        let end = Step::End(vec![(1000, APP), (1001, APP), (1002, APP), (1003, APP)]);
        assert_eq!(steps, [limit.clone(), end]);
        let young = [clients(APP, 14, Some(0)), clients(OTHER, 3, Some(60))].concat();
        assert_eq!(of(&Facts { ended: A_MOMENT, ..facts(&young) }), [limit]);
        let later = Facts { ended: Some(AGAIN + Duration::from_secs(1)), ..facts(&all) };
        assert!(matches!(of(&later)[..], [Step::End(_)]), "a leak is no storm");
    }

    #[test]
    fn with_the_limit_in_force_idle_sessions_beyond_it_are_ended_and_then_a_person_is_told() {
        let limit = Limit { role_oid: APP, before: -1, now: 10, ..Limit::default() };
        let mut all = [clients(APP, 14, Some(3)), clients(OTHER, 3, Some(60))].concat();
        all.iter_mut().filter(|client| client.role_oid == APP).for_each(|client| client.connection_limit = 10);
        fn in_force<'a>(clients: &'a [Client], limit: &'a Limit) -> Facts<'a> {
            Facts { ended: A_MOMENT, limit: Some(limit), full: PATIENCE, ..facts(clients) }
        }
        assert_eq!(ended(&in_force(&all, &limit)), [1000, 1001, 1002, 1003]);
        all.iter_mut().for_each(|client| client.idle = None);
        assert_eq!(of(&in_force(&all, &limit)), [Step::Person]);
        all.iter_mut().for_each(|client| client.connection_limit = 50);
        assert_eq!(of(&in_force(&all, &limit)), [Step::Person], "a person has lifted it");
    }

    #[test]
    fn no_limit_where_it_would_not_help_or_cannot_be_set() {
        let mut all = clients(APP, 17, Some(60));
        let full = PATIENCE;
        assert_eq!(of(&Facts { standby: true, full, ended: A_MOMENT, ..facts(&all) }), [Step::Person]);
        all[16].connection_limit = 5;
        all.iter_mut().for_each(|client| client.connection_limit = 5);
        assert_eq!(of(&Facts { full, ended: A_MOMENT, ..facts(&all) }), [Step::Person]);
        let many: Vec<Client> = (20..37).flat_map(|role| clients(role, 1, Some(60))).collect();
        assert_eq!(of(&Facts { full, ended: A_MOMENT, ..facts(&many) }), [Step::Person]);
    }

    #[test]
    fn a_pool_of_just_that_size_is_not_ended_again_and_again() {
        let slots = Slots { max: 100, ordinary: 97 };
        let pool = clients(APP, 96, Some(60));
        for (minutes, steps) in [(1, 0), (59, 0), (61, 1)] {
            let ended = Some(Duration::from_secs(minutes * 60));
            assert_eq!(of(&Facts { slots, ended, full: PATIENCE, ..facts(&pool) }).len(), steps, "{minutes}");
        }
    }

    #[test]
    fn slots_that_are_held_without_a_login_are_named_as_such() {
        let few = clients(APP, 3, None);
        let planned = decide(&Facts { refused: true, full: PATIENCE, ..facts(&few) }, &Rule::default());
        assert_eq!(planned[0].step, Step::Person);
        assert!(planned[0].why.contains("authentication_timeout"), "{}", planned[0].why);
    }

    #[test]
    fn names_that_clients_choose_are_quoted() {
        let mut one = clients(APP, 1, None);
        one[0].role = "a\u{1b}[2J\"b".into();
        assert!(holders(one.iter()).starts_with(r#"1 of role "a\u{1b}[2J\"b", application "psql", local"#));
    }

    #[test]
    fn a_limit_that_is_not_ours_any_more_is_left_as_it_is() {
        let limit = Limit { before: -1, now: 10, ..Limit::default() };
        for (now, standby, what) in [
            (Some(10), false, TakeBack::Restore),
            (Some(10), true, TakeBack::OnStandby),
            (Some(-1), false, TakeBack::AsBefore),
            (Some(20), false, TakeBack::Theirs(20)),
            (None, true, TakeBack::Dropped),
        ] {
            assert_eq!(take_back(&limit, now, standby), what);
        }
    }
}
