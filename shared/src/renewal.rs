//! What pg-cert-renew knows of each certificate, for its next run and for those who show it.
//!
//! `/var/lib/pg-recovery/cert-renew/16-main.json`, written by pg-cert-renew only. Moments are seconds since 1970.

use serde::{Deserialize, Serialize};

use crate::certificate::Validity;
use crate::clock::Stamp;
use crate::cluster::file_name;
use crate::state::State;

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Renewal {
    /// Tries in a row that failed, the last of them, and why.
    pub failures: u32,
    pub at: Stamp,
    pub why: String,
    /// Until when the authority has asked to be left alone.
    pub not_before: Option<i64>,
    /// The one that was in place when it was last looked at.
    pub in_place: Option<Validity>,
    /// When the next renewal is due; `None`: nothing here renews it, or another program says when.
    pub due: Option<i64>,
    pub suggestion: Option<Suggestion>,
}

/// When an authority would like a certificate to be renewed (RFC 9773): at a moment between these two.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Suggestion {
    /// SHA-256 of the certificate.
    pub of: String,
    pub from: i64,
    pub until: i64,
    /// When to ask again.
    pub ask_again: i64,
}

impl Suggestion {
    /// The moment within: any one, and the same each time for the same certificate (RFC 9773, 4.2, asks for one at random).
    /// `None`: it makes no sense.
    pub fn moment(&self) -> Option<i64> {
        let part = i64::from_str_radix(self.of.get(..8)?, 16).ok()?;
        let length = self.until.checked_sub(self.from).filter(|length| (1..i64::from(u32::MAX)).contains(length))?;
        Some(self.from + ((length * part) >> 32))
    }
}

/// Of a cluster, or of another certificate of the configuration.
pub fn state(name: &str) -> State<Renewal> {
    State::load(&format!("cert-renew/{}.json", file_name(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_moment_is_within_the_window_and_nonsense_is_none() {
        let of = |of: &str, from, until| Suggestion { of: of.into(), from, until, ask_again: 0 }.moment();
        assert_eq!(of("00000000ab", 100, 200), Some(100));
        assert_eq!(of("80000000ab", 100, 200), Some(150));
        assert_eq!(of("ffffffffab", 100, 200), Some(199));
        assert_eq!(of("80000000", 200, 100), None);
        assert_eq!(of("80000000", i64::MIN, i64::MAX), None);
        assert_eq!((of("", 100, 200), of("xyz12345", 100, 200)), (None, None));
    }
}
