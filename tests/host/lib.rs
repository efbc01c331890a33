//! The words that tests are written in: boot a real machine, break it, look at it.
//!
//! A machine is systemd as PID 1 and the distribution's own PostgreSQL in systemd-nspawn, on an overlay of its own. It is
//! gone when its [`Host`] is dropped, and also when the test process is killed. See `CONTRIBUTING.md` for how to run tests.

mod authority;
mod book;
mod browser;
mod cluster;
mod disk;
mod file;
mod image;
mod journal;
mod ledger;
mod machine;
mod output;
mod poll;
mod rival;
mod trace;
mod words;

#[path = "../faults/mod.rs"]
pub mod faults;

pub use authority::{Authority, Issued};
pub use book::{Book, Entry, Status, Tally, monotonic_ms};
pub use browser::Browser;
pub use cluster::Cluster;
pub use disk::Disk;
pub use file::File;
pub use image::package;
pub use journal::Journal;
pub use ledger::Ledger;
pub use nix::sys::signal::Signal;
pub use output::Output;
pub use poll::poll_until;
pub use rival::{Rival, install_script};
pub use trace::trace_actors;
pub use words::Host;

/// Packages of the distribution that a few facts want, in one image for all of them.
pub const WITH_MORE: &str = ",locales,pgbackrest";

/// A distribution and the PostgreSQL that comes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// Debian 12: PostgreSQL 15, systemd 252.
    Bookworm,
    /// Debian 13: PostgreSQL 17, systemd 257.
    Trixie,
}

impl Suite {
    /// The name that archives use.
    pub fn name(self) -> &'static str {
        match self {
            Suite::Bookworm => "bookworm",
            Suite::Trixie => "trixie",
        }
    }

    /// The major version of its PostgreSQL.
    pub fn postgresql(self) -> &'static str {
        match self {
            Suite::Bookworm => "15",
            Suite::Trixie => "17",
        }
    }
}

/// What a fact may ask for as its argument: a booted [`Host`] with the package, or the [`Suite`] to boot one itself.
pub trait OnSuite {
    /// Prepares the argument.
    fn on(suite: Suite) -> Self;
}

impl OnSuite for Host {
    fn on(suite: Suite) -> Self {
        trace_actors(true);
        Host::boot(suite)
    }
}

impl OnSuite for Suite {
    fn on(suite: Suite) -> Self {
        trace_actors(true);
        suite
    }
}

/// Runs each fact on both suites: `fn name(host: Host) { ... }` becomes the tests `name::bookworm` and `name::trixie`.
#[macro_export]
macro_rules! facts_on_both_suites {
    ($( $(#[$meta:meta])* fn $name:ident($argument:ident : $kind:ident) $body:block )*) => {$(
        $(#[$meta])*
        fn $name($argument: $kind) $body

        mod $name {
            #[test]
            fn bookworm() {
                super::$name($crate::OnSuite::on($crate::Suite::Bookworm));
            }

            #[test]
            fn trixie() {
                super::$name($crate::OnSuite::on($crate::Suite::Trixie));
            }
        }
    )*};
}

/// Leaves a fact that cannot be checked here; `tests/run` counts it as skipped, never as passed.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        println!("\nSKIPPED: {}", format_args!($($reason)*));
        return;
    }};
}
