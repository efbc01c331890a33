//! What else people rely on to have PostgreSQL brought back, on machines without the package: it is measured beside it.

use std::path::Path;

use crate::{Host, Suite, image};

/// One of them.
#[derive(Clone, Copy)]
pub enum Rival<'a> {
    /// The distribution as it is.
    Debian,
    /// A folder of shell scripts (`*.sh`), and of the services and timers that run them.
    Scripts(&'a Path),
    /// Monit, every five seconds, with the check of PostgreSQL that its manual shows.
    Monit,
}

impl Rival<'_> {
    /// Boots a machine on which it looks after the main cluster.
    pub fn boot(self, suite: Suite) -> Host {
        match self {
            Rival::Debian => Host::boot_plain(suite),
            Rival::Scripts(folder) => {
                let host = Host::boot_plain(suite);
                install(&host, folder);
                host
            }
            Rival::Monit => {
                let host = Host::on(suite, &image::plain(suite, ",monit"));
                set_up_monit(&host);
                host
            }
        }
    }
}

/// The manual's example (`man monit`, CONNECTION TESTING, pgsql), with the unit and the pid file of Debian.
fn set_up_monit(host: &Host) {
    let (unit, name) = (host.unit(), format!("{}-main", host.version()));
    host.file("/etc/monit/conf.d/postgresql").write(format!(
        "set daemon 5
check process postgresql with pidfile /run/postgresql/{name}.pid
  start program = \"/usr/bin/systemctl start {unit}\"
  stop program = \"/usr/bin/systemctl stop {unit}\"
  if failed unixsocket /run/postgresql/.s.PGSQL.5432 protocol pgsql then restart
  if failed host 127.0.0.1 port 5432 protocol pgsql then restart
"
    ));
    host.sh(
        "sed -i '/^ *set daemon/d' /etc/monit/monitrc && systemctl enable --quiet monit && systemctl restart monit",
    );
}

fn install(host: &Host, folder: &Path) {
    let mut timers = Vec::new();
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(text) = std::fs::read_to_string(entry.path()) else { continue };
        if name.ends_with(".sh") {
            install_script(host, &format!("/usr/local/bin/{name}"), &text);
        } else if name.ends_with(".service") || name.ends_with(".timer") {
            host.file(&format!("/etc/systemd/system/{name}")).write(text);
            timers.extend(name.ends_with(".timer").then_some(name));
        }
    }
    host.sh("echo PG_PASSWORD=secret > /etc/default/postgresql-health-check");
    host.sh(&format!("systemctl daemon-reload && systemctl start {}", timers.join(" ")));
}

/// Puts a script there, set for this machine, which gets the role and the database that it names, and a sudo, which the machines
/// do without: this one is cheaper.
pub fn install_script(host: &Host, path: &str, text: &str) {
    let of_this_machine = |line: &str| match line {
        line if line.starts_with("PG_VERSION=") => format!("PG_VERSION={}\n", host.version()),
        line => format!("{line}\n"),
    };
    host.file(path).write(text.lines().map(of_this_machine).collect::<String>());
    host.file("/usr/local/bin/sudo")
        .write("#!/bin/sh\n[ \"$1\" = -u ] && user=$2 && shift 2 && exec runuser -u \"$user\" -- \"$@\"\n");
    host.sh(&format!("chmod 755 {path} /usr/local/bin/sudo"));
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    if let (Some(role), Some(database)) = (value("PG_USER"), value("PG_DATABASE")) {
        host.psql(&format!("CREATE ROLE {role} LOGIN PASSWORD 'secret'"));
        host.psql(&format!("CREATE DATABASE {database} OWNER {role}"));
    }
}
