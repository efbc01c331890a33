//! Whether a certificate is to be renewed now: from what is known of it to what is done, without looking any further.

use std::path::{Path, PathBuf};
use std::time::Duration;

use shared::certificate::{Left, SNAKEOIL, describe_left};
use shared::config::{Certificate, Config, Source};

use crate::pair::Chain;

const MONTH: i64 = 30 * 86_400;

/// What is known about one certificate.
pub struct Facts {
    /// The file that its server reads.
    pub place: PathBuf,
    pub in_place: Result<Chain, String>,
    /// What is served instead, when that is another one, and where.
    pub served: Option<String>,
    /// The server reads it from our own folder.
    pub in_store: bool,
    /// The last change there was not seen to be served.
    pub unproven: bool,
    /// What another program has left, for the source `directory`.
    pub offered: Option<Result<Chain, String>>,
    /// When its authority would like to renew it.
    pub suggested: Option<i64>,
    /// Failures in a row, and how long to wait after the last.
    pub failures: u32,
    pub wait: Option<Duration>,
    pub now: i64,
}

#[derive(Debug, PartialEq)]
pub enum Plan {
    /// All is well, or nobody has asked for more.
    Leave(String),
    /// Only a person can do something.
    Tell(String),
    /// Let the server read what is in place, and see whether it serves that.
    Prove(String),
    /// A new pair by what is configured; without a configuration signed by itself.
    Renew(String),
}

pub fn decide(facts: &Facts, configured: Option<&Certificate>, config: &Config, force: bool) -> Plan {
    if facts.in_store && facts.unproven {
        return Plan::Prove("a renewal did not come to its end".into());
    }
    let plan = match configured {
        Some(configured) => decide_configured(facts, configured, config, force),
        None => decide_unconfigured(facts, config, force),
    };
    match (plan, &facts.served) {
        (Plan::Renew(why), _) => match facts.wait.filter(|_| !force) {
            Some(wait) => Plan::Tell(format!(
                "{why}; {} failed, the next is in {}min",
                if facts.failures == 1 { "one try".into() } else { format!("{} tries in a row", facts.failures) },
                wait.as_secs().div_ceil(60)
            )),
            None => Plan::Renew(why),
        },
        (_, Some(served)) if configured.is_some() || facts.in_store => {
            Plan::Prove(format!("its server was never told of the one in place: {served}"))
        }
        (Plan::Leave(_), Some(served)) => {
            Plan::Tell(format!("the one in place is not the one that is served: {served}"))
        }
        (plan, _) => plan,
    }
}

fn decide_configured(facts: &Facts, configured: &Certificate, config: &Config, force: bool) -> Plan {
    if configured.source == Source::Directory {
        return match (&facts.offered, &facts.in_place) {
            (Some(Ok(offered)), Ok(in_place)) if facts.in_store && offered.certificates == in_place.certificates => {
                leave(facts, in_place, config)
            }
            (Some(Ok(offered)), _) => Plan::Renew(format!("there is a new one: {}", offered.describe())),
            (Some(Err(why)), _) => Plan::Tell(why.clone()),
            (None, _) => Plan::Tell("nothing was found where it is renewed".into()),
        };
    }
    let in_place = match &facts.in_place {
        Ok(in_place) => in_place,
        Err(why) => return Plan::Renew(why.clone()),
    };
    if configured.source == Source::SelfSigned && !in_place.self_signed {
        return Plan::Tell("an authority has signed it; it is not replaced by one that is signed by itself".into());
    }
    let left = in_place.validity.until - facts.now;
    if force {
        Plan::Renew("asked for".into())
    } else if facts.now > by_lifetime(in_place, config) {
        Plan::Renew(describe_left(left))
    } else if facts.suggested.is_some_and(|suggested| facts.now > suggested) {
        Plan::Renew(format!("{}, and its authority asks for it", describe_left(left)))
    } else if let Err(why) = in_place.covers(&configured.names) {
        Plan::Renew(why)
    } else if in_place.self_signed && configured.source != Source::SelfSigned {
        Plan::Renew("it is signed by itself".into())
    } else {
        leave(facts, in_place, config)
    }
}

/// When less is left than the configuration wants.
fn by_lifetime(in_place: &Chain, config: &Config) -> i64 {
    in_place.validity.until - in_place.validity.lifetime() * i64::from(config.tls.renew_left) / 100
}

