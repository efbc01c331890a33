//! The services alone; and new restarts for one whose are used up.

use shared::args::Args;
use shared::clock::Stamp;
use shared::config::Config;
use shared::exit::Code;
use shared::service::{self, Known};
use shared::{Error, Result, log as out};

use crate::facts;
use crate::screen::{self, Paper};

pub fn run(args: &Args) -> Result<Code> {
    let config = args.load_config()?;
    if let Some(name) = args.value("reset") {
        return reset(&config, name);
    }
    let services = facts::services(&config);
    let text = if args.json {
        format!("{:#}\n", serde_json::json!({ "services": services }))
    } else if services.is_empty() {
        "no service is configured: [[service]] in pg-recovery.toml(5)\n".into()
    } else {
        screen::of_services(&services, &Paper::of_stdout())
    };
    out::print(&text)?;
    Ok(Code::Ok)
}

fn reset(config: &Config, name: &str) -> Result<Code> {
    if !config.service.iter().any(|rule| rule.name == name) {
        return Err(Error::usage(format!("there is no service {name}")).hint("pg-status services has them all."));
    }
    if !nix::unistd::Uid::effective().is_root() {
        return Err(Error::with(Code::NoPerm, "only root may give a service new restarts").hint("Run it with sudo."));
    }
    let _lock = service::lock(name)?;
    let mut known = Known::load(name);
    let made = known.value.restarts.within(std::time::Duration::MAX, &Stamp::now());
    known.value.forget();
    known.save()?;
    log::info!("service {name}: {made} restarts are forgotten, and all may be made again");
    Ok(Code::Ok)
}
