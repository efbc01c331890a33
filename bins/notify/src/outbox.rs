//! What is to be sent, kept on disk until it has arrived: one file with the incidents, so that none is told twice or never.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::clock::{Stamp, uptime};
use shared::config::{ClusterEntry, Config, Notify, Service, Severity, parse_hours};
use shared::counter::Counter;
use shared::state::State;

use crate::channel::{Failure, Line};
use crate::incident::Incidents;
use crate::message::Message;

/// Pauses between two tries on a channel that does not take anything.
const PAUSE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(30 * 60));
/// What nobody has taken by then is no news any more.
const KEPT: Duration = Duration::from_secs(3 * 86_400);
const MOST: usize = 200;
/// More than so many that wait for a channel go as one.
const ONE_BY_ONE: usize = 3;
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Outbox {
    /// How far the journal was read.
    pub cursor: String,
    pub incidents: Incidents,
    pub parcels: Vec<Parcel>,
    pub channels: BTreeMap<String, Progress>,
    /// The last number of a message.
    pub number: u64,
    /// The last configuration that could be used.
    pub config: Option<Notify>,
    /// The clusters and services that it describes.
    pub clusters: Vec<String>,
    pub services: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Parcel {
    pub message: Message,
    pub since: Stamp,
    /// Channels that have not taken it yet.
    pub left: Vec<String>,
}

/// What is known of one channel.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Progress {
    /// Tries in a row that failed, and when the last of them was.
    pub failed: u32,
    pub tried: Stamp,
    pub sent: Counter,
}

pub fn load() -> State<Outbox> {
    State::load("notify/outbox.json")
}

impl Outbox {
    /// Keeps what of a configuration is needed should the next one be of no use.
    pub fn remember(&mut self, host: &Config) {
        self.config = Some(host.notify.clone());
        self.clusters = host.cluster.iter().map(|entry| entry.name.clone()).collect();
        self.services = host.service.iter().map(|rule| rule.name.clone()).collect();
    }

    /// The last configuration that could be used, as far as it was kept.
    pub fn remembered(self) -> Config {
        let cluster = |name| ClusterEntry { name, ..ClusterEntry::default() };
        let service = |name| Service { name, ..Service::default() };
        Config {
            notify: self.config.unwrap_or_default(),
            cluster: self.clusters.into_iter().map(cluster).collect(),
            service: self.services.into_iter().map(service).collect(),
            ..Config::default()
        }
    }

    /// Queues it for every channel that is meant for messages like this.
    pub fn post(&mut self, mut message: Message, lines: &[Line]) {
        let is_for = |line: &&Line| message.severity >= line.channel.severity;
        let left: Vec<String> = lines.iter().filter(is_for).map(|line| line.channel.name.clone()).collect();
        self.number += 1;
        message.id = format!("{}-{}", Stamp::now().compact(), self.number);
        log::info!("{} ({}): {}", message.about, message.kind, message.subject);
        if !left.is_empty() {
            self.parcels.push(Parcel { message, since: Stamp::now(), left });
        }
    }

    /// Forgets what no channel waits for, and what is too old or too much.
    pub fn tidy(&mut self, lines: &[Line], now: &Stamp) {
        let is_configured = |name: &String| lines.iter().any(|line| line.channel.name == *name);
        self.channels.retain(|name, _| is_configured(name));
        let surplus = self.parcels.len().saturating_sub(MOST);
        let mut index = 0;
        self.parcels.retain_mut(|parcel| {
            parcel.left.retain(is_configured);
            index += 1;
            let is_lost = now.since_with(&parcel.since, uptime()) > KEPT || index <= surplus;
            if is_lost && !parcel.left.is_empty() {
                log::error!("not sent, and given up: {} ({})", parcel.message.subject, parcel.left.join(", "));
            }
            !is_lost && !parcel.left.is_empty()
        });
    }

