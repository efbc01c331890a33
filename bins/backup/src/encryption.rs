//! Encryption at rest, in the format of age (age-encryption.org/v1): `FILE.age` is FILE, for whoever has an identity of one of
//! the recipients in `backup.recipients`. `age --decrypt` reads it too.
//!
//! Recipients are public and write; the identities are the credential `backup-identity` and read. A backup that nobody can
//! read again is none, so none is made here without an identity that opens it. Programs of PostgreSQL write in the clear:
//! a base backup is encrypted once it is whole and before it counts, a WAL segment once it is whole.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use age::x25519::{Identity, Recipient};
use age::{DecryptError, Decryptor, Encryptor};
use shared::config::Config;
use shared::wal::{self, Source};
use shared::{Error, Result, credential, state};

pub const AGE: &str = ".age";
/// While it is being written.
const NEW: &str = "new";
const CREDENTIAL: &str = "backup-identity";
const HINT: &str = "The identities (age-keygen) are the lines of /etc/pg-recovery/credentials/backup-identity, which root and the \
     units of pg-backup read.";
/// After so many bytes the caller is asked whether to go on.
const PIECE: u64 = 32 << 20;

static IDENTITIES: OnceLock<Result<Vec<Identity>, String>> = OnceLock::new();

/// Reads the identities, which only root can do by hand; whoever needs none is not told that there are none.
pub fn init() {
    let read = || {
        let text = credential::read(CREDENTIAL, CREDENTIAL).map_err(|why| why.message)?;
        identities(&text.ok_or("there is no credential backup-identity")?)
    };
    IDENTITIES.get_or_init(read);
}

/// One in each line, as age-keygen writes them.
fn identities(text: &str) -> Result<Vec<Identity>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    lines
        .map(|(at, line)| {
            let wrong = |why| format!("line {} of the credential backup-identity is no identity of age: {why}", at + 1);
            line.trim().parse().map_err(wrong)
        })
        .collect()
}

fn known() -> Result<&'static [Identity]> {
    match IDENTITIES.get() {
        Some(Ok(known)) => Ok(known),
        Some(Err(why)) => Err(Error::config(format!("cannot read encrypted backups: {why}")).hint(HINT)),
        None => Err(Error::config("cannot read encrypted backups: no identity was read")),
    }
}

/// Whom backups are encrypted for.
pub struct Recipients(Vec<Recipient>);

impl Recipients {
    /// `None`: backups are not encrypted.
    pub fn of(config: &Config) -> Result<Option<Recipients>> {
        let recipients = config.backup.recipients.iter().map(|text| {
            text.parse().map_err(|why| {
                Error::config(format!("cannot use the configuration, key backup.recipients: {why}"))
                    .hint("A recipient is the public key that age-keygen prints.")
            })
        });
        let recipients = recipients.collect::<Result<Vec<_>>>()?;
        Ok((!recipients.is_empty()).then_some(Recipients(recipients)))
    }

    /// Refuses when none of the identities opens what is encrypted for them.
    pub fn must_be_readable(&self) -> Result<()> {
        let mine: Vec<String> = known()?.iter().map(|identity| identity.to_public().to_string()).collect();
        if self.0.iter().any(|recipient| mine.contains(&recipient.to_string())) {
            return Ok(());
        }
        let text = "cannot encrypt for backup.recipients alone: no identity here is of one of them, so nothing could be \
                    verified or restored";
        Err(Error::config(text).hint(HINT))
    }

    /// Replaces a file by its encrypted form, `FILE.age`; until that is whole and on disk, the file stays as it is.
    pub fn encrypt(&self, path: &Path, mut go_on: impl FnMut() -> Result<()>) -> Result<()> {
        let to = encrypted(path);
        let new = to.with_added_extension(NEW);
        let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let mut write = || {
            let mut from = wal::open(path)?;
            let mut options = File::options();
            let file = options.write(true).create(true).truncate(true).mode(0o600).custom_flags(flags).open(&new)?;
            let recipients = self.0.iter().map(|recipient| recipient as &dyn age::Recipient);
            let encryptor = Encryptor::with_recipients(recipients).map_err(io::Error::other)?;
            let mut writer = encryptor.wrap_output(file)?;
            while io::copy(&mut (&mut from).take(PIECE), &mut writer)? == PIECE {
                go_on()?;
            }
            writer.finish()?.sync_all()?;
            fs::rename(&new, &to)?;
            state::sync_folder(path.parent().unwrap_or(Path::new("/")))?;
            Ok(fs::remove_file(path)?)
        };
        write().map_err(|mut why: Error| {
            let _ = fs::remove_file(&new);
            why.message = format!("could not encrypt {}: {}", path.display(), why.message);
            why
        })
    }
}

