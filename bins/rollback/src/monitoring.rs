//! Takes what watches and heals off this host, and puts it back: our units, their drop-ins, and what enables them.
//!
//! Nothing here has to be undone when a run is cut short: the same command again goes on from what it finds.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use shared::args::Args;
use shared::exit::Code;
use shared::lock::Lock;
use shared::point::{self, Copy, LINK, Part};
use shared::process::stop_here_for_a_test;
use shared::{Error, Result, log as out, state, unit};

use crate::guard;
use crate::restore::Uninterrupted;
use crate::units;

const PATIENCE: Duration = Duration::from_secs(30);
/// A recovery that is at work may have stopped a cluster and not started it yet: it comes to its end first.
const RECOVERY: Duration = Duration::from_secs(300);
/// pg-wal-stream and a backup end what they have started.
const STOP: Duration = Duration::from_secs(120);

/// What is to be done; the links that enable a unit last, so that a run that is cut short finds them again.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    stop: Vec<String>,
    remove: Vec<Copy>,
    put: Vec<Copy>,
    start: Vec<String>,
}

pub fn run(words: &[String], args: &Args) -> Result<Code> {
    let goal = match words {
        [] => None,
        [id] => Some((id, of_point(id)?)),
        _ => return Err(Error::usage("monitoring takes the ID of one recovery point, or none").hint("Try --help.")),
    };
    if args.has("plan") {
        let plan = look(goal.as_ref().map(|(_, copies)| copies.as_slice()))?;
        if args.json {
            out::print(&format!("{}\n", json!({ "plan": plan.lines() })))?;
        } else {
            plan.lines().iter().try_for_each(|line| out::print(&format!("{line}\n")))?;
        }
        return Ok(Code::Ok);
    }
    match goal {
        None => off(),
        Some((id, copies)) => back(id, &copies),
    }
}

/// What switching it off would do.
pub fn plan() -> Result<Vec<String>> {
    Ok(look(None)?.lines())
}

fn of_point(id: &str) -> Result<Vec<Copy>> {
    let mut copies = point::find(id)?.1;
    copies.retain(|copy| copy.part == Part::Ours);
    if copies.is_empty() {
        let none = Error::usage(format!("recovery point {id} has nothing about the units of this package"));
        return Err(none.hint("pg-rollback list; those of cluster \"host\" have."));
    }
    Ok(copies)
}

/// From what is there to `goal`; without one to nothing that is enabled or runs.
fn look(goal: Option<&[Copy]>) -> Result<Plan> {
    let names = units::names()?;
    // A template has no state, and what may have started this program is not stopped by it.
    let single: Vec<&str> = names.iter().map(String::as_str).filter(|name| !name.contains('@')).collect();
    let states = unit::show(&single)?;
    let runs = single.iter().zip(&states).filter(|(_, s)| !matches!(s.active.as_str(), "inactive" | "failed"));
    Ok(decide(&units::ours()?, goal, &runs.map(|(name, _)| (*name).to_string()).collect::<Vec<_>>()))
}

fn decide(now: &[Copy], goal: Option<&[Copy]>, runs: &[String]) -> Plan {
    let enabled = |copies: &[Copy]| -> Vec<String> {
        copies.iter().filter_map(|copy| units::enabled_by(&copy.path)).map(str::to_string).collect()
    };
    let Some(goal) = goal else {
        let remove = now.iter().filter(|copy| units::enabled_by(&copy.path).is_some()).cloned().collect();
        return Plan { stop: runs.to_vec(), remove, ..Plan::default() };
    };
    let is_in = |copies: &[Copy], copy: &Copy| copies.contains(copy);
    let is_there = |copies: &[Copy], copy: &Copy| copies.iter().any(|other| other.path == copy.path);
    let is_masked =
        |unit: &String| goal.iter().any(|copy| copy.path == Path::new(units::FOLDER).join(unit) && copy.mode == LINK);
    let (wanted, is_on) = (enabled(goal), enabled(now));
    Plan {
        stop: runs.iter().filter(|unit| is_on.contains(unit) && !wanted.contains(unit)).cloned().collect(),
        remove: now.iter().filter(|copy| !is_there(goal, copy)).cloned().collect(),
        put: goal.iter().filter(|copy| !is_in(now, copy)).cloned().collect(),
        start: wanted.into_iter().filter(|unit| !runs.contains(unit) && !is_masked(unit)).collect(),
    }
}

impl Plan {
    fn is_done(&self) -> bool {
        *self == Plan::default()
    }

    fn lines(&self) -> Vec<String> {
        let path = |copy: &Copy| copy.path.display().to_string();
        let mut lines: Vec<String> = self.stop.iter().map(|unit| format!("stop {unit}")).collect();
        lines.extend(self.remove.iter().map(|copy| format!("remove {}", path(copy))));
        lines.extend(self.put.iter().map(|copy| format!("put back {}", path(copy))));
        lines.extend(self.start.iter().map(|unit| format!("start {unit}")));
        if lines.is_empty() {
            lines.push("nothing to do".into());
        }
        lines
    }
}

fn lock() -> Result<Lock> {
    Lock::take(point::HOST, PATIENCE)?.ok_or_else(|| {
        Error::with(Code::TempFail, "another pg-rollback is at work on the units").hint("Try again when it has ended.")
    })
}

