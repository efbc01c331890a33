//! The end of the server log, and what its last FATAL or PANIC means.

use std::path::PathBuf;

use shared::cluster::Cluster;
use shared::meaning;
use shared::server_log::files;

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
        let at = line.find("FATAL:  ").or_else(|| line.find("PANIC:  "))?;
        let message = line[at + 8..].trim();
        (!SESSIONS.iter().any(|session| message.starts_with(session))).then(|| (&line[..at], message.to_string()))
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

/// How long each log file was at one moment: what comes behind that was written later.
pub type Mark = Vec<(PathBuf, u64)>;

pub fn lengths(cluster: &Cluster) -> Mark {
    let length = |file: &PathBuf| std::fs::metadata(file).map_or(0, |meta| meta.len());
    let lengths = || files(cluster).into_iter().map(|file| (file.clone(), length(&file))).collect();
    cluster.owner.act(lengths).unwrap_or_default()
}

/// The end of the log, at most 64 KiB of each file, as far as it was written after `since`.
pub fn tail(cluster: &Cluster, since: Option<&Mark>) -> String {
    let text = cluster.owner.act(|| {
        let mut text = String::new();
        for file in files(cluster) {
            // A file that is not in the mark is younger than the mark.
            let from = since.and_then(|mark| mark.iter().find(|(marked, _)| *marked == file)).map_or(0, |(_, at)| *at);
            text.push_str(&shared::server_log::tail(&file, from).unwrap_or_default());
        }
        text
    });
    text.unwrap_or_default()
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
    }

    #[test]
    fn a_taken_port_is_not_a_wrong_setting() {
        let text = "LOG:  could not bind IPv4 address \"127.0.0.1\": Address already in use\n\
                    FATAL:  could not create any TCP/IP sockets\n";
        assert_eq!(last_failure(text, "").unwrap().1, Some("P10"));
    }
}
