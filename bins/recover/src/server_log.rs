//! The end of the server log, and what its last FATAL or PANIC means.

use std::path::PathBuf;

use shared::cluster::Cluster;

/// Messages of a server that could not start, and the fault class of each. The texts are PostgreSQL's own (src/backend,
/// untranslated); with another lc_messages nothing matches, and what is not known is handed over.
const MEANINGS: &[(&[&str], &str)] = &[
    (&["configuration file", "contains errors"], "C1"),
    (&["could not load", "pg_hba"], "C2"),
    (&["could not load", "pg_ident"], "C2"),
    (&["invalid permissions"], "S7"),
    (&["wrong ownership"], "S7"),
    (&["could not create lock file", ".s.PGSQL"], "P11"),
    (&["could not create Unix socket"], "P11"),
    (&["could not create any Unix-domain sockets"], "P11"),
    (&["pre-existing shared memory block"], "P9"),
    (&["lock file", "is empty"], "P6"),
    (&["bogus data in lock file"], "P6"),
    (&["lock file", "postmaster.pid", "already exists"], "P7"),
    (&["Address already in use"], "P10"),
    (&["could not access file"], "C3"),
    (&["could not load library"], "C3"),
    (&["invalid value for parameter"], "C3"),
    (&["unrecognized configuration parameter"], "C3"),
    (&["requires \"wal_level\""], "C3"),
    (&["requires wal_level"], "C3"),
    (&["must be less than"], "C3"),
    (&["could not create any TCP/IP sockets"], "C3"),
    (&["maximum number of prepared transactions reached"], "C3"),
    (&["recovery aborted because of insufficient parameter settings"], "C3"),
    (&["could not map anonymous shared memory"], "C4"),
    (&["private key file"], "C5"),
    (&["could not load server certificate"], "C5"),
    (&["could not load private key"], "C5"),
    (&["could not locate a valid checkpoint record"], "S10"),
    (&["could not locate required checkpoint record"], "S18"),
    (&["incorrect checksum in control file"], "S9"),
    (&["global/pg_control"], "S9"),
    (&["No space left on device"], "S2"),
    (&["Read-only file system"], "S4"),
    (&["Input/output error"], "S5"),
    (&["database files are incompatible"], "H4"),
];

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

/// The last FATAL or PANIC message of the server itself, without its prefix, and its class when it is known.
pub fn last_failure(text: &str) -> Option<(String, Option<&'static str>)> {
    let message = text.lines().rev().find_map(|line| {
        let at = line.find("FATAL:  ").or_else(|| line.find("PANIC:  "))?;
        let message = line[at + 8..].trim();
        (!SESSIONS.iter().any(|session| message.starts_with(session))).then(|| message.to_string())
    })?;
    // The reason is often in a LOG line just before ("could not bind IPv4 address ...: Address already in use").
    let context: String = text.lines().rev().take(12).collect::<Vec<_>>().join("\n");
    let class_of = |text: &str| {
        MEANINGS.iter().find(|(parts, _)| parts.iter().all(|part| text.contains(part))).map(|(_, class)| *class)
    };
    let class = match class_of(&message) {
        Some("C3") if context.contains("Address already in use") => Some("P10"),
        class => class,
    };
    Some((message, class))
}

/// The file that the server writes to: the collector's newest one, else the one that pg_ctl gave it.
fn files(cluster: &Cluster) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = cluster.log_file.iter().cloned().collect();
    if matches!(cluster.setting("logging_collector"), Some("on" | "true" | "yes" | "1")) {
        let folder = cluster.data_directory.join(cluster.setting("log_directory").unwrap_or("log"));
        let newest = std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .max_by_key(|path| std::fs::metadata(path).and_then(|m| m.modified()).ok());
        files.extend(newest);
    }
    files
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
    fn a_failed_start_is_classified() {
        for (line, class) in [
            ("[12] FATAL:  configuration file \"/etc/x\" contains errors", Some("C1")),
            ("[12] FATAL:  could not load /etc/postgresql/15/main/pg_hba.conf", Some("C2")),
            ("[12] FATAL:  could not access file \"nope\": No such file or directory", Some("C3")),
            ("[12] FATAL:  data directory \"/d\" has invalid permissions", Some("S7")),
            (
                "[12] FATAL:  could not create lock file \"/run/postgresql/.s.PGSQL.5432.lock\": Permission denied",
                Some("P11"),
            ),
            ("[12] PANIC:  could not locate a valid checkpoint record", Some("S10")),
            ("[12] FATAL:  something nobody has seen", None),
        ] {
            let text = format!("x LOG:  starting\n2026 {line}\n2026 LOG:  database system is shut down\n");
            assert_eq!(last_failure(&text).unwrap().1, class, "{line}");
        }
    }

    #[test]
    fn what_sessions_suffer_is_not_the_servers_failure() {
        let text = "FATAL:  terminating connection due to administrator command\nFATAL:  the database system is shutting down\n";
        assert_eq!(last_failure(text), None);
    }

    #[test]
    fn a_taken_port_is_not_a_wrong_setting() {
        let text = "LOG:  could not bind IPv4 address \"127.0.0.1\": Address already in use\n\
                    FATAL:  could not create any TCP/IP sockets\n";
        assert_eq!(last_failure(text).unwrap().1, Some("P10"));
    }
}
