//! The configuration as the server would read it next time. A running server is not harmed by a bad line, its next
//! start is: a latent fault, and a warning while the server runs.

use std::hash::{Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::unistd::Uid;
use shared::cluster::Cluster;
use shared::command;
use shared::health::Rehearsal;

use crate::catalog::Catalog;
use crate::score::Finding;

/// Changes when a configuration file or the server's program does; call it as the owner of the cluster. Files that are included from elsewhere
/// are not in it: those the running server reports by itself.
pub fn signature(cluster: &Cluster) -> String {
    let listed = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
        entries.filter(|p| p.extension().is_some_and(|e| e == "conf")).collect()
    };
    let mut files = listed(&cluster.config_directory);
    files.extend(listed(&cluster.config_directory.join("conf.d")));
    files.push(cluster.data_directory.join("postgresql.auto.conf"));
    files.push(cluster.hba_file());
    files.push(cluster.bin_directory.join("postgres"));
    files.sort();
    files.dedup();
    // Another hash after an upgrade of this program costs one rehearsal too many, nothing else.
    let mut hasher = std::hash::DefaultHasher::new();
    for file in files {
        file.hash(&mut hasher);
        if let Ok(m) = std::fs::metadata(&file) {
            (m.ino(), m.size(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()).hash(&mut hasher);
        }
    }
    format!("{:016x}", hasher.finish())
}

/// What is known about the files with this signature. They are looked at anew when they have changed, when something was
/// wrong with them (it may have been in a file that the signature does not cover), and when the server is down, for then
/// it is the first thing a person needs to know.
pub fn rehearsal(cluster: &Cluster, known: &Rehearsal, signature: String, server_runs: bool) -> Rehearsal {
    if server_runs && known.error.is_none() && !signature.is_empty() && known.signature == signature {
        return known.clone();
    }
    match rehearse(cluster) {
        Ok(error) => Rehearsal { signature, error },
        // Without a signature it is tried again next time.
        Err(why) => Rehearsal { signature: String::new(), error: Some(why) },
    }
}

/// Lets the server's program read the files without starting a server; the complaint, if it has one.
fn rehearse(cluster: &Cluster) -> Result<Option<String>, String> {
    let program = cluster.bin_directory.join("postgres");
    let mut command = Command::new(&program);
    // As pg_ctlcluster starts it.
    command
        .arg("-D")
        .arg(&cluster.data_directory)
        .args(["-C", "data_directory", "-c"])
        .arg(format!("config_file={}", cluster.config_directory.join("postgresql.conf").display()))
        .current_dir("/")
        .env_clear()
        .env("LC_ALL", "C");
    if Uid::effective().is_root() {
        command.uid(cluster.owner.uid.as_raw()).gid(cluster.owner.gid.as_raw());
    }
    match command::run(&mut command, Duration::from_secs(5)) {
        Ok(out) if out.status.success() => Ok(None),
        Ok(out) => Ok(Some(complaint(&out.stderr))),
        Err(e) => Err(format!("could not run {}: {e}", program.display())),
    }
}

/// `2026-11-22 02:40:11.123 UTC [4711] LOG:  syntax error in file "..." line 3, near token "="` without what goes before
/// the message.
fn complaint(stderr: &str) -> String {
    let message = |line: &str| {
        let at = ["LOG:  ", "FATAL:  ", "ERROR:  "].iter().find_map(|level| line.find(level).map(|i| i + level.len()));
        at.map(|at| line[at..].trim().to_string())
    };
    let first = stderr.lines().find_map(message);
    first.unwrap_or_else(|| stderr.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or("no reason given").into())
}

pub fn judge(server_runs: bool, catalog: Option<&Catalog>, rehearsal: Option<&Rehearsal>) -> Vec<Finding> {
    let mut complaints: Vec<String> = Vec::new();
    let mut findings = Vec::new();
    if let Some(catalog) = catalog {
        let pending: Vec<&str> = catalog.rows("pending").filter_map(|row| row.text(1)).collect();
        for row in catalog.rows("settings") {
            let name = row.text(3).unwrap_or_default();
            // A value that waits for a restart is listed with an error too: "setting could not be applied".
            if !pending.contains(&name) {
                let (file, line, error) = (row.text(1), row.text(2), row.text(4));
                let place = file.map(|f| format!("{f} line {}: ", line.unwrap_or("?"))).unwrap_or_default();
                let of = if name.is_empty() { String::new() } else { format!("{name}: ") };
                complaints.push(format!("{place}{of}{}", error.unwrap_or_default()));
            }
        }
        for row in catalog.rows("hba") {
            let (line, error) = (row.text(1).unwrap_or("?"), row.text(2).unwrap_or_default());
            complaints.push(format!("pg_hba.conf line {line}: {error}"));
        }
        // A file that cannot be opened at all makes the question itself fail.
        complaints.extend(["settings", "hba"].iter().filter_map(|tag| catalog.failure(tag).map(|r| r.to_string())));
        findings.push(match pending.as_slice() {
            [] => Finding::ok("pending_restart", "no setting waits for a restart"),
            waiting => Finding::ok("pending_restart", format!("waiting for a restart: {}", waiting.join(", "))),
        });
    }
    let sql_complains = !complaints.is_empty();
    if let Some(rehearsal) = rehearsal {
        // The server names file, line and setting; what its program says of the same line adds nothing.
        complaints.extend(rehearsal.error.clone().filter(|_| !sql_complains));
    }
    let name = "configuration";
    let finding = match complaints.as_slice() {
        [] if catalog.is_none() && rehearsal.is_none() => return findings,
        [] => Finding::ok(name, "the server could read its configuration files again"),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(" (and {} more)", rest.len()) };
            if server_runs {
                let message = format!("the running server is not harmed, but its next start would be: {first}{more}");
                Finding::warning(name, message)
            } else {
                Finding::critical(name, format!("the server cannot start with this configuration: {first}{more}"))
            }
        }
    };
    findings.insert(0, finding);
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::health::Status;

    #[test]
    fn a_bad_line_is_a_warning_while_the_server_runs_and_critical_when_it_does_not() {
        let bad = Rehearsal { signature: "x".into(), error: Some("syntax error".into()) };
        assert_eq!(judge(true, None, Some(&bad))[0].check.status, Status::Warning);
        let down = &judge(false, None, Some(&bad))[0];
        assert_eq!((down.check.status, down.escalates), (Status::Critical, false));
        assert!(judge(true, None, None).is_empty(), "nothing asked, nothing said");
    }

    #[test]
    fn a_setting_that_waits_for_a_restart_is_no_fault() {
        let catalog = Catalog::of(&[
            &["settings", "/etc/c", "3", "shared_buffers", "setting could not be applied"],
            &["pending", "shared_buffers"],
        ]);
        let findings = judge(true, Some(&catalog), None);
        assert_eq!(findings[0].check.status, Status::Ok);
        assert!(findings[1].check.message.ends_with("shared_buffers"));
    }

    #[test]
    fn a_bad_line_is_told_with_file_line_and_name() {
        let catalog = Catalog::of(&[
            &["settings", "/etc/c", "3", "colour", "unrecognized configuration parameter"],
            &["hba", "9", "invalid authentication method \"tsrust\""],
        ]);
        let message = judge(true, Some(&catalog), None)[0].check.message.clone();
        assert!(
            message.ends_with("/etc/c line 3: colour: unrecognized configuration parameter (and 1 more)"),
            "{message}"
        );
    }

    #[test]
    fn the_complaint_of_the_servers_program_is_cut_down_to_what_it_says() {
        let stderr = "2026-11-22 02:40:11.1 UTC [1] LOG:  syntax error in file \"c\" line 3, near token \"=\"\n\
                      2026-11-22 02:40:11.1 UTC [1] FATAL:  configuration file \"c\" contains errors\n";
        assert_eq!(complaint(stderr), "syntax error in file \"c\" line 3, near token \"=\"");
        assert_eq!(
            complaint("\npostgres: could not access the server configuration file\n"),
            "postgres: could not access the server configuration file"
        );
        assert_eq!(complaint(""), "no reason given");
    }
}
