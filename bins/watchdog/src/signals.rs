//! SIGTERM, SIGINT and SIGHUP as something to wait for.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use shared::Result;

pub struct Signals(SignalFd);

pub enum Asked {
    Reload,
    Stop,
}

impl Signals {
    /// Blocks the signals in this thread and in those it starts. Child programs get them unblocked (std::process).
    pub fn block() -> Result<Signals> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block()?;
        Ok(Signals(SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    /// Waits for one of them, for at most `patience`.
    pub fn wait(&self, patience: Duration) -> Option<Asked> {
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout);
        let info = self.0.read_signal().ok()??;
        Some(if info.ssi_signo == Signal::SIGHUP as u32 { Asked::Reload } else { Asked::Stop })
    }
}
