//! What belongs together: from the first trouble of a cluster until all has been well for a while. It is told once when it
//! begins, once more when it becomes worse, and once when it is over; what was healed before anybody could be told is one
//! message.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::clock::{Stamp, uptime};
use shared::config::{Notify, Severity};

use crate::events::Event;
use crate::look::Finding;
use crate::message::{Message, printable};

/// For a recovery that is under way; the next look is a minute later.
const GRACE: Duration = Duration::from_secs(20);
/// Lines of a message: the first ones, and the last ones.
const LINES: (usize, usize) = (5, 5);
/// Bytes of a line; a statement may be in it.
const LINE: usize = 1500;

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Incident {
    pub began: Stamp,
    /// Since when it is as it is now: in trouble, or well.
    pub since: Stamp,
    pub well: bool,
    /// When trouble was last seen.
    pub seen: Stamp,
    /// How often it came.
    pub count: u32,
    /// Of the present trouble, or of the last one.
    pub severity: Severity,
    /// Somebody was asked for, whether it is well now or not; and that was told.
    pub person: bool,
    pub told_person: bool,
    /// What was said then.
    pub asked: Option<String>,
    /// Nobody said so, it was only looked at: one look may be chance.
    pub looked: bool,
    /// What was said last.
    pub last: String,
    /// What was said and when, the first and the last of it.
    pub lines: Vec<String>,
    pub left_out: u32,
    pub recovery_id: String,
    /// How bad it was when it was told.
    pub told: Option<Severity>,
    pub told_count: u32,
    pub told_well: bool,
}

/// Those that are not over, by what they are about.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Incidents(pub BTreeMap<String, Incident>);

impl Incidents {
    pub fn hear(&mut self, event: &Event, now: &Stamp) {
        if event.trouble || !self.0.contains_key(&event.cluster) {
            self.trouble(&event.cluster, now, event.severity, (&event.at, &event.text), false);
        }
        if let Some(incident) = self.0.get_mut(&event.cluster) {
            if !event.trouble {
                incident.say(&event.at, &event.text);
                incident.is_well(now);
            }
            if event.person {
                incident.person = true;
                incident.asked = Some(event.text.clone());
            }
            if !event.recovery_id.is_empty() {
                incident.recovery_id = event.recovery_id.clone();
            }
        }
    }

    pub fn see(&mut self, finding: &Finding, now: &Stamp) {
        match (&finding.trouble, self.0.get_mut(&finding.about)) {
            (Some((severity, text)), _) => {
                self.trouble(&finding.about, now, *severity, (&finding.at.rfc3339(), text), true)
            }
            // What was looked at before the trouble says nothing about it.
            (None, Some(incident)) if finding.at.is_after(&incident.seen, now) => incident.is_well(now),
            _ => {}
        }
    }

    fn trouble(&mut self, about: &str, now: &Stamp, severity: Severity, said: (&str, &str), looked: bool) {
        let incident = self.0.entry(about.into()).or_insert_with(|| Incident {
            began: now.clone(),
            well: true,
            looked: true,
            ..Incident::default()
        });
        if incident.well {
            incident.since = now.clone();
            incident.well = false;
            incident.severity = severity;
            incident.count += 1;
        }
        incident.seen = now.clone();
        incident.looked &= looked;
        incident.severity = incident.severity.max(severity);
        incident.say(said.0, said.1);
    }

    /// Is there trouble of which nobody was told yet?
    pub fn are_young(&self) -> bool {
        self.0
            .values()
            .any(|incident| !incident.looked && !incident.well && !incident.person && incident.told.is_none())
    }

    /// What is to be told now; what is over goes.
    pub fn tell(&mut self, now: &Stamp, config: &Notify) -> Vec<Message> {
        let mut messages = Vec::new();
        self.0.retain(|about, incident| {
            let (kind, goes) = incident.turn(now, config);
            messages.extend(kind.map(|kind| incident.message(about, kind, now)));
            !goes
        });
        messages
    }
}

impl Incident {
    fn is_well(&mut self, now: &Stamp) {
        if !self.well {
            self.since = now.clone();
            self.well = true;
        }
    }

    /// Numbers make no difference: the same is said again with another pid or percentage.
    fn say(&mut self, at: &str, text: &str) {
        self.last = printable(&text[..text.floor_char_boundary(LINE)]);
        let text = &format!("{at} {}", self.last);
        let same =
            |a: &str, b: &str| a.chars().filter(|c| !c.is_ascii_digit()).eq(b.chars().filter(|c| !c.is_ascii_digit()));
        if let Some(line) = self.lines.iter_mut().rev().take(LINES.1).find(|line| same(line, text)) {
            *line = text.into();
            return;
        }
        self.lines.push(text.into());
        if self.lines.len() > LINES.0 + LINES.1 {
            self.lines.remove(LINES.0);
            self.left_out += 1;
        }
    }

