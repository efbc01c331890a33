//! A certificate from an authority that speaks ACME (RFC 8555): Let's Encrypt, or one of the company's own.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Error as Acme, Identifier, NewAccount, NewOrder,
    OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName};
use shared::client::runtime;
use shared::config::{Certificate, Challenge};
use shared::point::sha256;
use shared::{Error, Result, command, state};

use crate::pair::Pair;
use crate::source::{Wish, generate};

/// An authority looks several times, from several places, and DNS takes its time.
const PATIENCE: Duration = Duration::from_secs(300);
const HOOK: Duration = Duration::from_secs(300);
/// No request of an authority takes longer or is larger.
const REQUEST: Duration = Duration::from_secs(5);
const LARGEST: usize = 4096;

pub fn obtain(configured: &Certificate, wish: &Wish) -> Result<Pair> {
    let runtime = runtime()?;
    let limit = 2 * PATIENCE + HOOK;
    let ordered = runtime.block_on(async { tokio::time::timeout(limit, order(configured, wish)).await });
    runtime.shutdown_background();
    let late =
        || Error::failed(format!("{} gave no certificate within {}s", configured.acme_directory, limit.as_secs()));
    let (certificate, key) = ordered.map_err(|_| late())??;
    Pair::parse(certificate.as_bytes(), key.as_bytes()).map_err(Error::failed)
}

async fn order(configured: &Certificate, wish: &Wish<'_>) -> Result<(String, String)> {
    let url = &configured.acme_directory;
    let failed = |what: &str, e: Acme| {
        let error = Error::failed(format!("{url}: {what}: {}", describe(&e)));
        match is_about_account(&e) {
            true => error.hint(format!(
                "Ask the authority why; without {} the next run registers a new account.",
                account_file(url).display()
            )),
            false => error,
        }
    };
    let account = account(configured).await?;
    let identifiers: Vec<Identifier> = wish
        .names
        .iter()
        .map(|name| name.parse().map(Identifier::Ip).unwrap_or_else(|_| Identifier::Dns(name.clone())))
        .collect();
    let order = account.new_order(&NewOrder::new(&identifiers)).await;
    let mut order = order.map_err(|e| failed("no order was taken", e))?;
    let mut proofs = Proofs::new(configured)?;
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(|e| failed("no authorization", e))?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let name = authorization.identifier().to_string();
        let kind = match configured.challenge {
            Challenge::Http => ChallengeType::Http01,
            Challenge::Dns => ChallengeType::Dns01,
        };
        let mut challenge = authorization
            .challenge(kind)
            .ok_or_else(|| Error::failed(format!("{url} does not offer this challenge for {name}")))?;
        let answer = challenge.key_authorization();
        proofs.add(&name, &challenge.token, answer.as_str(), &answer.dns_value())?;
        challenge.set_ready().await.map_err(|e| failed("a challenge was not taken", e))?;
    }
    let patience = RetryPolicy::default().timeout(PATIENCE);
    let refused = |why: String| {
        let names = wish.names.join(", ");
        Error::failed(format!("{url} does not believe that this host is {names}: {why}"))
            .hint("http-01 is asked for on port 80 of each name, dns-01 in DNS.")
    };
    match order.poll_ready(&patience).await {
        Ok(OrderStatus::Ready) => {}
        Ok(_) => return Err(refused("it does not say why".into())),
        Err(Acme::Api(problem)) => return Err(refused(problem.to_string())),
        Err(e) => return Err(failed("the names were not checked", e)),
    }
    let key = generate(wish.key)?;
    let request = CertificateParams::new(wish.names.to_vec()).and_then(|mut params| {
        params.distinguished_name = DistinguishedName::new();
        params.serialize_request(&key)
    });
    let request = request.map_err(|e| Error::failed(format!("could not make a request: {e}")))?;
    order.finalize_csr(request.der()).await.map_err(|e| failed("the request was refused", e))?;
    let certificate = order.poll_certificate(&patience).await.map_err(|e| failed("no certificate came", e))?;
    Ok((certificate, key.serialize_pem()))
}

/// With what is behind it: "client error (Connect)" alone helps nobody.
fn describe(error: &Acme) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

