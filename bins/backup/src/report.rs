//! What there is, for people and as JSON.

use serde_json::json;
use shared::clock::Stamp;
use shared::cluster::Cluster;
use shared::config::Config;
use shared::control::Lsn;
use shared::exit::Code;
use shared::{Result, log};

use crate::pgbackrest;
use crate::store::{Base, Store, Verdict};

/// Reads names only: `verify` reads what is in the files.
pub fn list(clusters: &[Cluster], config: &Config, as_json: bool) -> Result<Code> {
    let mut text = String::new();
    let mut documents = Vec::new();
    for cluster in clusters {
        let store = Store::of(cluster)?;
        let stanza = pgbackrest::refresh(cluster, &store, config);
        let with_wal = |base: Base| match &base.info.pgbackrest {
            Some(_) => {
                let archived = stanza.as_ref().and_then(|stanza| stanza.archived_to(&base.info));
                let end = archived.map_or(base.info.end, |end| end.max(base.info.end));
                (base, end, false)
            }
            None => with_wal(&store, base),
        };
        let backups: Vec<(Base, Lsn, bool)> = store.bases().into_iter().map(with_wal).collect();
        if as_json {
            let backups: Vec<_> = backups.iter().map(|(base, end, gap)| document(base, *end, *gap)).collect();
            documents.push(json!({ "cluster": cluster.name(), "backups": backups }));
            continue;
        }
        text.push_str(&format!(
            "cluster {}: {}\n",
            cluster.name(),
            match backups.len() {
                0 => "no backup".to_string(),
                count => format!("{count} in {}", store.path.display()),
            }
        ));
        for (base, end, gap) in &backups {
            text.push_str(&line(base, *end, *gap, &Stamp::now()));
        }
    }
    log::print(&if as_json { json!({ "clusters": documents }).to_string() + "\n" } else { text })?;
    Ok(Code::Ok)
}

/// With how far WAL goes on without a gap, as far as its names tell.
fn with_wal(store: &Store, base: Base) -> (Base, Lsn, bool) {
    let info = &base.info;
    let wal = store.wal(info.system, info.timeline, info.segment_size);
    let first = info.end.0 / info.segment_size.max(1);
    let end = Lsn(info.end.0.max(wal.complete_from(first) * info.segment_size));
    let gap = wal.gap_from(first).is_some();
    (base, end, gap)
}

fn document(base: &Base, end: Lsn, gap: bool) -> serde_json::Value {
    let verdict = |verdict: &Option<Verdict>| {
        verdict
            .as_ref()
            .map(|v| json!({ "at": v.at.rfc3339(), "good": v.error.is_none(), "error": v.error, "seconds": v.seconds }))
    };
    let info = &base.info;
    json!({
        "id": base.id, "started": info.started.rfc3339(), "finished": info.finished.rfc3339(), "bytes": info.bytes,
        "timeline": info.timeline, "start_lsn": info.start.to_string(), "end_lsn": info.end.to_string(),
        "wal_to": end.to_string(), "wal_gap": gap, "good": info.is_good(),
        "verified": verdict(&info.verified), "drilled": verdict(&info.drilled), "encrypted": info.encrypted,
        "kind": if info.parent.is_some() { "incremental" } else { "full" }, "parent": info.parent,
        "pgbackrest": info.pgbackrest,
    })
}

fn line(base: &Base, end: Lsn, gap: bool, now: &Stamp) -> String {
    let info = &base.info;
    let verdict = |what: &str, verdict: &Option<Verdict>| match verdict {
        None => format!("not {what}"),
        Some(Verdict { error: Some(why), .. }) => format!("NOT GOOD when {what}: {why}"),
        Some(Verdict { at, seconds, .. }) => {
            let took = seconds.map(|seconds| format!(", restore takes {seconds:.0} s")).unwrap_or_default();
            format!("{what} {} h ago{took}", now.since(at).as_secs() / 3600)
        }
    };
    format!(
        "  {}  {:>7} MB  WAL {} to {}{}  {}, {}{}{}{}\n",
        base.id,
        info.bytes >> 20,
        info.start,
        end,
        if gap { " (then a gap)" } else { "" },
        verdict("verified", &info.verified),
        verdict("drilled", &info.drilled),
        if info.encrypted { ", encrypted" } else { "" },
        crate::now::upon(info),
        info.pgbackrest.as_ref().map(|set| format!("  pgBackRest {}", set.label)).unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Info;

    #[test]
    fn a_line_says_whether_it_is_proven() {
        let at = |wall| Stamp { wall, ..Stamp::default() };
        let mut info = Info {
            bytes: 5 << 20,
            verified: Some(Verdict { at: at(3600.0), ..Verdict::default() }),
            ..Info::default()
        };
        let line = |info: &Info| {
            let base = Base { id: "x".into(), path: "/x".into(), info: info.clone() };
            super::line(&base, Lsn(0x3000000), true, &at(4.0 * 3600.0))
        };
        let text = line(&info);
        assert!(
            text.contains("5 MB") && text.ends_with("to 0/3000000 (then a gap)  verified 3 h ago, not drilled\n"),
            "{text}"
        );
        info.drilled = Some(Verdict { error: Some("WAL".into()), ..Verdict::default() });
        assert!(line(&info).ends_with("NOT GOOD when drilled: WAL\n"));
    }
}
