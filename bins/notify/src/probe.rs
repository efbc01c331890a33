//! Asks one address, for pg-watchdog: HTTPS is spoken by this program alone, and what a stranger answers is read by one that
//! may do nothing.

use std::io::Read;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use serde_json::json;
use shared::args::Args;
use shared::config::parse_duration;
use shared::exit::Code;
use shared::{Error, Result, log as out};

use crate::channel;

const PATIENCE: Duration = Duration::from_secs(10);
/// Of a body.
const MOST: u64 = 64 << 10;

/// Prints `{"status": 200, "body": "..."}` of an http or https address, `{}` of one `HOST:PORT` that takes a connection,
/// `{"failed": "..."}` when there is no answer in time; fails when nobody can tell.
pub fn run(address: &str, args: &Args) -> Result<Code> {
    let patience = match args.value("deadline") {
        None => PATIENCE,
        Some(text) => {
            parse_duration(text).ok_or_else(|| Error::usage(format!("\"{text}\" is not a time such as 5s")))?
        }
    };
    let answer = match address.contains("://") {
        true => over_http(address, patience)?,
        false => over_tcp(address, patience)?,
    };
    out::print(&format!("{answer}\n"))?;
    Ok(Code::Ok)
}

fn over_http(url: &str, patience: Duration) -> Result<serde_json::Value> {
    let uri: ureq::http::Uri = url.parse().map_err(|why| unknown(url, &format!("{why}")))?;
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    // Whoever keeps the names does not answer, or does not know this one: that says nothing about what it stands for.
    let name = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    (name, port).to_socket_addrs().map_err(|why| unknown(url, &why.to_string()))?;
    let answer = match channel::agent(url, patience).get(uri).call() {
        Ok(answer) => answer,
        Err(why) => return Ok(json!({ "failed": why.to_string() })),
    };
    let status = answer.status().as_u16();
    let mut body = Vec::new();
    match answer.into_body().into_reader().take(MOST).read_to_end(&mut body) {
        Ok(_) => Ok(json!({ "status": status, "body": String::from_utf8_lossy(&body) })),
        Err(why) => Ok(json!({ "failed": format!("the answer {status} breaks off: {why}") })),
    }
}

fn over_tcp(address: &str, patience: Duration) -> Result<serde_json::Value> {
    let deadline = Instant::now() + patience;
    let mut last = "it has no address".to_string();
    for found in address.to_socket_addrs().map_err(|why| unknown(address, &why.to_string()))? {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&found, left) {
            Ok(_) => return Ok(json!({})),
            Err(why) => last = why.to_string(),
        }
    }
    Ok(json!({ "failed": last }))
}

fn unknown(address: &str, why: &str) -> Error {
    Error::failed(format!("could not ask {address}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    fn ask(answer: &'static [u8]) -> serde_json::Value {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            stream.write_all(answer).unwrap();
            // One that says nothing keeps its client waiting.
            if answer.is_empty() {
                let _ = stream.read(&mut [0; 1]);
            }
        });
        let answer = over_http(&url, Duration::from_millis(500)).unwrap();
        served.join().unwrap();
        answer
    }

    #[test]
    fn an_answer_is_told_whatever_it_is_and_silence_is_a_failure() {
        let answer = ask(b"HTTP/1.1 500 Oh\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy");
        assert_eq!(answer, json!({ "status": 500, "body": "busy" }));
        let moved = ask(
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
        assert_eq!(moved["status"], 302);
        assert!(ask(b"")["failed"].is_string());
        assert!(ask(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbusy")["failed"].is_string());
    }

    #[test]
    fn a_port_takes_a_connection_or_does_not_and_a_name_that_nobody_knows_is_no_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let second = Duration::from_secs(1);
        assert_eq!(over_tcp(&address, second).unwrap(), json!({}));
        drop(listener);
        assert!(over_tcp(&address, second).unwrap()["failed"].is_string());
        assert!(over_tcp("no-such-host.invalid:1", second).is_err());
        for url in ["http://no-such-host.invalid/", "http:// x"] {
            assert!(over_http(url, second).is_err(), "{url}");
        }
    }
}
