//! One screen, for people.

use std::fmt::Write;
use std::io::IsTerminal;

use nix::libc;
use shared::health::{Check, Status};
use shared::record::Record;
use shared::service::Condition;

use crate::facts::{Host, Seen, Served};

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Of a message; the journal has all of it.
const WIDTH: usize = 300;

/// How much something matters, as a colour: Select Graphic Rendition (ECMA-48, 8.3.117).
#[derive(Clone, Copy, PartialEq)]
pub enum Level {
    Good = 32,
    Warning = 33,
    Bad = 31,
    Quiet = 90,
}

/// What is written on.
#[derive(Default)]
pub struct Paper {
    pub colour: bool,
    /// `None`: lines may be as long as they are.
    pub columns: Option<usize>,
}

impl Paper {
    /// Colours and an end of the line are there on a terminal only.
    pub fn of_stdout() -> Paper {
        let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let is_terminal = std::io::stdout().is_terminal();
        Paper {
            colour: is_terminal && !is_plain,
            columns: size().map(|(_, columns)| columns).filter(|columns| is_terminal && *columns > 0),
        }
    }

    /// A label in front, and the words beside it; what does not fit goes on in the next line, below the words.
    fn line(&self, label: &str, of: Level, words: &str) -> String {
        format!("  {} {}\n", self.paint(&format!("{label:<12}"), of), self.fold(&shorten(words), 15))
    }

    fn paint(&self, text: &str, of: Level) -> String {
        match self.colour {
            true => format!("\x1b[{}m{text}\x1b[0m", of as u8),
            false => text.into(),
        }
    }

    /// `indent`: columns in front of it.
    fn fold(&self, text: &str, indent: usize) -> String {
        let Some(room) = self.columns.map(|columns| columns.saturating_sub(indent).max(20)) else {
            return text.into();
        };
        let (mut folded, mut at) = (String::new(), 0);
        for word in text.split(' ') {
            let length = word.chars().count();
            if at > 0 && at + 1 + length > room {
                let _ = write!(folded, "\n{:indent$}", "");
                at = 0;
            } else if at > 0 {
                folded.push(' ');
                at += 1;
            }
            folded.push_str(word);
            at += length;
        }
        folded
    }
}

/// Rows and columns of the terminal.
fn size() -> Option<(usize, usize)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: it fills in what it is given (TIOCGWINSZ(2const)), which lives as long.
    let outcome = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &mut size) };
    (outcome == 0).then_some((size.ws_row.into(), size.ws_col.into()))
}

/// With the time above it, which shows that it goes on; the rows that are not there would push the first ones out.
pub fn watched(at: &str, text: &str) -> String {
    cut(&format!("{at}, every 2s until Ctrl-C\n{text}"), size().map(|(rows, _)| rows).filter(|rows| *rows > 2))
}

fn cut(text: &str, rows: Option<usize>) -> String {
    let (count, rows) = (text.lines().count(), rows.unwrap_or(usize::MAX));
    if count < rows {
        return text.into();
    }
    let shown: Vec<&str> = text.lines().take(rows - 2).collect();
    format!("{}\n{} more lines: pg-status\n", shown.join("\n"), count - shown.len())
}

pub fn draw(host: &Host, paper: &Paper) -> String {
    let mut text = String::new();
    if let Some(mistake) = &host.mistake {
        let words = format!("cannot be used: {mistake}. What is shown is as without it.");
        text.push_str(&paper.line("config", Level::Bad, &words));
    }
    if host.clusters.is_empty() {
        text.push_str("no PostgreSQL cluster on this host\n");
    }
    for seen in &host.clusters {
        let state = format!("{:<11}", seen.state.to_uppercase());
        let checked = match seen.checked_s {
            Some(seconds) => format!("score {:>3}, checked {} ago", seen.score, spoken(seconds)),
            None => "never checked".into(),
        };
        let taken = format!("{:<12} {state} {checked}  ", seen.cluster).chars().count();
        let fits = |bars: usize| paper.columns.is_none_or(|columns| taken + bars <= columns);
        let day = match fits(seen.day.len()) {
            true => sparkline(&seen.day),
            // An hour each.
            false => {
                sparkline(&seen.day.chunks(2).map(|pair| pair.iter().flatten().min().copied()).collect::<Vec<_>>())
            }
        };
        let state = paper.paint(&state, of_state(&seen.state));
        let _ = writeln!(text, "{:<12} {state} {checked}  {}", seen.cluster, paper.paint(&day, Level::Quiet));
        let recoveries =
            seen.recoveries.iter().map(|record| ("recovery", of_outcome(&record.outcome), recovery(record)));
        for (label, of, words) in lines(seen).into_iter().chain(recoveries) {
            text.push_str(&paper.line(label, of, &words));
        }
    }
    text.push_str(&of_services(&host.services, paper));
    for (unit, state) in &host.units {
        let _ = writeln!(text, "{unit} is {}: systemctl status {unit}", paper.paint(state, Level::Bad));
    }
    text
}

