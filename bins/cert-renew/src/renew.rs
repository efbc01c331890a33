//! One certificate: looks at it, and has it renewed, installed and proven when it is time.

use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use shared::certificate::Left;
use shared::clock::Stamp;
use shared::cluster::Cluster;
use shared::config::{Certificate, Config, Source};
use shared::exit::Code;
use shared::lock::Lock;
use shared::owner::Owner;
use shared::process::stop_here_for_a_test;
use shared::renewal::{self, Renewal, Suggestion};
use shared::tls_store::Store;
use shared::{Error, Result, point};

use crate::acme;
use crate::pair::{Anchors, Chain, Pair, list};
use crate::plan::{Facts, due};
use crate::server::{Postgres, Server};
use crate::source::{self, Wish};

/// Another program may be at work on the cluster.
const LOCK: Duration = Duration::from_secs(60);
/// After the first failure; doubled with each that follows it, up to a day.
const PAUSE: Duration = Duration::from_secs(3600);
const LONGEST_PAUSE: Duration = Duration::from_secs(86_400);
const DAY: i64 = 86_400;
/// The other program may be in the middle of it.
const SETTLES: u32 = 5;

/// One certificate with who serves it.
pub struct Subject<'a> {
    pub name: String,
    pub configured: Option<&'a Certificate>,
    pub server: Server<'a>,
    pub store: Store,
    /// It is where the server reads.
    pub in_store: bool,
    /// Something was changed that the server reads.
    pub touched: bool,
    /// Until when the authority has asked to be left alone.
    later: Cell<Option<i64>>,
}

/// How long to wait yet.
fn wait(known: &Renewal, now: &Stamp) -> Option<Duration> {
    let doublings = known.failures.checked_sub(1)?.min(10);
    let pause = (PAUSE * (1 << doublings)).min(LONGEST_PAUSE);
    // The timer comes every hour, and not to the second.
    let ours = pause.checked_sub(now.since(&known.at) + PAUSE / 12).filter(|left| !left.is_zero());
    let theirs = known.not_before.map(|until| until - now.wall as i64).filter(|left| *left > 0);
    ours.max(theirs.map(|left| Duration::from_secs(left as u64)))
}

