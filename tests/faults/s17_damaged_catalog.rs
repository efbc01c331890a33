//! S17: a system catalog, or the map to the catalogs, is damaged: nobody can log in to that database, and pg_isready is content.
use std::time::Duration;

use crate::Host;

use super::s12_damaged_page::while_stopped;
use super::{End, Staged};

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "S17",
    name: "system catalog damaged",
    imitates: "a controller that wrote something else there",
    is_not: "a table of a user (S12)",
    prepare: |host| Box::new(host.psql("CREATE DATABASE other")),
    inject: |host, _| Box::new(inject(host)),
    end: End::OnRecord("manual", 0),
    deadline: Duration::from_secs(180),
}];

/// Damages `pg_class` of the database postgres. Others are served on.
pub fn inject(host: &Host) {
    super::s12_damaged_page::inject(host, "pg_class", 0);
}

/// Damages the map to the catalogs of the database postgres.
pub fn inject_map(host: &Host) {
    let folder = host.psql("SELECT oid FROM pg_database WHERE datname = 'postgres'");
    let map = format!("{}/base/{folder}/pg_filenode.map", host.data_directory());
    host.psql("CHECKPOINT");
    while_stopped(host, &format!("printf x | dd of={map} bs=1 seek=100 conv=notrunc status=none"));
}