/// One line for each service, and what is wrong with it below.
pub fn of_services(services: &[Served], paper: &Paper) -> String {
    let mut text = String::new();
    for served in services {
        let state = paper.paint(&format!("{:<11}", served.state.to_uppercase()), of_state(served.state));
        let _ = writeln!(text, "{:<12} {state} {}", served.service, paper.fold(&of_service(served), 25));
        if !served.why.is_empty() {
            text.push_str(&paper.line("why", of_state(served.state), &served.why));
        }
    }
    text
}

/// How it stands with a service, in words.
pub fn of_service(served: &Served) -> String {
    let mut words = vec![served.unit.clone()];
    words.extend(served.since_s.map(|seconds| format!("so for {}", spoken(seconds))));
    words.push(match served.checked_s {
        Some(seconds) => format!("checked {} ago", spoken(seconds)),
        None => "not checked".into(),
    });
    let (made, allowed, window) = served.restarts;
    if made > 0 {
        words.push(format!("{made} of {allowed} restarts in {}", spoken(window)));
    }
    if served.state == Condition::Manual.name() {
        words.push(format!("pg-status services --reset {} has it tried again", served.service));
    }
    words.join(", ")
}

pub fn of_state(state: &str) -> Level {
    match state {
        "ok" => Level::Good,
        "off" => Level::Quiet,
        "warning" | "paused" | "unknown" | "not checked" | "starting" | "failing" | "waiting" => Level::Warning,
        _ => Level::Bad,
    }
}

/// Of a recovery.
pub fn of_outcome(outcome: &str) -> Level {
    match outcome {
        "recovered" => Level::Good,
        "declined" => Level::Quiet,
        _ => Level::Bad,
    }
}

