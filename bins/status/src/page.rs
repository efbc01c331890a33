//! The page: what the screen shows and more, for a browser without scripts. `maud` escapes whatever is put into it.

use maud::{DOCTYPE, Markup, html};
use shared::clock;
use shared::fault;
use shared::record::Record;
use shared::story::{self, Story, target};
use shared::tally::Tally;

use crate::facts::{Host, Seen, Served};
use crate::look::Sight;
use crate::plot;
use crate::screen::{Level, lines, of_outcome, of_service, of_state, spoken};

pub const STYLE: &str = include_str!("style.css");
/// Of the newest recoveries.
const MOST: usize = 500;
/// Of what was seen, in a list.
const WIDTH: usize = 160;

/// As the style sheet has it.
pub fn class(level: Level) -> &'static str {
    match level {
        Level::Good => "good",
        Level::Warning => "warning",
        Level::Bad => "bad",
        Level::Quiet => "quiet",
    }
}

fn document(title: &str, refresh: bool, main: Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                @if refresh { meta http-equiv="refresh" content="30"; }
                title { (title) }
                link rel="stylesheet" href="/style.css";
            }
            body {
                header { a href="/" { "pg-recovery" } " " span { (host()) } nav { a href="/recoveries" { "All recoveries" } } }
                main { (main) }
                footer {
                    "For programs: " a href="/health/status" { "status" } ", " a href="/health/recovery-stats" { "statistics" }
                    ", " a href="/metrics" { "metrics" } ". pg-recovery " (env!("CARGO_PKG_VERSION"))
                }
            }
        }
    };
    page.into_string()
}

/// For people: `2026-11-26 13:34:56 UTC`
fn moment(rfc3339: &str) -> Markup {
    html! { time datetime=(rfc3339) { (rfc3339.replacen('T', " ", 1).replacen('Z', " UTC", 1)) } }
}

fn host() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

pub fn overview(sight: &Sight) -> String {
    let shown = &sight.host;
    let mut clusters: Vec<&Seen> = shown.clusters.iter().collect();
    clusters.sort_by_key(|seen| match of_state(&seen.state) {
        Level::Bad => 0,
        Level::Warning => 1,
        Level::Good | Level::Quiet => 2,
    });
    let main = html! {
        h1.summary { (summary(shown)) " " small { "as of " (moment(&shown.at)) } }
        @if let Some(mistake) = &shown.mistake {
            p {
                b.bad { "The configuration cannot be used: " (mistake) "." }
                " pg-watchdog goes on with what was configured before; what starts anew may not run until that is corrected."
            }
        }
        @if shown.clusters.is_empty() { p { "No PostgreSQL cluster on this host." } }
        @if !shown.units.is_empty() {
            section {
                h2 { "What watches and heals" }
                dl { @for (unit, state) in &shown.units { dt.bad { (state) } dd { (unit) ": systemctl status " (unit) } } }
            }
        }
        @for seen in clusters { (cluster(seen, sight)) }
        @if !shown.services.is_empty() { (services(&shown.services)) }
    };
    let ill = shown.clusters.iter().find(|seen| of_state(&seen.state) == Level::Bad);
    document(&format!("{}: {}", host(), ill.map_or("PostgreSQL", |seen| &seen.state)), true, main)
}

/// What is wrong, by name, in one or a few sentences.
fn summary(host: &Host) -> String {
    let names = |level| {
        let ill = host.clusters.iter().filter(move |seen| of_state(&seen.state) == level);
        ill.map(|seen| seen.cluster.as_str()).collect::<Vec<_>>()
    };
    let services = host.services.iter().filter(|served| of_state(served.state) == Level::Bad);
    let services: Vec<&str> = services.map(|served| served.service.as_str()).collect();
    let (bad, warning) = (names(Level::Bad), names(Level::Warning));
    let mut said = Vec::new();
    for (names, one, many) in [
        (&bad, "is in trouble", "are in trouble"),
        (&services, "does not serve", "do not serve"),
        (&warning, "needs a look", "need a look"),
    ] {
        if !names.is_empty() {
            said.push(format!("{} {}.", names.join(", "), if names.len() == 1 { one } else { many }));
        }
    }
    if !host.units.is_empty() {
        said.push("What watches and heals is not well itself.".into());
    }
    match () {
        _ if host.clusters.is_empty() && host.services.is_empty() => "Nothing to watch.".into(),
        _ if said.is_empty() && host.mistake.is_none() => "All is well.".into(),
        _ if said.is_empty() => "All clusters are well; the configuration is not.".into(),
        _ => said.join(" "),
    }
}

