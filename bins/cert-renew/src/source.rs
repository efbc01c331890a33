//! Where a new key with its certificate comes from. Keys are in memory, and in folders that are for root alone.

use std::cell::Cell;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_RSA_SHA256,
};
use rustls::pki_types::CertificateDer;
use shared::config::{Certificate, KeyKind, Source};
use shared::{Error, Result, command, credential, state};
use time::OffsetDateTime;

use crate::acme;
use crate::pair::{Chain, Pair};

/// A program may have to wait for a person's authority, or for DNS.
const COMMAND: Duration = Duration::from_secs(600);
const OPENSSL: Duration = Duration::from_secs(60);
const LIMIT: u64 = 1 << 20;
/// Clocks of clients that are a little behind.
const SKEW: i64 = 300;
/// How long the authority of this host is good for: its end is a person's work at every client.
const CA_LIFETIME: i64 = 20 * 365 * 86_400;
const CA_KEY: &str = "cert-renew/ca.key";

/// What is wanted.
pub struct Wish<'a> {
    pub name: &'a str,
    pub names: &'a [String],
    pub key: KeyKind,
    pub lifetime: i64,
    pub now: i64,
    /// acme: the certificate that it takes the place of, of an authority that wants to know (RFC 9773, 5).
    pub replaces: Option<&'a CertificateDer<'static>>,
    /// acme: gets until when the authority has asked to be left alone.
    pub later: &'a Cell<Option<i64>>,
}

/// Gets a new pair by what is configured.
pub fn obtain(configured: &Certificate, wish: &Wish) -> Result<Pair> {
    match configured.source {
        Source::Acme => acme::obtain(configured, wish),
        Source::Directory => from_directory(configured.directory.as_deref().unwrap_or(Path::new("/")), wish.names),
        Source::Command => from_command(&configured.command, wish),
        Source::Ca => from_ca(wish),
        Source::SelfSigned => self_signed(wish),
    }
}

fn pair(certificate: &str, key: &str) -> Result<Pair> {
    Pair::parse(certificate.as_bytes(), key.as_bytes()).map_err(Error::failed)
}

pub fn generate(kind: KeyKind) -> Result<KeyPair> {
    let bad = |e: rcgen::Error| Error::failed(format!("could not make a key: {e}"));
    match kind {
        KeyKind::Ecdsa => KeyPair::generate().map_err(bad),
        // ring makes no RSA keys. OpenSSL is there: Debian's PostgreSQL is linked with it and ssl-cert needs it.
        KeyKind::Rsa => {
            let mut openssl = Command::new("openssl");
            openssl.args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"]);
            let out = command::run(&mut openssl, OPENSSL)
                .map_err(|e| Error::failed(format!("could not run openssl: {e}")))?;
            if !out.status.success() {
                return Err(Error::failed(format!("openssl could not make an RSA key: {}", out.stderr.trim())));
            }
            KeyPair::from_pkcs8_pem_and_sign_algo(&out.stdout, &PKCS_RSA_SHA256).map_err(bad)
        }
    }
}

pub fn params(wish: &Wish) -> Result<CertificateParams> {
    let Some(first) = wish.names.first() else {
        return Err(Error::config(format!("nobody has told which names the certificate of {} is for", wish.name))
            .hint("Put \"names\" into its [[tls.certificate]]."));
    };
    let mut params = CertificateParams::new(wish.names.to_vec())
        .map_err(|e| Error::config(format!("a name of the certificate of {} cannot be used: {e}", wish.name)))?;
    params.distinguished_name = DistinguishedName::new();
    // ub-common-name (RFC 5280, appendix A.1).
    params.distinguished_name.push(DnType::CommonName, first.chars().take(64).collect::<String>());
    params.not_before = moment(wish.now - SKEW)?;
    params.not_after = moment(wish.now + wish.lifetime)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn moment(seconds: i64) -> Result<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|e| Error::failed(format!("the clock is wrong: {e}")))
}

fn unsigned(e: rcgen::Error) -> Error {
    Error::failed(format!("could not sign a certificate: {e}"))
}

pub fn self_signed(wish: &Wish) -> Result<Pair> {
    let key = generate(wish.key)?;
    let certificate = params(wish)?.self_signed(&key).map_err(unsigned)?;
    pair(&certificate.pem(), &key.serialize_pem())
}

/// Where the certificate of this host's own authority is, for clients to have it.
pub fn ca_certificate() -> PathBuf {
    Path::new(shared::tls_store::DIRECTORY).join("ca.crt")
}

/// Signed by the authority of this host, which is made when it is first needed.
fn from_ca(wish: &Wish) -> Result<Pair> {
    let (ca_key, ca) = authority(wish.now)?;
    let chain = Chain::parse(ca.as_bytes()).map_err(Error::failed)?;
    let issuer = Issuer::from_ca_cert_pem(&ca, ca_key).map_err(unsigned)?;
    let key = generate(wish.key)?;
    let mut params = params(wish)?;
    // Nobody would believe it any longer.
    params.not_after = params.not_after.min(moment(chain.validity.until)?);
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer).map_err(unsigned)?;
    pair(&format!("{}{ca}", certificate.pem()), &key.serialize_pem())
}

