//! A certificate from an authority that speaks ACME (RFC 8555): Let's Encrypt, or one of the company's own.

use std::collections::HashMap;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Hyper;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use instant_acme::{
    Account, AccountBuilder, AccountCredentials, AuthorizationStatus, BodyWrapper, BytesResponse,
    CertificateIdentifier, ChallengeType, Error as Acme, HttpClient, Identifier, NewAccount, NewOrder, Order,
    OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use shared::client::runtime;
use shared::clock::Stamp;
use shared::config::{Certificate, Challenge};
use shared::point::sha256;
use shared::{Error, Result, command, state, tls};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use crate::pair::{Chain, Pair};
use crate::source::{Wish, generate};

/// An authority looks several times, from several places, and DNS takes its time.
const PATIENCE: Duration = Duration::from_secs(300);
const HOOK: Duration = Duration::from_secs(300);
/// No request of an authority takes longer or is larger.
const REQUEST: Duration = Duration::from_secs(5);
const LARGEST: usize = 4096;

pub fn obtain(configured: &Certificate, wish: &Wish) -> Result<Pair> {
    let late = Later::default();
    let limit = 2 * PATIENCE + HOOK;
    let ordered = within(limit, &configured.acme_directory, order(configured, wish, &late));
    let (certificate, key) = ordered.map_err(|why| {
        wish.later.set(*late.lock().unwrap_or_else(PoisonError::into_inner));
        match wish.later.get().map(|until| Stamp { wall: until as f64, ..Stamp::default() }.rfc3339()) {
            Some(until) => Error { message: format!("{}; it asks to be left alone until {until}", why.message), ..why },
            None => why,
        }
    })?;
    Pair::parse(certificate.as_bytes(), key.as_bytes()).map_err(Error::failed)
}

/// When the authority would like to renew this certificate, and when it wants to be asked again (RFC 9773, 4.2); seconds since
/// 1970. `None`: it does not do that, or this host has no account there.
pub fn suggestion(configured: &Certificate, chain: &Chain, now: i64) -> Result<Option<(i64, i64, i64)>> {
    let url = &configured.acme_directory;
    let failed = |why: String| Error::failed(format!("{url} does not say when it would like to renew: {why}"));
    if !account_file(url).exists() {
        return Ok(None);
    }
    let id = CertificateIdentifier::try_from(&chain.certificates[0]).map_err(failed)?;
    let asked = within(2 * REQUEST, url, async {
        let account = account(configured, &Later::default()).await?;
        match account.renewal_info(&id).await {
            Ok(answer) => Ok(Some(answer)),
            Err(Acme::Unsupported(_)) => Ok(None),
            Err(e) => Err(failed(describe(&e))),
        }
    });
    Ok(asked?.map(|(info, again)| {
        let window = &info.suggested_window;
        if let Some(page) = &info.explanation_url {
            log::info!("{url} says why it would like to renew {} then: {page}", chain.validity.subject);
        }
        // Once in six hours, as the standard has it, unless it says so itself.
        let again = again.clamp(Duration::from_secs(3600), Duration::from_secs(86_400));
        (window.start.unix_timestamp(), window.end.unix_timestamp(), now + again.as_secs() as i64)
    }))
}

fn within<T>(limit: Duration, url: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = runtime()?;
    let done = runtime.block_on(async { tokio::time::timeout(limit, work).await });
    runtime.shutdown_background();
    done.map_err(|_| Error::failed(format!("{url} came to no end within {}s", limit.as_secs())))?
}

/// Until when the authority has asked to be left alone; seconds since 1970.
type Later = Arc<Mutex<Option<i64>>>;

/// Speaks HTTPS with it. The library does not tell what comes along with an error.
struct Client {
    hyper: Hyper<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>,
    later: Later,
}

impl Client {
    /// `roots`: what signed its certificate; without, what the host trusts.
    fn new(roots: Option<&Path>, later: Later) -> Result<Client, String> {
        let builder = HttpsConnectorBuilder::new();
        let builder = match roots {
            None => builder.with_provider_and_platform_verifier(tls::provider()).map_err(|e| e.to_string())?,
            Some(file) => {
                let mut store = RootCertStore::empty();
                for root in CertificateDer::pem_file_iter(file).map_err(|e| e.to_string())? {
                    store.add(root.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
                }
                let config = ClientConfig::builder_with_provider(tls::provider()).with_safe_default_protocol_versions();
                let config = config.map_err(|e| e.to_string())?.with_root_certificates(store);
                builder.with_tls_config(config.with_no_client_auth())
            }
        };
        let connector = builder.https_only().enable_http1().enable_http2().build();
        Ok(Client { hyper: Hyper::builder(TokioExecutor::new()).build(connector), later })
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Acme>> + Send>> {
        let (answer, later) = (HttpClient::request(&self.hyper, request), self.later.clone());
        Box::pin(async move {
            let answer = answer.await?;
            let is_too_much =
                matches!(answer.parts.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
            let after = answer.parts.headers.get(header::RETRY_AFTER).filter(|_| is_too_much);
            if let Some(until) = after.and_then(|after| retry_after(after.to_str().ok()?, SystemTime::now())) {
                *later.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
            }
            Ok(answer)
        })
    }
}

/// Seconds since 1970, of a number of seconds or a date (RFC 9110, 10.2.3).
fn retry_after(value: &str, now: SystemTime) -> Option<i64> {
    let now = now.duration_since(UNIX_EPOCH).ok()?.as_secs();
    match value.trim().parse::<u32>() {
        Ok(seconds) => Some((now + u64::from(seconds)) as i64),
        Err(_) => {
            let date = OffsetDateTime::parse(value.trim(), &Rfc2822).ok()?;
            Some(date.unix_timestamp())
        }
    }
}

/// Tells which certificate it replaces, if the authority wants to know; one that does not take that gets a plain order.
async fn new_order(account: &Account, identifiers: &[Identifier], wish: &Wish<'_>) -> Result<Order, Acme> {
    let plain = || NewOrder::new(identifiers);
    let Some(Ok(old)) = wish.replaces.map(CertificateIdentifier::try_from) else {
        return account.new_order(&plain()).await;
    };
    match account.new_order(&plain().replaces(old)).await {
        Err(e) if problem(&e) != "rateLimited" => {
            log::info!("the authority takes no order that replaces a certificate: {}; without that", describe(&e));
            account.new_order(&plain()).await
        }
        ordered => ordered,
    }
}

async fn order(configured: &Certificate, wish: &Wish<'_>, later: &Later) -> Result<(String, String)> {
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
    let account = account(configured, later).await?;
    let identifiers: Vec<Identifier> = wish
        .names
        .iter()
        .map(|name| name.parse().map(Identifier::Ip).unwrap_or_else(|_| Identifier::Dns(name.clone())))
        .collect();
    let order = new_order(&account, &identifiers, wish).await;
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
async fn account(configured: &Certificate, later: &Later) -> Result<Account> {
    let url = &configured.acme_directory;
    let failed = |what: &str, e: Acme| Error::failed(format!("{url}: {what}: {}", describe(&e)));
    let builder = || -> Result<AccountBuilder> {
        let client = Client::new(configured.acme_ca_file.as_deref(), later.clone());
        let client =
            client.map_err(|why| Error::failed(format!("{url}: its certificate cannot be verified: {why}")))?;
        Ok(Account::builder_with_http(Box::new(client)))
    };
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
    fn until_when_an_authority_wants_to_be_left_alone_is_understood() {
        let now = UNIX_EPOCH + Duration::from_secs(1_445_000_000);
        assert_eq!(retry_after("120", now), Some(1_445_000_120));
        assert_eq!(retry_after(" Wed, 21 Oct 2015 07:28:00 GMT", now), Some(1_445_412_480));
        assert_eq!((retry_after("", now), retry_after("-5", now), retry_after("soon", now)), (None, None, None));
    }

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
