//! When something will run out, if it goes on as it does.
//!
//! The pace is the median of the slopes between all pairs of samples (Theil 1950, Sen 1968), which a few outliers cannot
//! move; whether there is a pace at all is told by Sen's confidence interval for it. That takes errors for independent,
//! which those of a server are not, so the fall must also look like one that goes on: see `fall` and `has_come_back`.
//! Whoever is in doubt says nothing: the limits on what is used are there as well.

use std::time::Duration;

use shared::config::Health;
use shared::health::{Status, Trends};

use crate::score::{Finding, Left};

/// The last 15 minutes, hour, 6 hours and day are looked at, in seconds; each only when twice as much is known, for what
/// was before shows what is usual.
const SPANS: [f64; 4] = [900.0, 3600.0, 21_600.0, 86_400.0];
/// Samples in each third of a span.
const LEAST: usize = 4;
/// Nobody looks ahead further than so many times the span.
const AHEAD: f64 = 4.0;
/// Normal deviate of the confidence, 99 %.
const Z: f64 = 2.576;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outlook {
    /// Too little is known.
    Unknown,
    /// No end in sight.
    Open,
    /// Nothing is left after `within` seconds at this pace (a second), which was seen over a span (seconds).
    Ends { within: f64, pace: f64, span: f64 },
}

/// What becomes of what is left: samples are seconds and amounts, the oldest first.
pub fn outlook(samples: &[(i64, u64)]) -> Outlook {
    let (Some((first, _)), Some((last, _))) = (samples.first(), samples.last()) else { return Outlook::Unknown };
    let known = (last - first) as f64;
    // Seconds before the last sample are negative.
    let samples: Vec<_> = samples.iter().map(|(at, left)| ((at - last) as f64, *left as f64)).collect();
    let mut outlook = Outlook::Unknown;
    for span in SPANS.into_iter().filter(|span| 2.0 * span <= known) {
        let within_span = &samples[samples.partition_point(|(ago, _)| *ago < -span)..];
        let third = |n: f64| within_span.partition_point(|(ago, _)| *ago < -span * n / 3.0);
        let (one, two) = (third(2.0), third(1.0));
        if one < LEAST || two - one < LEAST || within_span.len() - two < LEAST {
            continue;
        }
        if outlook == Outlook::Unknown {
            outlook = Outlook::Open;
        }
        let Some(Fall { pace, left, fallen }) = fall(within_span, [one, two]) else { continue };
        let within = (left / pace).max(0.0);
        let is_sooner = !matches!(outlook, Outlook::Ends { within: sooner, .. } if sooner <= within);
        if within <= AHEAD * span && is_sooner && !has_come_back(&samples, fallen, left) {
            outlook = Outlook::Ends { within, pace, span };
        }
    }
    outlook
}

fn median(values: &mut [f64]) -> f64 {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}

struct Fall {
    pace: f64,
    /// At the end of the line.
    left: f64,
    /// From the first third of the time to the last.
    fallen: f64,
}

/// `None` when it does not fall, or not so that one would expect it to go on. `thirds`: where the second and the last third
/// begin.
fn fall(samples: &[(f64, f64)], thirds: [usize; 2]) -> Option<Fall> {
    let amounts = |part: &[(f64, f64)]| median(&mut part.iter().map(|(_, left)| *left).collect::<Vec<_>>());
    let [one, two] = thirds;
    let (early, middle, late) = (amounts(&samples[..one]), amounts(&samples[one..two]), amounts(&samples[two..]));
    // One big file, or a batch that has ended, is no trend: the fall goes on from each third to the next.
    let fallen = early - late;
    if fallen <= 0.0 || (early - middle).min(middle - late) < fallen / 4.0 {
        return None;
    }
    // Not worth the work: far from an end.
    if late / 3.0 > AHEAD * fallen {
        return None;
    }
    let mut paces: Vec<f64> = Vec::with_capacity(samples.len() * samples.len() / 2);
    for (index, (then, before)) in samples.iter().enumerate() {
        paces.extend(samples[index + 1..].iter().map(|(now, after)| (before - after) / (now - then)));
    }
    let (n, pairs) = (samples.len() as f64, paces.len() as f64);
    let doubt = Z * (n * (n - 1.0) * (2.0 * n + 5.0) / 18.0).sqrt();
    let lowest = ((pairs - doubt) / 2.0).max(0.0) as usize;
    if *paces.select_nth_unstable_by(lowest, f64::total_cmp).1 <= 0.0 {
        return None;
    }
    let pace = median(&mut paces);
    let left = median(&mut samples.iter().map(|(ago, left)| left + pace * ago).collect::<Vec<_>>());
    Some(Fall { pace, left, fallen })
}