    /// What to tell of it, and whether it is over.
    fn turn(&mut self, now: &Stamp, config: &Notify) -> (Option<&'static str>, bool) {
        let spell = now.since_with(&self.since, uptime());
        let is_over = self.well && spell >= config.calm;
        let is_worse = !self.well && self.told.is_some_and(|told| self.severity > told);
        // It was told as healed, and it came back and stays.
        let stays = !self.well && self.told_well && spell >= config.calm;
        let asks = self.person && !self.told_person;
        let (kind, goes) = match self.told {
            None if self.looked && self.well => (None, true),
            None if self.looked && spell < config.delay => (None, false),
            // It may be about to be healed.
            None if !self.looked && !self.well && !self.person && spell < GRACE => (None, false),
            None => (Some(if self.well && !asks { "healed" } else { "trouble" }), false),
            Some(_) if is_worse || stays || asks => (Some("trouble"), false),
            Some(_) if is_over => ((!self.told_well || self.count > self.told_count).then_some("over"), true),
            Some(_) => (None, false),
        };
        if let Some(kind) = kind.filter(|kind| *kind != "over") {
            self.told_well = kind == "healed";
            self.told = Some(if self.told_well { self.severity.min(Severity::Warning) } else { self.severity });
            self.told_count = self.count;
            self.told_person = self.person;
        }
        (kind, goes)
    }

    fn message(&self, about: &str, kind: &str, now: &Stamp) -> Message {
        let last = self.last.as_str();
        let lasted = self.since.since(&self.began);
        let times = if self.count > 1 { format!(", {} times", self.count) } else { String::new() };
        let subject = match kind {
            "healed" => format!("healed: {last}"),
            "over" => format!("over: {about}: well since {}{times}, in {}", self.since.rfc3339(), in_words(lasted)),
            _ if self.person => format!("needs you: {}", self.asked.as_deref().unwrap_or(last)),
            _ => last.to_string(),
        };
        let mut text = self.lines.clone();
        if self.left_out > 0 {
            text.insert(
                LINES.0.min(text.len()),
                format!("({} more lines are left out: journalctl PG_CLUSTER={about})", self.left_out),
            );
        }
        let state = match kind {
            "healed" => "It is well again. Should it come back, you are told when that is over.".into(),
            "over" => format!(
                "It began at {}{times}, and all has been well for {}.",
                self.began.rfc3339(),
                in_words(now.since(&self.since))
            ),
            _ => format!("It began at {}. You are told when it is over.", self.began.rfc3339()),
        };
        text.push(state);
        if kind != "trouble" && self.person {
            text.push("It serves again; what was asked of you above may still be left to do.".into());
        }
        if !self.recovery_id.is_empty() {
            text.push(format!("What was seen and done: pg-recover explain {}", self.recovery_id));
        }
        let severity = self.told.unwrap_or(self.severity);
        Message {
            recovery_id: self.recovery_id.clone(),
            ..Message::new(kind, about, severity, &subject, text.join("\n"))
        }
    }
}