fn problem(error: &Acme) -> &str {
    match error {
        Acme::Api(problem) => problem.r#type.as_deref().unwrap_or_default().rsplit(':').next().unwrap_or_default(),
        _ => "",
    }
}

fn is_about_account(error: &Acme) -> bool {
    matches!(problem(error), "unauthorized" | "accountDoesNotExist")
}

fn account_file(url: &str) -> PathBuf {
    let folder = Path::new(state::DIRECTORY).join("cert-renew/acme");
    folder.join(format!("{}.json", &sha256(url.as_bytes())[..16]))
}

/// The account that was registered before, or a new one.
async fn account(configured: &Certificate) -> Result<Account> {
    let url = &configured.acme_directory;
    let failed = |what: &str, e: Acme| Error::failed(format!("{url}: {what}: {}", describe(&e)));
    let builder = || match &configured.acme_ca_file {
        Some(file) => Account::builder_with_root(file),
        None => Account::builder(),
    };
    let builder = || builder().map_err(|e| failed("its certificate cannot be verified", e));
    let file = account_file(url);
    if let Ok(text) = state::read(&file, 65536) {
        let credentials: AccountCredentials = serde_json::from_slice(&text).map_err(|e| {
            Error::failed(format!("could not read the account in {}: {e}", file.display()))
                .hint("Without this file the next run registers a new account.")
        })?;
        return builder()?.from_credentials(credentials).await.map_err(|e| failed("it does not answer", e));
    }
    let contact = format!("mailto:{}", configured.acme_contact.trim_start_matches("mailto:"));
    let contacts = [contact.as_str()];
    let new = NewAccount {
        contact: if configured.acme_contact.is_empty() { &[] } else { &contacts },
        terms_of_service_agreed: true,
        only_return_existing: false,
    };
    let made = builder()?.create(&new, url.clone(), None).await;
    let (account, credentials) = made.map_err(|e| failed("no account was registered", e))?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    let text = serde_json::to_vec(&credentials).map_err(std::io::Error::other)?;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    state::replace(&file, &text, 0o600)?;
    log::info!("registered an account with {url}; its key is in {}", file.display());
    Ok(account)
}

/// What shows the authority that a name is this host's, as long as it asks.
enum Proofs<'a> {
    Listener(Listener),
    Webroot(&'a Path, Vec<PathBuf>),
    Dns(&'a [String], Vec<(String, String)>),
}

impl<'a> Proofs<'a> {
    fn new(configured: &'a Certificate) -> Result<Proofs<'a>> {
        Ok(match (configured.challenge, &configured.webroot) {
            (Challenge::Dns, _) => Proofs::Dns(&configured.hook, Vec::new()),
            (Challenge::Http, Some(folder)) => Proofs::Webroot(folder, Vec::new()),
            (Challenge::Http, None) => Proofs::Listener(Listener::open(&configured.listen)?),
        })
    }

    fn add(&mut self, name: &str, token: &str, answer: &str, record: &str) -> Result<()> {
        // It comes from outside and names a file.
        if !token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            return Err(Error::failed("the authority sent a token that is none (RFC 8555, 8.3)"));
        }
        match self {
            Proofs::Listener(listener) => {
                let mut answers = listener.answers.lock().unwrap_or_else(PoisonError::into_inner);
                answers.insert(format!("/.well-known/acme-challenge/{token}"), answer.into());
            }
            Proofs::Webroot(folder, files) => {
                let file = folder.join(token);
                state::replace(&file, answer.as_bytes(), 0o644)
                    .map_err(|e| Error::failed(format!("could not write {}: {e}", file.display())))?;
                files.push(file);
            }
            Proofs::Dns(hook, records) => {
                let name = format!("_acme-challenge.{}", name.trim_start_matches("*."));
                records.push((name.clone(), record.into()));
                run_hook(hook, "add", &name, record)?;
            }
        }
        Ok(())
    }
}

impl Drop for Proofs<'_> {
    fn drop(&mut self) {
        match self {
            Proofs::Listener(_) => {}
            Proofs::Webroot(_, files) => files.iter().for_each(|file| {
                let _ = std::fs::remove_file(file);
            }),
            Proofs::Dns(hook, records) => {
                for (name, record) in records {
                    if let Err(why) = run_hook(hook, "remove", name, record) {
                        log::warn!("{}; the record of {name} has done its work and may go", why.message);
                    }
                }
            }
        }
    }
}

