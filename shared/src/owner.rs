//! The user who owns a cluster, and doing things with no more power than that user has.
//!
//! Root never follows a link or trusts a path in a folder that `postgres` can write. Instead of checking each step of
//! such a path, a root program takes the owner's effective ids for the moment: whatever the path leads to then, it is
//! nothing that `postgres` could not have touched itself. The server's peer authentication sees the same ids
//! (SO_PEERCRED takes the effective ids at connect(2), unix(7)), and so do the checks on /proc/PID (ptrace(2)).

use nix::unistd::{Gid, Uid, User};

use crate::error::{Error, Result};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: Uid,
    pub gid: Gid,
    pub name: String,
}

impl Owner {
    pub fn of_uid(uid: u32) -> Option<Owner> {
        let user = User::from_uid(Uid::from_raw(uid)).ok()??;
        Some(Owner { uid: user.uid, gid: user.gid, name: user.name })
    }

    pub fn named(name: &str) -> Option<Owner> {
        let user = User::from_name(name).ok()??;
        Some(Owner { uid: user.uid, gid: user.gid, name: user.name })
    }

    /// Runs `f` with the effective ids of this user; the other threads of the program keep theirs. A program that
    /// already runs as this user just runs `f`; one that is neither root nor this user is refused.
    pub fn act<T>(&self, f: impl FnOnce() -> T) -> Result<T> {
        let me = Uid::effective();
        if me == self.uid {
            return Ok(f());
        }
        if !me.is_root() {
            return Err(Error::with(
                crate::exit::Code::NoPerm,
                format!("cannot act as user {}: this program runs as another user", self.name),
            )
            .hint(format!("Run it as root or as {}.", self.name)));
        }
        let _restore = Effective::set(self.uid, self.gid)?;
        Ok(f())
    }
}

/// Runs `f` with the effective group of this user, so that what it creates belongs to the group; as it is for a program
/// that is not root, or on a host without such a user.
pub fn with_group_of<T>(user: &str, f: impl FnOnce() -> T) -> Result<T> {
    match Owner::named(user).filter(|_| Uid::effective().is_root()) {
        None => Ok(f()),
        Some(owner) => {
            let _restore = Effective;
            set_thread_gid(owner.gid.as_raw())?;
            Ok(f())
        }
    }
}

/// Puts the root ids back, also when `f` panics.
struct Effective;

impl Effective {
    fn set(uid: Uid, gid: Gid) -> Result<Self> {
        // The group first: without root's effective uid it could not be set any more.
        set_thread_gid(gid.as_raw())?;
        let guard = Effective;
        set_thread_uid(uid.as_raw())?;
        Ok(guard)
    }
}

impl Drop for Effective {
    fn drop(&mut self) {
        // A program that cannot get its own ids back must not go on with a mixture.
        if set_thread_uid(0).is_err() || set_thread_gid(0).is_err() {
            std::process::abort();
        }
    }
}

// The raw calls change one thread; glibc's wrappers would change all threads of the process (nptl(7)), and a program
// that handles several clusters in several threads would act for one of them with the ids of another.
fn set_thread_uid(euid: u32) -> Result<()> {
    // SAFETY: setresuid takes three integers and touches no memory.
    nix::errno::Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, -1, euid, -1) })?;
    Ok(())
}

fn set_thread_gid(egid: u32) -> Result<()> {
    // SAFETY: setresgid takes three integers and touches no memory.
    nix::errno::Errno::result(unsafe { libc::syscall(libc::SYS_setresgid, -1, egid, -1) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_reads_nothing_that_the_owner_could_not_read() {
        let Some(nobody) = Owner::named("nobody").filter(|_| Uid::effective().is_root()) else {
            return; // needs root; the machines of tests/ run the programs as root anyway
        };
        assert!(nobody.act(|| std::fs::read("/etc/shadow")).unwrap().is_err());
        assert!(std::fs::read("/etc/shadow").is_ok());
        let other = std::thread::spawn(|| Uid::effective().is_root());
        assert!(nobody.act(|| other.join().unwrap()).unwrap());
    }
}
