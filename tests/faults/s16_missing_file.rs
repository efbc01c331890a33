//! S16: the file of a table is removed ("old files" tidied away). A server that starts says nothing about it.
use std::time::Duration;

use crate::Host;

use super::s12_damaged_page::{file_of, make_goods, while_stopped};
use super::{End, Staged};

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "S16",
    name: "file of a table missing",
    imitates: "\"old files\" tidied away",
    is_not: "a table that was dropped",
    prepare: |host| Box::new(make_goods(host)),
    inject: |host, _| {
        inject(host, "goods");
        host.wait_until_accepting(Duration::from_secs(60));
        Box::new(())
    },
    end: End::Told("files", "critical"),
    deadline: Duration::from_secs(300),
}];

/// Moves the file of this table out of the data directory. Returns its path, and where it is now.
pub fn inject(host: &Host, table: &str) -> (String, String) {
    let path = file_of(host, table);
    let away = format!("/var/lib/postgresql/{table}.away");
    while_stopped(host, &format!("mv {path} {away}"));
    (path, away)
}
