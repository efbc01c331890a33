//! Plots, drawn here: SVG that takes its colours from the style sheet.

use std::fmt::Write;

use maud::{Markup, Render, html};
use shared::clock;
use shared::health::TIMES;
use shared::record::Record;
use shared::story;

use crate::facts::{Seen, day};
use crate::page::class;
use crate::screen::{of_outcome, spoken};

/// The whole, in units that are about a pixel, and what the axes leave of it.
const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 130.0;
const LEFT: f64 = 50.0;
const RIGHT: f64 = 334.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 108.0;

const WEEK: i64 = 7 * 86_400;
/// Of the newest recoveries.
const MOST: usize = 300;
/// Of a forecast, in seconds: what is further away is no news.
const AHEAD: f64 = 4.0 * 86_400.0;

/// A name, a title that may have colours, labels of the heights and of the widths, each from 0 to 1, and what is drawn.
fn frame(name: &str, title: impl Render, heights: &[(f64, String)], widths: &[(f64, String)], drawn: Markup) -> Markup {
    html! {
        figure {
            figcaption { (title) }
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(name) {
                @for (at, label) in heights {
                    line.grid x1=(LEFT) x2=(RIGHT) y1=(y(*at)) y2=(y(*at)) {}
                    text x=(LEFT - 5.0) y=(y(*at) + 3.5) text-anchor="end" { (label) }
                }
                @for (at, label) in widths {
                    @let anchor = if *at < 0.15 { "start" } else if *at > 0.85 { "end" } else { "middle" };
                    text x=(x(*at)) y=(HEIGHT - 6.0) text-anchor=(anchor) { (label) }
                }
                (drawn)
            }
        }
    }
}

/// Tenths of a unit are more than anybody sees.
fn tenth(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn x(part: f64) -> f64 {
    tenth(LEFT + part.clamp(0.0, 1.0) * (RIGHT - LEFT))
}

fn y(part: f64) -> f64 {
    tenth(BOTTOM - part.clamp(0.0, 1.0) * (BOTTOM - TOP))
}

fn labels<const N: usize>(labels: [(f64, &str); N]) -> [(f64, String); N] {
    labels.map(|(at, label)| (at, label.into()))
}

/// The lowest score of each half hour of the last day.
pub fn score(seen: &Seen) -> Markup {
    let count = seen.day.len().max(1) as f64;
    let bars = html! {
        @for (index, score) in seen.day.iter().enumerate() {
            @let left = x(index as f64 / count) + 0.5;
            @let width = tenth((RIGHT - LEFT) / count - 1.0);
            @let ago = ago(index, count);
            @match score {
                // At least so high that it is seen.
                Some(score) => {
                    @let height = (BOTTOM - y(f64::from(*score) / 100.0)).max(2.0);
                    rect.(of_score(*score)) x=(left) y=(tenth(BOTTOM - height)) width=(width) height=(tenth(height)) {
                        title { (score) ", " (ago) " ago" }
                    }
                }
                None => rect.quiet x=(left) y=(BOTTOM - 1.0) width=(width) height="1" {},
            }
        }
    };
    let heights = labels([(0.0, "0"), (0.5, "50"), (1.0, "100")]);
    let title = "Health score, last 24 hours";
    frame(title, title, &heights, &of_a_day(), bars)
}

fn of_a_day() -> [(f64, String); 3] {
    labels([(0.0, "24 h ago"), (0.5, "12 h"), (1.0, "now")])
}

/// Of one of so many parts of a day.
fn ago(index: usize, count: f64) -> String {
    spoken(((count - index as f64) / count * 86_400.0) as u64)
}

/// Seconds since boot.
fn now(seen: &Seen) -> i64 {
    seen.health.at.boot as i64 + seen.checked_s.unwrap_or_default() as i64
}

pub fn of_score(score: u8) -> &'static str {
    match score {
        90.. => "good",
        50.. => "warning",
        _ => "bad",
    }
}