/// `48s`, `12min`, `5h`
fn in_words(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{}min", seconds / 60),
        seconds => format!("{}h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u32) -> Stamp {
        Stamp { wall: 1e9 + f64::from(second), boot: f64::from(second), boot_id: "a".into() }
    }

    fn event(trouble: bool, severity: Severity, text: &str) -> Event {
        Event {
            cluster: "15/main".into(),
            trouble,
            severity,
            person: trouble && severity == Severity::Critical,
            text: text.into(),
            at: "then".into(),
            recovery_id: "r".into(),
        }
    }

    fn crash() -> Event {
        event(true, Severity::Warning, "cluster 15/main crashed")
    }

    fn healed() -> Event {
        event(false, Severity::Warning, "cluster 15/main recovered")
    }

    fn finding(trouble: Option<&str>, second: u32) -> Finding {
        Finding {
            about: "15/main".into(),
            trouble: trouble.map(|text| (Severity::Critical, text.into())),
            at: at(second),
        }
    }

    /// Kinds of what is told at these seconds.
    fn told(incidents: &mut Incidents, seconds: impl IntoIterator<Item = u32>) -> Vec<String> {
        let config = Notify::default();
        seconds
            .into_iter()
            .flat_map(|second| incidents.tell(&at(second), &config))
            .map(|message| message.kind)
            .collect()
    }

    #[test]
    fn what_was_healed_at_once_is_one_message() {
        let mut incidents = Incidents::default();
        incidents.hear(&crash(), &at(0));
        incidents.hear(&healed(), &at(0));
        let messages = incidents.tell(&at(1), &Notify::default());
        assert_eq!((messages.len(), messages[0].kind.as_str()), (1, "healed"));
        assert!(messages[0].text.contains("crashed") && messages[0].text.contains("pg-recover explain r"));
        assert!(told(&mut incidents, [60, 119, 121, 200]).is_empty() && incidents.0.is_empty());
    }

    #[test]
    fn two_hundred_failures_are_one_alert_and_one_all_clear() {
        let mut incidents = Incidents::default();
        let mut kinds = Vec::new();
        for minute in 0..200 {
            incidents.hear(&crash(), &at(60 * minute));
            incidents.hear(&healed(), &at(60 * minute + 1));
            kinds.extend(told(&mut incidents, [60 * minute + 2]));
        }
        kinds.extend(told(&mut incidents, (12_000..13_000).step_by(60)));
        assert_eq!(kinds, ["healed", "over"]);
        assert!(incidents.0.is_empty());
    }

    #[test]
    fn what_is_not_healed_is_told_when_it_begins_when_it_is_worse_and_when_it_is_over() {
        let mut incidents = Incidents::default();
        incidents.hear(&crash(), &at(0));
        assert!(told(&mut incidents, [0, 19]).is_empty());
        assert_eq!(told(&mut incidents, [30, 60]), ["trouble"]);
        incidents.hear(&event(true, Severity::Critical, "manual intervention required"), &at(90));
        let worse = incidents.tell(&at(91), &Notify::default());
        assert!(worse[0].subject.contains("needs you: manual") && worse[0].severity == Severity::Critical);
        assert!(told(&mut incidents, [100, 5000]).is_empty());
        incidents.see(&finding(None, 80), &at(5000));
        assert!(told(&mut incidents, [6000]).is_empty(), "seen before the trouble");
        incidents.see(&finding(None, 6000), &at(6001));
        let over = incidents.tell(&at(6200), &Notify::default());
        assert_eq!((over[0].kind.as_str(), over[0].severity), ("over", Severity::Critical));
    }

    #[test]
    fn what_comes_back_and_stays_is_told_again() {
        let mut incidents = Incidents::default();
        incidents.hear(&crash(), &at(0));
        incidents.hear(&healed(), &at(1));
        assert_eq!(told(&mut incidents, [2]), ["healed"]);
        incidents.hear(&crash(), &at(60));
        assert!(told(&mut incidents, [61]).is_empty());
        assert_eq!(told(&mut incidents, [200, 260]), ["trouble"]);
        incidents.hear(&healed(), &at(300));
        assert_eq!(told(&mut incidents, [301, 430]), ["over"]);
    }

    #[test]
    fn who_is_asked_for_is_told_though_it_is_well_and_once() {
        let mut incidents = Incidents::default();
        incidents.hear(&crash(), &at(0));
        incidents.hear(&healed(), &at(1));
        assert_eq!(told(&mut incidents, [2]), ["healed"]);
        for second in 3..60 {
            incidents.hear(&event(true, Severity::Critical, "dies again and again"), &at(second));
            incidents.hear(&healed(), &at(second));
            let messages = incidents.tell(&at(second), &Notify::default());
            assert_eq!(messages.len(), usize::from(second == 3));
            assert!(messages.iter().all(|m| m.kind == "trouble" && m.subject.contains("needs you: dies again")));
        }
        assert_eq!(told(&mut incidents, [100, 300]), ["over"]);
    }

    #[test]
    fn one_look_may_be_chance() {
        let mut incidents = Incidents::default();
        incidents.see(&finding(Some("no connection"), 0), &at(0));
        assert!(told(&mut incidents, [0, 60]).is_empty());
        incidents.see(&finding(None, 61), &at(61));
        assert!(told(&mut incidents, [62]).is_empty() && incidents.0.is_empty());
        incidents.see(&finding(Some("no connection"), 100), &at(100));
        incidents.see(&finding(Some("no connection"), 160), &at(160));
        assert!(told(&mut incidents, [161, 339]).is_empty());
        assert_eq!(told(&mut incidents, [341, 400]), ["trouble"]);
    }

    #[test]
    fn the_same_again_is_one_line_and_no_message_grows_for_ever() {
        let mut incident = Incident::default();
        for pid in 0..50 {
            incident.say("12:00", &format!("process {pid} died"));
        }
        assert_eq!(incident.lines, ["12:00 process 49 died"]);
        // pg-notify list shows it on a terminal.
        incident.say("12:30", "process 7 \x1b[2Jdied");
        assert_eq!(incident.last, "process 7 ?[2Jdied");
        incident.lines.pop();
        for letter in 'a'..='z' {
            incident.say("13:00", &letter.to_string());
        }
        assert_eq!((incident.lines.len(), incident.left_out), (10, 17));
        assert_eq!((incident.lines[0].as_str(), incident.lines[9].as_str()), ("12:00 process 49 died", "13:00 z"));
    }
}
