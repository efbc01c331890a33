//! Files whose end matters too and that nobody renews from here: authorities, revocation lists, client certificates.

use std::path::{Path, PathBuf};

use shared::certificate::{Left, Validity};
use shared::config::Config;
use shared::health::Status;
use shared::owner::Owner;
use shared::state;

use crate::server::Postgres;

const LIMIT: u64 = 4 << 20;

pub struct Watched {
    pub path: PathBuf,
    pub status: Status,
    pub message: String,
    pub validity: Option<Validity>,
}

/// Those that a server that runs names, and that of its owner as a client.
pub fn of_cluster(postgres: &Postgres, config: &Config, now: i64) -> Vec<Watched> {
    let owner = &postgres.cluster.owner;
    let mut files: Vec<PathBuf> =
        ["ssl_ca_file", "ssl_crl_file"].into_iter().filter_map(|name| postgres.file(name)).collect();
    let lists: Option<Vec<PathBuf>> = postgres.file("ssl_crl_dir").and_then(|folder| {
        let list =
            |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
        owner.act(|| list(folder)).ok()
    });
    files.extend(lists.unwrap_or_default());
    let conninfo = postgres.setting("primary_conninfo");
    let named = conninfo.split_whitespace().find_map(|word| word.strip_prefix("sslcert="));
    files.extend(named.map(|path| PathBuf::from(path.trim_matches('\''))));
    files.sort();
    files.dedup();
    files.into_iter().map(|file| look(&file, Some(owner), config, now)).collect()
}

/// Those of the configuration.
pub fn of_configuration(config: &Config, now: i64) -> Vec<Watched> {
    config.tls.watch.iter().map(|file| look(file, None, config, now)).collect()
}

fn look(path: &Path, owner: Option<&Owner>, config: &Config, now: i64) -> Watched {
    let read = || std::fs::canonicalize(path).and_then(|path| state::read(&path, LIMIT));
    let read = match owner {
        Some(owner) => owner.act(read).map_err(|e| e.message).and_then(|read| read.map_err(|e| e.to_string())),
        None => read().map_err(|e| e.to_string()),
    };
    let found = read.and_then(|text| Validity::parse(&text));
    let (status, message) = match &found {
        Err(why) => (Status::Warning, format!("cannot be read: {why}")),
        Ok(validity) => judge(validity, config, now),
    };
    Watched { path: path.into(), status, message, validity: found.ok() }
}

pub fn judge(validity: &Validity, config: &Config, now: i64) -> (Status, String) {
    let (left, subject) = (validity.until - now, &validity.subject);
    let days = format!("{subject}, {} days are left", left / 86_400);
    match validity.left(now, config.health.certificate_warn, config.health.certificate_fail) {
        Left::NotYet => (Status::Critical, format!("{subject} is not valid yet")),
        Left::Nothing => (Status::Critical, format!("{subject} expired {} days ago", -left / 86_400)),
        Left::Least => (Status::Critical, days),
        Left::Little => (Status::Warning, days),
        Left::Enough => (Status::Ok, days),
    }
}