/// How long a client waited for what the health checks asked: the longest of each half hour of the last day.
pub fn latency(seen: &Seen) -> Option<Markup> {
    // From a tenth of a millisecond to ten seconds, in powers of ten.
    let height = |us: u64| (us.max(1) as f64 / 100.0).log10() / 5.0;
    let now = now(seen);
    let of = |name: &str| day(seen.health.trends.times_of(name), now, u64::max);
    let [query, write] = TIMES.map(of);
    let count = query.len() as f64;
    let (mut lines, mut known) = ([String::new(), String::new()], 0);
    for (line, day) in lines.iter_mut().zip([&query, &write]) {
        for (index, us) in day.iter().enumerate() {
            let Some(us) = us else { continue };
            known += 1;
            let begins = index == 0 || day[index - 1].is_none();
            let (left, right, y) = (x(index as f64 / count), x((index + 1) as f64 / count), y(height(*us)));
            let _ = write!(line, "{}{left} {y}H{right}", if begins { 'M' } else { 'L' });
        }
    }
    let drawn = html! {
        path.line d=(lines[0]) {}
        path.line.other d=(lines[1]) {}
        @for (index, pair) in query.iter().zip(&write).enumerate().filter(|(_, pair)| *pair != (&None, &None)) {
            rect.hover x=(x(index as f64 / count)) y=(TOP) width=(tenth((RIGHT - LEFT) / count)) height=(BOTTOM - TOP) {
                title {
                    @for (name, us) in [("query", pair.0), ("commit", pair.1)] {
                        @if let Some(us) = us { (name) " " (milliseconds(*us)) ", " }
                    }
                    (ago(index, count)) " ago"
                }
            }
        }
    };
    let heights = [
        (100, "0.1 ms"),
        (1000, "1 ms"),
        (10_000, "10 ms"),
        (100_000, "100 ms"),
        (1_000_000, "1 s"),
        (10_000_000, "10 s"),
    ]
    .map(|(us, label)| (height(us), label.to_string()));
    let title = html! { "Latency, last 24 hours: " span.line { "a query" } ", " span.other { "a commit" } };
    (known > 0).then(|| frame("Latency, last 24 hours", title, &heights, &of_a_day(), drawn))
}

