//! The end of the server's certificate, and of those that its file sends along.

use std::path::PathBuf;

use shared::cluster::Cluster;
use shared::config::Health;
use x509_parser::pem::Pem;

use crate::score::Finding;

const DAY: i64 = 86_400;

/// The first end among the certificates of the file, and the last beginning; seconds since 1970.
#[derive(Clone, Debug, PartialEq)]
pub struct Validity {
    pub from: i64,
    pub until: i64,
    pub subject: String,
}

/// `file` as the server names it: relative to the data directory.
pub fn look(cluster: &Cluster, file: &str) -> Result<Validity, String> {
    let path: PathBuf = cluster.data_directory.join(file);
    let read = cluster.owner.act(|| {
        // A link is fine here, Debian's own is one: nothing is read that the owner could not read.
        std::fs::canonicalize(&path).and_then(|path| shared::state::read(&path, 1 << 20))
    });
    let failed = |e: String| format!("the certificate {} cannot be read: {e}", path.display());
    let text = read.map_err(|e| failed(e.message))?.map_err(|e| failed(e.to_string()))?;
    parse(&text).map_err(failed)
}

fn parse(text: &[u8]) -> Result<Validity, String> {
    let mut found: Option<Validity> = None;
    for pem in Pem::iter_from_buffer(text) {
        let pem = pem.map_err(|e| e.to_string())?;
        if pem.label != "CERTIFICATE" {
            continue;
        }
        let certificate = pem.parse_x509().map_err(|e| e.to_string())?;
        let validity = certificate.validity();
        let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        let subject = || certificate.subject().to_string();
        found = Some(match found {
            None => Validity { from, until, subject: subject() },
            Some(first) => Validity {
                from: first.from.max(from),
                until: first.until.min(until),
                subject: if until < first.until { subject() } else { first.subject },
            },
        });
    }
    found.ok_or_else(|| "no certificate in it".to_string())
}

pub fn judge(looked: &Result<Validity, String>, now: i64, config: &Health) -> Finding {
    let validity = match looked {
        Ok(validity) => validity,
        Err(why) => return Finding::warning("certificate", why.as_str()),
    };
    let subject = &validity.subject;
    let left = validity.until - now;
    let days = left as f64 / DAY as f64;
    let (warn, fail) = (config.certificate_warn.as_secs() as i64, config.certificate_fail.as_secs() as i64);
    let finding = if now < validity.from {
        Finding::critical("certificate", format!("the certificate of {subject} is not valid yet"))
    } else if left <= 0 {
        Finding::critical("certificate", format!("the certificate of {subject} expired {} days ago", -left / DAY))
    } else {
        let message = format!("the certificate of {subject} expires in {} days", left / DAY);
        match left {
            left if left < fail => Finding::critical("certificate", message),
            left if left < warn => Finding::warning("certificate", message),
            _ => Finding::ok("certificate", message),
        }
    };
    finding.value(days, "d")
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::health::Status;

    #[test]
    fn a_certificate_warns_before_it_expires() {
        let valid = |days: i64| Ok(Validity { from: 0, until: 1_000_000 + days * DAY, subject: "CN=db".into() });
        let status = |looked| judge(&looked, 1_000_000, &Health::default()).check.status;
        assert_eq!(status(valid(31)), Status::Ok);
        assert_eq!(status(valid(29)), Status::Warning);
        assert_eq!(status(valid(2)), Status::Critical);
        assert_eq!(status(valid(-1)), Status::Critical);
        assert_eq!(status(Err("no".into())), Status::Warning);
        let future = Ok(Validity { from: 2_000_000, until: 9_000_000, subject: String::new() });
        assert_eq!(status(future), Status::Critical);
    }

    #[test]
    fn what_is_no_certificate_is_told_and_never_a_crash() {
        for text in [
            &b""[..],
            b"hello",
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            b"-----BEGIN CERTIFICATE-----\n\xff\xff",
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        ] {
            assert!(parse(text).is_err(), "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn of_a_chain_the_first_to_expire_counts() {
        let chain = include_str!("chain.pem");
        let both = parse(chain.as_bytes()).unwrap();
        assert_eq!(both.subject, "CN=short.example");
        assert!(
            both.until
                < parse(chain.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap().as_bytes()).unwrap().until
        );
    }
}
