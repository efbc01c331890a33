//! S15: a file of a table is shorter than it was, as after a file system check. A scan finds fewer rows and no fault; only an index
//! that leads to a missing page meets one.

use crate::Host;

use super::s12_damaged_page::{file_of, while_stopped};

/// Cuts the file of this table after one page.
pub fn inject(host: &Host, table: &str) {
    let path = file_of(host, table);
    while_stopped(host, &format!("truncate -s 8192 {path}"));
}