/// `0.8 ms`, `12 ms`, `1.5 s`
fn milliseconds(us: u64) -> String {
    match us {
        0..10_000 => format!("{:.1} ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{} ms", us / 1000),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

/// When recoveries were, and how long the cluster was away; `now` in seconds since 1970. `None`: there were none.
pub fn recoveries(records: &[&Record], now: i64) -> Option<Markup> {
    // One from the future, by a clock that was set back, is of now.
    let aged = records.iter().take(MOST).filter_map(|record| Some((record, now - clock::seconds_of(&record.started)?)));
    let aged: Vec<_> = aged.filter(|(_, age)| *age < WEEK).collect();
    // From a tenth of a second to an hour and a half, in powers of ten.
    let height = |ms: u64| (ms.max(1) as f64 / 100.0).log10() / 4.75;
    let dots = html! {
        @for (record, age) in &aged {
            @let took = story::spoken(record.downtime_ms);
            a href=(format!("/recovery/{}", record.id)) {
                circle.(class(of_outcome(&record.outcome)))
                    cx=(x(1.0 - *age as f64 / WEEK as f64)) cy=(y(height(record.downtime_ms))) r="4.5" {
                    title { (record.started) " " (record.fault) " " (record.outcome) ", " (took) }
                }
            }
        }
    };
    let heights =
        [(100, "0.1 s"), (1000, "1 s"), (10_000, "10 s"), (60_000, "1 min"), (600_000, "10 min"), (3_600_000, "1 h")]
            .map(|(ms, label)| (height(ms), label.to_string()));
    let days = labels([(0.0, "7 days ago"), (4.0 / 7.0, "3 days"), (1.0, "now")]);
    let title = "Recoveries, last 7 days, by time without service";
    (!aged.is_empty()).then(|| frame(title, title, &heights, &days, dots))
}

/// What was left of each volume in the last days, and how that goes on.
pub fn volumes(seen: &Seen) -> Vec<Markup> {
    let trends = &seen.health.trends;
    let now = now(seen);
    let names = trends.names().filter(|name| name.starts_with("disk_"));
    names.filter_map(|name| volume(name, trends.of(name), forecast(seen, name), now)).collect()
}

/// Seconds until nothing is left.
fn forecast(seen: &Seen, name: &str) -> Option<f64> {
    let mut checks = seen.health.checks.iter();
    let check = checks.find(|check| check.name.strip_suffix("_forecast") == Some(name))?;
    check.value.filter(|within| seen.is_fresh && *within <= AHEAD)
}

/// `samples`: seconds and bytes, the oldest first.
fn volume(name: &str, samples: &[(i64, u64)], ends: Option<f64>, now: i64) -> Option<Markup> {
    let [(first, _), .., (last, left)] = samples else { return None };
    let (from, until) = (*first as f64, ends.map_or(now, |within| last + within as i64).max(first + 1) as f64);
    let most = samples.iter().map(|(_, left)| *left).max()?.max(1) as f64;
    let at = |then: i64| (then as f64 - from) / (until - from);
    let mut path = String::new();
    for (then, left) in samples {
        let _ = write!(path, "{}{} {}", if path.is_empty() { "M" } else { "L" }, x(at(*then)), y(*left as f64 / most));
    }
    let area = format!("{path}L{} {BOTTOM}L{LEFT} {BOTTOM}Z", x(at(*last)));
    let drawn = html! {
        path.area d=(area) {}
        path.line d=(path) {}
        @if ends.is_some() {
            path.ahead d=(format!("M{} {}L{} {BOTTOM}", x(at(*last)), y(*left as f64 / most), x(1.0))) {}
        }
    };
    let mut widths = vec![(0.0, format!("{} ago", spoken((now - first).max(0) as u64)))];
    match ends {
        Some(within) => {
            // Where the two would not cover one another.
            if (0.3..0.7).contains(&at(*last)) {
                widths.push((at(*last), "now".into()));
            }
            widths.push((1.0, format!("full in {}", spoken(within as u64))));
        }
        None => widths.push((1.0, "now".into())),
    }
    let heights = [(0.0, "0".into()), (0.5, bytes(most / 2.0)), (1.0, bytes(most))];
    let title = format!("{} left on the volume of {}", bytes(*left as f64), name.trim_start_matches("disk_"));
    Some(frame(&title, &title, &heights, &widths, drawn))
}

/// `512 MB`, `1.5 GB`
fn bytes(bytes: f64) -> String {
    let mut amount = bytes;
    let mut units = ["B", "kB", "MB", "GB", "TB"].iter();
    let mut unit = units.next();
    while amount >= 1000.0
        && let Some(next) = units.next()
    {
        amount /= 1000.0;
        unit = Some(next);
    }
    let digits = usize::from(amount < 9.95 && amount.fract() >= 0.05);
    format!("{amount:.digits$} {}", unit.unwrap_or(&""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_that_fills_is_drawn_to_its_end() {
        let samples = [(1000, 4_000_000_000), (4600, 2_000_000_000)];
        let svg = volume("disk_data", &samples, Some(3600.0), 4600).unwrap().into_string();
        for part in
            ["2 GB left on the volume of data", "M50 8L192 58", "M192 58L334 108", "full in 60min", "60min ago", "now"]
        {
            assert!(svg.contains(part), "{part} is not in\n{svg}");
        }
        assert!(volume("disk_data", &samples[..1], None, 4600).is_none());
        assert!(!volume("disk_data", &samples, None, 4600).unwrap().into_string().contains("ahead"));
        assert_eq!([999.0, 1500.0, 2e6, 9.96e9, 3.26e12].map(bytes), ["999 B", "1.5 kB", "2 MB", "10 GB", "3.3 TB"]);
    }

    #[test]
    fn a_recovery_is_where_it_was_and_leads_to_its_story() {
        let record = |started: &str| Record {
            id: format!("id-{started}"),
            outcome: "recovered".into(),
            started: started.into(),
            downtime_ms: 1000,
            ..Record::default()
        };
        let now = clock::seconds_of("2026-11-22T00:00:00Z").unwrap();
        let (new, old) = (record("2026-11-21T00:00:00Z"), record("2026-11-02T00:00:00Z"));
        let svg = recoveries(&[&new, &old], now).unwrap().into_string();
        assert_eq!(svg.matches("<circle").count(), 1);
        assert!(svg.contains("href=\"/recovery/id-2026-11-21T00:00:00Z\"") && svg.contains("cx=\"293.4\""), "{svg}");
        assert!(recoveries(&[&old], now).is_none());
        let ahead = recoveries(&[&record("2026-11-23T00:00:00Z")], now).unwrap().into_string();
        assert!(ahead.contains("cx=\"334\""), "{ahead}");
    }
}
