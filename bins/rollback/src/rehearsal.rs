//! The configuration as the server would read it, before it is there: the server's own program reads a copy.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use shared::cluster::{self, Cluster};
use shared::point::{self, Copy, Part};
use shared::{Error, Result, command};

use crate::change::Change;

const PATIENCE: Duration = Duration::from_secs(10);

/// Removed when dropped.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Lets `postgres -C` read `now` with `changes` made to it; the complaint, if it has one. It starts nothing and reads no
/// data. Files outside of the configuration directory that do not change are read where they are, and pg_hba.conf is not
/// read at all: a running server refuses a bad one when it is told to reload.
pub fn complaint(cluster: &Cluster, now: &[Copy], changes: &[Change]) -> Result<Option<String>> {
    let scratch = Scratch(PathBuf::from(format!("/run/pg-recovery/rollback-{}", std::process::id())));
    let bad = |e: std::io::Error| Error::failed(format!("could not write to {}: {e}", scratch.0.display()));
    let (config, data) = (scratch.0.join("config"), scratch.0.join("data"));
    make(cluster, &scratch.0, &[&config, &data]).map_err(bad)?;
    let is_changed = |copy: &&Copy| !changes.iter().any(|change| change.path == copy.path);
    let copies: Vec<&Copy> =
        now.iter().filter(is_changed).chain(changes.iter().filter_map(|change| change.new.as_ref())).collect();
    let is_known = |path: &Path| now.iter().any(|copy| copy.path == path) || changes.iter().any(|c| c.path == path);
    // What is included from elsewhere and changes is read from here as well.
    let elsewhere = data.join("elsewhere");
    let is_auto = |path: &Path| path.ends_with("postgresql.auto.conf");
    let is_elsewhere = |path: &Path| !path.starts_with(&cluster.config_directory) && !is_auto(path);
    let is_read = |copy: &Copy| copy.part == Part::Server && !copy.tls;
    let of_settings = changes.iter().filter(|change| change.old.iter().chain(&change.new).all(is_read));
    let moved: Vec<&Path> = of_settings.map(|change| change.path.as_path()).filter(|path| is_elsewhere(path)).collect();
    let place = |path: &Path| elsewhere.join(path.strip_prefix("/").unwrap_or(path));
    let written = cluster.owner.act(|| {
        for copy in copies.iter().filter(|copy| is_read(copy)) {
            let place = if is_auto(&copy.path) {
                data.join("postgresql.auto.conf")
            } else if let Ok(inside) = copy.path.strip_prefix(&cluster.config_directory) {
                config.join(inside)
            } else {
                place(&copy.path)
            };
            place.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            let leads = |path: &Path| moved.iter().any(|moved| moved.starts_with(path)).then_some(elsewhere.as_path());
            std::fs::write(place, redirected(copy, &leads))?;
        }
        for folder in moved.iter().filter_map(|path| path.parent()) {
            std::fs::create_dir_all(place(folder))?;
            mirror(folder, &place(folder), 0, &is_known)?;
        }
        if cluster.is_debian { mirror(&cluster.config_directory, &config, 1, &is_known) } else { Ok(()) }
    })?;
    written.map_err(bad)?;

    let mut command = Command::new(cluster.bin_directory.join("postgres"));
    command.arg("-D").arg(&data).args(["-C", "data_directory", "-c"]);
    command.arg(format!("config_file={}", config.join("postgresql.conf").display()));
    command.arg("-c").arg(format!("data_directory={}", data.display()));
    command.env_clear().env("LC_ALL", "C").current_dir("/");
    if nix::unistd::Uid::effective().is_root() {
        command.uid(cluster.owner.uid.as_raw()).gid(cluster.owner.gid.as_raw());
    }
    let asked = command::run(&mut command, PATIENCE)
        .map_err(|e| Error::failed(format!("could not run {:?}: {e}", command.get_program())))?;
    let real =
        |text: &str| text.replace(&config.display().to_string(), &cluster.config_directory.display().to_string());
    Ok((!asked.status.success()).then(|| real(asked.stderr.trim())))
}

/// The text with each `include` of something that changes elsewhere leading to its copy.
fn redirected<'a>(copy: &Copy, leads: &dyn Fn(&Path) -> Option<&'a Path>) -> Vec<u8> {
    let redirect = |line: &str| {
        let (word, value) = cluster::parse_line(line).filter(|(word, _)| word.starts_with("include"))?;
        let path = point::included(&copy.path, &value);
        let to = leads(&path)?.join(path.strip_prefix("/").ok()?);
        Some(format!("{word} = '{}'\n", to.display()))
    };
    let Ok(text) = std::str::from_utf8(&copy.bytes) else { return copy.bytes.clone() };
    text.split_inclusive('\n').map(|line| redirect(line).unwrap_or_else(|| line.into())).collect::<String>().into()
}

/// For the owner of the cluster alone: a configuration may have a password in it.
fn make(cluster: &Cluster, scratch: &Path, folders: &[&Path]) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    let _ = std::fs::remove_dir_all(scratch);
    builder.mode(0o711).recursive(true).create(scratch)?;
    // Whatever the mask of the unit.
    std::fs::set_permissions(scratch, std::fs::Permissions::from_mode(0o711))?;
    for folder in folders {
        builder.mode(0o700).recursive(false).create(folder)?;
        std::os::unix::fs::chown(folder, Some(cluster.owner.uid.as_raw()), Some(cluster.owner.gid.as_raw()))?;
    }
    Ok(())
}

/// Folders, because an include_dir that is empty has to be there too, and links to files of any other name, which may be
/// included.
fn mirror(from: &Path, to: &Path, depth: u8, is_known: &dyn Fn(&Path) -> bool) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(from) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let (path, place) = {
            let entry = entry?;
            (entry.path(), to.join(entry.file_name()))
        };
        if path.is_dir() {
            std::fs::create_dir_all(&place)?;
            if depth > 0 {
                mirror(&path, &place, depth - 1, is_known)?;
            }
        } else if !is_known(&path) && place.symlink_metadata().is_err() {
            std::os::unix::fs::symlink(&path, &place)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changes_elsewhere_is_read_from_a_copy() {
        let text = b"port = 1\ninclude '/srv/a.conf' # why\ninclude_dir '/srv/d'\ninclude_if_exists 'b'\n";
        let copy = Copy { path: "/etc/x/postgresql.conf".into(), bytes: text.to_vec(), ..Copy::default() };
        let leads = |path: &Path| (path == Path::new("/srv/d")).then_some(Path::new("/run/c"));
        let text = String::from_utf8(redirected(&copy, &leads)).unwrap();
        assert_eq!(
            text,
            "port = 1\ninclude '/srv/a.conf' # why\ninclude_dir = '/run/c/srv/d'\ninclude_if_exists 'b'\n"
        );
    }
}