/// When the next renewal is due, as far as that is for this program to say.
pub fn due(facts: &Facts, configured: Option<&Certificate>, config: &Config) -> Option<i64> {
    let in_place = facts.in_place.as_ref().ok()?;
    match configured {
        Some(configured) if configured.source == Source::Directory => None,
        Some(configured) if configured.source == Source::SelfSigned && !in_place.self_signed => None,
        // Never later than without a suggestion: an authority may say anything.
        Some(_) => Some(facts.suggested.unwrap_or(i64::MAX).min(by_lifetime(in_place, config))),
        None if is_made(facts, in_place) => Some(in_place.validity.until - late(in_place)),
        None => None,
    }
}

fn is_made(facts: &Facts, in_place: &Chain) -> bool {
    in_place.self_signed && (facts.in_store || facts.place == Path::new(SNAKEOIL))
}

fn late(in_place: &Chain) -> i64 {
    MONTH.min(in_place.validity.lifetime() / 3)
}

/// Nobody has told us anything. Only what is signed by itself and was made by a program, Debian's or this one, is replaced,
/// and late: whoever trusts it has to get the new one.
fn decide_unconfigured(facts: &Facts, config: &Config, force: bool) -> Plan {
    let in_place = match &facts.in_place {
        Ok(in_place) => in_place,
        Err(why) => return Plan::Tell(why.clone()),
    };
    let left = in_place.validity.until - facts.now;
    match is_made(facts, in_place) && (force || left < late(in_place)) {
        true => Plan::Renew(describe_left(left)),
        false => leave(facts, in_place, config),
    }
}

