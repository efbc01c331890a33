//! The ways to people. Each either takes a message, or says why not; what is secret is in no error.

use std::fmt::{Display, Formatter};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use shared::config::{Channel, ChannelKind, Notify, Severity};
use shared::{credential, terminals};
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

use crate::mail;
use crate::message::Message;

/// For a connection, the answer and everything between.
const PATIENCE: Duration = Duration::from_secs(10);
/// What Debian's ca-certificates makes.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Bytes.
const NTFY: usize = 3900;

/// Why a message was not taken.
#[derive(Debug)]
pub enum Failure {
    Later(String),
    /// Trying again is of no use.
    Never(String),
}

impl Display for Failure {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let (Failure::Later(why) | Failure::Never(why)) = self;
        f.write_str(why)
    }
}

/// A channel with what is secret about it: its address, and its token.
#[derive(Clone, Debug)]
pub struct Line {
    pub channel: Channel,
    pub secrets: Result<(String, Option<String>), String>,
}

/// The channels that are configured. Without any, root gets mail, where there is a program that sends it.
pub fn lines(config: &Notify) -> Vec<Line> {
    let mut channels = config.channel.clone();
    if channels.is_empty() && Path::new(mail::SENDMAIL).exists() {
        channels.push(Channel {
            name: "root".into(),
            kind: ChannelKind::Mail,
            severity: Severity::default(),
            to: "root".into(),
            url: String::new(),
            url_credential: String::new(),
            token_credential: String::new(),
            command: Vec::new(),
        });
    }
    channels.into_iter().map(|channel| Line { secrets: secrets(&channel), channel }).collect()
}

fn secrets(channel: &Channel) -> Result<(String, Option<String>), String> {
    let url = match channel.url_credential.as_str() {
        "" => channel.url.clone(),
        name => secret(name)?,
    };
    let token = Some(&channel.token_credential).filter(|name| !name.is_empty()).map(|name| secret(name)).transpose()?;
    Ok((url, token))
}

/// `LoadCredential=` of a folder makes one credential of each file in it.
pub fn secret(name: &str) -> Result<String, String> {
    let file = format!("/etc/pg-recovery/credentials/notify/{name}");
    if Path::new(&file).is_symlink() {
        return Err(format!("{file} is a link, which systemd does not follow for its units"));
    }
    let text = credential::read(&format!("notify/{name}"), &format!("notify_{name}")).map_err(|e| e.message)?;
    text.ok_or_else(|| format!("there is no file {file}"))
}

impl Line {
    pub fn send(&self, message: &Message) -> Result<(), Failure> {
        let (url, token) = self.secrets.as_ref().map_err(|why| Failure::Later(why.clone()))?;
        let token = token.as_deref();
        let json = serde_json::to_string(message).map_err(|e| Failure::Never(e.to_string()))?;
        match self.channel.kind {
            ChannelKind::Mail => mail::put(&self.channel.name, &self.channel.to, message).map_err(Failure::Later),
            ChannelKind::Slack => {
                // Or a name in it might call everybody (https://docs.slack.dev/messaging/formatting-message-text).
                let text = format!("*{}*\n{}", message.subject, message.text);
                let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
                let body = serde_json::json!({ "text": text }).to_string();
                post(url, None, &[("Content-Type", "application/json")], &body)
            }
            ChannelKind::Webhook => post(url, token, &[("Content-Type", "application/json")], &json),
            ChannelKind::Ntfy => {
                let priority = match message.severity {
                    Severity::Critical => "5",
                    Severity::Warning => "3",
                    Severity::Info => "2",
                };
                // A header is ASCII.
                let title: String =
                    message.subject.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
                // What is longer becomes an attachment, which not every server takes (ntfy, message-size-limit).
                let text = &message.text[..message.text.floor_char_boundary(NTFY)];
                post(url, token, &[("Title", &title), ("Priority", priority), ("Tags", "elephant")], text)
            }
            ChannelKind::Exec => run(&self.channel.command, &json).map_err(Failure::Later),
            ChannelKind::Wall => {
                terminals::tell("pg-notify", &format!("{}\n{}", message.subject, message.text));
                Ok(())
            }
        }
    }
}

