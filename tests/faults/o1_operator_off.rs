//! O1: the operator has switched the cluster off, in each of the ways there are.

use crate::Host;

/// `systemctl stop` of the instance: it stays enabled.
pub fn inject_stop(host: &Host) {
    host.operator_stops(&host.unit());
}

/// `start.conf` says `disabled`, and the cluster is stopped.
pub fn inject_disable(host: &Host) {
    host.operator_disables(&host.unit());
}

/// `start.conf` says `manual`, and the cluster is stopped; systemd has not been told to read it again.
pub fn inject_manual(host: &Host) {
    host.sh(&format!("sed -i 's/^auto$/manual/' {}/start.conf", host.configuration_directory()));
    host.operator_stops(&host.unit());
}

/// The instance is masked and stopped.
pub fn inject_mask(host: &Host) {
    host.operator_masks(&host.unit());
}

/// `systemctl disable --now postgresql`: the umbrella is disabled, the instance still says `enabled-runtime`.
pub fn inject_disable_all(host: &Host) {
    host.operator_disables("postgresql.service");
}

/// `pg_ctlcluster stop` as postgres: a clean stop that systemd takes for a failure of the unit.
pub fn inject_stop_as_postgres(host: &Host) {
    let output = host.as_postgres(&format!("pg_ctlcluster {} main stop", host.version()));
    assert!(output.success(), "{output}");
}