fn run_hook(hook: &[String], verb: &str, name: &str, record: &str) -> Result<()> {
    let (program, rest) = hook.split_first().ok_or_else(|| Error::config("there is no hook"))?;
    let mut command = Command::new(program);
    let out = command::run(command.args(rest).args([verb, name, record]), HOOK)
        .map_err(|e| Error::failed(format!("could not run {program}: {e}")))?;
    if out.status.success() {
        return Ok(());
    }
    Err(Error::failed(format!("{program} {verb} failed ({}): {}", out.status, out.stderr.trim())))
}

/// Answers what an authority asks on port 80, and nothing else, until it is dropped.
struct Listener {
    answers: Arc<Mutex<HashMap<String, String>>>,
    stop: Arc<AtomicBool>,
}

impl Listener {
    fn open(address: &str) -> Result<Listener> {
        let bad = |e: std::io::Error| {
            Error::failed(format!("could not listen on {address} for http-01: {e}"))
                .hint("If a web server has that port, name its folder with \"webroot\".")
        };
        let wanted: SocketAddr = address.parse().map_err(|_| Error::config(format!("{address} is no address")))?;
        // A host without IPv6 has no [::].
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, wanted.port()));
        let listener = TcpListener::bind(wanted).or_else(|e| match wanted.ip().is_unspecified() {
            true if e.kind() != std::io::ErrorKind::AddrInUse => TcpListener::bind(any),
            _ => Err(e),
        });
        let listener = listener.map_err(bad)?;
        listener.set_nonblocking(true)?;
        let (answers, stop) = (Arc::<Mutex<HashMap<_, _>>>::default(), Arc::<AtomicBool>::default());
        let (ours, end) = (answers.clone(), stop.clone());
        std::thread::Builder::new().name("http-01".into()).spawn(move || {
            while !end.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let _ = answer(stream, &ours);
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(20)),
                }
            }
        })?;
        Ok(Listener { answers, stop })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn answer(mut stream: TcpStream, answers: &Mutex<HashMap<String, String>>) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(REQUEST))?;
    stream.set_write_timeout(Some(REQUEST))?;
    let mut request = Vec::new();
    let mut part = [0; 512];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < LARGEST {
        match stream.read(&mut part)? {
            0 => break,
            n => request.extend_from_slice(&part[..n]),
        }
    }
    let text = String::from_utf8_lossy(&request);
    let path = text.strip_prefix("GET ").and_then(|rest| rest.split(' ').next()).unwrap_or_default();
    let body = answers.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
    let (status, body) = body.map_or(("404 Not Found", String::new()), |body| ("200 OK", body));
    let head = "Content-Type: application/octet-stream\r\nConnection: close";
    write!(stream, "HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listener_answers_what_it_was_told_and_nothing_else() {
        let (answers, listener) = (Arc::<Mutex<HashMap<_, _>>>::default(), TcpListener::bind("127.0.0.1:0").unwrap());
        answers.lock().unwrap().insert("/.well-known/acme-challenge/t".to_string(), "t.k".to_string());
        let address = listener.local_addr().unwrap();
        let ask = |request: &str| {
            let mut client = TcpStream::connect(address).unwrap();
            client.write_all(request.as_bytes()).unwrap();
            answer(listener.accept().unwrap().0, &answers).unwrap();
            let mut text = String::new();
            client.read_to_string(&mut text).unwrap();
            text
        };
        let said = ask("GET /.well-known/acme-challenge/t HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(said.starts_with("HTTP/1.1 200 ") && said.ends_with("\r\n\r\nt.k"), "{said}");
        for request in ["GET / HTTP/1.1\r\n\r\n", "POST /.well-known/acme-challenge/t HTTP/1.1\r\n\r\n", "\0\r\n\r\n"] {
            assert!(ask(request).starts_with("HTTP/1.1 404 "), "{request}");
        }
    }
}
