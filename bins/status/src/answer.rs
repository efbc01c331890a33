//! What is answered to which request.

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};

use crate::door::{Door, Verdict};
use crate::look::{Look, Sight};
use crate::{metrics, page, stats};

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";

/// On every answer. Nothing is loaded but the style sheet, nothing runs, nobody frames it, and no address leaks.
const SECURITY: [(HeaderName, &str); 7] = [
    (
        HeaderName::from_static("content-security-policy"),
        "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (HeaderName::from_static("x-content-type-options"), "nosniff"),
    (HeaderName::from_static("x-frame-options"), "DENY"),
    (HeaderName::from_static("referrer-policy"), "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cache-control"), "no-store"),
];

pub struct Site {
    look: Look,
    door: Door,
}

type Answer = Response<Full<Bytes>>;

impl Site {
    pub fn new(look: Look) -> Self {
        Site { look, door: Door::new() }
    }

    /// `is_local`: it came in by an address that only this host reaches.
    pub async fn answer(&self, request: Request<Incoming>, is_local: bool) -> Answer {
        let mut answer = self.route(request.method(), request.uri().path(), request.headers(), is_local).await;
        for (name, value) in SECURITY {
            answer.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        answer
    }

    async fn route(&self, method: &Method, path: &str, headers: &HeaderMap, is_local: bool) -> Answer {
        // A name that somebody has made to mean this host, so that a browser here takes this page for one of his.
        if is_local && !headers.get(HOST).is_none_or(is_this_host) {
            return text(StatusCode::MISDIRECTED_REQUEST, "This is localhost, and was asked for another host.\n");
        }
        if path == "/health/recover" {
            return self.recover(method, headers);
        }
        if method != Method::GET && method != Method::HEAD {
            return refuse(StatusCode::METHOD_NOT_ALLOWED, ALLOW, "GET, HEAD", "Only GET and HEAD are allowed here.\n");
        }
        match path {
            "/health/live" => return text(StatusCode::OK, "ok\n"),
            "/style.css" => return with(StatusCode::OK, "text/css; charset=utf-8", page::STYLE),
            _ => {}
        }
        let Some(sight) = self.look.now().await else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "What is to be shown could not be read yet.\n");
        };
        show(&sight, path, headers).unwrap_or_else(|| with(StatusCode::NOT_FOUND, HTML, page::nothing()))
    }

    fn recover(&self, method: &Method, headers: &HeaderMap) -> Answer {
        if method != Method::POST {
            return refuse(StatusCode::METHOD_NOT_ALLOWED, ALLOW, "POST", "Only POST is allowed here.\n");
        }
        let later = |seconds: u64, why: &'static str| {
            let mut answer = text(StatusCode::TOO_MANY_REQUESTS, why);
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
            answer
        };
        match self.door.knock(headers) {
            Verdict::Opened => text(StatusCode::ACCEPTED, "A recovery is being started.\n"),
            Verdict::Off => text(StatusCode::NOT_FOUND, "This is off: no token is configured.\n"),
            Verdict::Wrong => refuse(
                StatusCode::UNAUTHORIZED,
                hyper::header::WWW_AUTHENTICATE,
                "Bearer realm=\"pg-recovery\"",
                "The token is missing or wrong.\n",
            ),
            Verdict::TooManyGuesses(seconds) => later(seconds, "Too many wrong tokens; none is looked at for now.\n"),
            Verdict::TooSoon(seconds) => later(seconds, "A recovery was asked for in the last five minutes.\n"),
            Verdict::Stuck => text(StatusCode::INTERNAL_SERVER_ERROR, "It could not be asked for; see the journal.\n"),
        }
    }
}

fn show(sight: &Sight, path: &str, headers: &HeaderMap) -> Option<Answer> {
    let json = |value: serde_json::Result<String>| match value {
        Ok(value) => with(StatusCode::OK, JSON, value + "\n"),
        Err(why) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
    };
    Some(match path {
        "/" => with(StatusCode::OK, HTML, page::overview(sight)),
        "/recoveries" => with(StatusCode::OK, HTML, page::history(sight)),
        "/health/status" => json(serde_json::to_string_pretty(&sight.host)),
        "/health/recovery-stats" => json(serde_json::to_string_pretty(&stats::of(&sight.records))),
        "/metrics" => {
            let format = metrics::Format::wanted(headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()));
            with(StatusCode::OK, format.content_type(), metrics::text(&sight.host, &sight.sums, format))
        }
        _ => with(StatusCode::OK, HTML, page::story(sight, path.strip_prefix("/recovery/")?)?),
    })
}

fn is_this_host(host: &HeaderValue) -> bool {
    let Ok(host) = host.to_str() else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    with(status, TEXT, text)
}

fn refuse(status: StatusCode, name: HeaderName, value: &'static str, why: &'static str) -> Answer {
    let mut answer = text(status, why);
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
    answer
}

fn with(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_host_are_this_host() {
        let is = |host: &'static str| is_this_host(&HeaderValue::from_static(host));
        for host in ["localhost", "LOCALHOST:9432", "127.0.0.1:9432", "127.0.0.1", "[::1]:9432", "127.9.9.9"] {
            assert!(is(host), "{host}");
        }
        for host in
            ["", "evil.example", "localhost.evil.example:9432", "127.0.0.1.evil.example", "[fe80::1]", "10.0.0.1"]
        {
            assert!(!is(host), "{host}");
        }
    }
}
