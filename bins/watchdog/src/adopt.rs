//! Gives the unit of somebody else a restart policy: systemd itself is the first to bring it back. What was there is a
//! recovery point, and only what is as systemd has it by default is changed.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use shared::args::Args;
use shared::config::no_service_unit;
use shared::exit::Code;
use shared::lock::Lock;
use shared::{Error, Result, log as out, point, state, unit, units};

const PROPERTIES: [&str; 6] =
    ["LoadState", "Type", "Restart", "RestartUSec", "StartLimitIntervalUSec", "StartLimitBurst"];
const PATIENCE: Duration = Duration::from_secs(30);

pub fn run(name: &str, args: &Args) -> Result<Code> {
    if let Some(why) = no_service_unit(name) {
        return Err(Error::usage(format!("cannot adopt {name}: {why}")));
    }
    let path = units::adopted(name);
    if path.exists() {
        out::print(&format!("{name} is adopted already: {}\n", path.display()))?;
        return Ok(Code::Ok);
    }
    let Some(text) = drop_in(name, &unit::properties(name, &PROPERTIES)?)? else {
        out::print(&format!("{name} has a restart policy of its own, nothing to do: systemctl cat {name}\n"))?;
        return Ok(Code::Ok);
    };
    out::print(&format!("# {}\n{text}", path.display()))?;
    if args.has("plan") || !(args.has("yes") || is_confirmed()?) {
        out::print("Nothing was changed. --yes installs it.\n")?;
        return Ok(Code::Ok);
    }
    if !nix::unistd::Uid::effective().is_root() {
        return Err(Error::with(Code::NoPerm, "only root may change a unit").hint("Run it with sudo."));
    }
    let _lock = Lock::take(point::HOST, PATIENCE)?
        .ok_or_else(|| Error::with(Code::TempFail, "another program is at work on the units").hint("Try again."))?;
    let id = point::save_of_host("before", &format!("pg-watchdog adopt {name}"), &units::ours()?)?;
    let folder = path.parent().unwrap_or(&path);
    std::fs::create_dir_all(folder)
        .and_then(|()| state::replace(&path, text.as_bytes(), 0o644))
        .map_err(|why| Error::failed(format!("could not write {}: {why}", path.display())))?;
    unit::daemon_reload()?;
    log::warn!("{name} is restarted by systemd when it fails. The way back: pg-rollback monitoring {id}");
    Ok(Code::Ok)
}

fn is_confirmed() -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    out::print("Install it? [y/N] ")?;
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// `None`: nothing is as systemd has it by default (systemd.service(5), systemd-system.conf(5)).
fn drop_in(name: &str, has: &HashMap<String, String>) -> Result<Option<String>> {
    let is = |property: &str, value: &str| has.get(property).is_some_and(|is| is == value);
    if !is("LoadState", "loaded") {
        let state = has.get("LoadState").map_or("unknown", String::as_str);
        return Err(Error::usage(format!("cannot adopt {name}: it is {state}"))
            .hint("systemctl list-unit-files --type=service has all units."));
    }
    if is("Type", "oneshot") {
        return Err(Error::usage(format!("cannot adopt {name}: it does one thing and ends (Type=oneshot)")));
    }
    let limits = is("StartLimitIntervalUSec", "10s") && is("StartLimitBurst", "5");
    let (never, at_once) = (is("Restart", "no"), is("RestartUSec", "100ms"));
    if !never {
        return Ok(None);
    }
    let mut text = "# Made by pg-watchdog adopt; pg-rollback list has the point from before.\n".to_string();
    if limits {
        text.push_str("[Unit]\n# What fails more often than this is left to pg-watchdog, and to a person.\n");
        text.push_str("StartLimitIntervalSec=5min\nStartLimitBurst=5\n\n");
    }
    text.push_str("[Service]\n# Not when it was stopped, or ended with success.\nRestart=on-failure\n");
    if at_once {
        text.push_str("RestartSec=5s\n");
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: [&str; 6]) -> Result<Option<String>> {
        let has = PROPERTIES.iter().zip(values).map(|(name, value)| (name.to_string(), value.to_string()));
        drop_in("shop.service", &has.collect())
    }

    #[test]
    fn only_what_nobody_has_chosen_is_changed() {
        let all = of(["loaded", "simple", "no", "100ms", "10s", "5"]).unwrap().unwrap();
        assert!(all.contains("StartLimitBurst=5\n") && all.contains("Restart=on-failure\nRestartSec=5s\n"), "{all}");
        let some = of(["loaded", "simple", "no", "1s", "1min", "5"]).unwrap().unwrap();
        assert!(!some.contains("StartLimit") && some.ends_with("Restart=on-failure\n"), "{some}");
        assert_eq!(of(["loaded", "notify", "always", "100ms", "10s", "5"]).unwrap(), None);
        assert!(of(["loaded", "oneshot", "no", "100ms", "10s", "5"]).is_err());
        assert!(of(["not-found", "simple", "no", "100ms", "10s", "5"]).is_err());
    }
}
