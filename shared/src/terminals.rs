//! A message on the terminals of those who are logged in.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::process::Command;
use std::time::Duration;

use crate::owner::Owner;

/// Tells everybody who is logged in. wall(1) cannot be used: it is setgid, and NoNewPrivileges= takes that away.
pub fn tell(program: &str, message: &str) {
    // What a server or a client has said must not move anybody's cursor.
    let message: String = message.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect();
    let mut command = Command::new("loginctl");
    command.args(["list-sessions", "--no-legend", "--no-pager"]).env("LC_ALL", "C").env_remove("NOTIFY_SOCKET");
    let Ok(out) = crate::command::run(&mut command, Duration::from_secs(5)) else { return };
    for terminal in terminals(&out.stdout) {
        let path = format!("/dev/{terminal}");
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        let Some(owner) = Owner::of_uid(meta.uid()) else { continue };
        let write = || {
            // A terminal that was stopped with Ctrl-S must not hold anybody up.
            let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW;
            let file = std::fs::OpenOptions::new().write(true).custom_flags(flags).open(&path);
            file.and_then(|mut file| write!(file, "\r\n\x07{program}: {}\r\n", message.replace('\n', "\r\n")))
        };
        // Whoever is not root has the group of the terminals.
        let _ = if nix::unistd::Uid::effective().is_root() {
            owner.act(write).map(drop)
        } else {
            write().map_err(Into::into)
        };
    }
}

/// The column TTY is not at the same place in every version of loginctl.
fn terminals(sessions: &str) -> Vec<&str> {
    let is_terminal = |word: &&str| {
        let number = word.strip_prefix("pts/").or_else(|| word.strip_prefix("tty"));
        number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_alphanumeric()))
    };
    sessions.lines().filter_map(|line| line.split_whitespace().find(is_terminal)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_found_in_what_both_versions_print() {
        let v252 = " 3 1000 anna seat0 tty2\n c1 0 root       pts/4\n 5 1000 anna\n";
        let v257 = "  1    0 root -     712 manager -     no -\n  2    0 root -     712 user    pts/0 yes 5min\n";
        assert_eq!(terminals(v252), ["tty2", "pts/4"]);
        assert_eq!(terminals(v257), ["pts/0"]);
    }
}
