//! Mail goes through a folder: what sends it is setgid or setuid on most hosts (postdrop, exim4), and the sandbox of
//! pg-notify@.service takes that away. pg-notify-mail.service, which does without that part of the sandbox, hands it over.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use base64::prelude::{BASE64_STANDARD, Engine};
use shared::exit::Code;
use shared::{Result, state};

use crate::channel::feed;
use crate::message::Message;

/// Debian Policy, 11.6.
pub const SENDMAIL: &str = "/usr/sbin/sendmail";
/// The second one while the state disk is full or read-only.
const FOLDERS: [&str; 2] = ["/var/lib/pg-recovery/notify/mail", "/run/pg-recovery/state/notify/mail"];
const MOST: usize = 100;
/// Bytes: no line of a mail is longer than 998 (RFC 5322, 2.1.1).
const LINE: usize = 900;
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
    let mut text = format!(
        "To: {to}\nSubject: [pg-recovery] {}\nAuto-Submitted: auto-generated\nX-PG-Recovery: {} {}\n\
         MIME-Version: 1.0\nContent-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit\n\n",
        header(&message.subject),
        message.kind,
        message.id
    );
    for mut line in message.text.lines() {
        while line.len() > LINE {
            let most = line.floor_char_boundary(LINE);
            let (first, rest) = line.split_at(line[..most].rfind(' ').filter(|at| *at > 0).unwrap_or(most));
            text.push_str(first);
            text.push('\n');
            line = rest.trim_start_matches(' ');
        }
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// A header is ASCII; anything else goes into it as words of 75 characters at most (RFC 2047, 2).
fn header(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.is_ascii() {
        return text;
    }
    let (mut words, mut rest) = (Vec::new(), text.as_str());
    while !rest.is_empty() {
        let (word, more) = rest.split_at(rest.floor_char_boundary(45));
        words.push(format!("=?UTF-8?B?{}?=", BASE64_STANDARD.encode(word)));
        rest = more;
    }
    words.join("\n ")
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
    Ok(hand_over_with(FOLDERS.map(Path::new), sendmail))
}

fn hand_over_with(folders: [&Path; 2], send: impl Fn(&Path) -> Result<(), String>) -> Code {
    let mut code = Code::Ok;
    for mail in folders.iter().flat_map(|folder| waiting(folder)) {
        // The time of the mail is that of its last try, once there was one; that of the file beside it, of the first.
        let tried = mail.with_extension("eml.tried");
        // It was handed over, but its disk has become read-only; that must not be done again every minute.
        let sent = folders[1].join(mail.file_name().unwrap_or_default()).with_extension("eml.sent");
        let waits = age(&tried);
        if waits.is_some() && !sent.exists() && age(&mail).is_some_and(|age| age < PAUSE) {
            code = Code::Failed;
            continue;
        }
        let outcome = if sent.exists() { Ok(()) } else { send(&mail) };
        match outcome {
            Ok(()) if sent.exists() => {}
            Ok(()) => log::info!("{} was handed over to {SENDMAIL}", mail.display()),
            Err(why) if waits.is_some_and(|waits| waits > KEPT) => {
                log::error!("could not hand {} over to {SENDMAIL}: {why}; given up", mail.display())
            }
            Err(why) => {
                log::error!("could not hand {} over to {SENDMAIL}: {why}; trying again", mail.display());
                code = Code::Failed;
                // Where these cannot be kept, it is tried every minute.
                if waits.is_none() {
                    let _ = fs::File::create(tried);
                }
                let _ = fs::File::open(&mail).and_then(|file| file.set_modified(SystemTime::now()));
                continue;
            }
        }
        let _ = fs::remove_file(tried);
        match fs::remove_file(&mail) {
            Ok(()) => drop(fs::remove_file(&sent)),
            Err(why) if !sent.exists() => {
                log::warn!("could not remove {}: {why}; it is not handed over again", mail.display());
                if let Err(why) = fs::create_dir_all(folders[1]).and_then(|()| fs::write(&sent, "")) {
                    log::error!("could not write {}: {why}; {} goes out again", sent.display(), mail.display());
                    code = Code::Failed;
                }
            }
            Err(_) => {}
        }
    }
    code
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
        assert!(
            head.starts_with("To: ops@example.com\nSubject: [pg-recovery] ") && head.contains("\nAuto-Submitted: ")
        );
        assert!(text.lines().all(|line| line.len() < 998) && body.ends_with("\nend\n"));
        assert_eq!(body.matches("word").count(), 1000);

        // Nothing of a path without spaces is lost, and what is indented stays so.
        message.text = format!("HINT: {}\n    next", "ä/".repeat(1000));
        let text = self::text("ops@example.com", &message);
        assert!(text.lines().all(|line| line.len() < 998) && text.ends_with("\n    next\n"), "{text}");
        assert_eq!(text.matches("ä/").count() + text.matches("ä\n/").count(), 1000);
    }

    #[test]
    fn a_subject_of_any_letters_is_one_header() {
        assert_eq!(header("pghost: healed\r\nBcc: x"), "pghost: healed  Bcc: x");
        let folded = header(&format!("pghost: {}", "kein Verzeichnis für 🐘 ".repeat(6)));
        assert!(folded.is_ascii() && folded.lines().all(|line| line.len() <= 76), "{folded}");
        assert!(folded.lines().skip(1).all(|line| line.starts_with(" =?UTF-8?B?")), "{folded}");
        let words = folded.split_whitespace().map(|word| {
            let word = word.strip_prefix("=?UTF-8?B?").unwrap().strip_suffix("?=").unwrap();
            String::from_utf8(BASE64_STANDARD.decode(word).unwrap()).unwrap()
        });
        assert_eq!(words.collect::<String>(), format!("pghost: {}", "kein Verzeichnis für 🐘 ".repeat(6)));
    }

    #[test]
    fn a_mail_that_cannot_be_removed_is_handed_over_once() {
        let top = std::env::temp_dir().join(format!("pg-notify-sent-{}", std::process::id()));
        let (disk, memory) = (top.join("disk"), top.join("memory"));
        // What unlink(2) does not remove, whoever asks.
        let stuck = disk.join("1-root.eml");
        fs::create_dir_all(&stuck).unwrap();
        fs::write(disk.join("2-root.eml"), "").unwrap();
        let sent = std::cell::RefCell::new(Vec::new());
        let send = |mail: &Path| {
            sent.borrow_mut().push(mail.file_stem().unwrap().to_owned());
            Ok(())
        };
        for _ in 0..3 {
            assert_eq!(hand_over_with([&disk, &memory], send), Code::Ok);
        }
        assert_eq!(*sent.borrow(), ["1-root", "2-root"]);
        fs::remove_dir(&stuck).unwrap();
        fs::write(&stuck, "").unwrap();
        assert_eq!(hand_over_with([&disk, &memory], send), Code::Ok);
        assert!(sent.borrow().len() == 2 && waiting(&disk).is_empty(), "it goes as soon as it can");
        assert_eq!(fs::read_dir(&memory).unwrap().count(), 0);
        fs::remove_dir_all(top).unwrap();
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
