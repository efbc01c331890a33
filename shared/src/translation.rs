//! What a server says in another language, in PostgreSQL's own words again: a cluster logs in the language of `lc_messages`, which
//! Debian takes from the host, and what is looked for in logs is English.
//!
//! The server's own message catalog is read the other way round, and that of the C library for its `%m`. A message that is in
//! neither stays as it is.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::cluster::Cluster;
use crate::{meaning, server_log};

const FOLDER: &str = "/usr/share/locale";
/// Bytes of its own that a translated message has: `%s: %s` fits everything.
const LEAST: usize = 8;

/// A translated message and the original, each cut at its arguments.
struct Template {
    translated: Format,
    original: Format,
}

/// A format of printf(3): `texts` has one more element than `arguments`, which are numbered from 0.
#[derive(Debug, PartialEq)]
struct Format {
    texts: Vec<String>,
    arguments: Vec<usize>,
}

/// What is said between prefix and message.
type Marks = Vec<(String, &'static str)>;

pub struct Translation {
    marks: Marks,
    /// What the C library says of an error.
    errors: Vec<(String, String)>,
    templates: Vec<Template>,
}

impl Translation {
    /// `None`: it speaks English, or a language that nobody has the catalog of.
    pub fn of(cluster: &Cluster) -> Option<Translation> {
        let locale = cluster.setting("lc_messages")?;
        let locale = locale.split(['.', '@']).next().filter(|locale| !matches!(*locale, "" | "C" | "POSIX"))?;
        let language = locale.split('_').next().filter(|language| *language != "en")?;
        let read = |catalog: &str| {
            let path = |name: &str| Path::new(FOLDER).join(name).join("LC_MESSAGES").join(catalog);
            [locale, language].iter().find_map(|name| messages(&fs::read(path(name)).ok()?))
        };
        let server = read(&format!("postgres-{}.mo", cluster.version))?;
        Some(Translation::from(&server, &read("libc.mo").unwrap_or_default()))
    }

    fn from(server: &[(String, String)], libc: &[(String, String)]) -> Translation {
        let translated = |original: &str| server.iter().find(|(id, _)| id == original).map(|(_, text)| text.clone());
        let mark = |mark: &'static str| {
            // Levels are translated without what comes after them, the rest with it.
            let own = translated(mark).or_else(|| Some(translated(mark.strip_suffix(":  ")?)? + ":  "))?;
            (own != mark).then_some((own, mark))
        };
        let errors =
            libc.iter().filter(|(id, text)| meaning::is_looked_for(id) && !id.contains('%') && !text.is_empty());
        let template = |(original, translated): &(String, String)| {
            let template = Template { translated: Format::parse(translated), original: Format::parse(original) };
            (template.translated.own() >= LEAST).then_some(template)
        };
        Translation {
            marks: server_log::marks().filter_map(mark).collect(),
            errors: errors.map(|(id, text)| (text.clone(), id.clone())).collect(),
            templates: server.iter().filter_map(template).collect(),
        }
    }

    /// A log in English, as far as it is of any interest here.
    pub fn english(&self, log: &str) -> String {
        log.lines().map(|line| self.line(line) + "\n").collect()
    }

    fn has(&self, message: &str, words: &str) -> bool {
        let mut templates = self.templates.iter().filter(|template| template.original.texts == [words]);
        templates.any(|template| message.contains(&template.translated.texts[0]))
    }

    fn line(&self, line: &str) -> String {
        let marked = self.marks.iter().fold(line.to_owned(), |line, (own, mark)| line.replace(own, mark));
        let Some((prefix, _, message)) = server_log::parts(&marked) else { return marked };
        let mark = &marked[prefix.len()..marked.len() - message.len()];
        let message = self.errors.iter().fold(message.to_owned(), |message, (own, error)| message.replace(own, error));
        let fits = |template: &&Template| template.translated.arguments_of(&message).is_some();
        let original = self.templates.iter().filter(fits).max_by_key(|template| template.translated.own());
        let original = original.and_then(|template| {
            let arguments = template.translated.arguments_of(&message)?;
            template.original.with(&template.translated.arguments, &arguments)
        });
        format!("{prefix}{mark}{}", original.unwrap_or(message))
    }
}

