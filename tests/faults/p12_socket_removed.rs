//! P12: somebody tidies up /run/postgresql under a running server: socket clients fail, TCP goes on, the log is silent.

use crate::Host;

/// Removes the socket.
pub fn inject(host: &Host) {
    host.file("/run/postgresql/.s.PGSQL.5432").remove();
}

/// Removes the whole directory.
pub fn inject_with_its_directory(host: &Host) {
    host.sh("rm -r /run/postgresql");
}

/// Removes the socket and every other name of it, as on a host where there was none.
pub fn inject_without_a_second_name(host: &Host) {
    host.sh("rm /run/pg-recovery-socket/* /run/postgresql/.s.PGSQL.5432");
}
