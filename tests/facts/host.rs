//! What the test machines themselves promise.

use host::{Host, Suite, facts_on_both_suites};

facts_on_both_suites! {
    fn a_plain_machine_boots_with_its_cluster_accepting_and_nothing_failed(suite: Suite) {
        let host = Host::boot_plain(suite);
        assert_eq!(host.sh("systemctl is-system-running"), "running");
        assert_eq!(host.state_of(&host.unit()), "active");
        assert_eq!(host.psql("SHOW server_version_num").len(), 6);
    }
}