/// The name of a file's encrypted form.
pub fn encrypted(path: &Path) -> PathBuf {
    path.with_added_extension(&AGE[1..])
}

pub fn is_encrypted(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == &AGE[1..])
}

/// The file, or its encrypted form where only that is there.
pub fn find(path: &Path) -> PathBuf {
    let other = encrypted(path);
    if !path.exists() && other.exists() { other } else { path.into() }
}

/// Opens a file as it was before it was encrypted.
pub fn open(path: &Path) -> io::Result<Box<dyn Source>> {
    if !is_encrypted(path) {
        return Ok(Box::new(wal::open(path)?));
    }
    let known = known().map_err(|why| io::Error::other(why.message))?;
    let identities = known.iter().map(|identity| identity as &dyn age::Identity);
    let reader = Decryptor::new_buffered(BufReader::new(wal::open(path)?)).and_then(|file| file.decrypt(identities));
    Ok(Box::new(reader.map_err(|why| match why {
        DecryptError::Io(why) => why,
        why => io::Error::other(why),
    })?))
}

/// Refuses when an encrypted file is not for any identity that is here: that says nothing about the file.
pub fn must_open<'a>(paths: impl Iterator<Item = &'a Path>) -> Result<()> {
    for path in paths.filter(|path| is_encrypted(path)) {
        let known = known()?;
        let Ok(file) = File::open(path) else { continue };
        let Ok(file) = Decryptor::new_buffered(BufReader::new(file)) else { continue };
        let identities = known.iter().map(|identity| identity as &dyn age::Identity);
        if let Err(DecryptError::NoMatchingKeys) = file.decrypt(identities) {
            let text = format!("cannot read {}: it was encrypted for other identities than are here", path.display());
            return Err(Error::config(text).hint(HINT));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use age::secrecy::ExposeSecret;
    use std::io::{Seek, SeekFrom};

    #[test]
    fn what_is_encrypted_takes_the_place_of_the_file_and_is_read_and_sought_in_with_the_key_only() {
        let folder = std::env::temp_dir().join(format!("pg-backup-encryption-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("file");
        let content: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
        fs::write(&path, &content).unwrap();
        let (mine, other) = (Identity::generate(), Identity::generate());
        let recipients = Recipients(vec![other.to_public(), mine.to_public()]);
        assert!(must_open([path.as_path()].into_iter()).is_ok(), "what is in the clear needs no key");
        recipients.encrypt(&path, || Ok(())).unwrap();
        assert_eq!(crate::store::names(&folder), ["file.age"]);
        assert_eq!(find(&path), encrypted(&path));
        assert!(open(&encrypted(&path)).is_err() && must_open([encrypted(&path).as_path()].into_iter()).is_err());
        let text = format!("# created: today\n{}\n", mine.to_string().expose_secret());
        IDENTITIES.set(identities(&text)).ok().unwrap();
        recipients.must_be_readable().unwrap();
        assert!(Recipients(vec![other.to_public()]).must_be_readable().is_err());
        let mut file = open(&encrypted(&path)).unwrap();
        let mut read = [0; 4];
        for at in [700_000, 65_536, 65_540, 0, 799_996] {
            file.seek(SeekFrom::Start(at)).unwrap();
            file.read_exact(&mut read).unwrap();
            assert_eq!(u64::from(u32::from_le_bytes(read)) * 4, at);
        }
        let others = Recipients(vec![other.to_public()]);
        fs::write(&path, &content).unwrap();
        others.encrypt(&path, || Ok(())).unwrap();
        assert!(must_open([encrypted(&path).as_path()].into_iter()).unwrap_err().message.contains("other identities"));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn an_identity_that_cannot_be_read_is_not_quoted() {
        let why = identities("# fine\n\nAGE-SECRET-KEY-1ABC\n").err().unwrap();
        assert!(why.starts_with("line 3 of") && !why.contains("ABC"), "{why}");
    }
}
