//! machine: boots one to look around in by hand, and removes it when standard input closes.
//!
//! `cargo run -p tests --bin machine -- trixie` (or `bookworm`; `--plain` for one without the package,
//! `--beside=,one,two` for one with these packages of the distribution as well).

use std::io::{Read, Write};
use std::process::ExitCode;

use host::{Host, Suite};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let suite = match arguments.first().map(String::as_str) {
        Some("bookworm") => Suite::Bookworm,
        Some("trixie") => Suite::Trixie,
        _ => {
            eprintln!("usage: machine bookworm|trixie [--plain] [--beside=,PACKAGE...]");
            return ExitCode::from(64);
        }
    };
    let plain = arguments.iter().any(|argument| argument == "--plain");
    let more = arguments.iter().find_map(|argument| argument.strip_prefix("--beside="));
    let host = if plain { Host::boot_plain(suite) } else { Host::boot_beside(suite, more.unwrap_or_default()) };
    println!("folder {}", host.outside().display());
    println!("control group {}", host.control_group().display());
    println!("enter it with: nsenter -t {} -m -p -u -i -n -C -r -w", host.leader());
    println!("press Ctrl-D to remove it");
    let _ = std::io::stdout().flush();
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    ExitCode::SUCCESS
}
