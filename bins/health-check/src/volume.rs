//! Space and inodes of the volumes that a cluster writes to: data, WAL, log, tablespaces.

use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use shared::cluster::Cluster;
use shared::config::Health;
use shared::mount::Mounts;

use crate::score::{Finding, word};

/// One file system, with everything of the cluster that is on it.
#[derive(Clone, Debug, PartialEq)]
pub struct Volume {
    /// data, wal, log, tablespace_16400; the first one names the checks.
    pub roles: Vec<String>,
    pub path: PathBuf,
    pub device: u64,
    pub used: f64,
    pub free: u64,
    /// Percent used, and how many are free. File systems such as btrfs have no fixed number of inodes.
    pub inodes: Option<(f64, u64)>,
    pub read_only: bool,
}

/// Looks at all of them; call it as the owner of the cluster, in a thread that may hang on a dead file system.
pub fn look(cluster: &Cluster) -> Vec<Result<Volume, String>> {
    let mut places = vec![("data".to_string(), cluster.data_directory.clone())];
    places.push(("wal".into(), cluster.data_directory.join("pg_wal")));
    if let Some(folder) = cluster.log_file.as_deref().and_then(Path::parent) {
        places.push(("log".into(), folder.into()));
    }
    // What the collector writes goes elsewhere (manual, 20.8.1).
    let on = |value: &str| ["on", "true", "yes", "1"].contains(&value.to_ascii_lowercase().as_str());
    if cluster.setting("logging_collector").is_some_and(on) {
        let folder = cluster.setting("log_directory").unwrap_or("log");
        places.push(("log_directory".into(), cluster.data_directory.join(folder)));
    }
    let links = std::fs::read_dir(cluster.data_directory.join("pg_tblspc")).into_iter().flatten().flatten();
    places.extend(links.map(|l| (format!("tablespace_{}", l.file_name().to_string_lossy()), l.path())));
    let mounts = Mounts::now();
    group(places.into_iter().map(|(role, path)| measure(role, path, &mounts)).collect())
}

fn measure(role: String, path: PathBuf, mounts: &Mounts) -> Result<Volume, String> {
    let failed = |e: String| format!("the {role} volume at {} cannot be examined: {e}", path.display());
    let device = std::fs::metadata(&path).map_err(|e| failed(e.to_string()))?.st_dev();
    let stat = statvfs(&path).map_err(|e| failed(e.desc().into()))?;
    let (blocks, free, available) = (stat.blocks(), stat.blocks_free(), stat.blocks_available());
    let used = blocks.saturating_sub(free);
    // As df(1) reckons: what only root may use is neither used nor free.
    let percent = |part: u64, whole: u64| if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 };
    Ok(Volume {
        roles: vec![role],
        device,
        used: percent(used, used + available),
        free: available.saturating_mul(stat.fragment_size()),
        inodes: (stat.files() > 0).then(|| {
            let (all, free) = (stat.files(), stat.files_available());
            (percent(all.saturating_sub(free), all), free)
        }),
        read_only: mounts.is_read_only(device),
        path,
    })
}

fn group(measured: Vec<Result<Volume, String>>) -> Vec<Result<Volume, String>> {
    let mut groups: Vec<Result<Volume, String>> = Vec::new();
    for volume in measured {
        let same = |known: &&mut Result<Volume, String>| match (&**known, &volume) {
            (Ok(known), Ok(new)) => known.device == new.device,
            _ => false,
        };
        match (groups.iter_mut().find(same), volume) {
            (Some(Ok(known)), Ok(new)) => known.roles.extend(new.roles),
            (_, volume) => groups.push(volume),
        }
    }
    groups
}

pub fn judge(volumes: &[Result<Volume, String>], config: &Health) -> Vec<Finding> {
    let limits = (f64::from(config.disk_warn), f64::from(config.disk_fail));
    let mut findings = Vec::new();
    for volume in volumes {
        let volume = match volume {
            Ok(volume) => volume,
            Err(why) => {
                findings.push(Finding::unknown("disk_unexamined", why));
                continue;
            }
        };
        let (first, roles) = (&volume.roles[0], volume.roles.join(", "));
        let (at, path) = (volume.path.display(), word(&volume.path.to_string_lossy()));
        let name = format!("disk_{first}");
        let (end, grows) =
            (format!("the {roles} volume at {at} will be full"), format!("du -xhD --threshold=100M {path}"));
        let finding = if volume.read_only {
            let message = format!(
                "the {roles} volume at {at} is read-only, which the kernel does after an error of the disk (journalctl -k): stop \
                 what uses it, unmount it, check it (fsck) and mount it again; do not remount it unchecked"
            );
            Finding::critical(&name, message).value(volume.used, "%")
        } else {
            let message =
                format!("{:.0}% of the {roles} volume at {at} is used, {} MB are free", volume.used, volume.free >> 20);
            Finding::level(&name, volume.used, "%", limits, message)
        };
        findings.push(finding.left(volume.free as f64, "B", end, grows));
        if let Some((used, free)) = volume.inodes {
            let message = format!("{used:.0}% of the inodes of the {roles} volume at {at} are used");
            let end = format!("the {roles} volume at {at} will have no inode left");
            let finding = Finding::level(&format!("inodes_{first}"), used, "%", limits, message);
            findings.push(finding.left(free as f64, "inodes", end, format!("du -xD --inodes --threshold=1000 {path}")));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::health::Status;

    fn volume(role: &str, device: u64, used: f64) -> Result<Volume, String> {
        Ok(Volume {
            roles: vec![role.into()],
            path: "/".into(),
            device,
            used,
            free: 0,
            inodes: Some((10.0, 90)),
            read_only: false,
        })
    }

    #[test]
    fn one_file_system_is_judged_once() {
        let volumes = group(vec![volume("data", 1, 85.0), volume("wal", 2, 95.0), volume("log", 1, 85.0)]);
        let findings = judge(&volumes, &Health::default());
        let seen: Vec<_> = findings.iter().map(|f| (f.check.name.as_str(), f.check.status)).collect();
        let ok = Status::Ok;
        assert_eq!(
            seen,
            [("disk_data", Status::Warning), ("inodes_data", ok), ("disk_wal", Status::Critical), ("inodes_wal", ok)]
        );
        assert!(findings[0].check.message.contains("data, log"), "{}", findings[0].check.message);
    }

    #[test]
    fn a_file_system_that_went_read_only_is_critical() {
        let mut lost = volume("data", 1, 10.0).unwrap();
        lost.read_only = true;
        assert_eq!(judge(&[Ok(lost)], &Health::default())[0].check.status, Status::Critical);
    }

    #[test]
    fn a_volume_that_cannot_be_examined_is_not_passed_over() {
        let findings = judge(&[Err("no".into())], &Health::default());
        assert_eq!(findings[0].check.status, Status::Unknown);
    }
}
