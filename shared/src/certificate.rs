//! How long a certificate or a revocation list is good for, and when little of that is left.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use x509_parser::pem::Pem;
use x509_parser::prelude::{CertificateRevocationList, FromDer, GeneralName, X509Certificate};

use crate::cluster::Cluster;
use crate::config::Config;
use crate::health::Status;
use crate::owner::Owner;
use crate::state;
use crate::tls_store;

/// What Debian makes for a host when ssl-cert is installed, and where its clusters find it.
pub const SNAKEOIL: &str = "/etc/ssl/certs/ssl-cert-snakeoil.pem";
/// A host may trust many authorities.
const LIMIT: u64 = 4 << 20;

/// The first end among the certificates and revocation lists of a file, and the last beginning; seconds since 1970.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Validity {
    pub from: i64,
    pub until: i64,
    pub subject: String,
}

/// How much of its time is left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Left {
    NotYet,
    Enough,
    /// A renewal should have happened.
    Little,
    /// It is about to end.
    Least,
    Nothing,
}

impl Validity {
    /// `text` in PEM. An error says what is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Validity, String> {
        let all = parse_all(text)?.into_iter().reduce(Validity::and);
        all.ok_or_else(|| "no certificate in it".to_string())
    }

    pub fn of(certificate: &X509Certificate) -> Validity {
        let validity = certificate.validity();
        // Let's Encrypt leaves the subject empty; the names are what counts anyway.
        let names = || {
            let names = &certificate.subject_alternative_name().ok()??.value.general_names;
            names
                .iter()
                .find_map(|name| if let GeneralName::DNSName(name) = name { Some(name.to_string()) } else { None })
        };
        let subject = Some(certificate.subject().to_string()).filter(|subject| !subject.is_empty());
        Validity {
            from: validity.not_before.timestamp(),
            until: validity.not_after.timestamp(),
            subject: subject.or_else(names).unwrap_or_else(|| "a certificate without a name".into()),
        }
    }

    /// Of both together.
    pub fn and(self, other: Validity) -> Validity {
        Validity {
            from: self.from.max(other.from),
            subject: if other.until < self.until { other.subject } else { self.subject },
            until: self.until.min(other.until),
        }
    }

    pub fn lifetime(&self) -> i64 {
        (self.until - self.from).max(1)
    }

    /// `warn` and `fail` are for certificates of a year and more. Of one that lives shorter, less than a quarter of its
    /// lifetime is little, for it is renewed when a third is left; and less than a tenth is the least.
    pub fn left(&self, now: i64, warn: Duration, fail: Duration) -> Left {
        let (left, lifetime) = (self.until - now, self.lifetime());
        let at_most = |limit: Duration, share: i64| (limit.as_secs() as i64).min(lifetime / share);
        match left {
            _ if now < self.from => Left::NotYet,
            ..=0 => Left::Nothing,
            left if left < at_most(fail, 10) => Left::Least,
            left if left < at_most(warn, 4) => Left::Little,
            _ => Left::Enough,
        }
    }
}

/// The file with the certificate of a cluster, as its configuration files have it; `None`: it does without TLS.
pub fn file_of(cluster: &Cluster) -> Option<PathBuf> {
    matches!(cluster.setting("ssl"), Some("on" | "true" | "yes" | "1"))
        .then(|| cluster.data_directory.join(cluster.setting("ssl_cert_file").unwrap_or("server.crt")))
}

/// Whether pg-cert-renew renews what is in `file` of this cluster, as far as the configuration and the place tell: a section
/// says how, or a program has made it.
pub fn is_renewed(cluster: &str, file: &Path, config: &Config) -> bool {
    config.tls.certificate.iter().any(|one| one.name == cluster)
        || file == Path::new(SNAKEOIL)
        || file.starts_with(tls_store::DIRECTORY)
}

/// Reads what `owner` can read, and nothing else. A link is fine, Debian's own is one.
pub fn read(owner: &Owner, path: &Path) -> Result<Validity, String> {
    let read = owner.act(|| std::fs::canonicalize(path).and_then(|path| state::read(&path, LIMIT)));
    let failed = |e: String| format!("the certificate {} cannot be read: {e}", path.display());
    let text = read.map_err(|e| failed(e.message))?.map_err(|e| failed(e.to_string()))?;
    Validity::parse(&text).map_err(failed)
}

/// How long ago it expired, or what is left, in words.
pub fn describe_left(left: i64) -> String {
    match left {
        ..0 => format!("it expired {} days ago", -left / 86_400),
        0..172_800 => format!("{} hours are left", left / 3600),
        _ => format!("{} days are left", left / 86_400),
    }
}

/// A file whose end matters too and that nothing renews from here.
pub struct Watched {
    pub path: PathBuf,
    pub status: Status,
    pub message: String,
    pub validity: Option<Validity>,
}