/// As little was left before, or not twice as much, and a good part of what this fall has taken came back: WAL that is
/// recycled, a log that is rotated, what a batch takes each night.
fn has_come_back(samples: &[(f64, f64)], fallen: f64, left: f64) -> bool {
    let mut most = 0.0_f64;
    samples.iter().rev().any(|(_, low)| {
        most = most.max(*low);
        let back = most - low;
        back >= fallen / 2.0 && left > low - back.min(*low) / 2.0
    })
}

/// The forecast for what this finding says is left.
pub fn judge(finding: &Finding, left: &Left, trends: &Trends, config: &Health) -> Finding {
    let name = name_of(&finding.check.name);
    let samples = trends.of(&finding.check.name);
    match outlook(samples) {
        Outlook::Unknown => {
            let known = samples.first().zip(samples.last()).map_or(0, |(first, last)| last.0 - first.0);
            Finding::ok(
                &name,
                format!("what was left is known for {}, a forecast takes 30min without gaps", span(known as f64)),
            )
        }
        Outlook::Open => Finding::ok(&name, "no steady fall of what is left"),
        Outlook::Ends { within, pace, span: seen } => {
            let mut message = format!(
                "{} in {}, if {} go on being taken each hour as in the last {}",
                left.end,
                span(within),
                amount(pace * 3600.0, left.unit),
                span(seen)
            );
            let under = |limit: Duration| within < limit.as_secs_f64();
            let status = match () {
                () if under(config.forecast_fail) => Status::Critical,
                () if under(config.forecast_warn) => Status::Warning,
                () => Status::Ok,
            };
            if status != Status::Ok {
                message.push_str(&format!("; see what takes it: {}", left.next));
            }
            Finding::new(&name, status, message).value(within.round(), "s")
        }
    }
}

/// Says of what keeps WAL how soon there is no more room for it.
pub fn of_wal(findings: &mut [Finding], forecasts: &[Finding]) {
    let is_apart = findings.iter().any(|finding| finding.check.name == "disk_wal");
    let name = name_of(if is_apart { "disk_wal" } else { "disk_data" });
    let Some(within) = forecasts.iter().find(|forecast| forecast.check.name == name).and_then(|f| f.check.value) else {
        return;
    };
    let keepers = findings.iter_mut().map(|finding| &mut finding.check);
    for check in keepers.filter(|c| c.status != Status::Ok && ["archiver", "slots"].contains(&c.name.as_str())) {
        check.message.push_str(&format!("; the volume of pg_wal will be full in {}", span(within)));
    }
}

/// `disk_data` -> `disk_data_forecast`
fn name_of(check: &str) -> String {
    format!("{check}_forecast")
}

fn span(seconds: f64) -> String {
    let minutes = seconds / 60.0;
    match minutes {
        m if m < 120.0 => format!("{m:.0}min"),
        m if m < 2880.0 => format!("{:.0}h", m / 60.0),
        m => format!("{:.0}d", m / 1440.0),
    }
}

