//! Asks the address of a service. A program of its own does that, as nobody: nothing that an answer does to its reader, and
//! no wait for a name or a connection, reaches this one.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;
use shared::command::{self, Output};
use shared::config::Service;
use shared::owner::Owner;

const PROGRAM: &str = "/usr/sbin/pg-notify";
/// For what is not part of the answer: to start the program, and to look a name up.
const MORE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Good,
    /// It does not answer, or not as it should.
    Bad(String),
    /// Nobody can tell.
    Unseen(String),
}

/// What pg-notify probe prints.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Heard {
    status: Option<u16>,
    body: String,
    failed: Option<String>,
}

/// `Good` for a service without an address.
pub fn ask(rule: &Service) -> Answer {
    let Some(address) = rule.http.as_ref().or(rule.tcp.as_ref()) else { return Answer::Good };
    let Some(nobody) = Owner::named("nobody") else { return Answer::Unseen("there is no user nobody".into()) };
    let mut command = Command::new(PROGRAM);
    command.args(["probe", &format!("--deadline={}ms", rule.deadline().as_millis()), "--", address]);
    command.env_clear().uid(nobody.uid.as_raw()).gid(nobody.gid.as_raw());
    match command::run(&mut command, rule.deadline() + MORE) {
        Ok(output) => read(rule, address, &output),
        Err(why) => Answer::Unseen(format!("could not run {PROGRAM}: {why}")),
    }
}

fn read(rule: &Service, address: &str, output: &Output) -> Answer {
    let heard: Heard = match serde_json::from_str(&output.stdout) {
        Ok(heard) if output.status.success() => heard,
        _ => return Answer::Unseen(output.stderr.trim().trim_start_matches("error: ").replace('\n', "; ")),
    };
    let bad = |why: String| Answer::Bad(format!("{address}: {why}"));
    if let Some(why) = heard.failed {
        return bad(why);
    }
    if rule.http.is_none() {
        return Answer::Good;
    }
    let status = heard.status.unwrap_or_default();
    match (rule.status, &rule.body) {
        (Some(wanted), _) if status != wanted => bad(format!("the answer is {status}, not {wanted}")),
        (None, _) if !(200..400).contains(&status) => bad(format!("the answer is {status}")),
        (_, Some(wanted)) if !heard.body.contains(wanted) => bad(format!("the answer does not contain \"{wanted}\"")),
        _ => Answer::Good,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn heard(rule: &Service, printed: &str, status: i32) -> Answer {
        let status = ExitStatus::from_raw(status << 8);
        let stderr = "error: could not ask http://x/: no such name\n".into();
        read(rule, "http://x/", &Output { status, stdout: printed.into(), stderr })
    }

    #[test]
    fn an_answer_is_what_was_wished_for_or_it_is_bad() {
        let any = Service { http: Some("http://x/".into()), ..Service::default() };
        let told = |rule: &Service, status: u16, body: &str| {
            heard(rule, &format!("{{\"status\": {status}, \"body\": \"{body}\"}}"), 0)
        };
        assert_eq!((told(&any, 204, ""), told(&any, 302, "")), (Answer::Good, Answer::Good));
        assert_eq!(told(&any, 500, ""), Answer::Bad("http://x/: the answer is 500".into()));
        let strict = Service { status: Some(401), body: Some("log in".into()), ..any.clone() };
        assert_eq!(told(&strict, 401, "please log in"), Answer::Good);
        assert!(matches!(told(&strict, 200, "please log in"), Answer::Bad(_)));
        assert!(matches!(told(&strict, 401, "go away"), Answer::Bad(_)));
        assert_eq!(heard(&any, "{\"failed\": \"refused\"}", 0), Answer::Bad("http://x/: refused".into()));
    }

    #[test]
    fn what_cannot_be_looked_at_is_not_bad() {
        let any = Service { http: Some("http://x/".into()), ..Service::default() };
        let why = "could not ask http://x/: no such name".to_string();
        assert_eq!(heard(&any, "", 1), Answer::Unseen(why.clone()));
        assert_eq!(heard(&any, "{\"status\": 200", 0), Answer::Unseen(why));
        let open = Service { tcp: Some("x:1".into()), ..Service::default() };
        assert_eq!(heard(&open, "{}", 0), Answer::Good);
    }
}
