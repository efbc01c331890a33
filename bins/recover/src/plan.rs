//! Diagnosis -> the steps that are left, gentlest first. Pure.
//!
//! After each step the cluster is looked at again and the plan is made anew, so a plan is what would be done if nothing
//! changed on the way; a run that was killed at any step goes on from what it finds.

use std::path::PathBuf;

use serde::Serialize;

use crate::diagnosis::{Diagnosis, Fault};
use crate::facts::Facts;

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Risk {
    None,
    /// Clients lose their connections, or a file is put back; no commit can be lost.
    Low,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// SIGCONT to the stopped processes.
    Continue,
    /// SIGINT to the postmaster: fast shutdown.
    StopFast,
    /// SIGQUIT: immediate shutdown, crash recovery at the next start.
    StopImmediate,
    /// SIGKILL to the postmaster, which has had SIGINT and SIGQUIT.
    KillPostmaster,
    /// SIGCONT, SIGQUIT, then SIGKILL to children whose postmaster is dead.
    EndOrphans,
    /// Rename a lock file that nobody owns into the evidence.
    SetLockFileAside,
    /// Put the byte-exact copy of postmaster.pid back.
    PutLockFileBack,
    CreateSocketDirectory,
    /// Owner and mode of the data directory, as recorded.
    RestoreMode,
    /// These files as they were when the server last ran with them; new files that are wrong are set aside.
    RestoreConfiguration {
        restore: Vec<PathBuf>,
        set_aside: Vec<PathBuf>,
    },
    Start,
}

impl Step {
    pub fn name(&self) -> &'static str {
        match self {
            Step::Continue => "continue",
            Step::StopFast => "stop-fast",
            Step::StopImmediate => "stop-immediate",
            Step::KillPostmaster => "kill-postmaster",
            Step::EndOrphans => "end-orphans",
            Step::SetLockFileAside => "set-lock-file-aside",
            Step::PutLockFileBack => "put-lock-file-back",
            Step::CreateSocketDirectory => "create-socket-directory",
            Step::RestoreMode => "restore-mode",
            Step::RestoreConfiguration { .. } => "restore-configuration",
            Step::Start => "start",
        }
    }

    fn risk(&self) -> Risk {
        match self {
            Step::Continue | Step::PutLockFileBack | Step::CreateSocketDirectory | Step::Start => Risk::None,
            _ => Risk::Low,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Planned {
    #[serde(serialize_with = "name")]
    pub step: Step,
    pub risk: Risk,
    pub why: String,
}

fn name<S: serde::Serializer>(step: &Step, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(step.name())
}

/// The steps that are left for this diagnosis after those in `tried`, which this run has carried out already. Empty
/// means that nothing is to be done, or that nothing is left that this program would do.
pub fn plan(facts: &Facts, diagnosis: &Diagnosis, tried: &[Step]) -> Vec<Planned> {
    let steps = ladder(facts, &diagnosis.fault);
    steps
        .into_iter()
        .filter(|(step, _)| match step {
            // A start that failed is tried again only after something else was done.
            Step::Start => tried.last() != Some(&Step::Start),
            step => !tried.contains(step),
        })
        .map(|(step, why)| Planned { risk: step.risk(), why: why.to_string(), step })
        .collect()
}

fn ladder(facts: &Facts, fault: &Fault) -> Vec<(Step, &'static str)> {
    let stop = [
        (Step::StopFast, "if that does not help, it is asked to end its sessions and stop"),
        (Step::StopImmediate, "if it does not, it is told to stop at once; crash recovery follows"),
        (Step::KillPostmaster, "if nothing else moves it; its children then end by themselves"),
    ];
    let start = (Step::Start, "start it through systemd and wait until it answers");
    match fault {
        Fault::Well
        | Fault::LeftAlone(_)
        | Fault::Moving
        | Fault::StoppedOnPurpose
        | Fault::NotOurs(_)
        | Fault::Unknown => Vec::new(),
        Fault::Killed | Fault::Down => vec![start],
        Fault::Stopped => {
            let mut steps =
                vec![(Step::Continue, "a stopped process goes on where it was, and nobody loses a connection")];
            steps.extend(stop);
            steps.push(start);
            steps
        }
        Fault::Hung => stop.into_iter().chain([start]).collect(),
        Fault::BadLockFile | Fault::RecycledPid => {
            vec![(Step::SetLockFileAside, "no process of the cluster is left; the file is kept as evidence"), start]
        }
        Fault::LockFileGone if facts.saved_lock_file => {
            vec![(
                Step::PutLockFileBack,
                "the saved copy is this postmaster's; the server goes on as if nothing had been",
            )]
        }
        Fault::LockFileGone => vec![
            (
                Step::StopFast,
                "there is no copy of the lock file; a clean stop is better than the server's own within 60s",
            ),
            start,
        ],
        Fault::Orphans => {
            vec![
                (Step::EndOrphans, "their postmaster is dead; no start is possible while they hold the shared memory"),
                start,
            ]
        }
        Fault::SocketDirectory => {
            vec![(Step::CreateSocketDirectory, "systemd-tmpfiles makes it as the package describes it"), start]
        }
        Fault::Mode => vec![(Step::RestoreMode, "exactly this folder, to what was recorded while it ran"), start],
        Fault::Configuration(class) => restore(facts, class).map_or_else(Vec::new, |step| {
            vec![(step, "the configuration that it last ran with; the new one is kept beside"), start]
        }),
    }
}

/// Which files to put back for a configuration that does not let the server start; the fewest that can be the cause.
fn restore(facts: &Facts, class: &str) -> Option<Step> {
    let found = &facts.configuration;
    if !found.has_good || !found.not_ours.is_empty() {
        return None;
    }
    let is_access = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.contains("hba") || name.contains("ident")
    };
    let error = found.error.as_deref().unwrap_or_default();
    let named = |path: &PathBuf| error.contains(&*path.to_string_lossy());
    let auto = |path: &PathBuf| path.ends_with("postgresql.auto.conf");
    let pick = |wanted: &dyn Fn(&PathBuf) -> bool| {
        let of = |files: &[PathBuf]| files.iter().filter(|f| wanted(f)).cloned().collect::<Vec<_>>();
        (of(&found.changed), of(&found.added))
    };
    let choices: &[&dyn Fn(&PathBuf) -> bool] = match class {
        "C2" => &[&is_access],
        "C1" => &[&named, &|f| !is_access(f)],
        // What ALTER SYSTEM wrote first: it was written by a command, not composed by a person.
        _ => &[&auto, &|f| !is_access(f)],
    };
    let (restore, set_aside) =
        choices.iter().map(|wanted| pick(wanted)).find(|(a, b)| !a.is_empty() || !b.is_empty())?;
    Some(Step::RestoreConfiguration { restore, set_aside })
}
