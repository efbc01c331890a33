//! How long a certificate or a revocation list is good for, and when little of that is left.

use std::time::Duration;

use x509_parser::pem::Pem;
use x509_parser::prelude::{CertificateRevocationList, FromDer, GeneralName, X509Certificate};

/// The first end among the certificates and revocation lists of a file, and the last beginning; seconds since 1970.
#[derive(Clone, Debug, PartialEq)]
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
        let mut found: Option<Validity> = None;
        for pem in Pem::iter_from_buffer(text) {
            let pem = pem.map_err(|e| e.to_string())?;
            let Some(one) = of_one(&pem)? else { continue };
            found = Some(match found {
                None => one,
                Some(first) => first.and(one),
            });
        }
        found.ok_or_else(|| "no certificate in it".to_string())
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
