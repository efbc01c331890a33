//! O1: the package manager is at work, as long as its lock is held.

use std::time::Duration;

use crate::Host;

/// Holds the lock as dpkg does, by fcntl on its file, for ten minutes or until it is ended. Returns who does.
pub fn inject(host: &Host) -> i32 {
    let perl = "use Fcntl; open F, '>', '/var/lib/dpkg/lock'; my $lock = pack('s s x4 q q i x4', F_WRLCK, 0, 0, 0, 0); \
                fcntl(F, F_SETLK, $lock) or die; sleep 600";
    host.file("/locker.pl").write(perl);
    let locker = host.run_as_unit("locker", "root", "exec perl /locker.pl");
    host.wait_until("the lock is held", Duration::from_secs(60), || {
        host.run(&format!("grep -q 'POSIX.* {locker} ' /proc/locks")).success()
    });
    locker
}
