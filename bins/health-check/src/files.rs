//! Files of tables and indexes that are missing, or shorter than the catalog says, before anybody meets it: a scan of a table that
//! lost its end finds fewer rows and no fault, no checksum is wrong, and the next rows are put where the lost ones were.
//!
//! One database a pass. `pg_class.relpages` is a page count that VACUUM, ANALYZE and CREATE INDEX leave (manual, 53.11), and VACUUM
//! cuts a file before it notes that it did: so what is short is looked at again in the next pass before it is told, and told as a
//! warning, for a VACUUM that was broken off between the two leaves the same.

use shared::client::{Refusal, Session};
use shared::cluster::Cluster;
use shared::health::{Files, Suspect};
use shared::meaning;

use crate::probe::Questions;
use crate::score::Finding;

// datconnlimit -2 marks a database that a DROP DATABASE did not finish with (manual, 53.15).
const DATABASES: &str = "SELECT oid, datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY oid";

// The owner of a database may have set a search_path in which functions of his own come first. No lock is taken: a function that
// takes one would wait for whoever rewrites the table. What is not flushed at a commit (unlogged) is emptied by a crash.
const SHORT: &str = "SET statement_timeout = '10s'; SET search_path = pg_catalog; \
     SELECT format('%I.%I', nspname, relname), file, wanted, size FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace, \
     (SELECT current_setting('block_size')::bigint AS block, setting::bigint AS segment FROM pg_settings WHERE name = 'segment_size') p, \
     LATERAL (SELECT pg_relation_filepath(c.oid) || CASE WHEN k > 0 THEN '.' || k ELSE '' END AS file, \
     least(segment, relpages - k * segment) * block AS wanted FROM generate_series(0, (relpages - 1) / segment) k) f, \
     LATERAL (SELECT (pg_stat_file(file, true)).size) s \
     WHERE relkind IN ('r', 'i', 't', 'm', 'S') AND relpersistence = 'p' AND relpages > 0 AND file IS NOT NULL \
     AND coalesce(size, -1) < wanted ORDER BY size IS NOT NULL, wanted DESC LIMIT 10";

/// The smallest page that a server can be built with.
const SMALLEST_BLOCK: u64 = 1024;

/// What is wrong in one database.
#[derive(Debug)]
pub struct Survey {
    /// Of all databases, by oid.
    databases: Vec<u32>,
    database: u32,
    found: Vec<Suspect>,
}

/// Looks at the next database; `None` when it does not answer, which other checks tell.
pub async fn survey(session: &Session, questions: &Questions) -> Result<Survey, Refusal> {
    let budget = questions.budget;
    let rows = session.query(DATABASES, budget.left()).await?;
    let databases: Vec<(u32, String)> = rows
        .into_iter()
        .filter_map(|row| Some((row.first()?.as_deref()?.parse().ok()?, row.get(1)?.clone()?)))
        .collect();
    let next = databases.iter().find(|(oid, _)| *oid >= questions.files_from).or(databases.first());
    let Some((database, name)) = next.cloned() else { return Err(Refusal::Broken("there is no database".into())) };
    let target = shared::client::Target { database: name.clone(), ..questions.socket.clone() };
    let there = Session::connect(&target, budget.left()).await?;
    let found = there.query(SHORT, budget.left()).await?.into_iter().filter_map(|row| {
        let text = |column: usize| row.get(column)?.as_deref();
        Some(Suspect {
            database,
            relation: format!("{} of database {name}", text(0)?),
            file: text(1)?.into(),
            wanted: text(2)?.parse().ok()?,
            size: text(3).and_then(|size| size.parse().ok()),
            passes: 1,
        })
    });
    Ok(Survey { databases: databases.iter().map(|(oid, _)| *oid).collect(), database, found: found.collect() })
}

/// Where the next survey begins: at the same database while something in it has been seen once.
pub fn next(files: &Files) -> u32 {
    let again = files.suspects.iter().any(|suspect| suspect.database == files.database && suspect.passes == 1);
    if again { files.database } else { files.database.saturating_add(1) }
}