/// What there is to say of a cluster, but for its recoveries: a label, how much it matters, and the words.
pub fn lines(seen: &Seen) -> Vec<(&'static str, Level, String)> {
    let mut lines = Vec::new();
    let name = &seen.cluster;
    if seen.manual {
        let next = format!(
            "nothing more is tried. See pg-recover explain; when it is repaired: pg-recover reset --cluster {name}"
        );
        lines.push(("needs you", Level::Bad, next));
    }
    if let Some(pause) = &seen.pause {
        lines.push(("paused", Level::Warning, format!("{pause}; pg-recover resume ends it")));
    }
    if let Some(off) = &seen.off {
        lines.push(("off", Level::Quiet, format!("cluster {name} {off}")));
    } else if seen.listening == Some(false) && !seen.checks.iter().any(|check| check.status == Status::Critical) {
        lines.push(("socket", Level::Bad, "nobody listens there".into()));
    }
    if let Some(seconds) = seen.checked_s.filter(|_| !seen.is_fresh) {
        let ago = spoken(seconds);
        let text = format!("for {ago}: systemctl status pg-health-check.timer pg-health-check.service");
        lines.push(("not checked", Level::Warning, text));
    }
    // The worst first; of a backup that is well, what is below says more.
    for (status, label, of) in [
        (Status::Critical, "critical", Level::Bad),
        (Status::Warning, "warning", Level::Warning),
        (Status::Unknown, "unknown", Level::Warning),
        (Status::Ok, "ok", Level::Good),
    ] {
        let is_told = |check: &&Check| status == Status::Ok && check.name == "backup" && seen.backup.is_some();
        let checks = seen.checks.iter().filter(|check| check.status == status && !is_told(check));
        lines.extend(checks.map(|check| (label, of, format!("{}: {}", check.name, check.message))));
    }
    if let Some(certificate) = &seen.certificate {
        let left = match certificate.left_days {
            days if days < 0.0 => format!("expired {} ago", spoken((-days * 86_400.0) as u64)),
            // Its last hours count.
            days if days < 2.0 => format!("{} are left", spoken((days * 86_400.0) as u64)),
            days => format!("{} days are left", days.floor()),
        };
        let renewal = match certificate.renewal_days {
            Some(days) if days < 0 => "its renewal is overdue".into(),
            Some(0) => "its renewal is due today".into(),
            Some(days) => format!("its renewal is due in {days} days"),
            None => "nothing here says when it is renewed".into(),
        };
        let failed = match certificate.failures {
            0 => String::new(),
            failures => format!("; {failures} tries in a row failed: {}", certificate.why),
        };
        lines.push(("certificate", Level::Quiet, format!("{left}, {renewal}{failed}")));
    }
    if let Some(backup) = &seen.backup {
        let proven = match (backup.proven_s, backup.restore_s) {
            (Some(ago), Some(took)) => {
                format!("; proven {} ago, restore takes {}", spoken(ago), spoken(took.ceil() as u64))
            }
            (Some(ago), None) => format!("; proven {} ago", spoken(ago)),
            _ => "; not proven by a restore yet".into(),
        };
        lines.push(("backup", Level::Quiet, format!("{}, {} ago{proven}", backup.id, spoken(backup.age_s))));
    }
    let ((made, allowed, window), (failed, most)) = (seen.restarts, seen.attempts);
    let checks = if seen.failures == 1 { "check" } else { "checks" };
    let used = [
        (made, format!("{made} of {allowed} restarts in {}", spoken(window))),
        (failed, format!("{failed} of {most} recoveries failed in a row")),
        (seen.failures, format!("{} {checks} in a row without service", seen.failures)),
    ];
    let used: Vec<String> = used.into_iter().filter(|(count, _)| *count > 0).map(|(_, words)| words).collect();
    if !used.is_empty() {
        lines.push(("budget", Level::Quiet, used.join(", ")));
    }
    lines
}

fn recovery(record: &Record) -> String {
    let took = format!("{}.{} s", record.downtime_ms / 1000, record.downtime_ms % 1000 / 100);
    let outcome = match record.outcome.as_str() {
        "declined" => "left alone".into(),
        outcome => format!("{outcome} in {took}"),
    };
    let why = record.evidence.first().map(|why| format!(": {why}")).unwrap_or_default();
    format!("{} {} {outcome} by {}{why}", record.started, record.fault, record.detected_by)
}

fn sparkline(day: &[Option<u8>]) -> String {
    let bar = |score: &Option<u8>| score.map_or(' ', |score| BARS[usize::from(score.min(100)) * 7 / 100]);
    day.iter().map(bar).collect()
}

fn shorten(line: &str) -> String {
    // What a server or a client has said must not move the cursor.
    let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match line.char_indices().nth(WIDTH) {
        Some((at, _)) => format!("{}...", &line[..at]),
        None => line,
    }
}

