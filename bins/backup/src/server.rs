//! What has to be known of a running server, asked in one go.

use std::path::PathBuf;
use std::time::Duration;

use shared::client::{Refusal, Rows, Session, Target, runtime};
use shared::cluster::Cluster;
use shared::control::Lsn;
use shared::exit::Code;
use shared::pidfile::{LockFile, PidFile};
use shared::{Error, Result};

/// Name of our replication slot.
pub const SLOT: &str = "pg_recovery";
pub use shared::backup::STREAM;

const CONNECT: Duration = Duration::from_secs(5);
/// Adding up the sizes of very many files takes its time.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Server {
    pub version: u32,
    pub is_standby: bool,
    pub system: u64,
    pub timeline: u32,
    pub segment_size: u64,
    pub block_size: u32,
    pub lsn: Lsn,
    pub standby_names: String,
    /// It can tell what has changed since an earlier backup (PostgreSQL 17, `summarize_wal`).
    pub summarizes: bool,
    pub slot: Option<Slot>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slot {
    /// `None`: the server has given it up (max_slot_wal_keep_size).
    pub restart: Option<Lsn>,
    /// WAL in bytes that it keeps back.
    pub kept: u64,
}

const FACTS: &str = "
SELECT current_setting('server_version_num'), pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system()),
    CASE WHEN pg_is_in_recovery() THEN '1' ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int::text END,
    pg_size_bytes(current_setting('wal_segment_size')), current_setting('wal_block_size'),
    CASE WHEN pg_is_in_recovery() THEN '0/0' ELSE pg_current_wal_lsn() END,
    current_setting('synchronous_standby_names'), slot.restart_lsn,
    CASE WHEN pg_is_in_recovery() THEN 0 ELSE pg_wal_lsn_diff(pg_current_wal_lsn(), slot.restart_lsn) END, slot.slot_name,
    coalesce(current_setting('summarize_wal', true), 'off')
FROM (VALUES (1)) one LEFT JOIN pg_replication_slots slot ON slot.slot_name = 'pg_recovery' AND slot.slot_type = 'physical'";

impl Server {
    pub fn ask(cluster: &Cluster) -> Result<Server> {
        let unexpected = || Error::failed(format!("cluster {} gives an unexpected answer", cluster.name()));
        let rows = query(cluster, FACTS)?;
        let row = rows.first().ok_or_else(unexpected)?;
        let text = |column: usize| row.get(column).and_then(Option::as_deref).unwrap_or_default();
        let number = |column: usize| text(column).parse::<u64>().map_err(|_| unexpected());
        Ok(Server {
            version: number(0)? as u32 / 10_000,
            is_standby: text(1) == "t",
            system: number(2)?,
            timeline: number(3)? as u32,
            segment_size: number(4)?,
            block_size: number(5)? as u32,
            lsn: Lsn::parse(text(6)).ok_or_else(unexpected)?,
            standby_names: text(7).into(),
            summarizes: text(11) == "on",
            slot: (text(10) == SLOT).then(|| Slot { restart: Lsn::parse(text(8)), kept: text(9).parse().unwrap_or(0) }),
        })
    }

    /// Whoever reads with a slot tells the server what it has flushed, and may then be taken for a synchronous standby by a
    /// list that names everybody: commits would wait for the end of each segment (receivelog.c, reportFlushPosition).
    pub fn would_wait_for_us(&self) -> bool {
        ["*", STREAM, "pg_basebackup"].iter().any(|name| self.standby_names.contains(name))
    }
}

/// Bytes of all databases.
pub fn size(cluster: &Cluster) -> Result<u64> {
    let rows = query(cluster, "SELECT sum(pg_tablespace_size(oid)) FROM pg_tablespace")?;
    let size = rows.first().and_then(|row| row.first()?.as_ref()?.parse().ok());
    size.ok_or_else(|| Error::failed(format!("could not tell how large cluster {} is", cluster.name())))
}

/// The socket of the server that runs, else the configured one.
pub fn socket(cluster: &Cluster) -> (PathBuf, u16) {
    cluster.socket(running(cluster).as_ref())
}

fn running(cluster: &Cluster) -> Option<PidFile> {
    match cluster.lock_file().0 {
        LockFile::Present(file) => Some(file),
        _ => None,
    }
}

pub fn query(cluster: &Cluster, sql: &str) -> Result<Rows> {
    let target = Target::of(cluster, running(cluster).as_ref(), "postgres", "pg-backup");
    ask(&target, sql)
        .map_err(|why| Error::with(Code::Unavailable, format!("cluster {} gives no answer: {why}", cluster.name())))
}

pub fn ask(target: &Target, sql: &str) -> Result<Rows, Refusal> {
    let runtime = runtime().map_err(|e| Refusal::Broken(e.to_string()))?;
    runtime.block_on(async { Session::connect(target, CONNECT).await?.query(sql, PATIENCE).await })
}

/// Asks what somebody else has written, who may not change anything with it; the server ends it after its time too.
pub fn read_only(target: &Target, sql: &str, patience: Duration) -> Result<Rows, Refusal> {
    let runtime = runtime().map_err(|e| Refusal::Broken(e.to_string()))?;
    let set = format!("SET default_transaction_read_only = on; SET statement_timeout = {}", patience.as_millis());
    runtime.block_on(async {
        let session = Session::connect(target, CONNECT).await?;
        session.query(&set, CONNECT).await?;
        session.query(sql, patience + CONNECT).await
    })
}