    /// What goes to a channel now: the indexes of its parcels, in one message if there are many.
    fn due(&self, line: &Line, config: &Notify, now: &Stamp, quiet: bool) -> Vec<usize> {
        let name = &line.channel.name;
        let progress = self.channels.get(name).cloned().unwrap_or_default();
        // What is critical goes first, is tried more often, and does not wait for an hour to be over.
        let is_critical = |parcel: &Parcel| parcel.message.severity == Severity::Critical;
        let room = config.hourly.saturating_sub(progress.sent.within(HOUR, now));
        let waits = |parcel: &Parcel| parcel.left.contains(name) && ((!quiet && room > 0) || is_critical(parcel));
        let waiting = self.parcels.iter().enumerate().filter(|(_, parcel)| waits(parcel));
        let mut waiting: Vec<usize> = waiting.map(|(index, _)| index).collect();
        waiting.sort_by_key(|index| !is_critical(&self.parcels[*index]));
        let urgent = waiting.first().is_some_and(|first| is_critical(&self.parcels[*first]));
        let most = if urgent { PAUSE.0 * 4 } else { PAUSE.1 };
        let pause = most.min(PAUSE.0 * 2u32.saturating_pow(progress.failed.saturating_sub(1)));
        if progress.failed > 0 && now.since_with(&progress.tried, uptime()) < pause {
            return Vec::new();
        }
        // The last that may go in this hour takes all others along.
        if waiting.len() <= ONE_BY_ONE && room != 1 {
            waiting.truncate(1);
        }
        waiting
    }
}

/// Sends what is due, through all channels at the same time, so that one that hangs does not delay the others.
pub fn deliver(state: &mut State<Outbox>, lines: &[Line], config: &Notify) {
    let quiet = is_quiet(&config.quiet_hours, minute_of_day());
    // As many rounds as the messages that may go one by one.
    for _ in 0..ONE_BY_ONE {
        let now = Stamp::now();
        let due: Vec<(&Line, Vec<usize>)> =
            lines.iter().map(|line| (line, state.value.due(line, config, &now, quiet))).collect();
        let parcels = &state.value.parcels;
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let sending: Vec<_> = due
                .into_iter()
                .filter(|(_, indexes)| !indexes.is_empty())
                .map(|(line, indexes)| {
                    let messages: Vec<Message> = indexes.iter().map(|index| parcels[*index].message.clone()).collect();
                    let message = match &messages[..] {
                        [one] => one.clone(),
                        several => Message::several(several),
                    };
                    (line, indexes, scope.spawn(move || line.send(&message)))
                })
                .collect();
            // A thread that panics ends the program.
            sending.into_iter().filter_map(|(line, indexes, sent)| Some((line, indexes, sent.join().ok()?))).collect()
        });
        if outcomes.is_empty() {
            return;
        }
        for (line, indexes, outcome) in outcomes {
            let name = &line.channel.name;
            let progress = state.value.channels.entry(name.clone()).or_default();
            progress.tried = Stamp::now();
            match outcome {
                Ok(()) => {
                    progress.failed = 0;
                    progress.sent.add(Stamp::now());
                    for index in indexes {
                        state.value.parcels[index].left.retain(|left| left != name);
                    }
                }
                Err(Failure::Never(why)) => {
                    progress.failed = 0;
                    for index in indexes {
                        let parcel = &mut state.value.parcels[index];
                        log::error!("channel {name} does not take \"{}\": {why}; given up", parcel.message.subject);
                        parcel.left.retain(|left| left != name);
                    }
                }
                Err(why) => {
                    progress.failed += 1;
                    log::warn!("could not send through channel {name}: {why}; try {} follows", progress.failed + 1);
                }
            }
        }
        state.value.tidy(lines, &Stamp::now());
        // Whatever happens now, what has arrived is not sent again.
        state.save_or_warn();
    }
}

fn is_quiet(hours: &str, minute: u32) -> bool {
    parse_hours(hours).is_some_and(|(from, to)| match from <= to {
        true => (from..to).contains(&minute),
        false => minute >= from || minute < to,
    })
}

