//! T4: a command that our programs need does not come back, as on a bus that is stuck or a disk that gives no answer.

use crate::Host;

/// From now on this program sleeps when one of ours calls it; for everybody else it works as before.
pub fn inject(host: &Host, program: &str) {
    let (folder, name) = program.rsplit_once('/').expect("a path");
    // In a folder of its own, because a postmaster is known by the name of its executable.
    host.sh(&format!("mkdir {folder}/real && mv {program} {folder}/real/"));
    host.file(program).write(format!(
        "#!/bin/sh\ncase $(cat /proc/$PPID/comm) in pg-*) exec sleep 1000 ;; esac\nexec {folder}/real/{name} \"$@\"\n"
    ));
    host.sh(&format!("chmod 755 {program}"));
}

/// What kept it is gone.
pub fn end(host: &Host, program: &str) {
    let (folder, name) = program.rsplit_once('/').expect("a path");
    host.sh(&format!("mv {folder}/real/{name} {program} && rmdir {folder}/real"));
}
