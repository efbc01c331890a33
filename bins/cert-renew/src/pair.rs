//! A key with its certificate: what it is, and everything that may be wrong with it before a server sees it.

use std::path::Path;
use std::time::Duration;

use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};
use shared::certificate::Validity;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The certificates that a Debian host trusts (ca-certificates).
const SYSTEM: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The certificates of a file, the server's own first.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    pub certificates: Vec<CertificateDer<'static>>,
    /// Of the one that ends first.
    pub validity: Validity,
    pub names: Vec<String>,
    /// It is signed with its own key.
    pub self_signed: bool,
}

/// A chain and its key, as they are in their files.
pub struct Pair {
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
    pub chain: Chain,
}

/// What clients verify a chain with.
pub struct Anchors {
    certificates: Vec<CertificateDer<'static>>,
    /// For messages.
    place: String,
}

impl Chain {
    /// `text` in PEM.
    pub fn parse(text: &[u8]) -> Result<Chain, String> {
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(text)
            .collect::<Result<_, _>>()
            .map_err(|e| format!("the certificate is not whole: {e}"))?;
        Chain::of(certificates)
    }

    pub fn of(certificates: Vec<CertificateDer<'static>>) -> Result<Chain, String> {
        let bad = |e: String| format!("the certificate cannot be read: {e}");
        let all = certificates.iter().map(|one| Ok(Validity::of(&parse(one)?))).collect::<Result<Vec<_>, String>>();
        let validity = all.map_err(bad)?.into_iter().reduce(Validity::and).ok_or("no certificate in it")?;
        let first = parse(&certificates[0])?;
        let (names, self_signed) = (names(&first), is_self_signed(&first));
        Ok(Chain { validity, names, self_signed, certificates })
    }

    /// Of the server's own certificate, in hex.
    pub fn sha256(&self) -> String {
        self.certificates.first().map(|own| shared::point::sha256(own)).unwrap_or_default()
    }

    /// Its subject, and until when it is good.
    pub fn describe(&self) -> String {
        let until = shared::clock::Stamp { wall: self.validity.until as f64, ..Default::default() };
        format!("{} until {}", self.validity.subject, until.rfc3339())
    }

    /// Whether it covers all of these names; else the first that it does not.
    pub fn covers(&self, names: &[String]) -> Result<(), String> {
        let leaf = self.certificates.first().ok_or("no certificate in it")?;
        let leaf = ParsedCertificate::try_from(leaf).map_err(|e| e.to_string())?;
        for name in names {
            let wanted = ServerName::try_from(name.trim_start_matches("*.").to_string());
            // That of a wildcard stands for one label in its place.
            let wanted = match name.strip_prefix("*.") {
                Some(rest) => ServerName::try_from(format!("any.{rest}")),
                None => wanted,
            };
            let wanted = wanted.map_err(|_| format!("\"{name}\" is neither a DNS name nor an address"))?;
            verify_server_name(&leaf, &wanted)
                .map_err(|_| format!("it does not cover {name}, but {}", list(&self.names)))?;
        }
        Ok(())
    }

    /// Verifies it as a client with `sslmode=verify-full` does: in time, complete, in order, and known to `anchors`.
    pub fn verify(&self, names: &[String], anchors: &Anchors, now: i64) -> Result<(), String> {
        let validity = &self.validity;
        if now < validity.from {
            return Err(format!("{} is not valid yet: {} seconds are to go", validity.subject, validity.from - now));
        }
        if now >= validity.until {
            return Err(format!("{} has expired", validity.subject));
        }
        self.covers(names)?;
        let parsed: Vec<X509Certificate> = self.certificates.iter().map(parse).collect::<Result<_, _>>()?;
        for (signed, by) in parsed.iter().zip(&parsed[1..]) {
            if signed.issuer().as_raw() != by.subject().as_raw() {
                let (what, next) = (signed.subject(), by.subject());
                return Err(format!("the chain is not in order: behind {what} comes {next}, which did not sign it"));
            }
        }
        let (leaf, others) = self.certificates.split_first().ok_or("no certificate in it")?;
        if self.self_signed {
            return match anchors.certificates.contains(leaf) {
                true => Ok(()),
                false => Err(format!("{} is signed by itself, and not in {}", validity.subject, anchors.place)),
            };
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(anchors.certificates.iter().cloned());
        let leaf = ParsedCertificate::try_from(leaf).map_err(|e| e.to_string())?;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now.max(0) as u64));
        let algorithms = ring::default_provider().signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&leaf, &roots, others, now, algorithms).map_err(|e| match e {
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                format!(
                    "the chain is not complete: nothing in it or in {} signed {}",
                    anchors.place,
                    parsed.last().map(|last| last.subject().to_string()).unwrap_or_default()
                )
            }
            e => format!("clients would refuse it: {e}"),
        })
    }
}

