//! The end of the server log, and what its last FATAL or PANIC means.

use shared::meaning;
use shared::server_log::{Level, parts};

/// FATAL lines of sessions, which say nothing about the server.
const SESSIONS: &[&str] = &[
    "terminating ",
    "the database system is ",
    "connection to client lost",
    "password authentication failed",
    "authentication failed for user",
    "no pg_hba.conf entry",
    "role \"",
    "database \"",
    "sorry, too many clients",
    "remaining connection slots",
    "unsupported frontend protocol",
    "canceling ",
];

/// The last FATAL or PANIC message of the server itself, without its prefix, and its class when it is known. The SQLSTATE is
/// in the prefix where `log_line_prefix` has `%e`.
pub fn last_failure(text: &str, log_line_prefix: &str) -> Option<(String, Option<&'static str>)> {
    let (prefix, message) = text.lines().rev().find_map(|line| {
        let (prefix, level, message) = parts(line)?;
        let is_last_word = matches!(level, Some(Level::Fatal | Level::Panic));
        let is_sessions = SESSIONS.iter().any(|session| message.starts_with(session));
        (is_last_word && !is_sessions).then(|| (prefix, message.to_string()))
    })?;
    // The reason is often in a LOG line just before ("could not bind IPv4 address ...: Address already in use").
    let context: String = text.lines().rev().take(12).collect::<Vec<_>>().join("\n");
    let sqlstate = meaning::sqlstate(prefix).filter(|_| log_line_prefix.contains("%e"));
    let class = match meaning::class_of(&message, sqlstate) {
        Some("C3") if context.contains("Address already in use") => Some("P10"),
        class => class,
    };
    Some((message, class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_of_a_failed_start_is_classified() {
        let of = |line: &str, prefix| {
            last_failure(&format!("x LOG:  starting\n{line}\n2026 LOG:  database system is shut down\n"), prefix)
                .unwrap()
        };
        let line = "2026 [12] FATAL:  data directory \"/d\" has invalid permissions";
        assert_eq!(of(line, "%m [%p] "), ("data directory \"/d\" has invalid permissions".into(), Some("S7")));
        let translated = "2026 [12] 53100 PANIC:  kein Platz";
        assert_eq!(of(translated, "%m [%p] %e ").1, Some("S2"));
        assert_eq!(of(translated, "%m [%p] ").1, None, "a number that is no code");
    }

    #[test]
    fn what_sessions_suffer_is_not_the_servers_failure() {
        let text = "FATAL:  terminating connection due to administrator command\nFATAL:  the database system is shutting down\n";
        assert_eq!(last_failure(text, ""), None);
        let named_so =
            "[9] x@FATAL:  data directory \"/d\" has invalid permissions FATAL:  no pg_hba.conf entry for host\n";
        assert_eq!(last_failure(named_so, ""), None);
    }

    #[test]
    fn a_taken_port_is_not_a_wrong_setting() {
        let text = "LOG:  could not bind IPv4 address \"127.0.0.1\": Address already in use\n\
                    FATAL:  could not create any TCP/IP sockets\n";
        assert_eq!(last_failure(text, "").unwrap().1, Some("P10"));
    }
}
