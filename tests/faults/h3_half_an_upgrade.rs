//! H3: an upgrade was broken off, and a library is not of the version of the server that loads it.

use std::time::Duration;

use super::{End, Staged};
use crate::Host;

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "H3",
    name: "library of another build, and the postmaster killed",
    imitates: "an upgrade of packages that was broken off",
    is_not: "a library that is missing, whose setting is put back (C3)",
    prepare: |host| Box::new(prepare(host)),
    inject: |host, _| Box::new(inject(host)),
    end: End::OnRecord("manual", 3),
    deadline: Duration::from_secs(60),
}];

/// Has the server load an extension that comes with it.
fn prepare(host: &Host) {
    host.psql("ALTER SYSTEM SET shared_preload_libraries = 'auto_explain'");
    host.sh(&format!("systemctl restart {}", host.unit()));
    host.wait_until_accepting(Duration::from_secs(60));
}

/// Replaces its library by one that was not built for any server.
fn inject(host: &Host) {
    let library = format!("/usr/lib/postgresql/{}/lib/auto_explain.so", host.version());
    // A new file: the one that the server has loaded stays as it is.
    host.sh(&format!("mv {library} {library}.old"));
    host.install_library(&library, "int of_another_build;");
    host.sh(&format!("kill -KILL {}", host.postmaster_pid()));
}