fn amount(value: f64, unit: &str) -> String {
    if unit != "B" {
        return format!("{value:.0} {unit}");
    }
    let (value, unit) = [(30, "GB"), (20, "MB"), (10, "kB")]
        .into_iter()
        .map(|(shift, unit)| (value / f64::from(1u32 << shift), unit))
        .find(|(value, _)| *value >= 1.0)
        .unwrap_or((value, "B"));
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::clock::Stamp;

    /// Numbers that look random, the same ones for each seed (Steele, Lea, Flood 2014, SplitMix64).
    struct Dice(u64);

    impl Dice {
        /// From 0 up to 1.
        fn roll(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        }

        /// Mean 0, deviation about 1.
        fn noise(&mut self) -> f64 {
            (0..12).map(|_| self.roll()).sum::<f64>() - 6.0
        }
    }

    /// A pass a minute; `left` at each minute. What the last pass says, and how many of the minutes `from` one on said that it
    /// ends within a day or an hour.
    fn run_from(from: u64, minutes: u64, mut left: impl FnMut(f64) -> f64) -> (Outlook, [u64; 2]) {
        let (mut trends, mut alarms, mut last) = (Trends::default(), [0, 0], Outlook::Unknown);
        // Every third look is enough, and the last one.
        for minute in 0..=minutes {
            let now = Stamp { wall: 0.0, boot: 60.0 * minute as f64, boot_id: "a".into() };
            trends.note(&now, [("x", left(minute as f64).max(0.0) as u64)]);
            if minute < from || minute % 3 != minutes % 3 {
                continue;
            }
            last = outlook(trends.of("x"));
            if let Outlook::Ends { within, .. } = last {
                alarms[0] += 3 * u64::from(within < 86_400.0);
                alarms[1] += 3 * u64::from(within < 3600.0);
            }
        }
        (last, alarms)
    }

    fn run(minutes: u64, left: impl FnMut(f64) -> f64) -> (Outlook, [u64; 2]) {
        run_from(0, minutes, left)
    }

    fn minutes(outlook: Outlook) -> f64 {
        let Outlook::Ends { within, .. } = outlook else { panic!("{outlook:?}") };
        within / 60.0
    }

    const HOUR: u64 = 60;
    const DAY: u64 = 24 * HOUR;

    #[test]
    fn a_steady_fall_ends_when_it_ends() {
        // 1000 kB at the beginning, 1 kB a minute less, and 100 left.
        assert!((minutes(run(900, |m| 1e6 - 1e3 * m).0) - 100.0).abs() < 1.0);
        let mut dice = Dice(1);
        let noisy = run(900, |m| 1e6 - 1e3 * m + 2e3 * dice.noise()).0;
        assert!((minutes(noisy) - 100.0).abs() < 10.0, "{noisy:?}");
        // Every fifteenth sample is anything at all.
        let with_outliers = run(900, |m| if m % 15.0 == 7.0 { 3e6 * dice.roll() } else { 1e6 - 1e3 * m }).0;
        assert!((minutes(with_outliers) - 100.0).abs() < 10.0, "{with_outliers:?}");
        // 20 h are left of 60.
        assert!((minutes(run(40 * HOUR, |m| 3.6e6 - 1e3 * m).0) / 60.0 - 20.0).abs() < 1.0);
    }

    #[test]
    fn nothing_is_said_too_early_or_about_too_much() {
        assert_eq!(outlook(&[]), Outlook::Unknown);
        assert_eq!(run(29, |m| 1e5 - 1e3 * m).0, Outlook::Unknown);
        assert!((minutes(run(30, |m| 8e4 - 1e3 * m).0) - 50.0).abs() < 1.0);
        assert_eq!(run(30, |m| 3e5 - 1e3 * m).0, Outlook::Open, "270 minutes ahead after 30");
        assert!((minutes(run(120, |m| 3e5 - 1e3 * m).0) - 180.0).abs() < 2.0);
    }

    #[test]
    fn the_nearer_end_is_told_when_a_fall_becomes_faster() {
        // A tenth more each five minutes, and nothing left after 600 minutes.
        let (_, [day, hour]) = run(599, |m| 1e6 * (1.0 - 1.1_f64.powf((m - 600.0) / 5.0)));
        assert!((30..90).contains(&hour) && day >= hour, "{day} {hour}");
    }

    #[test]
    fn what_stays_or_becomes_more_has_no_end() {
        let none = (Outlook::Open, [0, 0]);
        assert_eq!(run(3 * DAY, |_| 5e4), none);
        assert_eq!(run(3 * DAY, |m| 5e4 + m), none);
        assert_eq!(run(DAY, |_| 0.0), none, "it is full, and says so itself");
        assert_eq!(run(DAY, |m| if m % 10.0 == 0.0 { 0.0 } else { 5e4 }), none);
    }

    #[test]
    fn what_happens_once_is_no_trend() {
        for file in [300.0, 600.0, 900.0] {
            assert_eq!(run(DAY, |m| if m < 700.0 { 1000.0 } else { 1000.0 - file }), (Outlook::Open, [0, 0]), "{file}");
            // Written within 20 minutes.
            let (last, [day, _]) = run(DAY, |m| 1000.0 - file * ((m - 700.0) / 20.0).clamp(0.0, 1.0));
            assert!(last == Outlook::Open && day <= 35, "{file}: {last:?} after {day}");
        }
        let (last, [day, _]) = run(3 * DAY, |m| 1e6 - 600.0 * m.min(1000.0));
        assert!(last == Outlook::Open && day < 1000, "a fall that ended says so within hours: {day}");
        for (end, silent) in [(200, 30), (900, 99), (3000, 240)] {
            let fell = |m: f64| 1.2e3 * end as f64 - 1e3 * m.min(end as f64);
            let (last, [day, _]) = run_from(end, end + DAY, fell);
            assert!(last == Outlook::Open && day <= silent, "it fell until {end} and ended {day} minutes ago");
        }
    }

    #[test]
    fn a_saw_tooth_is_no_trend_once_it_is_known() {
        for period in [4, 30, 90, 6 * HOUR, DAY] {
            let tooth = |m: f64| 1000.0 - 800.0 * (m % period as f64) / period as f64;
            // While the first one lasts nobody can know.
            assert_eq!(run_from(period, 3 * DAY, tooth), (Outlook::Open, [0, 0]), "{period}");
        }
        // With a trend in it there is an end.
        assert_ne!(run(20 * HOUR, |m| 2e6 - 1e3 * m - 1e5 * (m % 30.0) / 30.0).1[0], 0);
    }

    #[test]
    fn false_alarms_are_rare() {
        // With 600 seeds it were 99 of 1728000 passes.
        let (mut alarmed, mut passes) = (Vec::new(), 0);
        for seed in 0..12 {
            let mut dice = Dice(seed);
            let (size, period) = (1e9, (5.0 + 600.0 * dice.roll()).round());
            let room = size * (0.1 + 0.8 * dice.roll());
            let swing = room * (0.1 + 0.8 * dice.roll());
            let mut state = 0.0_f64;
            let kind = seed % 6;
            // What a day is like must be known.
            let (_, [alarms, _]) = run_from(DAY, 3 * DAY, |m| match kind {
                0 => room + 0.1 * swing * dice.noise(),
                // Teeth of uneven height.
                1 => {
                    if m % period == 0.0 {
                        state = dice.roll() * 0.2;
                    }
                    room - swing * (m % period / period) * (0.8 + state)
                }
                // Files come and go.
                2 => {
                    if dice.roll() < 0.02 {
                        state = dice.roll();
                    }
                    room - swing * state
                }
                // It wanders about, and is drawn back.
                3 => {
                    state = 0.99 * state + 0.05 * dice.noise();
                    room - swing * 0.5 * (1.0 + state / 2.0).clamp(0.0, 2.0)
                }
                // A batch of two hours each night.
                4 => {
                    room - swing
                        * ((m % 1440.0 - 200.0) / 120.0).clamp(0.0, 1.0)
                        * f64::from(u8::from(m % 1440.0 < 330.0))
                }
                // Used by day.
                _ => {
                    room - swing * (0.5 + 0.5 * (m / 1440.0 * std::f64::consts::TAU).sin())
                        + 0.02 * swing * dice.noise()
                }
            });
            passes += 2 * DAY;
            alarmed.push((seed, kind, alarms));
        }
        alarmed.retain(|(_, _, alarms)| *alarms > 0);
        let alarms: u64 = alarmed.iter().map(|(_, _, alarms)| alarms).sum();
        println!("{alarms} of {passes}: {alarmed:?}");
        assert!(alarms * 1000 < passes, "{alarms} of {passes} passes: {alarmed:?}");
    }

    #[test]
    fn true_alarms_come_in_time() {
        for seed in 0..12 {
            let mut dice = Dice(seed);
            // It begins somewhere within a quiet day, and fills within two hours to two days.
            let (begin, fill) = (300.0 + 600.0 * dice.roll(), 120.0 * 24_f64.powf(dice.roll()));
            let (room, noise, tooth) = (1e9, 0.01 * dice.roll(), 0.05 * dice.roll());
            let left = |m: f64| {
                let gone = (m - begin).max(0.0) / fill;
                room * (1.0 - gone + noise * dice.noise() - tooth * (m % 7.0) / 7.0)
            };
            let (_, [day, hour]) = run((begin + fill) as u64, left);
            let (day, hour) = (day as f64 / fill.min(1440.0), hour as f64);
            assert!(day > 0.3 && hour > 20.0, "seed {seed}: full after {fill} minutes, foreseen for {day}, {hour}");
        }
    }

    #[test]
    fn a_forecast_has_two_levels_and_says_what_to_look_at() {
        let finding = |end: f64| {
            let mut trends = Trends::default();
            for minute in 0..=800 {
                let left = (end + f64::from(800 - minute)) * (1 << 20) as f64;
                let now = Stamp { wall: 0.0, boot: 60.0 * f64::from(minute), boot_id: "a".into() };
                trends.note(&now, [("disk_data", left as u64)]);
            }
            let full = Finding::ok("disk_data", "").left(
                0.0,
                "B",
                "the data volume at / will be full".into(),
                "du -x /".into(),
            );
            judge(&full, full.left.as_ref().unwrap(), &trends, &Health::default())
        };
        let found = finding(50.0);
        let said = "the data volume at / will be full in 50min, if 60 MB go on being taken each hour as in the last 15min; see what takes it: du -x /";
        assert_eq!((found.check.name.as_str(), found.check.message.as_str()), ("disk_data_forecast", said));
        assert_eq!((found.check.value, found.check.unit.as_deref()), (Some(3000.0), Some("s")));
        assert_eq!((found.check.status, found.escalates), (Status::Critical, false));
        assert_eq!(finding(600.0).check.status, Status::Warning);
        assert_eq!(finding(5000.0).check.status, Status::Ok);
        let left = Left { amount: 1, unit: "B", end: String::new(), next: String::new() };
        let new = judge(&Finding::ok("x", ""), &left, &Trends::default(), &Health::default());
        assert_eq!((new.check.status, new.check.value), (Status::Ok, None));
        let mut findings =
            [Finding::warning("slots", "kept"), Finding::ok("archiver", ""), Finding::ok("disk_data", "")];
        of_wal(&mut findings, &[found]);
        let messages = findings.map(|finding| finding.check.message);
        assert_eq!(messages, ["kept; the volume of pg_wal will be full in 50min", "", ""]);
    }
}