/// `48s`, `12min`, `5h`, `3d`
pub fn spoken(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}min", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{Backup, Certificate};

    fn seen() -> Seen {
        Seen {
            cluster: "15/main".into(),
            state: "ok".into(),
            listening: Some(true),
            score: 100,
            checked_s: Some(12),
            is_fresh: true,
            day: vec![None, Some(0), Some(50), Some(100)],
            restarts: (0, 5, 600),
            attempts: (0, 3),
            ..Seen::default()
        }
    }

    fn screen(seen: Seen, colour: bool) -> String {
        draw(&Host { clusters: vec![seen], ..Host::default() }, &Paper { colour, columns: None })
    }

    #[test]
    fn a_healthy_cluster_is_one_line() {
        assert_eq!(screen(seen(), false), "15/main      OK          score 100, checked 12s ago   ▁▄█\n");
        assert_eq!(screen(seen(), true).matches("\x1b[32m").count(), 1);
    }

    #[test]
    fn nobody_who_looks_is_told() {
        let text = screen(Seen { checked_s: Some(240), is_fresh: false, ..seen() }, false);
        assert!(text.contains("  not checked  for 4min: systemctl status pg-health-check.timer"), "{text}");
    }

    #[test]
    fn what_matters_is_there_with_the_next_command() {
        let record = Record {
            fault: "P1".into(),
            outcome: "recovered".into(),
            started: "2026-11-22T01:57:32Z".into(),
            detected_by: "pg-watchdog".into(),
            evidence: vec!["it was \x1b[2Jkilled".into()],
            downtime_ms: 812,
            ..Record::default()
        };
        let backup = Backup {
            id: "20261125T020000Z".into(),
            age_s: 30_000,
            proven_s: Some(90),
            restore_s: Some(3.2),
            ..Backup::default()
        };
        let text = screen(
            Seen {
                state: "needs you".into(),
                manual: true,
                listening: Some(false),
                restarts: (5, 5, 600),
                recoveries: vec![record],
                backup: Some(backup),
                certificate: Some(Certificate {
                    left_days: 59.9,
                    renewal_days: Some(30),
                    failures: 2,
                    why: "no network".into(),
                    ..Certificate::default()
                }),
                ..seen()
            },
            false,
        );
        for part in [
            "NEEDS YOU",
            "pg-recover reset --cluster 15/main",
            "nobody listens",
            "20261125T020000Z, 8h ago; proven 90s ago, restore takes 4s",
            "59 days are left, its renewal is due in 30 days; 2 tries in a row failed: no network",
            "5 of 5 restarts in 10min",
            "2026-11-22T01:57:32Z P1 recovered in 0.8 s by pg-watchdog: it was  [2Jkilled",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn a_service_is_one_line_and_says_what_is_wrong() {
        let served = |state, why: &str| Served {
            service: "shop".into(),
            unit: "shop.service".into(),
            state,
            why: why.into(),
            since_s: Some(7),
            checked_s: Some(2),
            restarts: (5, 5, 300),
            ..Served::default()
        };
        let draw = |served| draw(&Host { services: vec![served], ..Host::default() }, &Paper::default());
        let ill = draw(served("needs you", "the answer is 500"));
        for part in [
            "shop         NEEDS YOU   shop.service, so for 7s",
            "5 of 5 restarts in 5min",
            "--reset shop",
            "the answer is 500",
        ] {
            assert!(ill.contains(part), "{part} is not in\n{ill}");
        }
        assert_eq!(draw(served("ok", "")).lines().count(), 2);
    }

    #[test]
    fn on_a_terminal_no_line_is_longer_than_it_and_no_word_is_lost() {
        let words =
            "disk_data: 91 % used: remove what is not needed, or make the volume larger, before it is full at night";
        let check = |message: &str| Check { message: message.into(), ..Default::default() };
        let mut ill = Seen { checks: vec![check(words)], day: vec![Some(100); 48], ..seen() };
        ill.day[3] = Some(0);
        let host = Host { clusters: vec![ill], ..Host::default() };
        let text = draw(&host, &Paper { colour: false, columns: Some(80) });
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("  █▁█") && text.lines().last().unwrap().starts_with(&" ".repeat(15)), "{text}");
        let told: Vec<&str> = text.split_whitespace().collect();
        assert!(told.join(" ").contains(words), "{text}");
        assert!(draw(&host, &Paper::default()).contains(words));
    }

    #[test]
    fn what_has_no_room_on_the_screen_is_counted() {
        assert_eq!(cut("a\nb\nc\n", Some(4)), "a\nb\nc\n");
        assert_eq!(cut("a\nb\nc\nd\n", Some(4)), "a\nb\n2 more lines: pg-status\n");
        assert_eq!(cut("a\n", None), "a\n");
    }

    #[test]
    fn a_unit_that_does_not_run_is_named() {
        let host = Host { units: vec![("pg-watchdog.service".into(), "failed".into())], ..Host::default() };
        assert!(
            draw(&host, &Paper::default())
                .ends_with("pg-watchdog.service is failed: systemctl status pg-watchdog.service\n")
        );
    }
}