/// The files of a server that runs (`file` has those that it names), and of its owner as a client of its primary: authorities,
/// revocation lists, client certificates.
pub fn watch_cluster<'a>(
    cluster: &Cluster,
    file: impl Fn(&str) -> Option<&'a str>,
    config: &Config,
    now: i64,
) -> Vec<Watched> {
    let owner = Some(&cluster.owner);
    let path =
        |name: &str| file(name).filter(|value| !value.is_empty()).map(|value| cluster.data_directory.join(value));
    let authorities = path("ssl_ca_file").map(|path| watch(&path, true, owner, config, now));
    let list = |folder: PathBuf| {
        let list = || std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        cluster.owner.act(list).unwrap_or_default()
    };
    let mut others: Vec<PathBuf> = path("ssl_crl_dir").map(list).unwrap_or_default();
    others.extend(path("ssl_crl_file"));
    let client = file("primary_conninfo").unwrap_or_default().split_whitespace();
    others.extend(client.filter_map(|word| word.strip_prefix("sslcert=")).map(|path| path.trim_matches('\'').into()));
    others.sort();
    others.dedup();
    authorities.into_iter().chain(others.iter().map(|path| watch(path, false, owner, config, now))).collect()
}

/// One file, read as `owner`. Of several authorities the last to end says how it stands, for it is there to take over; all else
/// in a file is needed.
pub fn watch(path: &Path, are_authorities: bool, owner: Option<&Owner>, config: &Config, now: i64) -> Watched {
    let read = || std::fs::canonicalize(path).and_then(|path| state::read(&path, LIMIT));
    let read = match owner {
        Some(owner) => owner.act(read).map_err(|e| e.message).and_then(|read| read.map_err(|e| e.to_string())),
        None => read().map_err(|e| e.to_string()),
    };
    let found = read.and_then(|text| {
        let all = parse_all(&text)?;
        let ended = all.iter().filter(|one| one.until <= now).count();
        let pick = |a: Validity, b: Validity| if a.until < b.until { b } else { a };
        let one = if are_authorities { all.into_iter().reduce(pick) } else { all.into_iter().reduce(Validity::and) };
        Ok((one.ok_or("no certificate in it")?, if are_authorities { ended } else { 0 }))
    });
    let (status, message) = match &found {
        Err(why) => (Status::Warning, format!("cannot be read: {why}")),
        Ok((validity, ended)) => match judge(validity, config, now) {
            (Status::Ok, text) if *ended > 0 => (Status::Warning, format!("{text}; {ended} others in it have expired")),
            judged => judged,
        },
    };
    Watched { path: path.into(), status, message, validity: found.ok().map(|(validity, _)| validity) }
}

/// How it stands with one, in words.
pub fn judge(validity: &Validity, config: &Config, now: i64) -> (Status, String) {
    let subject = &validity.subject;
    let text = format!("{subject}, {}", describe_left(validity.until - now));
    match validity.left(now, config.health.certificate_warn, config.health.certificate_fail) {
        Left::NotYet => (Status::Critical, format!("{subject} is not valid yet")),
        Left::Nothing | Left::Least => (Status::Critical, text),
        Left::Little => (Status::Warning, text),
        Left::Enough => (Status::Ok, text),
    }
}

fn parse_all(text: &[u8]) -> Result<Vec<Validity>, String> {
    let mut all = Vec::new();
    for pem in Pem::iter_from_buffer(text) {
        all.extend(of_one(&pem.map_err(|e| e.to_string())?)?);
    }
    Ok(all)
}

fn of_one(pem: &Pem) -> Result<Option<Validity>, String> {
    match pem.label.as_str() {
        "CERTIFICATE" | "TRUSTED CERTIFICATE" => {
            pem.parse_x509().map(|certificate| Some(Validity::of(&certificate))).map_err(|e| e.to_string())
        }
        "X509 CRL" => {
            let (_, list) = CertificateRevocationList::from_der(&pem.contents).map_err(|e| e.to_string())?;
            // A list without a next one is good for ever (RFC 5280, 5.1.2.5, demands it).
            let until = list.next_update().map_or(i64::MAX / 2, |next| next.timestamp());
            let subject = format!("the revocation list of {}", list.issuer());
            Ok(Some(Validity { from: list.last_update().timestamp(), until, subject }))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    #[test]
    fn a_certificate_that_lives_shorter_is_little_later() {
        let (warn, fail) = (Duration::from_secs(30 * 86_400), Duration::from_secs(3 * 86_400));
        let left = |lifetime: i64, left: i64| {
            Validity { from: 0, until: lifetime * DAY, subject: String::new() }.left(
                (lifetime - left) * DAY,
                warn,
                fail,
            )
        };
        let of_a_year = [(31, Left::Enough), (29, Left::Little), (2, Left::Least), (0, Left::Nothing)];
        let of_45_days = [(12, Left::Enough), (11, Left::Little), (2, Left::Least), (46, Left::NotYet)];
        for (lifetime, cases) in [(365, of_a_year), (45, of_45_days)] {
            for (days, is) in cases {
                assert_eq!(left(lifetime, days), is, "{days} of {lifetime}");
            }
        }
    }

    #[test]
    fn what_is_no_certificate_is_told_and_never_a_crash() {
        for text in [
            &b""[..],
            b"hello",
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            b"-----BEGIN CERTIFICATE-----\n\xff\xff",
            b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        ] {
            assert!(Validity::parse(text).is_err(), "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn of_a_chain_the_first_to_expire_counts() {
        let chain = include_str!("chain.pem");
        let both = Validity::parse(chain.as_bytes()).unwrap();
        assert_eq!(both.subject, "CN=short.example");
        let first = chain.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap();
        assert!(both.until < Validity::parse(first.as_bytes()).unwrap().until);
    }
}
