//! A program of PostgreSQL's that runs for long: it goes when this one goes, and is watched meanwhile.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shared::cluster::Cluster;
use shared::{Error, Result};

const LOOK: Duration = Duration::from_millis(200);
/// What is kept of what it says.
const LINES: usize = 4;

/// A program from the cluster's own version, by its path: Debian's wrapper would choose a version by itself.
pub fn of(cluster: &Cluster, program: &str) -> Command {
    let mut command = Command::new(cluster.bin_directory.join(program));
    command.env_clear().env("LC_ALL", "C").env("PGCONNECT_TIMEOUT", "10").current_dir("/");
    dies_with_us(&mut command, Signal::SIGTERM);
    command
}

/// The same, with what a client needs to reach the cluster by its socket.
pub fn client_of(cluster: &Cluster, program: &str) -> Command {
    let (directory, port) = crate::server::socket(cluster);
    let mut command = of(cluster, program);
    command.arg("--host").arg(directory).args(["--port", &port.to_string(), "--username", &cluster.owner.name]);
    command.arg("--no-password");
    command
}

/// Should this program be killed, the kernel sends the other one a signal.
pub fn dies_with_us(command: &mut Command, signal: Signal) {
    // SAFETY: prctl(2) is async-signal-safe and touches no memory.
    unsafe {
        command.pre_exec(move || {
            nix::errno::Errno::result(libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong))?;
            Ok(())
        });
    }
}

/// Runs it to its end, and looks meanwhile whether that is still wanted; the end of what it said when it fails.
pub fn run(mut command: Command, mut go_on: impl FnMut() -> Result<()>) -> Result<()> {
    let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (mut output, input) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input);
    let mut child = command.spawn().map_err(|e| Error::failed(format!("could not start {name}: {e}")))?;
    // It holds the pipe open.
    drop(command);
    let said = std::thread::spawn(move || {
        let mut last = VecDeque::new();
        // pg_amcheck has a line for each damaged place.
        for line in BufReader::new(&mut output).split(b'\n').map_while(|line| line.ok()) {
            last.push_back(String::from_utf8_lossy(&line).trim().to_string());
            if last.len() > LINES {
                last.pop_front();
            }
        }
        Vec::from(last).join("; ")
    });
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if let Err(why) = go_on() {
            stop(&mut child, Signal::SIGTERM);
            return Err(why);
        }
        std::thread::sleep(LOOK);
    };
    let said = said.join().unwrap_or_default();
    if status.success() { Ok(()) } else { Err(Error::failed(format!("{name} failed ({status}): {said}"))) }
}

/// Ends it: with this signal, and after ten seconds with SIGKILL.
pub fn stop(child: &mut Child, signal: Signal) {
    let _ = kill(Pid::from_raw(child.id() as i32), signal);
    for _ in 0..50 {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(LOOK);
    }
    let _ = child.kill();
    let _ = child.wait();
}