fn services(services: &[Served]) -> Markup {
    html! {
        section id="services" {
            h2 { "Services" }
            div.scroll {
                table {
                    thead { tr { @for title in ["service", "state", ""] { th scope="col" { (title) } } } }
                    tbody {
                        @for served in services {
                            tr {
                                th scope="row" { (served.service) }
                                td { span.pill.(class(of_state(served.state))) { (served.state) } }
                                td.words { (of_service(served)) @if !served.why.is_empty() { br; (served.why) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn cluster(seen: &Seen, sight: &Sight) -> Markup {
    let records: Vec<&Record> = sight.records.iter().rev().filter(|record| record.cluster == seen.cluster).collect();
    let recoveries = plot::recoveries(&records, clock::seconds_of(&sight.host.at).unwrap_or_default());
    html! {
        section id=(seen.cluster) {
            h2 {
                (seen.cluster) " " span.pill.(class(of_state(&seen.state))) { (seen.state) }
                @match seen.checked_s {
                    Some(ago) => small { "score " b.(plot::of_score(seen.score)) { (seen.score) } ", checked " (spoken(ago)) " ago" },
                    None => small { "never checked" },
                }
            }
            dl {
                @for (label, level, said) in lines(seen) { dt.(class(level)) { (label) } dd { (said) } }
            }
            div.plots {
                (plot::score(seen))
                @if let Some(latency) = plot::latency(seen) { (latency) }
                @if let Some(recoveries) = &recoveries { (recoveries) }
                @for volume in plot::volumes(seen) { (volume) }
            }
            @if recoveries.is_none() { p.quiet { "No recoveries in the last 7 days." } }
            @if !seen.recoveries.is_empty() {
                h3 { "Last recoveries" }
                (list(seen.recoveries.iter(), false))
            }
        }
    }
}

fn list<'a>(records: impl Iterator<Item = &'a Record>, with_cluster: bool) -> Markup {
    html! {
        ol.recoveries {
            @for record in records {
                li {
                    a href=(format!("/recovery/{}", record.id)) { (moment(&record.started)) }
                    " " span.pill.(class(of_outcome(&record.outcome))) { (record.outcome) }
                    @if with_cluster { " " b { (record.cluster) } }
                    " " (record.fault) ", " (story::spoken(record.downtime_ms)) ", by " (record.detected_by)
                    p { (meaning(&record.fault)) ". " @if let Some(seen) = record.evidence.first() { "Seen: " (shorten(seen)) } }
                }
            }
        }
    }
}

/// What it is, without how it is repaired.
fn meaning(fault: &str) -> &'static str {
    let rule = fault::class(fault).rule;
    rule.split(". ").next().and_then(|first| first.split("; ").next()).unwrap_or(rule).trim_end_matches('.')
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(WIDTH) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.into(),
    }
}

pub fn history(sight: &Sight) -> String {
    let percent = |rate: Option<f64>| rate.map_or("–".into(), |rate| format!("{:.0} %", rate * 100.0));
    let time = |ms: Option<u64>| ms.map_or("–".into(), story::spoken);
    let row = |name: &str, tally: &Tally| {
        html! {
            tr {
                th scope="row" { (name) }
                td { (tally.recovered) " of " (tally.tried()) }
                td { (percent(tally.target_rate)) }
                td { (time(tally.median_ms)) }
                td { (time(tally.worst_ms)) }
            }
        }
    };
    let main = html! {
        h1 { "Recoveries" }
        @if sight.records.is_empty() {
            p { "There has been none yet." }
        } @else {
            div.scroll {
                table {
                    thead { tr { @for title in ["fault", "healed", "in time", "median", "worst"] { th scope="col" { (title) } } } }
                    tbody {
                        @for (fault, tally) in Tally::by_fault(&sight.records) { (row(fault, &tally)) }
                        (row("all", &Tally::of(sight.records.iter())))
                    }
                }
            }
            (list(sight.records.iter().rev().take(MOST), true))
            @if sight.records.len() > MOST { p { "Older ones: pg-recover history" } }
        }
    };
    document("Recoveries", false, main)
}

/// `None`: no such recovery is on record.
pub fn story(sight: &Sight, id: &str) -> Option<String> {
    let record = sight.records.iter().rfind(|record| record.id == id)?;
    let story = Story::of(record.clone());
    let longest = record.steps.iter().map(|step| step.ms).max().unwrap_or_default().max(1);
    let main = html! {
        h1 { (record.cluster) ": " (record.fault) " " span.pill.(class(of_outcome(&record.outcome))) { (record.outcome) } }
        p {
            (record.detected_by) " found that cluster " b { (record.cluster) } " was not well at " (moment(&record.started)) ". "
            "It took " b { (story::spoken(record.downtime_ms)) }
            @if let Some(target) = target(record) { " (" (target) ")" } "."
        }
        h2 { "What it saw" }
        ul { @for line in &record.evidence { li { (line) } } }
        h2 { "What that means" }
        p { b { (record.fault) } ", priority " (story.priority) ". " (story.rule) }
        h2 { "What was tried" }
        @if record.steps.is_empty() {
            p { "Nothing." }
        } @else {
            p.quiet { "The gentlest first, looking again after each step." }
            ol.steps {
                @for step in &record.steps {
                    @let level = if step.outcome == "ok" { "good" } else { "warning" };
                    li {
                        b { (step.step) } " " span.pill.(level) { (step.outcome) } " after " (story::spoken(step.ms))
                        progress max=(longest) value=(step.ms) aria-hidden="true" {}
                        p { (step.why) }
                    }
                }
            }
        }
        h2 { "How it ended" }
        p { (story.ending()) }
        h2 { "What is left to do" }
        p { (story.next) }
        p.quiet { "In the journal: " code { "journalctl PG_RECOVERY_ID=" (record.id) } }
    };
    Some(document(&format!("{} {}", record.cluster, record.fault), false, main))
}

pub fn nothing() -> String {
    document(
        "Nothing here",
        false,
        html! { h1 { "Nothing here" } p { "There is no such page, or no such recovery on record." } },
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use shared::record::StepRecord;
    use shared::tally::Sums;

    use super::*;

    #[test]
    fn the_summary_names_what_is_not_well() {
        let seen =
            |cluster: &str, state: &str| Seen { cluster: cluster.into(), state: state.into(), ..Seen::default() };
        let mut host = Host { clusters: vec![seen("16/red", "ok"), seen("16/blue", "ok")], ..Host::default() };
        assert_eq!(summary(&host), "All is well.");
        host.clusters[1].state = "needs you".into();
        host.services = vec![Served { service: "shop".into(), state: "down", ..Served::default() }];
        assert_eq!(summary(&host), "16/blue is in trouble. shop does not serve.");
        host.clusters[0].state = "down".into();
        host.units = vec![("pg-watchdog.service".into(), "inactive".into())];
        let all = "16/red, 16/blue are in trouble. shop does not serve. What watches and heals is not well itself.";
        assert_eq!(summary(&host), all);
    }

    #[test]
    fn a_fault_has_a_meaning_in_words() {
        assert_eq!(meaning("C1"), "The server's own program refuses the configuration files");
        assert_eq!(meaning("P6"), "postmaster.pid names no process, and none of the cluster is left");
    }

    const EVIL: &str = "<script>alert(1)</script>\"'&";

    #[test]
    fn nothing_that_anybody_wrote_is_taken_for_markup() {
        let evil = || EVIL.to_string();
        let step = StepRecord { step: evil(), outcome: evil(), why: evil(), ..StepRecord::default() };
        let record = Record {
            id: "x".into(),
            cluster: evil(),
            fault: evil(),
            detected_by: evil(),
            evidence: vec![evil()],
            steps: vec![step],
            outcome: evil(),
            started: "2026-11-22T01:57:32Z".into(),
            finished: evil(),
            ..Record::default()
        };
        let seen = Seen {
            cluster: evil(),
            state: evil(),
            pause: Some(evil()),
            off: Some(evil()),
            recoveries: vec![record.clone()],
            ..Seen::default()
        };
        let host = Host {
            at: "2026-11-22T02:00:00Z".into(),
            mistake: Some(evil()),
            clusters: vec![seen],
            services: vec![Served { service: evil(), unit: evil(), why: evil(), ..Served::default() }],
            units: vec![(evil(), evil())],
        };
        let sight =
            Sight { at: Instant::now(), host, records: Arc::new(vec![record]), sums: Arc::new(Sums::default()) };
        for page in [overview(&sight), history(&sight), story(&sight, "x").unwrap()] {
            assert!(!page.contains("<script") && page.contains("&lt;script&gt;"), "{page}");
            assert!(!page.contains("style=") && !page.contains("http:") && !page.contains("https:"), "{page}");
        }
        assert!(story(&sight, "../x").is_none() && story(&sight, "").is_none());
    }
}
