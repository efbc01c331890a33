//! H5: names cannot be looked up any more: `resolv.conf` is empty, as after a DHCP client that failed. Access rules with host
//! names cost a search that fails for each connection over TCP that gets to them.

use crate::Host;

/// Puts a rule with a name before all others, and takes the name service away.
pub fn inject(host: &Host) {
    host.sh(&format!(
        "sed -i '1i host all all db.example.org scram-sha-256' {}/pg_hba.conf && rm -f /etc/resolv.conf && touch /etc/resolv.conf",
        host.configuration_directory()
    ));
    host.sh(&format!("systemctl reload {}", host.unit()));
}