/// Whether `message` has these words of the server in it, as they are or in its language. They are words without arguments.
pub fn has(cluster: &Cluster, message: &str, words: &str) -> bool {
    message.contains(words) || Translation::of(cluster).is_some_and(|translation| translation.has(message, words))
}

/// The log of this cluster in English.
pub fn english<'a>(cluster: &Cluster, log: &'a str) -> Cow<'a, str> {
    let translation = if log.is_empty() { None } else { Translation::of(cluster) };
    translation.map_or(Cow::Borrowed(log), |translation| Cow::Owned(translation.english(log)))
}

impl Format {
    fn parse(format: &str) -> Format {
        let (mut texts, mut arguments) = (vec![String::new()], Vec::new());
        let mut rest = format;
        while let Some((text, conversion)) = rest.split_once('%') {
            let end = conversion
                .find(|c: char| c.is_ascii_alphabetic() && !matches!(c, 'h' | 'l' | 'z' | 'j' | 't') || c == '%');
            let Some(end) = end else { break };
            let last = texts.last_mut().expect("there is always one");
            last.push_str(text);
            rest = &conversion[end + 1..];
            if conversion.as_bytes()[end] == b'%' {
                last.push('%');
                continue;
            }
            let number = conversion.split_once('$').and_then(|(number, _)| number.parse::<usize>().ok());
            arguments.push(number.map_or(arguments.len(), |number| number.saturating_sub(1)));
            texts.push(String::new());
        }
        texts.last_mut().expect("there is always one").push_str(rest);
        Format { texts, arguments }
    }

    /// How many bytes of it are not arguments.
    fn own(&self) -> usize {
        self.texts.iter().map(String::len).sum()
    }

    /// What stands in the places of its arguments, in their order in `message`.
    fn arguments_of<'a>(&self, message: &'a str) -> Option<Vec<&'a str>> {
        let (first, others) = self.texts.split_first()?;
        let mut rest = message.strip_prefix(first.as_str())?;
        let mut found = Vec::new();
        for (index, text) in others.iter().enumerate() {
            let at = match index + 1 == others.len() {
                true => rest.strip_suffix(text.as_str())?.len(),
                false => rest.find(text.as_str())?,
            };
            found.push(&rest[..at]);
            rest = &rest[at + text.len()..];
        }
        rest.is_empty().then_some(found)
    }

    fn with(&self, numbers: &[usize], arguments: &[&str]) -> Option<String> {
        let mut message = self.texts[0].clone();
        for (number, text) in self.arguments.iter().zip(&self.texts[1..]) {
            let place = numbers.iter().position(|other| other == number)?;
            message.push_str(arguments[place]);
            message.push_str(text);
        }
        Some(message)
    }
}

