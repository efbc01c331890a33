//! The end of the server's certificate, and of those that its file sends along.

use std::path::PathBuf;

use shared::certificate::{Left, Validity};
use shared::cluster::Cluster;
use shared::config::Health;

use crate::score::Finding;

const DAY: i64 = 86_400;

/// `file` as the server names it: relative to the data directory.
pub fn look(cluster: &Cluster, file: &str) -> Result<Validity, String> {
    let path: PathBuf = cluster.data_directory.join(file);
    let read = cluster.owner.act(|| {
        // A link is fine here, Debian's own is one: nothing is read that the owner could not read.
        std::fs::canonicalize(&path).and_then(|path| shared::state::read(&path, 1 << 20))
    });
    let failed = |e: String| format!("the certificate {} cannot be read: {e}", path.display());
    let text = read.map_err(|e| failed(e.message))?.map_err(|e| failed(e.to_string()))?;
    Validity::parse(&text).map_err(failed)
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use shared::health::Status;

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
        let future = Ok(Validity { from: now + 1, until: now + DAY, subject: String::new() });
        assert_eq!(status(future), Status::Critical);
    }
}
