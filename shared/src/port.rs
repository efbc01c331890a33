//! The TCP port that a server is to listen on, and who has it instead (P10).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket,
    sockopt::{Ipv6V6Only, ReuseAddr},
};

use crate::cluster::Cluster;
use crate::deadline;
use crate::process;

/// One line of /proc/net/tcp or tcp6 (proc(5)) that listens.
#[derive(Debug, PartialEq)]
struct Listener {
    at: SocketAddr,
    inode: u64,
}

/// Why the cluster cannot have its port: somebody has it on each address on which it would listen. Tried as the server
/// tries it, without listening. On some of the addresses is no obstacle: the server then starts with the others (pqcomm.c,
/// ListenServerPort).
pub fn taken(cluster: &Cluster) -> Option<String> {
    let outcomes: Vec<Result<(), Errno>> = wanted(cluster).into_iter().map(try_bind).collect();
    let possible =
        outcomes.iter().any(|o| !matches!(o, Err(Errno::EADDRINUSE | Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT)));
    if possible || !outcomes.contains(&Err(Errno::EADDRINUSE)) {
        return None;
    }
    let others = others(cluster, 0);
    let who = if others.is_empty() { vec!["a process that cannot be seen from here".into()] } else { others };
    Some(format!("port {} is taken: {}", cluster.port(), who.join("; ")))
}

/// Who else than the postmaster `own` has the port on an address on which the cluster is to listen.
pub fn others(cluster: &Cluster, own: i32) -> Vec<String> {
    let table = listeners();
    let mut others: Vec<String> = Vec::new();
    for address in wanted(cluster) {
        let Some(listener) = answering(&table, address) else { continue };
        let owner = process::all().find(|p| p.has_socket(listener.inode));
        if owner.as_ref().is_some_and(|p| p.pid == own) {
            continue;
        }
        // Not its arguments: there may be a password among them.
        let who = owner.map_or("a process that cannot be seen from here".into(), |p| {
            let unit = p.unit().map(|unit| format!(" of {unit}")).unwrap_or_default();
            format!("{} (PID {}){unit}", p.comm, p.pid)
        });
        others.push(format!("{who} has {}", listener.at));
    }
    others.dedup();
    others
}

/// The addresses on which the server would listen, as its configuration has them.
fn wanted(cluster: &Cluster) -> Vec<SocketAddr> {
    let port = cluster.port();
    let list = cluster.setting("listen_addresses").unwrap_or("localhost");
    let mut wanted = Vec::new();
    for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match name {
            "*" => {
                wanted.push(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
                wanted.push(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
            }
            _ => match name.parse::<IpAddr>() {
                Ok(ip) => wanted.push((ip, port).into()),
                // A name server may not answer.
                Err(_) => {
                    let host = name.to_string();
                    let look = move || (host.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
                    let found = deadline::within(Path::new(name), Duration::from_secs(3), look);
                    wanted.extend(found.and_then(Result::ok).unwrap_or_default());
                }
            },
        }
    }
    wanted.sort();
    wanted.dedup();
    wanted
}

/// Binds as the server does, and lets go at once: nobody can connect to a socket that does not listen.
fn try_bind(address: SocketAddr) -> Result<(), Errno> {
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, ReuseAddr, &true)?;
    if address.is_ipv6() {
        setsockopt(&fd, Ipv6V6Only, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))
}

fn listeners() -> Vec<Listener> {
    let read = |file| std::fs::read_to_string(file).unwrap_or_default();
    let (v4, v6) = (read("/proc/net/tcp"), read("/proc/net/tcp6"));
    v4.lines().chain(v6.lines()).filter_map(parse).collect()
}

fn parse(line: &str) -> Option<Listener> {
    let field: Vec<&str> = line.split_ascii_whitespace().collect();
    // TCP_LISTEN
    if *field.get(3)? != "0A" {
        return None;
    }
    let (ip, port) = field.get(1)?.split_once(':')?;
    // Words of four bytes as the processor keeps them.
    let words = (0..ip.len() / 8).map(|n| Some(u32::from_str_radix(ip.get(8 * n..8 * n + 8)?, 16).ok()?.to_ne_bytes()));
    let bytes = words.collect::<Option<Vec<_>>>()?.concat();
    let ip: IpAddr = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => v4.into(),
        Err(_) => <[u8; 16]>::try_from(bytes.as_slice()).ok()?.into(),
    };
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(Listener { at: (ip, port).into(), inode: field.get(9)?.parse().ok()? })
}

/// Who takes connections to this address, or is in the way of it: the nearest match first, as the kernel does it.
fn answering(table: &[Listener], address: SocketAddr) -> Option<&Listener> {
    let rank = |l: &&Listener| match l.at.ip() {
        ip if ip == address.ip() => Some(0),
        ip if ip.is_unspecified() && ip.is_ipv4() == address.is_ipv4() => Some(1),
        // [::] takes connections to IPv4 addresses too, unless its socket says otherwise.
        ip if ip.is_unspecified() && ip.is_ipv6() => Some(2),
        ip if address.ip().is_unspecified() && ip.is_ipv4() == address.is_ipv4() => Some(3),
        _ => None,
    };
    table.iter().filter(|l| l.at.port() == address.port() && rank(l).is_some()).min_by_key(rank)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_is_found_with_its_process_and_is_in_the_way() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let table = listeners();
        let found = answering(&table, address).unwrap();
        let me = process::Process::of(std::process::id() as i32).unwrap();
        assert!(me.has_socket(found.inode));
        assert_eq!(try_bind(address), Err(Errno::EADDRINUSE));
        drop(socket);
        assert_eq!(try_bind(address), Ok(()));
        assert_eq!(try_bind("192.0.2.1:5432".parse().unwrap()), Err(Errno::EADDRNOTAVAIL));
    }

    #[test]
    fn the_nearest_listener_is_the_one_that_answers() {
        let at = |text: &str| Listener { at: text.parse().unwrap(), inode: text.len() as u64 };
        let table = [at("[::]:5432"), at("0.0.0.0:5432"), at("127.0.0.1:5432"), at("10.0.0.1:5433")];
        let of = |address: &str| answering(&table, address.parse().unwrap()).map(|l| l.at.to_string());
        assert_eq!(of("127.0.0.1:5432").as_deref(), Some("127.0.0.1:5432"));
        assert_eq!(of("10.0.0.9:5432").as_deref(), Some("0.0.0.0:5432"));
        assert_eq!(of("[::1]:5432").as_deref(), Some("[::]:5432"));
        assert_eq!(of("0.0.0.0:5433").as_deref(), Some("10.0.0.1:5433"));
        assert_eq!(of("127.0.0.1:5434"), None);
    }

    #[test]
    fn both_tables_of_the_kernel_are_read() {
        if cfg!(target_endian = "big") {
            return; // the lines are those of a little-endian host
        }
        let v4 = "   0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000   106        0 25190 1 x";
        assert_eq!(parse(v4), Some(Listener { at: "127.0.0.1:5432".parse().unwrap(), inode: 25190 }));
        let v6 =
            "   1: 00000000000000000000000001000000:1538 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 7 1";
        assert_eq!(parse(v6), Some(Listener { at: "[::1]:5432".parse().unwrap(), inode: 7 }));
        assert_eq!(parse(&v4.replace(" 0A ", " 01 ")), None);
        assert_eq!(parse("  sl  local_address rem_address   st tx_queue"), None);
    }
}
