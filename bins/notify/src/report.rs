//! For a person: does each channel work, and what is not over?

use shared::config::{Notify, Severity};
use shared::exit::Code;
use shared::{Error, Result, log as journal};

use crate::message::Message;
use crate::{channel, outbox};

/// Sends a message through each channel, whatever its severity is; fails when one was not taken.
pub fn test(config: &Notify) -> Result<Code> {
    let lines = channel::lines(config);
    if lines.is_empty() {
        return Err(Error::config("no channel is configured, and there is no /usr/sbin/sendmail for mail to root")
            .hint("Describe one as [[notify.channel]] in /etc/pg-recovery/config.toml: man pg-recovery.toml"));
    }
    crate::become_own_user()?;
    let mut code = Code::Ok;
    for line in &lines {
        let name = &line.channel.name;
        let text = format!("A test of the channel {name}. Nothing happened to any cluster.");
        let mut message =
            Message::new("test", "test", Severity::Critical, &format!("test of the channel {name}"), text);
        message.id = format!("test-{}", std::process::id());
        let outcome = match line.send(&message) {
            Ok(()) => "taken".into(),
            Err(why) => {
                code = Code::Failed;
                format!("not taken: {why}")
            }
        };
        journal::print(&format!("{name}: {outcome}\n"))?;
    }
    Ok(code)
}

/// Incidents that are not over, and what waits to be sent.
pub fn list(json: bool) -> Result<Code> {
    crate::become_own_user()?;
    let outbox = outbox::load().value;
    if json {
        let document = serde_json::json!({
            "incidents": outbox.incidents,
            "waiting": outbox.parcels.iter().map(|parcel| serde_json::json!({
                "message": parcel.message, "channels": parcel.left })).collect::<Vec<_>>(),
        });
        journal::print(&format!("{document:#}\n"))?;
        return Ok(Code::Ok);
    }
    let mut text = String::new();
    for (about, incident) in &outbox.incidents.0 {
        let state = if incident.well { "well since" } else { "in trouble since" };
        let last = &incident.last;
        text.push_str(&format!("{about}: {state} {}, {} times: {last}\n", incident.since.rfc3339(), incident.count));
    }
    for parcel in &outbox.parcels {
        text.push_str(&format!("waits for {}: {}\n", parcel.left.join(", "), parcel.message.subject));
    }
    journal::print(if text.is_empty() { "nothing to tell\n" } else { &text })?;
    Ok(Code::Ok)
}