fn authority(now: i64) -> Result<(KeyPair, String)> {
    let file = ca_certificate();
    let bad = |e: &dyn std::fmt::Display| {
        Error::failed(format!("could not use the authority of this host, {}: {e}", file.display()))
    };
    let key = match credential::read(CA_KEY, "cert-renew_ca.key")? {
        Some(key) => key,
        None if file.exists() => {
            return Err(bad(&"its key is gone").hint(format!(
                "Put the key back into /etc/pg-recovery/credentials/{CA_KEY}, or remove the certificate for a new authority."
            )));
        }
        None => {
            let key = KeyPair::generate().map_err(unsigned)?.serialize_pem();
            let place = Path::new("/etc/pg-recovery/credentials").join(CA_KEY);
            let folder = place.parent().unwrap_or(Path::new("/"));
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            state::replace(&place, key.as_bytes(), 0o600).map_err(|e| {
                Error::failed(format!("could not write the key of the authority, {}: {e}", place.display()))
            })?;
            log::warn!("made an authority of this host; its key is {}", place.display());
            key
        }
    };
    let key = KeyPair::from_pem(&key).map_err(|e| bad(&e))?;
    match state::read(&file, LIMIT) {
        Ok(certificate) => Ok((key, String::from_utf8_lossy(&certificate).into_owned())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, format!("pg-recovery on {host}"));
            params.not_before = moment(now - SKEW)?;
            params.not_after = moment(now + CA_LIFETIME)?;
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let certificate = params.self_signed(&key).map_err(unsigned)?.pem();
            state::replace(&file, certificate.as_bytes(), 0o644).map_err(|e| bad(&e))?;
            log::warn!("clients verify certificates of this host with {}", file.display());
            Ok((key, certificate))
        }
        Err(e) => Err(bad(&e)),
    }
}

/// A program puts `server.crt`, with the chain, and `server.key` into a folder that is for root alone.
fn from_command(program: &[String], wish: &Wish) -> Result<Pair> {
    let folder = Folder::new()?;
    let (first, rest) = program.split_first().ok_or_else(|| Error::config("there is no command"))?;
    let mut command = Command::new(first);
    command.args(rest).env("PG_CERT_DIRECTORY", &folder.0).env("PG_CERT_NAME", wish.name);
    command.env("PG_CERT_NAMES", wish.names.join(" ")).current_dir(&folder.0);
    let out = command::run(&mut command, COMMAND).map_err(|e| Error::failed(format!("could not run {first}: {e}")))?;
    if !out.status.success() {
        let said = out.stderr.lines().chain(out.stdout.lines()).rfind(|line| !line.trim().is_empty()).unwrap_or("");
        return Err(Error::failed(format!("{first} failed ({}): {said}", out.status)));
    }
    read_pair(&folder.0.join("server.crt"), &folder.0.join("server.key"))
        .map_err(|e| Error::failed(format!("{first} has not left a pair: {}", e.message)))
}

/// Removed with what is in it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Folder> {
        let path = PathBuf::from(format!("/run/pg-recovery/cert-renew.{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|e| Error::failed(format!("could not make {}: {e}", path.display())))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// As certbot (`live/NAME`) or lego (`certificates`) leave it. Their links are followed: only root writes there.
pub fn from_directory(folder: &Path, names: &[String]) -> Result<Pair> {
    let certbot = (folder.join("fullchain.pem"), folder.join("privkey.pem"));
    if certbot.0.exists() || names.is_empty() {
        return read_pair(&certbot.0, &certbot.1);
    }
    // lego names its files after the first name, and has `_` for the `*` of a wildcard.
    let stem = names[0].replace('*', "_");
    read_pair(&folder.join(format!("{stem}.crt")), &folder.join(format!("{stem}.key")))
}

fn read_pair(certificate: &Path, key: &Path) -> Result<Pair> {
    let read = |path: &Path| {
        std::fs::canonicalize(path)
            .and_then(|path| state::read(&path, LIMIT))
            .map_err(|e| Error::failed(format!("could not read {}: {e}", path.display())))
    };
    Pair::parse(&read(certificate)?, &read(key)?)
        .map_err(|why| Error::failed(format!("cannot use {}: {why}", certificate.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair::Anchors;
    use crate::pair::tests::NOW;

    #[test]
    fn what_is_signed_here_is_good_for_as_long_as_it_should_be() {
        let names = ["db.example".to_string(), "10.0.0.1".to_string()];
        for key in [KeyKind::Ecdsa, KeyKind::Rsa] {
            let (replaces, later) = (None, &Cell::default());
            let wish = Wish { name: "16/main", names: &names, key, lifetime: 90 * 86_400, now: NOW, replaces, later };
            let chain = self_signed(&wish).unwrap().chain;
            assert_eq!(chain.validity.until, NOW + 90 * 86_400);
            assert_eq!(chain.verify(&names, &Anchors::of(None, &chain).unwrap(), NOW), Ok(()));
        }
        let (replaces, later) = (None, &Cell::default());
        let nobody = Wish { name: "16/main", names: &[], key: KeyKind::Ecdsa, lifetime: 1, now: NOW, replaces, later };
        assert!(self_signed(&nobody).err().unwrap().message.contains("which names"));
    }

    #[test]
    fn what_certbot_and_lego_leave_is_found() {
        let folder = std::env::temp_dir().join(format!("pg-recovery-live-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let names = ["*.db.example".to_string()];
        let (_, middle, leaf, key) = crate::pair::tests::issue("*.db.example", 0, NOW);
        std::fs::write(folder.join("_.db.example.crt"), format!("{leaf}{middle}")).unwrap();
        assert!(from_directory(&folder, &names).err().unwrap().message.contains("_.db.example.key"));
        std::fs::write(folder.join("_.db.example.key"), &key).unwrap();
        let lego = from_directory(&folder, &names).unwrap().chain;
        std::os::unix::fs::symlink("_.db.example.crt", folder.join("fullchain.pem")).unwrap();
        std::os::unix::fs::symlink("_.db.example.key", folder.join("privkey.pem")).unwrap();
        assert_eq!(from_directory(&folder, &[]).unwrap().chain, lego);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