/// Keeps what was found, and forgets what is well again or gone.
pub fn note(files: &mut Files, survey: Survey) {
    let Survey { databases, database, mut found } = survey;
    for suspect in &mut found {
        let is_it =
            |old: &&Suspect| old.file == suspect.file && old.wanted == suspect.wanted && old.size == suspect.size;
        suspect.passes += files.suspects.iter().find(is_it).map_or(0, |old| old.passes);
    }
    files.database = database;
    files.suspects.retain(|old| old.database != database && databases.contains(&old.database));
    files.suspects.append(&mut found);
}

pub fn judge(cluster: &Cluster, files: &Files) -> Finding {
    let Some((class, is_sure, what)) = worst(files) else {
        return Finding::ok("files", "no file of a table or index is missing or short");
    };
    let (means, advice) = meaning::of(class).map_or(("", String::new()), |row| (row.means, row.advice(cluster)));
    let text = format!("{means} ({class}): {what}. {advice}");
    if is_sure {
        return Finding::critical("files", text);
    }
    let doubt = "Compare count(*) with what should be there before a VACUUM or ANALYZE makes the catalog forget: a VACUUM that was \
                 broken off at the wrong moment leaves the same without a loss.";
    Finding::warning("files", format!("{text} {doubt}"))
}

/// Its class, whether nothing but damage can have done it, and what it is.
fn worst(files: &Files) -> Option<(&'static str, bool, String)> {
    let mut again: Vec<&Suspect> = files.suspects.iter().filter(|suspect| suspect.passes > 1).collect();
    // A catalog that all databases share is found in each of them.
    again.sort_by_key(|suspect| (suspect.size.is_some(), &suspect.file));
    again.dedup_by_key(|suspect| &suspect.file);
    let Suspect { relation, file, wanted, size, .. } = again.first()?;
    let more = if again.len() > 1 { format!(" (and {} more)", again.len() - 1) } else { String::new() };
    Some(match size {
        None => ("S16", true, format!("{file} of {relation} is not there{more}")),
        // No server leaves a part of a page.
        Some(size) => (
            "S15",
            size % SMALLEST_BLOCK != 0,
            format!("{file} of {relation} has {size} bytes, and had {wanted}{more}"),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suspect(database: u32, file: &str, size: Option<u64>) -> Suspect {
        Suspect { database, relation: "t".into(), file: file.into(), wanted: 16384, size, passes: 1 }
    }

    /// Whether something is told, and for sure.
    fn look(files: &mut Files, database: u32, found: Vec<Suspect>) -> Option<bool> {
        note(files, Survey { databases: vec![1, 5, 7], database, found });
        worst(files).map(|(_, is_sure, _)| is_sure)
    }

    #[test]
    fn what_is_short_is_told_when_it_is_so_again_and_until_it_is_not() {
        let mut files = Files::default();
        assert_eq!(next(&files), 1);
        assert_eq!(look(&mut files, 1, vec![]), None);
        assert_eq!(next(&files), 2);
        assert_eq!(look(&mut files, 5, vec![suspect(5, "base/5/9", Some(8192))]), None);
        assert_eq!(next(&files), 5, "it is looked at again");
        assert_eq!(look(&mut files, 5, vec![suspect(5, "base/5/9", Some(8192))]), Some(false));
        assert_eq!(next(&files), 6);
        assert_eq!(look(&mut files, 7, vec![]), Some(false), "nobody has looked there again");
        assert_eq!(look(&mut files, 5, vec![suspect(5, "base/5/9", Some(0))]), None, "VACUUM is still at it");
        assert_eq!(look(&mut files, 5, vec![]), None);
    }

    #[test]
    fn a_missing_file_and_a_part_of_a_page_are_no_doing_of_the_server() {
        for size in [None, Some(8191)] {
            let mut files = Files::default();
            look(&mut files, 5, vec![suspect(5, "base/5/9", size)]);
            assert_eq!(look(&mut files, 5, vec![suspect(5, "base/5/9", size)]), Some(true));
            assert_eq!(look(&mut files, 7, vec![]), Some(true));
            note(&mut files, Survey { databases: vec![1, 7], database: 7, found: vec![] });
            assert!(files.suspects.is_empty(), "the database is gone");
        }
    }
}
