//! P10: while the server is down, a program of somebody else takes its port.
use std::time::Duration;

use super::{End, Staged};
use crate::Host;

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "P10",
    name: "port taken by another program",
    imitates: "a second server, or a container, that got there first",
    is_not: "one of several addresses that is taken, with which it starts",
    prepare: |_| Box::new(()),
    inject: |host, _| Box::new(inject(host, &["127.0.0.1", "::1"])),
    end: End::OnRecord("manual", 0),
    deadline: Duration::from_secs(60),
}];

/// The name of the unit that has the port then.
pub const UNIT: &str = "squatter";

/// Stops the server, takes its port on these addresses, and starts it again. Returns the pid of the other program.
pub fn inject(host: &Host, addresses: &[&str]) -> i32 {
    host.operator_stops(&host.unit());
    let listen = addresses.iter().map(|a| {
        format!("push @s, IO::Socket::IP->new(LocalHost => \"{a}\", LocalPort => 5432, Listen => 5, ReuseAddr => 1, V6Only => 1) or die;")
    });
    let script = format!("use IO::Socket::IP; {} sleep", listen.collect::<String>());
    let pid = host.run_as_unit(UNIT, "nobody", &format!("exec perl -e '{script}'"));
    host.wait_until("the port is taken", std::time::Duration::from_secs(20), || {
        let tables = host.run("cat /proc/net/tcp /proc/net/tcp6").stdout;
        tables.matches(":1538 ").count() >= addresses.len()
    });
    host.run(&format!("systemctl start {}", host.unit()));
    pid
}