/// For one address. Follows no redirect, and trusts those whom this host trusts.
pub fn agent(url: &str, patience: Duration) -> Agent {
    // Only the first call counts; ring is the only one there is.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // To read them takes longer than all the rest.
    let roots = if url.starts_with("https:") { std::fs::read(AUTHORITIES).unwrap_or_default() } else { Vec::new() };
    let roots: Vec<_> = ureq::tls::parse_pem(&roots)
        .filter_map(|item| match item {
            Ok(ureq::tls::PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    let tls = TlsConfig::builder().provider(TlsProvider::Rustls).root_certs(RootCerts::from(roots)).build();
    // A redirect might take a token to somebody else.
    Agent::config_builder()
        .timeout_global(Some(patience))
        .max_redirects(0)
        .http_status_as_error(false)
        .proxy(None)
        .user_agent(concat!("pg-notify/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls)
        .build()
        .into()
}

fn post(url: &str, token: Option<&str>, headers: &[(&str, &str)], body: &str) -> Result<(), Failure> {
    let mut request = agent(url, PATIENCE).post(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if let Some(token) = token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    judge(url, request.send(body))
}

pub fn get(url: &str) -> Result<(), Failure> {
    judge(url, agent(url, PATIENCE).get(url).call())
}

fn judge(url: &str, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<(), Failure> {
    match answer {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => {
            let why = format!("the answer is {}", answer.status());
            // It is this message that it does not take, and would not take later.
            let never = matches!(answer.status().as_u16(), 400 | 413 | 414 | 415 | 422 | 431);
            Err(if never { Failure::Never(why) } else { Failure::Later(why) })
        }
        // An address may be a secret.
        Err(e) => Err(Failure::Later(e.to_string().replace(url, "(its address)"))),
    }
}

fn run(command: &[String], json: &str) -> Result<(), String> {
    let [program, arguments @ ..] = command else { return Err("no command".into()) };
    // Less than a pipe holds (pipe(7)), so a program that does not read it holds nobody up; one that needs none may close it.
    let outcome = feed(Command::new(program).args(arguments), json.as_bytes(), PATIENCE);
    outcome.map(drop).map_err(|why| format!("{program}: {why}"))
}

/// Runs a program with this on its standard input, and says whether it took all of it; `Err` when it does not end well within
/// `patience`.
pub fn feed(command: &mut Command, input: &[u8], patience: Duration) -> Result<bool, String> {
    let explain = |e: std::io::Error| format!("could not be run: {e}");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().map_err(explain)?;
    let is_taken = child.stdin.take().is_some_and(|mut pipe| pipe.write_all(input).is_ok());
    let deadline = Instant::now() + patience;
    loop {
        match child.try_wait().map_err(explain)? {
            Some(status) if status.success() => return Ok(is_taken),
            Some(status) => return Err(status.to_string()),
            None if Instant::now() > deadline => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("no end after {}s", patience.as_secs()));
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read};
    use std::net::TcpListener;

    /// Takes one request, answers with `answer`, and returns what came.
    fn receiver(answer: &'static str) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/secret-path", listener.local_addr().unwrap());
        let taken = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let (mut reader, mut text, mut length) = (BufReader::new(&stream), String::new(), 0);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                text.push_str(&line);
                if line == "\r\n" {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            (&stream).write_all(answer.as_bytes()).unwrap();
            text + &String::from_utf8(body).unwrap()
        });
        (url, taken)
    }

    fn line(kind: ChannelKind, url: &str, command: &[&str]) -> Line {
        let channel = Channel {
            name: "x".into(),
            kind,
            severity: Severity::Info,
            to: String::new(),
            url: String::new(),
            url_credential: String::new(),
            token_credential: String::new(),
            command: command.iter().map(|word| word.to_string()).collect(),
        };
        Line { channel, secrets: Ok((url.into(), Some("token".into()))) }
    }

    fn message() -> Message {
        Message::new("trouble", "15/main", Severity::Critical, "it \"crashed\" ü", "text".into())
    }

    #[test]
    fn each_kind_sends_what_its_receiver_understands() {
        for (kind, wanted) in [
            (ChannelKind::Slack, vec!["{\"text\":\"*", "crashed", "\\ntext\"}"]),
            (
                ChannelKind::Webhook,
                vec!["authorization: Bearer token\r\n", "\"severity\":\"critical\"", "\"kind\":\"trouble\""],
            ),
            (ChannelKind::Ntfy, vec!["priority: 5\r\n", "it \"crashed\" ?\r\n", "\r\n\r\ntext"]),
        ] {
            let (url, taken) = receiver("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            line(kind, &url, &[]).send(&message()).unwrap();
            let got = taken.join().unwrap();
            for part in wanted {
                assert!(got.to_ascii_lowercase().contains(&part.to_ascii_lowercase()), "{part} is not in {got}");
            }
        }
    }

    #[test]
    fn a_refusal_is_an_error_and_a_redirect_is_not_followed_and_neither_says_the_address() {
        for answer in [
            "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        ] {
            let (url, taken) = receiver(answer);
            let why = line(ChannelKind::Webhook, &url, &[]).send(&message()).unwrap_err().to_string();
            assert!(!why.contains("secret-path") && !why.contains("token"), "{why}");
            taken.join().unwrap();
        }
        let why = line(ChannelKind::Webhook, "not a url/secret-path", &[]).send(&message()).unwrap_err().to_string();
        assert!(!why.contains("secret-path"), "{why}");
    }

    #[test]
    fn a_program_gets_the_message_and_its_end_is_what_counts() {
        let file = std::env::temp_dir().join(format!("pg-notify-exec-{}", std::process::id()));
        let script = format!("cat > {}", file.display());
        line(ChannelKind::Exec, "", &["/bin/sh", "-c", &script]).send(&message()).unwrap();
        let got: Message = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(got.about, "15/main");
        std::fs::remove_file(file).unwrap();
        let why = line(ChannelKind::Exec, "", &["/bin/sh", "-c", "exit 3"]).send(&message()).unwrap_err().to_string();
        assert!(why.contains("exit status: 3"), "{why}");
        assert!(line(ChannelKind::Exec, "", &["/bin/nothing"]).send(&message()).is_err());
    }
}
