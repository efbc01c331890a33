//! P12: somebody tidies up /run/postgresql under a running server: socket clients fail, TCP goes on, the log is silent.

use crate::Host;

/// Removes the socket.
pub fn inject(host: &Host) {
    host.file("/run/postgresql/.s.PGSQL.5432").remove();
}
