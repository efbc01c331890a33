//! Damage that somebody has met: in an answer to this check, in what the server says in its log, and in what it counts of
//! pages whose checksum failed.
//!
//! No restart heals it, so it is told and starts no recovery: for a day since it was last met, or until a person says
//! `pg-recover reset`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use shared::clock::{Stamp, seconds_of};
use shared::cluster::Cluster;
use shared::health::Damage;
use shared::{meaning, server_log, standing, translation};

use crate::probe::{self, Answers};
use crate::score::Finding;

const REMEMBERED: Duration = Duration::from_secs(86_400);
/// Of each log file in a pass: what a busy server logs in a minute, and no load.
const MOST: u64 = 1 << 20;
const SHOWN: usize = 300;

/// What was new in the log.
#[derive(Debug, Default)]
pub struct Log {
    read: BTreeMap<PathBuf, u64>,
    /// Class and message of the last that was said.
    said: Option<(&'static str, String)>,
}

/// Reads what was logged since the last pass. The first pass only notes where the log ends: what is older may be long
/// repaired. As the owner, in a thread that may hang.
pub fn read(cluster: &Cluster, last: &BTreeMap<PathBuf, u64>) -> Log {
    let mut log = Log::default();
    for file in server_log::files(cluster) {
        let length = std::fs::metadata(&file).map_or(0, |meta| meta.len());
        let since = if last.is_empty() { length } else { last.get(&file).copied().unwrap_or(0) };
        let text = server_log::tail_within(&file, since, MOST).unwrap_or_default();
        let text = translation::english(cluster, &text);
        let said = server_log::of_storage(&text).last();
        log.said = said.map(|(_, class, message)| (class, message.chars().take(SHOWN).collect())).or(log.said);
        log.read.insert(file, length);
    }
    log
}

/// Keeps what is new.
pub fn note(damage: &mut Damage, log: Log, now: &Stamp) {
    if !log.read.is_empty() {
        damage.read = log.read;
    }
    if let Some((class, message)) = log.said {
        damage.at = now.clone();
        damage.class = class.into();
        damage.message = message;
    }
}

pub fn judge(cluster: &Cluster, damage: &Damage, answers: &Answers, now: &Stamp) -> Finding {
    let reset = seconds_of(&standing::verdict(&cluster.name()).value.reset);
    let met = probe::met_damage(answers)
        .map(|(class, answer)| (class.to_string(), format!("this check was answered: {answer}")))
        .or_else(|| in_log(damage, now, reset))
        .or_else(|| in_checksums(answers, now, reset));
    let Some((class, what)) = met else { return Finding::ok("damage", "nobody has met damaged data") };
    let (means, advice) = meaning::of(&class).map_or(("damage", String::new()), |row| (row.means, row.advice(cluster)));
    Finding::critical("damage", format!("{means} ({class}): {what}. {advice}"))
}

/// A moment that is neither long past nor before a person has said that all is repaired.
fn is_open(age: Duration, now: &Stamp, reset: Option<i64>) -> bool {
    age < REMEMBERED && reset.is_none_or(|reset| (now.wall - age.as_secs_f64()) as i64 > reset)
}

fn in_log(damage: &Damage, now: &Stamp, reset: Option<i64>) -> Option<(String, String)> {
    let age = now.since(&damage.at);
    let ago = age.as_secs();
    let is_open = !damage.class.is_empty() && is_open(age, now, reset);
    is_open.then(|| (damage.class.clone(), format!("{ago}s ago the server log said: {}", damage.message)))
}

fn in_checksums(answers: &Answers, now: &Stamp, reset: Option<i64>) -> Option<(String, String)> {
    let row = answers.catalog.as_ref()?.rows("damage").next()?;
    let (count, age) = (row.number(1).filter(|count| *count > 0.0)?, row.number(2)?.max(0.0));
    let of = row.text(3).unwrap_or("?");
    let what = format!("checksums that failed: {count}, the last {age}s ago, in: {of}");
    is_open(Duration::from_secs_f64(age), now, reset).then(|| ("S12".into(), what))
}

#[cfg(test)]
mod tests {
    use shared::client::Refusal;

    use super::*;
    use crate::catalog::Catalog;

    fn at(wall: f64) -> Stamp {
        Stamp { wall, boot: wall, boot_id: "a".into() }
    }

    #[test]
    fn what_the_log_said_is_told_for_a_day_or_until_a_reset() {
        let mut damage = Damage::default();
        assert_eq!(in_log(&damage, &at(5.0), None), None);
        let said = Some(("S12", "invalid page in block 7 of relation base/5/16391".to_string()));
        note(&mut damage, Log { read: [("/l".into(), 9)].into(), said }, &at(1e6));
        note(&mut damage, Log { read: [("/l".into(), 99)].into(), said: None }, &at(1e6 + 60.0));
        assert_eq!(damage.read[&PathBuf::from("/l")], 99);
        let told = |now, reset| in_log(&damage, &at(now), reset).is_some();
        assert_eq!([told(1e6 + 60.0, None), told(1e6 + 90_000.0, None)], [true, false]);
        assert_eq!([told(1e6 + 60.0, Some(999_999)), told(1e6 + 60.0, Some(1_000_030))], [true, false]);
    }

    #[test]
    fn checksums_that_failed_are_told_for_a_day_or_until_a_reset() {
        let told = |row: &[&str], reset| {
            let answers = Answers { catalog: Some(Catalog::of(&[row])), ..Answers::none(Refusal::Timeout) };
            in_checksums(&answers, &at(1e6), reset).map(|(class, _)| class)
        };
        assert_eq!(told(&["damage", "2", "60", "app"], None).as_deref(), Some("S12"));
        assert_eq!(told(&["damage", "2", "60", "app"], Some(999_990)), None);
        assert_eq!(told(&["damage", "2", "90000", "app"], None), None);
        assert_eq!(told(&["damage", "0"], None), None);
        assert_eq!(told(&["damage"], None), None, "no checksums, no count");
    }
}