impl Pair {
    pub fn parse(certificate: &[u8], key: &[u8]) -> Result<Pair, String> {
        let chain = Chain::parse(certificate)?;
        if key.windows(9).any(|part| part == b"ENCRYPTED") {
            return Err("the key is encrypted, and nobody is there to type a password".into());
        }
        let parsed = PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("the key cannot be read: {e}"))?;
        let signing = ring::sign::any_supported_type(&parsed).map_err(|e| format!("the key cannot be used: {e}"))?;
        CertifiedKey::new(chain.certificates.clone(), signing)
            .keys_match()
            .map_err(|_| format!("the key does not belong to the certificate of {}", chain.validity.subject))?;
        Ok(Pair { certificate: certificate.into(), key: key.into(), chain })
    }
}

impl Anchors {
    /// Those of `file`; without one the last of the chain when it is signed by itself, else those that the host trusts.
    pub fn of(file: Option<&Path>, chain: &Chain) -> Result<Anchors, String> {
        let own = chain.certificates.last().filter(|last| parse(last).is_ok_and(|last| is_self_signed(&last)));
        let file = match (file, own) {
            (None, Some(own)) => return Ok(Anchors { certificates: vec![own.clone()], place: "it itself".into() }),
            (file, _) => file.unwrap_or(Path::new(SYSTEM)),
        };
        let bad = |e: &dyn std::fmt::Display| {
            format!("the authority cannot be looked up in {}: {e}; ca_file names another file", file.display())
        };
        let text = std::fs::read(file).map_err(|e| bad(&e))?;
        let certificates: Vec<_> =
            CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().map_err(|e| bad(&e))?;
        Ok(Anchors { certificates, place: file.display().to_string() })
    }
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    X509Certificate::from_der(certificate).map(|(_, parsed)| parsed).map_err(|e| e.to_string())
}

fn is_self_signed(certificate: &X509Certificate) -> bool {
    certificate.issuer().as_raw() == certificate.subject().as_raw() && certificate.verify_signature(None).is_ok()
}

/// DNS names and addresses that it covers.
fn names(certificate: &X509Certificate) -> Vec<String> {
    let Ok(Some(found)) = certificate.subject_alternative_name() else { return Vec::new() };
    let text = |name: &GeneralName| match name {
        GeneralName::DNSName(name) => Some(name.to_string()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| std::net::IpAddr::from(b).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|b| std::net::IpAddr::from(b).to_string()),
        },
        _ => None,
    };
    found.value.general_names.iter().filter_map(text).collect()
}

pub fn list(names: &[String]) -> String {
    if names.is_empty() { "no name".into() } else { names.join(", ") }
}

