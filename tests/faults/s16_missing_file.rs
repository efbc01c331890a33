//! S16: the file of a table is removed ("old files" tidied away). A server that starts says nothing about it.

use crate::Host;

use super::s12_damaged_page::{file_of, while_stopped};

/// Moves the file of this table out of the data directory. Returns its path, and where it is now.
pub fn inject(host: &Host, table: &str) -> (String, String) {
    let path = file_of(host, table);
    let away = format!("/var/lib/postgresql/{table}.away");
    while_stopped(host, &format!("mv {path} {away}"));
    (path, away)
}
