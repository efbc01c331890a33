//! The recovery points as a person meets them: list, show, make one.

use serde_json::json;
use shared::args::Args;
use shared::cluster::Cluster;
use shared::config::Config;
use shared::exit::Code;
use shared::point::{self, Copy, Manifest, Part};
use shared::{Error, Result, log};

use crate::change::{self, Goal, Level};
use crate::server::Server;
use crate::units;

pub fn list(words: &[String], args: &Args) -> Result<Code> {
    if let Some(word) = words.first() {
        return Err(Error::usage(format!("unexpected argument \"{word}\"")).hint("Try --help."));
    }
    let points = point::all(&args.clusters)?;
    if args.json {
        log::print(&format!("{}\n", json!({ "points": points.iter().map(document).collect::<Vec<_>>() })))?;
        return Ok(Code::Ok);
    }
    if points.is_empty() {
        log::print("no recovery point yet; pg-watchdog makes the first when a cluster has started\n")?;
    }
    for point in &points {
        let files = if point.files.len() == 1 { "file" } else { "files" };
        log::print(&format!(
            "{}  {}  {:6}  {:2} {files}  {}\n",
            point.id,
            point.cluster,
            point.kind,
            point.files.len(),
            point.why
        ))?;
    }
    Ok(Code::Ok)
}

fn document(point: &Manifest) -> serde_json::Value {
    let files: Vec<_> = point
        .files
        .iter()
        .map(|f| json!({ "path": f.path, "sha256": f.sha256, "mode": format!("{:04o}", f.mode) }))
        .collect();
    json!({
        "id": point.id, "cluster": point.cluster, "kind": point.kind, "at": point.at.rfc3339(), "why": point.why,
        "files": files,
    })
}

/// What going back to one of them would change.
pub fn show(words: &[String], clusters: &[Cluster], config: &Config, args: &Args) -> Result<Code> {
    let [id] = words else {
        return Err(Error::usage("show takes the ID of one recovery point").hint("pg-rollback list has them all."));
    };
    let (manifest, copies) = point::find(id)?;
    let cluster = of(&manifest, clusters)?;
    let goal = Goal { id: id.clone(), copies, whole: manifest.made.is_empty() };
    let changes = change::changes(cluster, &goal, Level::All, &[], false)?;
    let roles = roles(cluster, config, &goal.copies);
    if args.json {
        let changes: Vec<_> = changes.iter().map(|c| json!({ "path": c.path, "change": c.describe() })).collect();
        log::print(&format!("{}\n", json!({ "point": document(&manifest), "changes": changes, "roles": roles })))?;
        return Ok(Code::Ok);
    }
    log::print(&format!("{id}: cluster {}, {}, {}\n", manifest.cluster, manifest.at.rfc3339(), manifest.why))?;
    for copy in &goal.copies {
        let is_changed = changes.iter().any(|change| change.path == copy.path);
        if !is_changed && matches!(copy.part, Part::Server | Part::Start) {
            log::print(&format!("as it is now: {}\n", copy.path.display()))?;
        }
    }
    for change in &changes {
        log::print(&format!("{}\n", change.describe()))?;
    }
    if let Some(roles) = roles {
        log::print(&format!("roles, which no level puts back, differ:\n{roles}\n"))?;
    }
    Ok(Code::Ok)
}

/// How the roles differ that the server has now; `None`: they do not, or nobody knows.
fn roles(cluster: &Cluster, config: &Config, copies: &[Copy]) -> Option<String> {
    let then = copies.iter().find(|copy| copy.part == Part::Roles)?;
    let now = Server::find(cluster, config)?.roles()?;
    (now.bytes != then.bytes).then(|| point::difference(&now.bytes, &then.bytes))
}

/// The cluster that a point is of.
pub fn of<'a>(manifest: &Manifest, clusters: &'a [Cluster]) -> Result<&'a Cluster> {
    if manifest.cluster == point::HOST {
        let what = format!("recovery point {} is of the units of this package, and of no cluster", manifest.id);
        return Err(Error::usage(what).hint(format!("pg-rollback monitoring {} --plan", manifest.id)));
    }
    clusters.iter().find(|cluster| cluster.name() == manifest.cluster).ok_or_else(|| {
        Error::usage(format!("recovery point {} is of cluster {}", manifest.id, manifest.cluster))
            .hint("pg-rollback list names the cluster of each; pg_lsclusters those of this host.")
    })
}

pub fn make(why: &str, clusters: &[Cluster], config: &Config) -> Result<Code> {
    let why = if why.is_empty() { "no reason given" } else { why };
    // Of use to what was installed otherwise as well.
    let ours = units::ours().unwrap_or_default();
    for cluster in clusters {
        let mut now = change::now(cluster)?;
        now.extend(ours.iter().cloned());
        now.extend(Server::find(cluster, config).and_then(|server| server.roles()));
        let id = point::save(cluster, "asked", why, &now)?;
        log::print(&format!("{id}\n"))?;
    }
    Ok(Code::Ok)
}