/// Originals and their translations (manual of GNU gettext, "The Format of GNU MO Files").
fn messages(file: &[u8]) -> Option<Vec<(String, String)>> {
    let number = |at: usize| Some(u32::from_le_bytes(file.get(at..at + 4)?.try_into().ok()?) as usize);
    // Debian has no others.
    if number(0)? != 0x9504_12de {
        return None;
    }
    let (count, originals, translations) = (number(8)?, number(12)?, number(16)?);
    let text = |table: usize, index: usize| {
        let (length, at) = (number(table + 8 * index)?, number(table + 8 * index + 4)?);
        // Of plural forms the first.
        let bytes = file.get(at..at.checked_add(length)?)?.split(|byte| *byte == 0).next()?;
        OsStr::from_bytes(bytes).to_str().map(str::to_owned)
    };
    let pair = |index| Some((text(originals, index)?, text(translations, index)?));
    Some((0..count.min(file.len())).filter_map(pair).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(id, text)| ((*id).to_owned(), (*text).to_owned())).collect()
    }

    fn german() -> Translation {
        let server = pairs(&[
            ("PANIC", "PANIK"),
            ("ERROR", "FEHLER"),
            ("STATEMENT:  ", "ANWEISUNG:  "),
            ("could not write to file \"%s\": %m", "konnte nicht in Datei »%s« schreiben: %m"),
            ("invalid page in block %u of relation %s", "ungültige Seite in Block %u von Relation %s"),
            ("lock file \"%s\" already exists", "Sperrdatei »%s« existiert bereits"),
            ("file \"%s\" has wrong ownership by %d", "%2$d besitzt Datei »%1$s«"),
            ("%s: %s", "%s: %s"),
            ("could not write: %s", "konnte nicht %s"),
            ("received immediate shutdown request", "sofortiges Herunterfahren verlangt"),
            ("no encryption", "keine Verschlüsselung"),
        ]);
        Translation::from(
            &server,
            &pairs(&[("No space left on device", "Auf dem Gerät ist kein Speicherplatz mehr verfügbar")]),
        )
    }

    #[test]
    fn what_was_said_in_another_language_is_found_again() {
        for (said, english) in [
            (
                "1 UTC [7] PANIK:  konnte nicht in Datei »pg_wal/xlogtemp.7« schreiben: Auf dem Gerät ist kein Speicherplatz mehr verfügbar",
                "1 UTC [7] PANIC:  could not write to file \"pg_wal/xlogtemp.7\": No space left on device",
            ),
            (
                "1 UTC [7] a@b FEHLER:  ungültige Seite in Block 7 von Relation base/5/16391",
                "1 UTC [7] a@b ERROR:  invalid page in block 7 of relation base/5/16391",
            ),
            (
                "1 UTC [7] FATAL:  12 besitzt Datei »/srv/a«",
                "1 UTC [7] FATAL:  file \"/srv/a\" has wrong ownership by 12",
            ),
            ("1 UTC [7] a@b FEHLER:  was niemand kennt", "1 UTC [7] a@b ERROR:  was niemand kennt"),
            ("1 UTC [7] a@b ANWEISUNG:  SELECT 'FATAL:  x'", "1 UTC [7] a@b STATEMENT:  SELECT 'FATAL:  x'"),
            (
                "1 UTC [7] LOG:  sofortiges Herunterfahren verlangt",
                "1 UTC [7] LOG:  received immediate shutdown request",
            ),
            ("no prefix at all", "no prefix at all"),
        ] {
            assert_eq!(german().english(said), format!("{english}\n"));
        }
    }

    #[test]
    fn words_are_found_within_a_message() {
        assert!(german().has("kein Eintrag für Benutzer »a«, keine Verschlüsselung", "no encryption"));
        assert!(!german().has("kein Eintrag für Benutzer »a«, SSL-Verschlüsselung", "no encryption"));
        assert!(!german().has("keine Verschlüsselung", "SSL encryption"));
    }

    #[test]
    fn a_format_is_cut_at_its_arguments() {
        let cut = |format: &str| Format::parse(format);
        assert_eq!(cut("100%% of %2$lld in %1$s").arguments, [1, 0]);
        assert_eq!(cut("100%% of %2$lld in %1$s").texts, ["100% of ", " in ", ""]);
        assert_eq!(cut("at %X/%08X").texts, ["at ", "/", ""]);
        assert_eq!(cut("only %"), Format { texts: vec!["only %".into()], arguments: vec![] });
        assert_eq!(cut("a %s b").arguments_of("a b"), None);
    }

    #[test]
    fn a_catalog_that_is_cut_short_is_no_catalog_and_harms_nobody() {
        let mut file = Vec::new();
        for number in [0x9504_12de_u32, 0, 1, 28, 36, 0, 0, 1, 44, 3, 46] {
            file.extend(number.to_le_bytes());
        }
        file.extend(b"a\0bcd\0");
        assert_eq!(messages(&file), Some(pairs(&[("a", "bcd")])));
        for length in 0..file.len() {
            let _ = messages(&file[..length]);
        }
        assert_eq!(messages(b"something else, which is longer than a head"), None);
    }
}
