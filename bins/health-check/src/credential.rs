//! What a check may see: the password of the application's role, and the clusters.

use std::path::Path;

use shared::cluster::Cluster;
use shared::exit::Code;
use shared::owner::Owner;
use shared::{Error, Result};

const NAME: &str = "application-password";

/// `None` when there is none; a login that is not tried must not be taken for one that needs no password, so one that
/// cannot be read is an error.
pub fn password() -> Result<Option<String>> {
    shared::credential::read(NAME, NAME)
}

/// Refuses when this user may look at none of the clusters, or cannot see whether there are any.
pub fn may_look(clusters: &[Cluster]) -> Result<()> {
    let (me, root) = (nix::unistd::Uid::effective(), Path::new("/etc/postgresql"));
    let is_owner = if clusters.is_empty() {
        !root.exists() || Owner::named("postgres").is_some_and(|owner| owner.uid == me)
    } else {
        clusters.iter().any(|cluster| cluster.owner.uid == me)
    };
    if me.is_root() || is_owner {
        return Ok(());
    }
    Err(Error::with(Code::NoPerm, "cannot look at the clusters of this host: this program runs as another user")
        .hint("Run it as root or as postgres."))
}