#[cfg(test)]
pub mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use time::OffsetDateTime;

    use super::*;

    pub const NOW: i64 = 1_800_000_000;
    const DAY: i64 = 86_400;

    fn params(name: &str, from: i64, until: i64, is_ca: bool) -> CertificateParams {
        let mut params = CertificateParams::new(if is_ca { vec![] } else { vec![name.to_string()] }).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = OffsetDateTime::from_unix_timestamp(from).unwrap();
        params.not_after = OffsetDateTime::from_unix_timestamp(until).unwrap();
        params.is_ca = if is_ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::NoCa };
        params
    }

    /// Root, intermediate, and what is signed by it for `name`: PEM of each, and the key.
    pub fn issue(name: &str, from: i64, until: i64) -> (String, String, String, String) {
        let keys = [(); 3].map(|()| KeyPair::generate().unwrap());
        let root = params("root", 0, 4_000_000_000, true);
        let root_pem = root.self_signed(&keys[0]).unwrap().pem();
        let middle = params("middle", 0, 4_000_000_000, true);
        let middle_pem = middle.signed_by(&keys[1], &Issuer::from_params(&root, &keys[0])).unwrap().pem();
        let leaf = params(name, from, until, false);
        let leaf_pem = leaf.signed_by(&keys[2], &Issuer::from_params(&middle, &keys[1])).unwrap().pem();
        (root_pem, middle_pem, leaf_pem, keys[2].serialize_pem())
    }

    fn anchors(pem: &str) -> Anchors {
        Anchors { certificates: Chain::parse(pem.as_bytes()).unwrap().certificates, place: "/root.pem".into() }
    }

    #[test]
    fn whatever_is_wrong_with_a_pair_is_found_and_said() {
        let (root, middle, leaf, key) = issue("db.example", NOW - DAY, NOW + DAY);
        let names = ["db.example".to_string()];
        let look = |chain: &str, key: &str, now: i64, names: &[String]| {
            let pair = Pair::parse(chain.as_bytes(), key.as_bytes())?;
            pair.chain.verify(names, &anchors(&root), now)
        };
        let chain = format!("{leaf}{middle}");
        assert_eq!(look(&chain, &key, NOW, &names), Ok(()));
        let says = |outcome: Result<(), String>, text: &str| {
            let why = outcome.unwrap_err();
            assert!(why.contains(text), "{why}");
        };
        let other = KeyPair::generate().unwrap().serialize_pem();
        says(look(&chain, &other, NOW, &names), "the key does not belong");
        says(look(&chain, &key, NOW + 2 * DAY, &names), "has expired");
        says(look(&chain, &key, NOW - 2 * DAY, &names), "is not valid yet");
        says(look(&chain, &key, NOW, &["x.example".into()]), "does not cover x.example, but db.example");
        says(look(&leaf, &key, NOW, &names), "the chain is not complete");
        says(look(&format!("{middle}{leaf}"), &key, NOW, &names), "the key does not belong");
        says(look(&format!("{leaf}{root}{middle}"), &key, NOW, &names), "not in order");
        says(look(&chain[..chain.len() - 100], &key, NOW, &names), "not whole");
        says(look(&chain, &key[..key.len() - 60], NOW, &names), "key cannot be read");
        says(look(&chain, &"\0".repeat(200), NOW, &names), "key cannot be read");
        says(look(&"\0".repeat(900), &key, NOW, &names), "no certificate");
        says(look("", "", NOW, &names), "no certificate");
        says(look(&chain, "-----BEGIN ENCRYPTED PRIVATE KEY-----\n", NOW, &names), "encrypted");
    }

    #[test]
    fn what_is_signed_by_itself_is_its_own_authority_unless_another_is_named() {
        let key = KeyPair::generate().unwrap();
        let pem = params("db.example", 0, NOW + DAY, false).self_signed(&key).unwrap().pem();
        let chain = Chain::parse(pem.as_bytes()).unwrap();
        assert!(chain.self_signed);
        let names = ["db.example".to_string()];
        assert_eq!(chain.verify(&names, &Anchors::of(None, &chain).unwrap(), NOW), Ok(()));
        let (root, ..) = issue("db.example", 0, NOW);
        assert!(chain.verify(&names, &anchors(&root), NOW).unwrap_err().contains("is signed by itself"));
    }

    #[test]
    fn a_wildcard_covers_one_label() {
        let (_, middle, leaf, _) = issue("*.db.example", 0, NOW);
        let chain = Chain::parse(format!("{leaf}{middle}").as_bytes()).unwrap();
        assert_eq!(chain.names, ["*.db.example"]);
        assert_eq!(chain.covers(&["a.db.example".into(), "*.db.example".into()]), Ok(()));
        assert!(chain.covers(&["db.example".into()]).is_err());
    }
}
