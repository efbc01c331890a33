//! The proof: clients are served again (V1), and nothing that was flushed is lost (V2).

use std::time::Duration;

use crate::client::{Address, Session, Target, retry, runtime};
use crate::cluster::Cluster;
use crate::control::Lsn;
use crate::evidence::Evidence;
use crate::pidfile::LockFile;
use crate::port;

const PATIENCE: Duration = Duration::from_secs(5);

pub enum Unproven {
    /// It does not serve clients as it should; another try may help.
    Silent(String),
    /// It serves other data than it had.
    Lost(String),
}

/// What was seen of a server that is well.
pub struct Proof {
    /// It committed, or is a standby; if not, our role is not let in, which says nothing about others.
    pub let_in: bool,
    pub message: String,
}

/// Proves it as `target` sees it. `recorded` is what was known before anything was done.
pub fn verify(cluster: &Cluster, target: &Target, recorded: Option<&Evidence>) -> Result<Proof, Unproven> {
    let failed = |what: &str, why: &dyn std::fmt::Display| Unproven::Silent(format!("{what}: {why}"));
    let runtime = runtime().map_err(|why| failed("no runtime", &why))?;
    let proof = runtime.block_on(async {
        let session = match retry(|| Session::connect(target, PATIENCE)).await {
            Ok(session) => session,
            Err(why) if why.is_ours_alone() => {
                let message = format!("it answers; no commit was tried, because {why}");
                return Ok(Proof { let_in: false, message });
            }
            Err(why) => return Err(failed("no fresh connection", &why)),
        };
        let sql = "SELECT pg_is_in_recovery(), system_identifier, timeline_id, \
                   CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END \
                   FROM pg_control_system(), pg_control_checkpoint()";
        let rows = session.query(sql, PATIENCE).await.map_err(|e| failed("no answer to a query", &e))?;
        let value = |index: usize| rows.first().and_then(|row| row.get(index).cloned().flatten()).unwrap_or_default();
        let (standby, identifier, timeline) = (value(0) == "t", value(1), value(2));
        let lsn = Lsn::parse(&value(3)).unwrap_or_default();
        if !standby {
            // A transaction that changes no data and has to be flushed like any other: a logical message
            // (manual, 9.28.6). A synchronous standby that is away is another matter, and would keep it waiting.
            let commit = "SET synchronous_commit = local; SELECT pg_logical_emit_message(true, 'pg-recover', 'verify')";
            session.query(commit, PATIENCE).await.map_err(|e| failed("no commit", &e))?;
        }
        let deaf = match cluster.lock_file().0 {
            LockFile::Present(file) => port::others(cluster, file.pid),
            _ => Vec::new(),
        };
        for address in cluster.tcp_addresses() {
            let target = Target { address: Address::Tcp(address.clone(), cluster.port()), ..target.clone() };
            match Session::connect(&target, PATIENCE).await {
                // Another start would not get that address either.
                Err(refusal) if !refusal.is_answer() && deaf.is_empty() => {
                    return Err(failed(&format!("no answer on {address}"), &refusal));
                }
                _ => {}
            }
        }
        if let Some(evidence) = recorded {
            if evidence.system_identifier.to_string() != identifier {
                return Err(Unproven::Lost(format!(
                    "this is another cluster: system identifier {identifier}, recorded was {}",
                    evidence.system_identifier
                )));
            }
            let same_history = !standby && !evidence.standby && timeline == evidence.timeline.to_string();
            if same_history && lsn < evidence.flush_lsn {
                return Err(Unproven::Lost(format!(
                    "it runs with WAL that ends at {lsn}, but {} had been flushed: commits are missing",
                    evidence.flush_lsn
                )));
            }
        }
        let message = if standby {
            format!("it is let in and answered; standby, replayed to {lsn}")
        } else {
            format!("it is let in, answered and commits; WAL at {lsn}")
        };
        Ok(Proof { let_in: true, message })
    });
    // A name that is still being looked up must not keep the run from its end.
    runtime.shutdown_background();
    proof
}
