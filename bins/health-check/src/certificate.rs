//! The end of the server's certificate, of those that its file sends along, and of other files that end.

use shared::certificate::{self, Left, Validity, Watched};
use shared::cluster::Cluster;
use shared::config::{Config, Health};
use shared::health::Status;

use crate::probe::Identity;
use crate::score::Finding;

const DAY: i64 = 86_400;

pub fn judge(looked: &Result<Validity, String>, now: i64, config: &Health) -> Finding {
    let validity = match looked {
        Ok(validity) => validity,
        Err(why) => return Finding::warning("certificate", why.as_str()),
    };
    let (subject, left) = (&validity.subject, validity.until - now);
    let message = format!("the certificate of {subject} expires in {} days", left / DAY);
    let finding = match validity.left(now, config.certificate_warn, config.certificate_fail) {
        Left::NotYet => Finding::critical("certificate", format!("the certificate of {subject} is not valid yet")),
        Left::Nothing => {
            Finding::critical("certificate", format!("the certificate of {subject} expired {} days ago", -left / DAY))
        }
        Left::Least => Finding::critical("certificate", message),
        Left::Little => Finding::warning("certificate", message),
        Left::Enough => Finding::ok("certificate", message),
    };
    finding.value(left as f64 / DAY as f64, "d")
}

/// Authorities, revocation lists and client certificates: those that the server names, and those that the configuration tells
/// to watch as far as the owner of the cluster can read them; pg-cert-renew reads all. `None`: there are none.
pub fn judge_others(cluster: &Cluster, identity: Option<&Identity>, config: &Config, now: i64) -> Option<Finding> {
    let identity = identity.filter(|identity| identity.ssl);
    let file = |name: &str| identity?.files.get(name).map(String::as_str);
    let mut files = certificate::watch_cluster(cluster, file, config, now);
    let configured =
        config.tls.watch.iter().map(|file| certificate::watch(file, false, Some(&cluster.owner), config, now));
    files.extend(configured.filter(|file| file.validity.is_some()));
    let ends = |file: &Watched| file.validity.as_ref().map_or(i64::MAX, |validity| validity.until);
    let worst = files.iter().min_by_key(|file| (std::cmp::Reverse(file.status), ends(file)))?;
    let others = match files.len() - 1 {
        0 => String::new(),
        others => format!("; {others} more are no worse"),
    };
    let finding =
        Finding::new("certificate_files", worst.status, format!("{}: {}{others}", worst.path.display(), worst.message));
    // A list without a next one never ends.
    let left = worst.validity.as_ref().map(|validity| validity.until - now).filter(|left| *left < 1000 * 365 * DAY);
    Some(match left {
        Some(left) => finding.value(left as f64 / DAY as f64, "d"),
        None => finding,
    })
}

/// The server's own has expired: pg-recover may have it renewed.
pub fn has_expired(findings: &[Finding]) -> bool {
    let is_over = |left: f64| left <= 0.0;
    findings.iter().map(|finding| &finding.check).any(|check| {
        check.name == "certificate" && check.status == Status::Critical && check.value.is_some_and(is_over)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_warns_before_it_expires() {
        let now = 2_000 * DAY;
        let valid = |days: i64| Ok(Validity { from: 0, until: now + days * DAY, subject: "CN=db".into() });
        let status = |looked| judge(&looked, now, &Health::default()).check.status;
        assert_eq!(status(valid(31)), Status::Ok);
        assert_eq!(status(valid(29)), Status::Warning);
        assert_eq!(status(valid(2)), Status::Critical);
        assert_eq!(status(valid(-1)), Status::Critical);
        assert_eq!(status(Err("no".into())), Status::Warning);
        let expired = |looked| has_expired(&[judge(&looked, now, &Health::default())]);
        assert!(expired(valid(-1)) && !expired(valid(2)) && !expired(Err("no".into())));
        let future = Ok(Validity { from: now + 1, until: now + DAY, subject: String::new() });
        assert_eq!(status(future.clone()), Status::Critical);
        assert!(!expired(future), "that is the clock's");
    }
}
