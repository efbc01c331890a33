//! H1: the wall clock jumps: a battery that is flat, a wrong time server, a guest that was restored. The machines of these
//! tests have the clock of the computer they run on, so only the programs of the package are lied to, by a library.

use crate::Host;

const LIBRARY: &str = "/usr/lib/clock.so";
const OFFSET: &str = "/usr/lib/clock-offset";
const UNITS: [&str; 4] = ["pg-watchdog", "pg-recovery", "pg-health-check", "pg-backup"];

/// A year, in seconds.
pub const YEAR: i64 = 365 * 86_400;

/// Has the units of the package ask the library; pg-watchdog is started anew.
pub fn prepare(host: &Host) {
    host.install_library(LIBRARY, include_str!("h1_clock_jump.c"));
    for unit in UNITS {
        host.file(&format!("/etc/systemd/system/{unit}.service.d/clock.conf"))
            .write(format!("[Service]\nEnvironment=LD_PRELOAD={LIBRARY}\n"));
    }
    inject(host, 0);
    host.sh("systemctl daemon-reload && systemctl restart pg-watchdog");
}

/// The clock is off by so many seconds from now on.
pub fn inject(host: &Host, seconds: i64) {
    host.file(OFFSET).write(seconds.to_string());
}

/// A command of the package that is lied to as well.
pub fn of(command: &str) -> String {
    format!("LD_PRELOAD={LIBRARY} {command}")
}

/// The same, in a unit as pg-watchdog is one: only there both see the same boot_id, which systemd-nspawn gives a machine of
/// its own and systemd 252 does not show to units with a /proc/sys that they cannot write.
pub fn unit_of(command: &str) -> String {
    format!("systemd-run --quiet --pipe --wait -p ProtectKernelTunables=yes --setenv=LD_PRELOAD={LIBRARY} {command}")
}
