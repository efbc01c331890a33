//! O4: the cluster is Patroni's, with etcd beside it, which starts, stops and configures it.

use std::time::Duration;

use crate::{Host, Suite, poll_until};

/// What it takes.
const PACKAGES: &str = ",patroni,python3-etcd,etcd-server";

/// Boots a machine on which Patroni has taken the main cluster over.
pub fn boot(suite: Suite) -> Host {
    let host = Host::boot_beside(suite, PACKAGES);
    let version = host.version();
    host.operator_stops(&host.unit());
    host.file(&format!("/etc/patroni/{version}-main.yml")).write(format!(
        "scope: main
name: one
restapi: {{listen: 127.0.0.1:8008, connect_address: 127.0.0.1:8008}}
etcd3: {{hosts: 127.0.0.1:2379}}
bootstrap:
  dcs: {{ttl: 20, loop_wait: 1, retry_timeout: 3}}
postgresql:
  listen: 127.0.0.1:5432
  connect_address: 127.0.0.1:5432
  data_dir: {data}
  config_dir: {configuration}
  bin_dir: /usr/lib/postgresql/{version}/bin
  pgpass: /tmp/pgpass
  use_unix_socket: true
  use_unix_socket_repl: true
  parameters: {{unix_socket_directories: /var/run/postgresql}}
  authentication:
    superuser: {{username: postgres}}
    replication: {{username: postgres}}
",
        data = host.data_directory(),
        configuration = host.configuration_directory(),
    ));
    host.sh(&format!("systemctl restart etcd && systemctl enable --now patroni@{version}-main"));
    wait_until_it_leads(&host);
    host
}

/// Waits until Patroni has made it a primary.
pub fn wait_until_it_leads(host: &Host) {
    let leads = || (host.try_psql("SELECT pg_is_in_recovery()").stdout.trim() == "f").then_some(());
    if poll_until(Duration::from_secs(120), leads).is_none() {
        panic!("Patroni does not lead: {}", host.journal_of(&format!("patroni@{}-main.service", host.version())));
    }
}