impl<'a> Subject<'a> {
    /// `None`: it does without TLS. An error when its server does not run or answer.
    pub fn of_cluster(cluster: &Cluster, config: &'a Config) -> Result<Option<Subject<'a>>> {
        let name = cluster.name();
        let postgres = Postgres::find(cluster, config)?.ok_or_else(|| {
            Error::with(
                Code::Unavailable,
                format!("cluster {name} does not run, so nothing of its certificate can be seen"),
            )
        })?;
        if postgres.setting("ssl") != "on" {
            return Ok(None);
        }
        let files = (postgres.file("ssl_cert_file"), postgres.file("ssl_key_file"));
        let named = match files {
            (Some(certificate), Some(key)) => Store::named_by(&certificate, &key, &cluster.owner),
            _ => None,
        };
        Ok(Some(Subject {
            configured: config.tls.certificate.iter().find(|one| one.name == name),
            in_store: named.is_some(),
            store: named.unwrap_or_else(|| Store::of(&name, &cluster.owner)),
            server: Server::Cluster(Box::new(postgres)),
            touched: false,
            later: Cell::default(),
            name,
        }))
    }

    pub fn of_service(configured: &'a Certificate) -> Result<Subject<'a>> {
        let owner = Owner::named(&configured.owner).ok_or_else(|| {
            Error::config(format!("certificate {}: there is no user {}", configured.name, configured.owner))
        })?;
        Ok(Subject {
            name: configured.name.clone(),
            configured: Some(configured),
            server: Server::Service(configured),
            store: Store::of(&configured.name, &owner),
            in_store: true,
            touched: false,
            later: Cell::default(),
        })
    }

    fn chain_in_place(&self) -> Result<Chain, String> {
        match &self.server {
            Server::Cluster(postgres) => {
                let (certificate, _) = postgres.pair_in_place().map_err(|e| e.message)?;
                Chain::parse(&certificate)
            }
            Server::Service(_) => self.stored().map(|pair| pair.chain),
        }
    }

    /// The pair that our own folder has for the server.
    fn stored(&self) -> Result<Pair, String> {
        let current = self.store.current().ok_or("there is none yet")?;
        let (certificate, key) = self.store.read(&current).map_err(|e| e.message)?;
        Pair::parse(&certificate, &key)
    }

    pub fn look(&self) -> Facts {
        let now = Stamp::now();
        let in_place = self.chain_in_place();
        let served = in_place.as_ref().ok().and_then(|in_place| {
            self.server.served().into_iter().find_map(|(address, served)| match served {
                Ok(served) if served.certificates == in_place.certificates => None,
                Ok(served) => Some(format!("{address} serves {}", served.describe())),
                // Whether it can be reached at all is another program's question.
                Err(_) => None,
            })
        });
        let directory = self.configured.filter(|configured| configured.source == Source::Directory);
        let offered = directory.map(|configured| {
            let folder = configured.directory.as_deref().unwrap_or(Path::new("/"));
            let mut tries = 1..=SETTLES;
            loop {
                match source::from_directory(folder, &configured.names) {
                    Ok(pair) => return Ok(pair.chain),
                    Err(why) if tries.next().is_none() => return Err(why.message),
                    Err(_) => std::thread::sleep(Duration::from_secs(1)),
                }
            }
        });
        let place = match &self.server {
            Server::Cluster(postgres) => postgres.file("ssl_cert_file").unwrap_or_default(),
            Server::Service(_) => self.store.certificate(),
        };
        let known = renewal::state(&self.name).value;
        let of_this = |suggestion: &Suggestion| in_place.as_ref().is_ok_and(|chain| suggestion.of == chain.sha256());
        Facts {
            place,
            suggested: known
                .suggestion
                .as_ref()
                .filter(|one| of_this(one))
                .and_then(|one| self.sensible(one, &in_place)),
            in_place,
            served,
            in_store: self.in_store,
            unproven: self.store.current() != self.store.last_good(),
            offered,
            failures: known.failures,
            wait: wait(&known, &now),
            now: now.wall as i64,
        }
    }

    /// An authority that always says "now" gets a day between two renewals.
    fn sensible(&self, suggestion: &Suggestion, in_place: &Result<Chain, String>) -> Option<i64> {
        let from = in_place.as_ref().ok()?.validity.from;
        suggestion.moment().map(|moment| moment.max(from + DAY))
    }

    /// Asks the authority when it would like to renew what is in place, if it is time to ask. Whatever it answers, or does not,
    /// no renewal is later for it.
    pub fn ask(&self) {
        let Some(configured) = self.configured.filter(|configured| configured.source == Source::Acme) else { return };
        let (mut known, now) = (renewal::state(&self.name), Stamp::now().wall as i64);
        let Ok(chain) = self.chain_in_place() else { return };
        let of = chain.sha256();
        let asked = known
            .value
            .suggestion
            .as_ref()
            .is_some_and(|one| one.of == of && (now..now + 7 * DAY).contains(&one.ask_again));
        if chain.self_signed || asked || wait(&known.value, &Stamp::now()).is_some() {
            return;
        }
        let suggestion = match acme::suggestion(configured, &chain, now) {
            Ok(Some((from, until, ask_again))) => Suggestion { of, from, until, ask_again },
            // An authority that does not do this will not do it in an hour either.
            Ok(None) => Suggestion { of, ask_again: now + DAY, ..Suggestion::default() },
            Err(why) => {
                log::info!(PG_CLUSTER = self.name; "{}; it is renewed by what is left of its time", why.message);
                return;
            }
        };
        known.value.suggestion = Some(suggestion);
        known.save_or_warn();
    }

    /// Keeps what was seen, for those who show it.
    pub fn note(&self, facts: &Facts, config: &Config) {
        let mut known = renewal::state(&self.name);
        let before = known.value.clone();
        known.value.in_place = facts.in_place.as_ref().ok().map(|chain| chain.validity.clone());
        known.value.due = due(facts, self.configured, config);
        if known.value != before {
            known.save_or_warn();
        }
    }

    /// Names that a new certificate must cover.
    fn names(&self, facts: &Facts) -> Vec<String> {
        let configured = self.configured.map(|configured| configured.names.clone()).unwrap_or_default();
        match (&facts.in_place, &facts.offered) {
            _ if !configured.is_empty() => configured,
            (Ok(in_place), _) if !in_place.names.is_empty() && !in_place.self_signed => in_place.names.clone(),
            (_, Some(Ok(offered))) => offered.names.clone(),
            // The name that Debian found for the host says nothing about the one that a program gets a certificate for.
            _ if self.configured.is_some_and(|configured| configured.source == Source::Command) => Vec::new(),
            (Ok(in_place), _) => in_place.names.clone(),
            _ => Vec::new(),
        }
    }

    /// Gets a new pair and installs it. What was seen.
    pub fn renew(&mut self, facts: &Facts, config: &Config, force: bool) -> Result<String> {
        self.may_install()?;
        let names = self.names(facts);
        let mut lifetime = config.tls.lifetime.as_secs() as i64;
        if self.configured.is_none()
            && let Ok(in_place) = &facts.in_place
        {
            lifetime = in_place.validity.lifetime();
        }
        let key = self.configured.map(|configured| configured.key).unwrap_or_default();
        // Only of an authority that has answered when it would like to: it takes no order that replaces what it does not know.
        let replaces = facts.suggested.and(facts.in_place.as_ref().ok()).map(|chain| &chain.certificates[0]);
        let wish =
            Wish { name: &self.name, names: &names, key, lifetime, now: facts.now, replaces, later: &self.later };
        let pair = match self.configured {
            Some(configured) => source::obtain(configured, &wish)?,
            None => source::self_signed(&wish)?,
        };
        stop_here_for_a_test(1);
        // Younger than what was looked at: an authority may have signed it in this second.
        let now = Stamp::now().wall as i64;
        let refused = |why: String| {
            Error::failed(format!("the new certificate of {} is not installed: {why}", self.name))
                .hint("The server goes on with the one that it has.")
        };
        let anchors = self.anchors(&pair.chain).map_err(refused)?;
        self.check(&pair, facts, &names, &anchors, now, force).map_err(refused)?;
        self.install(&pair, &names, &anchors, now)
    }

    /// Before an authority is asked for what could not be installed: an error with what a person can do instead.
    fn may_install(&self) -> Result<()> {
        let Server::Cluster(postgres) = &self.server else { return Ok(()) };
        if postgres.keeps_key_encrypted() {
            return Err(Error::failed(format!(
                "cluster {} keeps its key encrypted (ssl_passphrase_command), and no key that is renewed here would be",
                self.name
            ))
            .hint("Renew it by hand; or give up the passphrase: ALTER SYSTEM RESET ssl_passphrase_command."));
        }
        let Some(why) = postgres.refusal().filter(|_| !self.in_store) else { return Ok(()) };
        let refused = Error::failed(format!("{why}, so that it cannot be led to a certificate that can be renewed"));
        let (certificate, key) = (self.store.certificate(), self.store.key());
        let hint = |what: &str| {
            let (certificate, key) = (certificate.display(), key.display());
            format!("Set once and reload: ssl_cert_file = '{certificate}', ssl_key_file = '{key}'; {what}.")
        };
        // The next run finds it there, and has only the link to change.
        match postgres.pair_in_place().and_then(|(c, k)| Pair::parse(&c, &k).map_err(Error::failed)) {
            Ok(pair) => {
                self.copy_there(&pair)?;
                Err(refused.hint(hint("the pair that it has is there already")))
            }
            Err(why) => {
                Err(refused.hint(hint(&format!("put a pair there first, for the one it has is none: {}", why.message))))
            }
        }
    }

    /// Our own folder has this pair, and a server that is led there serves it.
    fn copy_there(&self, pair: &Pair) -> Result<()> {
        let is_there = self
            .stored()
            .is_ok_and(|stored| (stored.certificate, stored.key) == (pair.certificate.clone(), pair.key.clone()));
        if !is_there {
            let version = self.store.add(&pair.certificate, &pair.key)?;
            self.store.switch(&version)?;
            self.store.mark_good(&version)?;
            self.store.forget_old();
        }
        Ok(())
    }

    fn anchors(&self, chain: &Chain) -> Result<Anchors, String> {
        Anchors::of(self.configured.and_then(|configured| configured.ca_file.as_deref()), chain)
    }

    fn check(
        &self,
        pair: &Pair,
        facts: &Facts,
        names: &[String],
        anchors: &Anchors,
        now: i64,
        force: bool,
    ) -> Result<(), String> {
        pair.chain.verify(names, anchors, now)?;
        let Ok(in_place) = &facts.in_place else { return Ok(()) };
        if pair.chain.self_signed && !in_place.self_signed {
            return Err("it is signed by itself, and an authority has signed the one in place".into());
        }
        let is_older = pair.chain.validity.until < in_place.validity.until && !in_place.self_signed;
        if is_older && !force && in_place.validity.until > now && in_place.covers(names).is_ok() {
            return Err(format!("it ends before the one in place: {}", pair.chain.describe()));
        }
        Ok(())
    }

    /// From here on the server may see it. Whatever fails, it has a pair that belongs together at each moment.
    fn install(&mut self, pair: &Pair, names: &[String], anchors: &Anchors, now: i64) -> Result<String> {
        let _lock = self.lock()?;
        stop_here_for_a_test(2);
        if !self.in_store {
            self.adopt(pair)?;
        }
        let version = self.store.add(&pair.certificate, &pair.key)?;
        stop_here_for_a_test(6);
        self.touched = true;
        self.store.switch(&version)?;
        stop_here_for_a_test(7);
        let seen = self.settle(names, Some(anchors), now)?;
        Ok(format!("{} for {}, {seen}", pair.chain.describe(), list(names)))
    }

    fn lock(&self) -> Result<Option<Lock>> {
        let Server::Cluster(_) = self.server else { return Ok(None) };
        let busy = |what: &str| Error::with(Code::TempFail, format!("cluster {}: {what}", self.name));
        let lock = Lock::take(&self.name, LOCK)?.ok_or_else(|| busy("another program is at work on it"))?;
        if point::is_in_flux(&self.name) {
            return Err(busy("a change of its configuration is under guard, or being undone"));
        }
        Ok(Some(lock))
    }

    /// Has the server read its pair from our folder. First the pair that it has goes there, so that it does not matter which
    /// of the two settings it sees changed: both lead to the same pair, until both lead there.
    fn adopt(&mut self, new: &Pair) -> Result<()> {
        let Server::Cluster(postgres) = &mut self.server else { return Ok(()) };
        let old = postgres
            .pair_in_place()
            .and_then(|(certificate, key)| Pair::parse(&certificate, &key).map_err(Error::failed));
        // One that no longer belongs together would not let the server start again anyway.
        let first = old.as_ref().unwrap_or(new);
        let version = self.store.add(&first.certificate, &first.key)?;
        self.store.switch(&version)?;
        if old.is_ok() {
            self.store.mark_good(&version)?;
        }
        self.store.forget_old();
        stop_here_for_a_test(3);
        postgres.save_point()?;
        let before = postgres.before();
        stop_here_for_a_test(4);
        self.touched = true;
        let led = postgres.lead_to(&self.store).and_then(|()| {
            let seen = Server::prove(&self.server, &first.chain, &[], None, 0);
            seen.map(drop)
        });
        let Server::Cluster(postgres) = &mut self.server else { return Ok(()) };
        if let Err(why) = led {
            postgres.take_back(&before)?;
            return Err(why);
        }
        postgres.note_change()?;
        stop_here_for_a_test(5);
        self.in_store = true;
        let folder = self.store.folder().display();
        log::warn!(PG_CLUSTER = self.name; "cluster {} reads its certificate and its key from {folder} from now on", self.name);
        Ok(())
    }

    /// What is left half done, or was never seen to be served.
    pub fn prove(&mut self, facts: &Facts) -> Result<String> {
        let _lock = self.lock()?;
        if self.in_store {
            return self.settle(&[], None, facts.now);
        }
        let in_place = self.chain_in_place().map_err(Error::failed)?;
        self.server.reload()?;
        self.server.prove(&in_place, &[], None, facts.now)
    }

    /// Has the server read the current pair, and sees whether it serves that; if not, the last good one comes back.
    fn settle(&mut self, names: &[String], anchors: Option<&Anchors>, now: i64) -> Result<String> {
        let proven = self.stored().map_err(Error::failed).and_then(|pair| {
            self.server.reload()?;
            stop_here_for_a_test(8);
            self.server.prove(&pair.chain, names, anchors, now)
        });
        let current = self.store.current().unwrap_or_default();
        let why = match proven {
            Ok(seen) => {
                self.store.mark_good(&current)?;
                self.store.forget_old();
                self.remember();
                return Ok(seen);
            }
            Err(why) => why,
        };
        let name = &self.name;
        let Some(last_good) = self.store.last_good().filter(|last_good| *last_good != current) else {
            return Err(Error::failed(format!("the certificate of {name} is not proven: {}", why.message)));
        };
        log::error!(PG_CLUSTER = name; "certificate of {name}: {}; putting the last good pair back", why.message);
        self.store.switch(&last_good)?;
        let back = self.stored().map_err(Error::failed).and_then(|pair| {
            self.server.reload()?;
            self.server.prove(&pair.chain, &[], None, now)
        });
        let back = back.unwrap_or_else(|e| format!("which is not proven either: {}", e.message));
        Err(Error::failed(format!("{name} has its last good certificate again, {back}, because: {}", why.message)))
    }

    /// pg-recover puts this pair back if the one in place ever keeps the server from starting.
    fn remember(&self) {
        let Server::Cluster(postgres) = &self.server else { return };
        if let Err(why) = point::remember_good_tls(&postgres.cluster.again(), "seen to serve it") {
            log::warn!(PG_CLUSTER = self.name; "{}; a recovery would not have the new certificate", why.message);
        }
    }

    /// Counts a try; the next one waits the longer the more have failed, and until the authority wants to be asked again. That
    /// is believed up to half of the time that is left, and for a day at least.
    pub fn count(&self, facts: &Facts, failure: Option<&Error>) {
        let (mut known, now) = (renewal::state(&self.name), Stamp::now());
        let left = facts.in_place.as_ref().map_or(0, |chain| chain.validity.until - facts.now);
        let latest = now.wall as i64 + DAY.max(left / 2);
        let (failures, why, not_before) = match failure {
            Some(why) => (known.value.failures.saturating_add(1), why.message.clone(), self.later.get()),
            None => Default::default(),
        };
        let not_before = not_before.map(|until| until.min(latest));
        known.value = Renewal { failures, at: now, why, not_before, ..known.value };
        known.save_or_warn();
    }

    /// Little of the one in place is left.
    pub fn is_urgent(&self, facts: &Facts, config: &Config) -> bool {
        let (warn, fail) = (config.health.certificate_warn, config.health.certificate_fail);
        facts.in_place.as_ref().map_or(true, |chain| chain.validity.left(facts.now, warn, fail) != Left::Enough)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_day_and_last_as_long_as_the_authority_says() {
        let stamp = |seconds: f64| Stamp { wall: seconds, boot: seconds, boot_id: "a".into() };
        let known = |failures, not_before| Renewal { failures, at: stamp(0.0), not_before, ..Renewal::default() };
        let waits = |failures, minutes: f64| wait(&known(failures, None), &stamp(60.0 * minutes)).is_some();
        assert!(!waits(0, 0.0));
        assert!(waits(1, 50.0) && !waits(1, 56.0));
        assert!(waits(2, 100.0) && !waits(2, 116.0));
        assert!(waits(9, 23.0 * 60.0) && !waits(9, 24.0 * 60.0) && !waits(u32::MAX, 24.0 * 60.0));
        let limited = |at: f64| wait(&known(1, Some(20_000)), &stamp(at)).map(|left| left.as_secs());
        assert_eq!((limited(5_000.0), limited(19_990.0), limited(20_001.0)), (Some(15_000), Some(10), None));
    }
}
