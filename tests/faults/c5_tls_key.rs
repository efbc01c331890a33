//! C5: a renewal leaves a certificate and a key that do not belong together, noticed at the next restart.
use std::time::Duration;

use super::{End, Staged};
use crate::{Host, Output};

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "C5",
    name: "key that does not belong to its certificate, and a restart",
    imitates: "a renewal that arrived by half",
    is_not: "a certificate that has expired, with which a server starts",
    prepare: |host| {
        prepare(host);
        host.wait_until("the pair is known to be good", Duration::from_secs(60), || {
            host.run("grep -l server.key /var/lib/pg-recovery/points/*-good/manifest.json").success()
        });
        Box::new(())
    },
    inject: |host, _| Box::new(inject(host)),
    end: End::Healed(None),
    deadline: Duration::from_secs(60),
}];

/// Gives the server a pair of its own in the data directory, and starts it with that. Returns the path of the key.
pub fn prepare(host: &Host) -> String {
    make(host, "server.key");
    serve_own(host);
    host.sh(&format!("systemctl restart {}", host.unit()));
    format!("{}/server.key", host.data_directory())
}

/// Has the pair in the data directory served as soon as the configuration is loaded.
pub fn serve_own(host: &Host) {
    for setting in ["ssl = on", "ssl_cert_file = 'server.crt'", "ssl_key_file = 'server.key'"] {
        host.psql(&format!("ALTER SYSTEM SET {setting}"));
    }
}

/// A new certificate and key of which only the certificate arrives, a key that others may read, and a restart.
pub fn inject(host: &Host) -> Output {
    make(host, "lost.key");
    host.sh(&format!("chmod 644 {}/server.key", host.data_directory()));
    host.run(&format!("systemctl restart {}", host.unit()))
}

/// A new pair in place of the old one; nobody is told.
pub fn renew(host: &Host) {
    make(host, "server.key");
}

/// A new certificate whose key arrives elsewhere.
pub fn renew_certificate_alone(host: &Host) {
    make(host, "lost.key");
}

fn make(host: &Host, key: &str) {
    let data = host.data_directory();
    let made = host.as_postgres(&format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=db.example -days 30 \
         -keyout {data}/{key} -out {data}/server.crt && chmod 600 {data}/{key}"
    ));
    assert!(made.success(), "{made}");
}
