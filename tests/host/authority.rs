//! A certificate authority of the tests: whatever a renewal may bring, good or bad, without a network.

use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod, KeyPair,
};
use time::OffsetDateTime;

/// A root, and an intermediate authority that signs for it.
pub struct Authority {
    root: String,
    intermediate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate without its chain, the chain, and the key, each in PEM.
pub struct Issued {
    pub certificate: String,
    pub chain: String,
    pub key: String,
}

impl Authority {
    /// A new one, which nobody trusts yet.
    pub fn new() -> Self {
        let (root_key, key) = (new_key(), new_key());
        let root = params("Root of the tests", &[], -3650, 3650, true);
        let intermediate = params("Intermediate of the tests", &[], -3650, 3650, true);
        let root_pem = root.self_signed(&root_key).expect("it can be signed").pem();
        let signer = Issuer::from_params(&root, &root_key);
        let intermediate_pem = intermediate.signed_by(&key, &signer).expect("it can be signed").pem();
        Authority { root: root_pem, intermediate: intermediate_pem, issuer: Issuer::new(intermediate, key) }
    }

    /// The certificate that clients trust.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// A certificate for `names`, good from so many days before today (negative) until so many after it.
    pub fn issue(&self, names: &[&str], from: i64, until: i64) -> Issued {
        let key = new_key();
        let params = params(names[0], names, from, until, false);
        let certificate = params.signed_by(&key, &self.issuer).expect("it can be signed").pem();
        let chain = format!("{certificate}{}", self.intermediate);
        Issued { certificate, chain, key: key.serialize_pem() }
    }

    /// The same, signed by itself.
    pub fn self_signed(names: &[&str], from: i64, until: i64) -> Issued {
        let key = new_key();
        let certificate =
            params(names[0], names, from, until, false).self_signed(&key).expect("it can be signed").pem();
        Issued { chain: certificate.clone(), certificate, key: key.serialize_pem() }
    }

    /// A list of what it has revoked, which is nothing, from so many days before today until so many after it.
    pub fn revocation_list(&self, from: i64, until: i64) -> String {
        let list = CertificateRevocationListParams {
            this_update: day(from),
            next_update: day(until),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).and_then(|list| list.pem()).expect("it can be signed")
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("a key can be made")
}

fn params(subject: &str, names: &[&str], from: i64, until: i64, is_ca: bool) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
    let mut params = CertificateParams::new(names).expect("the names are names");
    params.distinguished_name.push(DnType::CommonName, subject);
    (params.not_before, params.not_after) = (day(from), day(until));
    params.is_ca = if is_ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::NoCa };
    params
}

/// So many days from now.
fn day(days: i64) -> OffsetDateTime {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()) as i64;
    OffsetDateTime::from_unix_timestamp(now + days * 86_400).expect("it is a date")
}
