//! The way from the page, which may do nothing, to a recovery: pg-status.path starts pg-recovery.service when a file changes
//! that the page may write. What is to be done, if anything, pg-recover finds out itself.

use std::cell::Cell;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use hyper::header::{AUTHORIZATION, HeaderMap};
use sha2::{Digest, Sha256};
use shared::clock::Stamp;
use shared::{credential, exit, state};
use subtle::ConstantTimeEq;

const FILE: &str = "/run/pg-recovery/door";
/// File in `/etc/pg-recovery/credentials`, and credential of the unit.
const TOKEN: &str = "recover_token";
/// Characters; what is shorter could be guessed.
const SHORTEST: usize = 20;
const BETWEEN: Duration = Duration::from_secs(300);
/// Wrong tokens within the pause that follows the last of them.
const GUESSES: u32 = 10;
const PAUSE: Duration = Duration::from_secs(60);

#[derive(Debug, PartialEq)]
pub enum Verdict {
    Opened,
    /// No token is configured, or none that can be used.
    Off,
    Wrong,
    /// Seconds until the next one is looked at.
    TooManyGuesses(u64),
    /// Seconds until it opens again.
    TooSoon(u64),
    Stuck,
}

pub struct Door {
    token: Option<String>,
    wrong: Cell<u32>,
    last_wrong: Cell<Option<Instant>>,
}

impl Door {
    pub fn new() -> Self {
        let token = credential::read(TOKEN, TOKEN).unwrap_or_else(|why| {
            exit::report(&why);
            None
        });
        let is_long = |token: &String| {
            let is_long = token.len() >= SHORTEST;
            if !is_long {
                log::error!("cannot use the credential {TOKEN}: it has less than {SHORTEST} characters");
                log::error!("HINT: Make one with: openssl rand -hex 32");
            }
            is_long
        };
        Self::with(token.filter(is_long))
    }

    fn with(token: Option<String>) -> Self {
        Door { token, wrong: Cell::new(0), last_wrong: Cell::new(None) }
    }

    pub fn knock(&self, headers: &HeaderMap) -> Verdict {
        let said = headers.get(AUTHORIZATION).map(|value| value.as_bytes());
        match self.judge(said, Instant::now()) {
            Verdict::Opened => open(Path::new(FILE), &Stamp::now()),
            refused => refused,
        }
    }

    fn judge(&self, said: Option<&[u8]>, now: Instant) -> Verdict {
        let Some(token) = &self.token else { return Verdict::Off };
        let since = self.last_wrong.get().map_or(PAUSE, |last| now.duration_since(last));
        if since >= PAUSE {
            self.wrong.set(0);
        }
        if self.wrong.get() >= GUESSES {
            return Verdict::TooManyGuesses((PAUSE - since).as_secs() + 1);
        }
        // Digests have one length, and what is compared of them does not tell how much of a guess is right.
        let given = said.and_then(bearer).unwrap_or_default();
        if Sha256::digest(given).as_slice().ct_eq(Sha256::digest(token).as_slice()).into() {
            return Verdict::Opened;
        }
        self.wrong.set(self.wrong.get() + 1);
        self.last_wrong.set(Some(now));
        if self.wrong.get() == GUESSES {
            log::warn!("{GUESSES} wrong tokens for POST /health/recover; none is looked at for {}s", PAUSE.as_secs());
        }
        Verdict::Wrong
    }
}

/// `Bearer TOKEN`; the first word in any case (RFC 9110, 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

/// `file` says when it was opened last. It is written where it is: systemd watches the file, and the sandbox opens no folder.
fn open(file: &Path, now: &Stamp) -> Verdict {
    let last: Option<Stamp> = state::read(file, 4096).ok().and_then(|text| serde_json::from_slice(&text).ok());
    if let Some(left) = last.and_then(|last| BETWEEN.checked_sub(now.since(&last))).filter(|left| !left.is_zero()) {
        return Verdict::TooSoon(left.as_secs() + 1);
    }
    let written = serde_json::to_vec(now)
        .map_err(std::io::Error::other)
        .and_then(|text| std::fs::OpenOptions::new().write(true).truncate(true).open(file)?.write_all(&text));
    match written {
        Ok(()) => {
            log::info!("asking for a recovery, as POST /health/recover wishes");
            Verdict::Opened
        }
        Err(why) => {
            log::error!("could not write {}: {why}", file.display());
            log::error!("HINT: Run: systemd-tmpfiles --create pg-recovery.conf");
            Verdict::Stuck
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_guesses_are_looked_at_and_the_right_token_is_none() {
        let door = Door::with(Some("a-token-that-is-long-enough".into()));
        let now = Instant::now();
        let mut verdicts = Vec::new();
        for guess in 0..10_000 {
            verdicts.push(door.judge(Some(format!("Bearer {guess}").as_bytes()), now));
        }
        assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::Wrong).count(), 10);
        let right: Option<&[u8]> = Some(b"bearer a-token-that-is-long-enough");
        assert_eq!(door.judge(right, now), Verdict::TooManyGuesses(61), "that would tell which one it is");
        let later = now + PAUSE;
        assert_eq!(door.judge(right, later), Verdict::Opened);
        for wrong in [None, Some(&b""[..]), Some(b"Bearer "), Some(b"a-token-that-is-long-enough"), Some(b"Basic x")] {
            assert_eq!(door.judge(wrong, later), Verdict::Wrong, "{wrong:?}");
        }
        assert_eq!(Door::with(None).judge(right, later), Verdict::Off);
        assert_eq!(Door::with(None).judge(Some(b"Bearer "), later), Verdict::Off);
    }

    #[test]
    fn it_opens_once_in_five_minutes() {
        let file = std::env::temp_dir().join(format!("pg-recovery-door-{}", std::process::id()));
        let at = |boot: f64| Stamp { wall: 1e9 + boot, boot, boot_id: "a".into() };
        assert_eq!(open(&file, &at(0.0)), Verdict::Stuck, "it makes no file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(open(&file, &at(0.0)), Verdict::Opened);
        assert_eq!(open(&file, &at(1.0)), Verdict::TooSoon(300));
        assert_eq!(open(&file, &at(300.0)), Verdict::Opened);
        std::fs::remove_file(&file).unwrap();
    }
}
