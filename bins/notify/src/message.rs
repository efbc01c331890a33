//! What is sent.

use serde::{Deserialize, Serialize};
use shared::clock::Stamp;
use shared::config::Severity;

/// One message, as the channels `webhook` and `exec` get it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Message {
    /// `20261122T015732Z-3`: the same again when it is sent a second time, because nobody knows whether it arrived.
    pub id: String,
    pub at: String,
    pub host: String,
    /// `16/main`, `16/main: warnings`, `service/shop`, or a unit of pg-recovery.
    pub about: String,
    /// `trouble`, `healed` (both at once), `over`, `several` (what waited, as one), or `test`.
    pub kind: String,
    pub severity: Severity,
    pub subject: String,
    pub text: String,
    /// For `pg-recover explain`; empty when nothing was done.
    pub recovery_id: String,
}

/// As people see it in a subject.
const SUBJECT: usize = 150;
/// Bytes; a program that does not read what it is given must find room for it in its pipe (pipe(7): 64 KiB).
const TEXT: usize = 30_000;

impl Message {
    pub fn new(kind: &str, about: &str, severity: Severity, subject: &str, text: String) -> Message {
        let now = Stamp::now();
        let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Message {
            id: String::new(),
            at: now.rfc3339(),
            subject: shorten(&printable(&format!("{host}: {subject}"))),
            host,
            about: about.into(),
            kind: kind.into(),
            severity,
            text: printable(&text),
            recovery_id: String::new(),
        }
    }

    /// Those that waited too long to be sent one by one.
    pub fn several(messages: &[Message]) -> Message {
        let worst = messages.iter().map(|message| message.severity).max().unwrap_or_default();
        let text: Vec<String> =
            messages.iter().map(|one| format!("{} {}\n{}", one.at, one.subject, one.text)).collect();
        let mut text = text.join("\n\n");
        text.truncate(text.floor_char_boundary(TEXT));
        let last = messages.last().map_or("", |last| last.subject.as_str());
        let last = last.split_once(": ").map_or(last, |(_, rest)| rest);
        let subject = format!("{} messages, the last: {last}", messages.len());
        // The same as long as it has the same in it.
        let id = format!("{}-{}", messages.last().map_or("", |last| &last.id), messages.len());
        Message {
            id,
            ..Message::new("several", messages.first().map_or("", |first| &first.about), worst, &subject, text)
        }
    }
}

/// What a server or a client has said must not move anybody's cursor.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect()
}

/// The first line, and no more of it than fits.
fn shorten(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(SUBJECT) {
        Some((at, _)) => format!("{}...", &line[..at]),
        None => line.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_one_line_that_fits() {
        assert_eq!(shorten("a: b\nc"), "a: b");
        assert_eq!(shorten(&"ä".repeat(200)).chars().count(), SUBJECT + 3);
    }

    #[test]
    fn what_waited_goes_as_one_with_the_worst_severity() {
        let one = |severity, subject: &str| Message::new("trouble", "15/main", severity, subject, "text".into());
        let several = Message::several(&[one(Severity::Critical, "first"), one(Severity::Warning, "second")]);
        assert_eq!(several.severity, Severity::Critical);
        assert!(several.subject.ends_with(": 2 messages, the last: second"), "{}", several.subject);
        assert!(several.text.contains("first") && several.text.contains("second"));
    }
}
