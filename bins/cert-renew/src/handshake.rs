//! One TLS handshake with a server, as its clients have it, to see which certificates it serves.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use shared::config::Protocol;
use shared::tls;

/// No server takes so long for one handshake unless it hangs.
const PATIENCE: Duration = Duration::from_secs(5);
/// SSLRequest: its length and its number (manual, 55.7).
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// The certificates that are served there, the server's own first; it has shown that it has the key of that one.
pub fn served(address: SocketAddr, protocol: Protocol) -> io::Result<Vec<CertificateDer<'static>>> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    if protocol == Protocol::Postgresql {
        stream.write_all(&SSL_REQUEST)?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        if answer != *b"S" {
            return Err(io::Error::other("it does without TLS"));
        }
    }
    let (config, seen) = tls::any_server();
    let name = ServerName::IpAddress(address.ip().into());
    let mut connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(seen.certificates())
}
