//! Run a program with a deadline and a limit on what it may print.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

const LIMIT: u64 = 1 << 20;

#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `command` in a process group of its own. After `patience` the group gets SIGKILL, and the answer is an error of
/// kind `TimedOut`; a program that even SIGKILL cannot end (waiting for a dead disk) is left behind, not waited for.
pub fn run(command: &mut Command, patience: Duration) -> std::io::Result<Output> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn()?;
    let deadline = Instant::now() + patience;
    let read = |stream: Option<Box<dyn Read + Send>>| {
        let (sender, receiver) = std::sync::mpsc::channel();
        // The reader ends with the pipe; nobody waits for it longer than the deadline.
        let reader = std::thread::Builder::new().spawn(move || {
            let mut text = Vec::new();
            if let Some(mut stream) = stream {
                let _ = stream.by_ref().take(LIMIT).read_to_end(&mut text);
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            }
            let _ = sender.send(String::from_utf8_lossy(&text).into_owned());
        });
        reader.map(|_| receiver)
    };
    let group = Pid::from_raw(child.id() as i32);
    let stdout = read(child.stdout.take().map(|s| Box::new(s) as _));
    let stderr = read(child.stderr.take().map(|s| Box::new(s) as _));
    // A unit has no endless number of threads.
    let (stdout, stderr) = stdout.and_then(|stdout| Ok((stdout, stderr?))).inspect_err(|_| {
        let _ = killpg(group, Signal::SIGKILL);
        let _ = child.wait();
    })?;
    // Its end is looked for again and again, and at once when it closes its output, as most do by ending.
    let mut printed = None;
    let mut pause = Duration::from_millis(1);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            let _ = killpg(group, Signal::SIGKILL);
            let _ = child.try_wait();
            return Err(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                format!("no end after {}ms", patience.as_millis()),
            ));
        }
        if printed.is_some() {
            std::thread::sleep(pause);
        } else if let Ok(text) = stdout.recv_timeout(pause) {
            printed = Some(text);
            pause = Duration::from_micros(100);
        }
        pause = (pause * 2).min(Duration::from_millis(20));
    };
    // What it started in the background may hold the pipe open.
    let grace = Duration::from_millis(500);
    Ok(Output {
        status,
        stdout: printed.or_else(|| stdout.recv_timeout(grace).ok()).unwrap_or_default(),
        stderr: stderr.recv_timeout(grace).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_status_come_back() {
        let out = run(Command::new("sh").args(["-c", "echo a; echo b >&2; exit 3"]), Duration::from_secs(10)).unwrap();
        assert_eq!((out.stdout.as_str(), out.stderr.as_str(), out.status.code()), ("a\n", "b\n", Some(3)));
    }

    #[test]
    fn a_program_that_hangs_is_ended_with_all_it_started() {
        let began = Instant::now();
        let error = run(Command::new("sh").args(["-c", "sleep 1000 & sleep 1000"]), Duration::from_millis(200));
        assert_eq!(error.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}
