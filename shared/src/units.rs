//! What tells systemd whether and how a cluster, or this package, is started: start.conf, units, drop-ins, and the links
//! that enable or mask them.

use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::point::{Copy, LINK, Part};
use crate::state;

/// Where the administrator's units are (systemd.unit(5)); only root writes here.
pub const FOLDER: &str = "/etc/systemd/system";
const LIMIT: u64 = 1 << 20;
/// The drop-in that `pg-watchdog adopt` gives to the unit of somebody else.
pub const ADOPTED: &str = "60-pg-recovery.conf";

/// The files of this package, one a line (dpkg(1)).
const PACKAGE: &str = "/var/lib/dpkg/info/pg-recovery.list";

pub fn start_conf(cluster: &Cluster) -> PathBuf {
    cluster.config_directory.join("start.conf")
}

/// How the cluster is started.
pub fn of_cluster(cluster: &Cluster) -> Vec<Copy> {
    let template = format!("{}@.service", cluster.unit.split('@').next().unwrap_or_default());
    let is_its =
        |unit: &str| unit == cluster.unit || unit == template || cluster.is_debian && unit == "postgresql.service";
    let mut copies = of(Path::new(FOLDER), &is_its, Part::Start);
    if cluster.is_debian {
        let start = cluster.owner.act(|| copy(&start_conf(cluster), Part::Start)).ok().flatten();
        copies.extend(start);
    }
    copies
}

/// How this package is started, and what it has told systemd about the units of others.
pub fn ours() -> Result<Vec<Copy>> {
    let names = names()?;
    let mut copies = of(Path::new(FOLDER), &|unit| is_of(&names, unit), Part::Ours);
    let folders = std::fs::read_dir(FOLDER).into_iter().flatten().flatten().map(|entry| entry.path());
    let adopted = folders.filter(|folder| folder.extension().is_some_and(|kind| kind == "d"));
    copies.extend(adopted.filter_map(|folder| copy(&folder.join(ADOPTED), Part::Ours)));
    copies.sort_by(|a, b| a.path.cmp(&b.path));
    copies.dedup();
    Ok(copies)
}

/// Where the drop-in of an adopted unit is.
pub fn adopted(unit: &str) -> PathBuf {
    Path::new(FOLDER).join(format!("{unit}.d")).join(ADOPTED)
}

/// The units of this package, templates as such.
pub fn names() -> Result<Vec<String>> {
    let list = std::fs::read_to_string(PACKAGE).map_err(|e| {
        Error::failed(format!("could not read {PACKAGE}: {e}"))
            .hint("Which units are of this package is known only where it was installed by dpkg.")
    })?;
    Ok(list.lines().filter_map(|line| line.strip_prefix("/usr/lib/systemd/system/")).map(str::to_string).collect())
}

fn is_of(names: &[String], unit: &str) -> bool {
    let (stem, rest) = unit.split_once('@').unwrap_or((unit, ""));
    let template = format!("{stem}@.{}", rest.rsplit('.').next().unwrap_or_default());
    names.iter().any(|name| name == unit || *name == template)
}

/// The unit that this link makes part of another.
pub fn enabled_by(path: &Path) -> Option<&str> {
    let folder = path.parent()?.extension()?;
    (folder == "wants" || folder == "requires").then(|| path.file_name()?.to_str()).flatten()
}

fn of(folder: &Path, is_wanted: &dyn Fn(&str) -> bool, part: Part) -> Vec<Copy> {
    let list = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut found = Vec::new();
    for path in list(folder) {
        let (stem, kind) = (name(&path.with_extension("")), path.extension().unwrap_or_default());
        if kind == "d" && is_wanted(&stem) {
            found.extend(list(&path));
        } else if kind == "wants" || kind == "requires" {
            found.extend(list(&path).filter(|path| is_wanted(&name(path))));
        } else if is_wanted(&name(&path)) {
            found.push(path);
        }
    }
    // Ours that is not finished is not theirs.
    found.retain(|path| !name(path).starts_with('.'));
    found.sort();
    found.iter().filter_map(|path| copy(path, part)).collect()
}

/// A file or a link; `None`: neither.
pub fn copy(path: &Path, part: Part) -> Option<Copy> {
    let meta = path.symlink_metadata().ok()?;
    let (mode, bytes) = if meta.is_symlink() {
        (LINK, std::fs::read_link(path).ok()?.into_os_string().into_vec())
    } else {
        (meta.permissions().mode() & 0o7777, state::read(path, LIMIT).ok()?)
    };
    Some(Copy { path: path.into(), mode, owner: Some((meta.uid(), meta.gid())), bytes, tls: false, part })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_of_the_package_that_its_template_is_of() {
        let names = ["pg-notify@.service", "pg-backup.timer"].map(String::from);
        assert!(is_of(&names, "pg-notify@pg-backup.service.service") && is_of(&names, "pg-backup.timer"));
        assert!(!is_of(&names, "pg-backup.service") && !is_of(&names, "pg-dump@x.service"));
    }

    #[test]
    fn drop_ins_masks_and_enablement_are_found_and_nothing_else() {
        let root = std::env::temp_dir().join(format!("pg-rollback-units-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        for folder in ["x.service.d", "y.service.d", "a.target.wants"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::write(root.join("x.service.d/o.conf"), "[Service]\n").unwrap();
        std::fs::write(root.join("y.service.d/o.conf"), "").unwrap();
        std::os::unix::fs::symlink("/lib/x", root.join("a.target.wants/x.service")).unwrap();
        std::os::unix::fs::symlink("/dev/null", root.join("x.service")).unwrap();
        let found = of(&root, &|unit| unit == "x.service", Part::Ours);
        let names: Vec<_> = found.iter().map(|copy| copy.path.strip_prefix(&root).unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a.target.wants/x.service", "x.service", "x.service.d/o.conf"]);
        assert_eq!((found[1].mode, found[1].bytes.as_slice()), (LINK, &b"/dev/null"[..]));
        assert_eq!(names.iter().filter_map(|name| enabled_by(Path::new(name))).collect::<Vec<_>>(), ["x.service"]);
    }
}