fn leave(facts: &Facts, in_place: &Chain, config: &Config) -> Plan {
    let text = format!("{}, {}", in_place.validity.subject, describe_left(in_place.validity.until - facts.now));
    match in_place.validity.left(facts.now, config.health.certificate_warn, config.health.certificate_fail) {
        Left::Enough => Plan::Leave(text),
        _ => Plan::Tell(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair::tests::{NOW, issue};
    use crate::source::{Wish, self_signed};

    const DAY: i64 = 86_400;

    fn facts(in_place: Result<Chain, String>) -> Facts {
        Facts {
            place: "/d/server.crt".into(),
            in_place,
            served: None,
            in_store: false,
            unproven: false,
            offered: None,
            suggested: None,
            failures: 0,
            wait: None,
            now: NOW,
        }
    }

    /// Of 90 days, so many are left.
    fn issued(left: i64) -> Chain {
        let (_, middle, leaf, _) = issue("db.example", NOW - (90 - left) * DAY, NOW + left * DAY);
        Chain::parse(format!("{leaf}{middle}").as_bytes()).unwrap()
    }

    fn own(left: i64) -> Chain {
        let names = ["db.example".to_string()];
        let now = NOW - (3650 - left) * DAY;
        let (replaces, later) = (None, &Default::default());
        let wish =
            Wish { name: "x", names: &names, key: Default::default(), lifetime: 3650 * DAY, now, replaces, later };
        self_signed(&wish).unwrap().chain
    }

    fn configured(source: &str) -> Config {
        let text = format!("[[tls.certificate]]\nname = \"16/main\"\nnames = [\"db.example\"]\n{source}");
        let file = std::env::temp_dir().join(format!("pg-recovery-plan-{}-{}.toml", std::process::id(), source.len()));
        std::fs::write(&file, text).unwrap();
        Config::load(Some(&file)).unwrap()
    }

    fn plan(facts: &Facts, config: &Config, force: bool) -> String {
        let (kind, text) = match decide(facts, config.tls.certificate.first(), config, force) {
            Plan::Leave(text) => ("leave", text),
            Plan::Tell(text) => ("tell", text),
            Plan::Prove(text) => ("prove", text),
            Plan::Renew(text) => ("renew", text),
        };
        format!("{kind}: {text}")
    }

    #[test]
    fn nothing_but_the_snake_oil_is_replaced_unasked_and_that_late() {
        let config = Config::default();
        let mut snakeoil = facts(Ok(own(31)));
        snakeoil.place = SNAKEOIL.into();
        assert!(plan(&snakeoil, &config, false).starts_with("leave: "));
        snakeoil.in_place = Ok(own(29));
        assert_eq!(plan(&snakeoil, &config, false), "renew: 29 days are left");
        assert!(plan(&facts(Ok(own(1))), &config, true).starts_with("tell: "), "elsewhere it is somebody's");
        snakeoil.in_place = Ok(issued(-1));
        assert!(plan(&snakeoil, &config, true).starts_with("tell: "), "an authority has signed it");
        assert!(plan(&facts(Err("no".into())), &config, true).starts_with("tell: "));
    }

    #[test]
    fn it_is_renewed_when_less_than_a_third_is_left() {
        let config = configured("source = \"ca\"");
        assert!(plan(&facts(Ok(issued(30))), &config, false).starts_with("leave: "));
        assert_eq!(plan(&facts(Ok(issued(29))), &config, false), "renew: 29 days are left");
        assert_eq!(plan(&facts(Ok(issued(-3))), &config, false), "renew: it expired 3 days ago");
        assert_eq!(plan(&facts(Ok(issued(60))), &config, true), "renew: asked for");
        assert_eq!(plan(&facts(Ok(own(3000))), &config, false), "renew: it is signed by itself");
        assert!(plan(&facts(Err("torn".into())), &config, false).starts_with("renew: torn"));
        let waits = Facts { failures: 2, wait: Some(Duration::from_secs(7000)), ..facts(Ok(issued(9))) };
        assert!(plan(&waits, &config, false).starts_with("tell: 9 days are left; 2 tries in a row failed"));
        assert!(plan(&waits, &config, true).starts_with("renew: "));
    }

    #[test]
    fn what_its_authority_suggests_makes_it_sooner_and_never_later() {
        let config = configured("source = \"acme\"\nacme_directory = \"https://ca.example/\"");
        let look = |suggested, left| Facts { suggested, ..facts(Ok(issued(left))) };
        let days = |facts: &Facts| due(facts, config.tls.certificate.first(), &config).map(|due| (due - NOW) / DAY);
        let past = look(Some(NOW - DAY), 80);
        assert_eq!(plan(&past, &config, false), "renew: 80 days are left, and its authority asks for it");
        assert!(plan(&look(Some(NOW + DAY), 80), &config, false).starts_with("leave: "));
        assert_eq!((days(&past), days(&look(Some(NOW + DAY), 80))), (Some(-1), Some(1)));
        assert_eq!((days(&look(None, 80)), days(&look(Some(NOW + 1000 * DAY), 80))), (Some(50), Some(50)));
        assert_eq!(plan(&look(Some(NOW + 1000 * DAY), 29), &config, false), "renew: 29 days are left");
    }

    #[test]
    fn what_an_authority_has_signed_is_never_replaced_by_what_nobody_has() {
        let config = configured("source = \"self-signed\"");
        assert!(plan(&facts(Ok(issued(-1))), &config, true).starts_with("tell: an authority"));
        assert!(plan(&facts(Ok(own(1000))), &config, false).starts_with("renew: "));
    }

    #[test]
    fn what_another_program_renews_is_installed_once() {
        let config = configured("source = \"directory\"\ndirectory = \"/etc/letsencrypt/live/db\"");
        let (old, new) = (issued(10), issued(80));
        let look = |in_place: &Chain, offered: Result<Chain, String>, in_store| {
            plan(&Facts { offered: Some(offered), in_store, ..facts(Ok(in_place.clone())) }, &config, false)
        };
        assert!(look(&old, Ok(new.clone()), true).starts_with("renew: there is a new one"));
        assert!(look(&new, Ok(new.clone()), true).starts_with("leave: "));
        assert!(look(&new, Ok(new.clone()), false).starts_with("renew: "), "the server reads it elsewhere");
        assert_eq!(look(&old, Ok(old.clone()), true), "tell: CN=db.example, 10 days are left");
        assert_eq!(look(&old, Err("half".into()), true), "tell: half");
    }

    #[test]
    fn what_is_in_place_and_not_served_is_brought_to_its_server() {
        let config = configured("source = \"ca\"");
        let cut_short = Facts { in_store: true, unproven: true, ..facts(Ok(issued(80))) };
        assert!(plan(&cut_short, &config, false).starts_with("prove: "));
        let forgotten = Facts { served: Some("[::1]:5432 serves CN=old".into()), ..facts(Ok(issued(80))) };
        assert!(plan(&forgotten, &config, false).starts_with("prove: its server was never told"));
        assert!(plan(&forgotten, &Config::default(), false).starts_with("tell: "));
    }
}
