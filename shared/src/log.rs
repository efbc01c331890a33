//! The journal with its fields under systemd, standard error at a terminal.

use std::io::{ErrorKind, IsTerminal, Write};

use log::kv::{Key, Value, VisitSource};
use log::{LevelFilter, Log, Metadata, Record};

use crate::error::{Error, Result};
use crate::exit::Code;

/// MESSAGE_ID of a fault that was recognised (systemd.journal-fields(7)).
pub const FAULT: &str = "4e7ff9b0c0a64d6cb3b7f3a0a5d5a001";
/// MESSAGE_ID of a step of a recovery.
pub const STEP: &str = "4e7ff9b0c0a64d6cb3b7f3a0a5d5a002";
/// MESSAGE_ID of the end of a recovery.
pub const OUTCOME: &str = "4e7ff9b0c0a64d6cb3b7f3a0a5d5a003";
/// MESSAGE_ID of a fault that was handed over to a person.
pub const MANUAL: &str = "4e7ff9b0c0a64d6cb3b7f3a0a5d5a004";
/// MESSAGE_ID of something that was left alone, with the reason.
pub const LEFT_ALONE: &str = "4e7ff9b0c0a64d6cb3b7f3a0a5d5a005";

/// Sends the log to the journal when standard error is connected to it, else to standard error in plain text.
pub fn init(identifier: &'static str) {
    let installed = if systemd_journal_logger::connected_to_journal() {
        systemd_journal_logger::JournalLog::new().and_then(|journal| {
            let journal = journal.with_syslog_identifier(identifier.to_string());
            log::set_boxed_logger(Box::new(Ours(journal))).map_err(std::io::Error::other)
        })
    } else {
        log::set_boxed_logger(Box::new(Ours(Terminal))).map_err(std::io::Error::other)
    };
    if let Err(error) = installed {
        let _ = writeln!(std::io::stderr(), "could not open the journal: {error}");
    }
    log::set_max_level(LevelFilter::Info);
}

/// Messages of this program go to the journal, so what is printed as well would be there twice.
pub fn is_journal() -> bool {
    systemd_journal_logger::connected_to_journal()
}

/// Prints what a program was asked for. A reader that is gone, as in `| head -1`, has what it wanted; println! would end
/// the program by a panic then.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Error::with(Code::OsErr, format!("could not write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// Passes on what our own programs say; what libraries think worth a line (a notice of the server, say) is no news here.
struct Ours<L>(L);

impl<L: Log> Log for Ours<L> {
    fn enabled(&self, metadata: &Metadata) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &Record) {
        if ["pg_", "shared"].iter().any(|ours| record.target().starts_with(ours)) {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

/// Plain text for a person; the cluster is the only field that a person needs on each line.
struct Terminal;

impl Log for Terminal {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        struct Cluster(Option<String>);
        impl<'kvs> VisitSource<'kvs> for Cluster {
            fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
                if key.as_str() == "PG_CLUSTER" {
                    self.0 = Some(value.to_string());
                }
                Ok(())
            }
        }
        let mut cluster = Cluster(None);
        let _ = record.key_values().visit(&mut cluster);
        let mut line = String::new();
        let level = match record.level() {
            log::Level::Error => "error: ",
            log::Level::Warn => "warning: ",
            _ => "",
        };
        let stderr = std::io::stderr();
        if stderr.is_terminal() && !level.is_empty() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) {
            line.push_str(&format!("\x1b[1m{level}\x1b[0m"));
        } else {
            line.push_str(level);
        }
        if let Some(cluster) = cluster.0 {
            line.push_str(&format!("{cluster}: "));
        }
        // A closed standard error is no reason to stop a recovery.
        let _ = writeln!(stderr.lock(), "{line}{}", record.args());
    }

    fn flush(&self) {}
}