/// Of the host's own time zone.
fn minute_of_day() -> u32 {
    let now = Stamp::now().wall as libc::time_t;
    // SAFETY: both point to values of this function; localtime_r fills in the second (localtime(3)).
    let mut local: libc::tm = unsafe { std::mem::zeroed() };
    unsafe { libc::localtime_r(&now, &mut local) };
    (60 * local.tm_hour + local.tm_min) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::config::{Channel, ChannelKind};

    fn line(name: &str, severity: Severity) -> Line {
        let channel = Channel {
            name: name.into(),
            kind: ChannelKind::Wall,
            severity,
            to: String::new(),
            url: String::new(),
            url_credential: String::new(),
            token_credential: String::new(),
            command: Vec::new(),
        };
        Line { channel, secrets: Ok((String::new(), None)) }
    }

    fn message(severity: Severity) -> Message {
        Message::new("trouble", "15/main", severity, "x", String::new())
    }

    #[test]
    fn quiet_hours_may_go_past_midnight() {
        let quiet = |minute| is_quiet("22:00-07:00", minute);
        assert!(quiet(1320) && quiet(0) && quiet(419) && !quiet(420) && !quiet(1319));
        assert!(is_quiet("01:00-02:00", 60) && !is_quiet("01:00-02:00", 120) && !is_quiet("", 0));
    }

    #[test]
    fn a_channel_gets_what_it_is_for_and_at_night_only_what_is_critical() {
        let (lines, now) = ([line("all", Severity::Info), line("pager", Severity::Critical)], Stamp::now());
        let mut outbox = Outbox::default();
        outbox.post(message(Severity::Warning), &lines);
        outbox.post(message(Severity::Critical), &lines);
        let config = Notify::default();
        assert_eq!(outbox.due(&lines[0], &config, &now, false), [1], "what is critical goes first");
        assert_eq!(outbox.due(&lines[0], &config, &now, true), [1]);
        assert_eq!(outbox.due(&lines[1], &config, &now, false), [1]);
        outbox.tidy(&lines[1..], &now);
        assert_eq!(outbox.parcels.len(), 1, "nobody is left for the other one");
    }

    #[test]
    fn many_go_as_one_and_a_channel_that_fails_is_left_in_peace_for_a_while() {
        let lines = [line("all", Severity::Info)];
        let mut outbox = Outbox::default();
        for _ in 0..5 {
            outbox.post(message(Severity::Warning), &lines);
        }
        let (config, now) = (Notify::default(), Stamp::now());
        assert_eq!(outbox.due(&lines[0], &config, &now, false), [0, 1, 2, 3, 4]);
        let later = |seconds: f64| Stamp { wall: now.wall + seconds, boot: now.boot + seconds, ..now.clone() };
        let progress = Progress { failed: 3, tried: now.clone(), ..Progress::default() };
        outbox.channels.insert("all".into(), progress);
        assert!(outbox.due(&lines[0], &config, &later(119.0), false).is_empty());
        assert_eq!(outbox.due(&lines[0], &config, &later(121.0), false).len(), 5);
    }

    #[test]
    fn above_the_limit_they_wait_and_the_last_one_takes_the_others_along() {
        let lines = [line("all", Severity::Info)];
        let (config, now) = (Notify { hourly: 2, ..Notify::default() }, Stamp::now());
        let mut outbox = Outbox::default();
        outbox.post(message(Severity::Warning), &lines);
        outbox.post(message(Severity::Warning), &lines);
        let mut progress = Progress::default();
        progress.sent.add(now.clone());
        outbox.channels.insert("all".into(), progress.clone());
        assert_eq!(outbox.due(&lines[0], &config, &now, false), [0, 1]);
        progress.sent.add(now.clone());
        outbox.channels.insert("all".into(), progress);
        assert!(outbox.due(&lines[0], &config, &now, false).is_empty());
        outbox.post(message(Severity::Critical), &lines);
        assert_eq!(outbox.due(&lines[0], &config, &now, false), [2], "whatever went before");
    }

    #[test]
    fn what_a_configuration_describes_stays_known_when_the_next_one_is_of_no_use() {
        let mut host = Config { notify: Notify { hourly: 7, ..Notify::default() }, ..Config::default() };
        host.cluster.push(ClusterEntry { name: "16/red".into(), ..ClusterEntry::default() });
        host.service.push(Service { name: "shop".into(), ..Service::default() });
        let mut outbox = Outbox::default();
        outbox.remember(&host);
        assert_eq!(outbox.remembered(), host);
    }

    #[test]
    fn what_nobody_takes_is_given_up_in_the_end() {
        let (lines, now) = ([line("all", Severity::Info)], Stamp::now());
        let mut outbox = Outbox::default();
        for _ in 0..MOST + 7 {
            outbox.post(message(Severity::Warning), &lines);
        }
        outbox.tidy(&lines, &now);
        assert_eq!(outbox.parcels.len(), MOST);
        let days = 4.0 * 86_400.0;
        outbox.tidy(&lines, &Stamp { wall: now.wall + days, boot: now.boot + days, ..now });
        assert!(outbox.parcels.is_empty());
    }
}
