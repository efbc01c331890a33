//! notify: one message for each incident, and one when it is over, through the channels that are configured.

mod channel;
mod events;
mod incident;
mod look;
mod mail;
mod message;
mod outbox;
mod probe;
mod report;
mod send;

use std::process::ExitCode;

use nix::unistd::Uid;
use shared::args::Args;
use shared::exit::{self, Code};
use shared::owner::Owner;
use shared::{Error, Result};

const HELP: &str = include_str!("help.txt");
/// Made by systemd-sysusers when the package is installed.
const USER: &std::ffi::CStr = c"_pg-notify";

fn main() -> ExitCode {
    shared::log::init("pg-notify");
    exit::with(run())
}

fn run() -> Result<Code> {
    let args = Args::parse_with_values(HELP, &[], &["deadline"])?;
    let verb = match args.words.as_slice() {
        [verb] => verb,
        [verb, address] if verb == "probe" => return probe::run(address, &args),
        _ => return Err(Error::usage("one command is needed").hint("Try --help.")),
    };
    match verb.as_str() {
        "test" => report::test(&args.load_config()?.notify),
        "list" => report::list(args.json),
        "send" => send::run(args.load_config()),
        "mail" => mail::hand_over(),
        word => Err(Error::usage(format!("unknown command \"{word}\"")).hint("Try --help.")),
    }
}

/// Root becomes the user whom the state belongs to, for good.
fn become_own_user() -> Result<()> {
    let name = USER.to_string_lossy();
    let own = Owner::named(&name).ok_or_else(|| {
        Error::config(format!("there is no user {name}")).hint("Run: systemd-sysusers pg-recovery.conf")
    })?;
    if Uid::effective().is_root() {
        nix::unistd::initgroups(USER, own.gid)?;
        nix::unistd::setgid(own.gid)?;
        nix::unistd::setuid(own.uid)?;
    }
    if Uid::effective() == own.uid {
        return Ok(());
    }
    Err(Error::with(Code::NoPerm, "cannot reach what is to be sent: this program runs as another user")
        .hint(format!("Run it as root or as {name}.")))
}
