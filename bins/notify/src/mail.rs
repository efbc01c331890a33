//! Mail goes through a folder: what sends it is setgid or setuid on most hosts (postdrop, exim4), and the sandbox of
//! pg-notify@.service takes that away. pg-notify-mail.service, which does without that part of the sandbox, hands it over.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use shared::exit::Code;
use shared::{Result, state};

use crate::channel::feed;
use crate::message::Message;

/// Debian Policy, 11.6.
pub const SENDMAIL: &str = "/usr/sbin/sendmail";
/// The second one while the state disk is full or read-only.
const FOLDERS: [&str; 2] = ["/var/lib/pg-recovery/notify/mail", "/run/pg-recovery/state/notify/mail"];
const MOST: usize = 100;
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries, and how long it is tried.
const PAUSE: Duration = Duration::from_secs(10 * 60);
const KEPT: Duration = Duration::from_secs(3 * 86_400);

/// Leaves a mail for pg-notify-mail.service.
pub fn put(channel: &str, to: &str, message: &Message) -> Result<(), String> {
    if !Path::new(SENDMAIL).exists() {
        return Err(format!("there is no {SENDMAIL}; any package that provides mail-transport-agent has it"));
    }
    let put = |folder: &str| put_into(Path::new(folder), channel, to, message);
    put(FOLDERS[0]).or_else(|e| put(FOLDERS[1]).map_err(|_| format!("could not write to {}: {e}", FOLDERS[0])))
}

fn put_into(folder: &Path, channel: &str, to: &str, message: &Message) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    if waiting(folder).len() >= MOST {
        return Err(std::io::Error::other(format!("{MOST} mails wait there already")));
    }
    // The name says which message it is, so that no message is there twice.
    state::replace(&folder.join(format!("{}-{channel}.eml", message.id)), text(to, message).as_bytes(), 0o600)
}

fn text(to: &str, message: &Message) -> String {
    let subject: String =
        message.subject.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
    let mut text = format!(
        "To: {to}\nSubject: [pg-recovery] {subject}\nAuto-Submitted: auto-generated\nX-PG-Recovery: {} {}\n\
         MIME-Version: 1.0\nContent-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit\n\n",
        message.kind, message.id
    );
    // No line of a mail is longer than 998 bytes (RFC 5322, 2.1.1).
    for line in message.text.lines() {
        let mut length = 0;
        for word in line.split(' ') {
            let word: String = word.chars().take(200).collect();
            let (before, start) = if length == 0 {
                ("", 0)
            } else if length + word.len() > 900 {
                ("\n", 0)
            } else {
                (" ", length + 1)
            };
            text.push_str(before);
            text.push_str(&word);
            length = start + word.len();
        }
        text.push('\n');
    }
    text
}

fn waiting(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut mails: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "eml")).collect();
    mails.sort();
    mails
}

/// `None`: there is no such file. One from the future has waited for a while.
fn age(path: &Path) -> Option<Duration> {
    let modified = fs::metadata(path).and_then(|meta| meta.modified()).ok()?;
    Some(SystemTime::now().duration_since(modified).unwrap_or(PAUSE))
}

/// Hands over what waits. Fails as long as a mail waits that was not taken, so that the unit shows it.
pub fn hand_over() -> Result<Code> {
    crate::become_own_user()?;
    let mut code = Code::Ok;
    for mail in FOLDERS.iter().flat_map(|folder| waiting(Path::new(folder))) {
        // The time of the mail is that of its last try, once there was one; that of the file beside it, of the first.
        let tried = mail.with_extension("eml.tried");
        let waits = age(&tried);
        if waits.is_some() && age(&mail).is_some_and(|age| age < PAUSE) {
            code = Code::Failed;
            continue;
        }
        match sendmail(&mail) {
            Ok(()) => log::info!("{} was handed over to {SENDMAIL}", mail.display()),
            Err(why) if waits.is_some_and(|waits| waits > KEPT) => {
                log::error!("could not hand {} over to {SENDMAIL}: {why}; given up", mail.display())
            }
            Err(why) => {
                log::error!("could not hand {} over to {SENDMAIL}: {why}; trying again", mail.display());
                code = Code::Failed;
                if waits.is_none() {
                    fs::File::create(tried)?;
                }
                fs::File::open(&mail)?.set_modified(SystemTime::now())?;
                continue;
            }
        }
        let _ = fs::remove_file(tried);
        fs::remove_file(&mail)?;
    }
    Ok(code)
}

fn sendmail(mail: &Path) -> Result<(), String> {
    let bytes = fs::read(mail).map_err(|e| e.to_string())?;
    // -i: a line with a single dot is not the end.
    match feed(Command::new(SENDMAIL).args(["-t", "-i"]), &bytes, PATIENCE)? {
        true => Ok(()),
        false => Err("it did not read all of the mail".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::config::Severity;

    #[test]
    fn a_mail_has_its_headers_and_no_line_that_is_too_long() {
        let mut message =
            Message::new("trouble", "15/main", Severity::Warning, "it ü crashed", "word ".repeat(1000) + "\nend");
        message.id = "7".into();
        let text = text("ops@example.com", &message);
        let (head, body) = text.split_once("\n\n").unwrap();
        assert!(head.starts_with("To: ops@example.com\nSubject: [pg-recovery] ") && head.contains("it ? crashed\n"));
        assert!(text.lines().all(|line| line.len() < 998) && body.ends_with("\nend\n"));
        assert_eq!(body.matches("word").count(), 1000);
    }

    #[test]
    fn no_mail_is_there_twice_and_the_folder_does_not_grow_for_ever() {
        let folder = std::env::temp_dir().join(format!("pg-notify-mail-{}", std::process::id()));
        let mut message = Message { id: "1".into(), ..Message::default() };
        put_into(&folder, "ops", "root", &message).unwrap();
        put_into(&folder, "ops", "root", &message).unwrap();
        assert_eq!(waiting(&folder).len(), 1);
        for id in 2..=MOST {
            message.id = id.to_string();
            put_into(&folder, "ops", "root", &message).unwrap();
        }
        message.id = "more".into();
        assert!(put_into(&folder, "ops", "root", &message).is_err());
        fs::remove_dir_all(folder).unwrap();
    }
}
