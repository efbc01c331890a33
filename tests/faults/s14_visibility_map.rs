//! S14: a page of a visibility map is damaged. The server zeroes what it reads of it, which costs nobody anything.

use std::time::Duration;

use super::{End, Staged, s12_damaged_page};

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "S14",
    name: "visibility map damaged",
    imitates: "a controller that wrote something else there",
    is_not: "a map that says a row is visible to all that is not, which only pg_check_visible finds",
    prepare: |host| Box::new(s12_damaged_page::make_goods(host)),
    inject: |host, _| {
        let map = format!("{}_vm", s12_damaged_page::file_of(host, "goods"));
        let damage = format!("head -c 4096 /dev/zero | tr '\\0' '\\252' | dd of={map} conv=notrunc status=none");
        s12_damaged_page::while_stopped(host, &damage);
        host.wait_until_accepting(Duration::from_secs(60));
        let met = host.try_psql("VACUUM goods");
        assert!(met.success() && met.stderr.contains("zeroing out page"), "{met}");
        Box::new(())
    },
    end: End::Unnoticed,
    deadline: Duration::from_secs(180),
}];
