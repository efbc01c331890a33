//! C6: the certificate that a server serves has expired; only clients that verify it notice.
use std::time::Duration;

use super::{End, Staged, c5_tls_key};
use crate::{Authority, Host, Issued};

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[
    Staged {
        class: "C6",
        name: "certificate that has expired, of a cluster whose configuration says who signs a new one",
        imitates: "a host that was off, or a timer that somebody stopped",
        is_not: "a key that does not belong to its certificate, with which no server starts (C5)",
        prepare: |host| {
            host.configure(&format!(
                "[health]\nmax_failures = 1\n[[tls.certificate]]\nname = \"{}\"\nsource = \"ca\"\nnames = [\"localhost\"]\n",
                host.cluster()
            ));
            prepare(host);
            Box::new(())
        },
        inject: |host, _| Box::new(inject(host, &Authority::self_signed(&["localhost"], -90, -1))),
        end: End::Healed(None),
        deadline: Duration::from_secs(150),
    },
    Staged {
        class: "C6",
        name: "certificate that has expired, and nobody has said who signs a new one",
        imitates: "an authority of the company that nobody has asked in time",
        is_not: "a certificate that a program of this host has made, which is replaced",
        prepare: |host| {
            prepare(host);
            Box::new(())
        },
        inject: |host, _| Box::new(inject(host, &Authority::new().issue(&["localhost"], -90, -1))),
        end: End::Told("certificate", "critical"),
        deadline: Duration::from_secs(100),
    },
];

/// Gives the server a pair of its own in the data directory; nothing renews it in its own time.
pub fn prepare(host: &Host) {
    host.sh("systemctl stop pg-cert-renew.timer pg-cert-renew.path");
    c5_tls_key::prepare(host);
    host.wait_until_accepting(Duration::from_secs(60));
}

/// Puts this pair in its place, and has the server load it.
pub fn inject(host: &Host, issued: &Issued) {
    let data = host.data_directory();
    for (name, text) in [("server.key", &issued.key), ("server.crt", &issued.chain)] {
        host.file(&format!("{data}/{name}")).write(text);
    }
    host.psql("SELECT pg_reload_conf()");
}
