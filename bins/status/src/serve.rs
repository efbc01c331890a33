//! The page: takes connections from the socket that systemd listens on, within bounds, and ends when nobody comes.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::TcpListener as Listener;
use std::os::fd::FromRawFd;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use shared::args::Args;
use shared::exit::Code;
use shared::{Error, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, LocalSet};
use tokio::time::timeout;

use crate::answer::Site;
use crate::look::Look;

/// systemd starts it again when the next one comes.
const IDLE: Duration = Duration::from_secs(60);
/// Of these the oldest goes when another one comes, so nobody who is slow keeps others out.
const CONNECTIONS: usize = 100;
/// For the lines of a request, and between two of them.
const HEAD: Duration = Duration::from_secs(10);
/// For all requests of a connection together, and then for the end of the last one.
const ALL: Duration = Duration::from_secs(120);
const LAST: Duration = Duration::from_secs(5);
/// Of the lines of a request, in bytes; hyper takes no less than 8192.
const SIZE: usize = 8192;
const LINES: usize = 50;

pub fn run(args: &Args) -> Result<Code> {
    let listeners = listeners()?;
    let site = Rc::new(Site::new(Look::start(args.config.clone())?));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    LocalSet::new().block_on(&runtime, accept(listeners, site))
}

fn listeners() -> Result<Vec<Listener>> {
    let listeners: Vec<Listener> = sd_notify::listen_fds()?
        // SAFETY: systemd has opened them for this program, and nothing else in it has them.
        .map(|fd| unsafe { Listener::from_raw_fd(fd) })
        .collect();
    for listener in &listeners {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr();
        address.map_err(|why| Error::config(format!("cannot serve a socket of pg-status.socket: {why}")))?;
    }
    if listeners.is_empty() {
        return Err(Error::usage("no socket was handed over").hint("Run: systemctl start pg-status.socket"));
    }
    Ok(listeners)
}

async fn accept(listeners: Vec<Listener>, site: Rc<Site>) -> Result<Code> {
    let listeners: Vec<TcpListener> = listeners.into_iter().map(TcpListener::from_std).collect::<Result<_, _>>()?;
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let next = poll_fn(|context| {
            let ready = |listener: &TcpListener| match listener.poll_accept(context) {
                Poll::Ready(accepted) => Some(accepted),
                Poll::Pending => None,
            };
            listeners.iter().find_map(ready).map_or(Poll::Pending, Poll::Ready)
        });
        let accepted = timeout(IDLE, next).await;
        open.retain(|connection| !connection.is_finished());
        match accepted {
            Ok(Ok((stream, _))) => {
                if open.len() >= CONNECTIONS
                    && let Some(oldest) = open.pop_front()
                {
                    oldest.abort();
                }
                open.push_back(tokio::task::spawn_local(serve(stream, site.clone())).abort_handle());
            }
            // Such as a connection that is gone already, or no descriptor left for a moment.
            Ok(Err(why)) => {
                log::warn!("could not take a connection: {why}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            // What comes now waits in the socket.
            Err(_) if open.is_empty() => return Ok(Code::Ok),
            Err(_) => {}
        }
    }
}

async fn serve(stream: TcpStream, site: Rc<Site>) {
    let is_local = stream.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback());
    let _ = stream.set_nodelay(true);
    let answer = service_fn(|request| {
        let site = site.clone();
        async move { Ok::<_, Infallible>(site.answer(request, is_local).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(SIZE)
        .max_headers(LINES)
        .serve_connection(TokioIo::new(stream), answer);
    let mut connection = pin!(connection);
    // Whoever does not speak HTTP, or is gone, is no news.
    if timeout(ALL, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(LAST, connection).await;
    }
}