/// Stops and disables all of it.
pub fn off() -> Result<Code> {
    let _lock = lock()?;
    guard::refuse_in_force()?;
    let plan = look(None)?;
    if plan.is_done() {
        log::info!("monitoring is off already");
        return Ok(Code::Ok);
    }
    wait_for_recovery()?;
    let _whole = Uninterrupted::begin()?;
    let came_from = if plan.remove.is_empty() {
        None
    } else {
        // Without a point there are the commands that any unit is enabled by.
        let saved = point::save_of_host("before", "monitoring was switched off", &units::ours()?);
        saved.map_err(|why| log::warn!("{}; going on without it", why.message)).ok()
    };
    stop_here_for_a_test(1);
    let mut stop: Vec<&str> = plan.stop.iter().map(String::as_str).collect();
    stop.push("pg-notify@*.service");
    unit::stop_all(&stop)?;
    stop_here_for_a_test(2);
    remove(&plan.remove)?;
    unit::daemon_reload()?;
    let deadline = Instant::now() + STOP;
    while let still @ [_, ..] = look(None)?.stop.as_slice() {
        if Instant::now() > deadline {
            return Err(Error::failed(format!("{} did not stop within {}s", still.join(", "), STOP.as_secs()))
                .hint("Nothing starts it again at boot. The same command again goes on."));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let back = match came_from {
        Some(id) => format!("pg-rollback monitoring {id}"),
        None => {
            "pg-rollback list has the point of cluster \"host\" to go back to, or systemctl enable --now what you want"
                .into()
        }
    };
    log::warn!("monitoring is off: no unit of this package runs or will be started. The way back: {back}");
    Ok(Code::Ok)
}

fn back(id: &str, goal: &[Copy]) -> Result<Code> {
    let _lock = lock()?;
    let _whole = Uninterrupted::begin()?;
    let plan = look(Some(goal))?;
    if plan.is_done() {
        log::info!("the units are as they were, nothing to do");
        return Ok(Code::Ok);
    }
    if !plan.put.is_empty() || !plan.remove.is_empty() {
        point::save_of_host("before", &format!("back to {id}"), &units::ours()?)?;
    }
    stop_here_for_a_test(1);
    if !plan.stop.is_empty() {
        unit::stop_all(&plan.stop.iter().map(String::as_str).collect::<Vec<_>>())?;
    }
    for copy in &plan.put {
        put(copy)?;
    }
    stop_here_for_a_test(2);
    remove(&plan.remove)?;
    unit::daemon_reload()?;
    stop_here_for_a_test(3);
    plan.start.iter().try_for_each(|unit| unit::start(unit))?;
    log::warn!("the units are as in {id}: {}", plan.lines().join("; "));
    Ok(Code::Ok)
}

fn wait_for_recovery() -> Result<()> {
    let deadline = Instant::now() + RECOVERY;
    while unit::show_one("pg-recovery.service")?.active == "activating" {
        if Instant::now() > deadline {
            return Err(Error::with(Code::TempFail, "a recovery is at work for more than 5min")
                .hint("Nothing was changed. systemctl status pg-recovery.service"));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// Only root writes in systemd's folder.
fn put(copy: &Copy) -> Result<()> {
    let done = (|| {
        let folder = copy.path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(folder)?;
        if copy.mode != LINK {
            return state::replace(&copy.path, &copy.bytes, copy.mode & 0o777);
        }
        let _ = std::fs::remove_file(&copy.path);
        std::os::unix::fs::symlink(OsStr::from_bytes(&copy.bytes), &copy.path)?;
        state::sync_folder(folder)
    })();
    done.map_err(|e: std::io::Error| Error::failed(format!("could not put back {}: {e}", copy.path.display())))
}

fn remove(copies: &[Copy]) -> Result<()> {
    for copy in copies {
        let removed = std::fs::remove_file(&copy.path);
        match removed.and_then(|()| copy.path.parent().map_or(Ok(()), state::sync_folder)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::failed(format!("could not remove {}: {e}", copy.path.display())));
            }
            _ => log::info!("removed {}", copy.path.display()),
        }
        // As `systemctl disable` leaves it.
        let _ = copy.path.parent().map(std::fs::remove_dir);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(path: &str, to: &str) -> Copy {
        let path = Path::new(units::FOLDER).join(path);
        Copy { path, mode: LINK, bytes: to.into(), part: Part::Ours, ..Copy::default() }
    }

    #[test]
    fn off_stops_what_runs_and_disables_what_is_enabled_and_leaves_the_drop_ins_of_a_person() {
        let wants = link("pg-recovery.target.wants/pg-a.service", "/x");
        let drop_in = Copy { mode: 0o644, ..link("pg-a.service.d/o.conf", "[Service]") };
        let now = [wants.clone(), drop_in, link("pg-b.service", "/dev/null")];
        let plan = decide(&now, None, &["pg-a.service".into()]);
        assert_eq!(plan, Plan { stop: vec!["pg-a.service".into()], remove: vec![wants], ..Plan::default() });
        assert!(decide(&now[1..], None, &[]).is_done());
    }

    #[test]
    fn the_way_back_starts_what_was_enabled_and_not_what_was_masked() {
        let goal =
            [link("t.wants/pg-a.service", "/x"), link("t.wants/pg-b.service", "/x"), link("pg-b.service", "/dev/null")];
        let plan = decide(&goal[2..], Some(&goal), &[]);
        assert_eq!((plan.put.len(), plan.start), (2, vec!["pg-a.service".to_string()]));
        assert!(decide(&goal, Some(&goal), &["pg-a.service".into()]).is_done());
        let more = [goal.as_slice(), &[link("t.wants/pg-c.timer", "/x")]].concat();
        let plan = decide(&more, Some(&goal), &["pg-a.service".into(), "pg-c.timer".into(), "pg-d.service".into()]);
        assert_eq!((plan.stop, plan.remove.len()), (vec!["pg-c.timer".to_string()], 1));
    }
}
