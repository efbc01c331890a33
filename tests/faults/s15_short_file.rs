//! S15: a file of a table is shorter than it was, as after a file system check. A scan finds fewer rows and no fault; only an index
//! that leads to a missing page meets one.
use std::time::Duration;

use crate::Host;

use super::s12_damaged_page::{file_of, make_goods, while_stopped};
use super::{End, Staged};

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "S15",
    name: "file of a table cut short",
    imitates: "a file system check",
    is_not: "a table that VACUUM has made smaller, or has looked at since: it takes the new length for the right one",
    prepare: |host| Box::new(make_goods(host)),
    inject: |host, _| {
        inject(host, "goods");
        host.wait_until_accepting(Duration::from_secs(60));
        Box::new(())
    },
    end: End::Told("files", "warning"),
    deadline: Duration::from_secs(300),
}];

/// Cuts the file of this table after one page.
pub fn inject(host: &Host, table: &str) {
    let path = file_of(host, table);
    while_stopped(host, &format!("truncate -s 8192 {path}"));
}
