//! One file for each fault: what it imitates, and by which mechanism. An injection mends nothing: that is for the product.
//!
//! Files whose faults are healed on a host that nobody helps say so in `FAULTS`, a table from which `tests/rto` measures and
//! `tests/soak` draws. Those that want a host made for them, and those that are not for the product to heal, are in `STAGED`.

// What an injection returns is kept, be it nothing.
#![allow(clippy::unit_arg)]

use std::any::Any;
use std::time::{Duration, Instant};

use crate::{Host, Suite, Tally, poll_until};

pub mod at_every_step;
pub mod c1_bad_postgresql_conf;
pub mod c2_bad_pg_hba_conf;
pub mod c3_missing_preload_library;
pub mod c4_too_little_memory;
pub mod c5_tls_key;
pub mod c6_certificate_expired;
pub mod h1_clock_jump;
pub mod h2_long_crash_recovery;
pub mod h3_half_an_upgrade;
pub mod h4_other_major_version;
pub mod h5_no_name_service;
pub mod l1_connection_storm;
pub mod l2_left_open;
pub mod l3_lock_queue;
pub mod l4_temporary_files;
pub mod l5_wraparound_near;
pub mod l6_forgotten_slot;
pub mod l7_archiver_fails;
pub mod l8_forgotten_transaction;
pub mod l9_no_standby;
pub mod m1_oom_killer;
pub mod m2_memory_pressure;
pub mod o1_operator_off;
pub mod o1_package_manager;
pub mod o3_standby;
pub mod o4_patroni;
pub mod o5_data_directory_in_use;
pub mod overlapping;
pub mod p10_port_taken;
pub mod p11_socket_directory;
pub mod p12_socket_removed;
pub mod p1_postmaster_killed;
pub mod p2_all_processes_stopped;
pub mod p2_postmaster_asleep;
pub mod p2_postmaster_stopped;
pub mod p3_checkpointer_stopped;
pub mod p4_backend_killed;
pub mod p6_postmaster_pid_unusable;
pub mod p7_pid_recycled;
pub mod p8_postmaster_pid_removed;
pub mod p9_orphan_backend;
pub mod s10_wal_missing;
pub mod s11_newest_wal_removed;
pub mod s12_damaged_page;
pub mod s14_visibility_map;
pub mod s15_short_file;
pub mod s16_missing_file;
pub mod s17_damaged_catalog;
pub mod s18_backup_label;
pub mod s1_tablespace_full;
pub mod s2_wal_disk_full;
pub mod s3_log_disk_full;
pub mod s4_read_only;
pub mod s5_disk_error;
pub mod s6_dead_volume;
pub mod s6_volume_missing;
pub mod s7_data_directory_permissions;
pub mod s8_missing_folders;
pub mod s9_pg_control_missing;
pub mod session;
pub mod t1_state_file;
pub mod t3_killed_inside_a_step;
pub mod t4_command_hangs;

/// A fault that a host with the package heals by itself.
pub struct Fault {
    /// Its class in `pg-recover`'s diagnosis and in recoveries.jsonl, which the record of its healing must name.
    pub class: &'static str,
    /// What happens, in a few words; unique.
    pub name: &'static str,
    /// The event of real life that it stands for.
    pub imitates: &'static str,
    /// What is like it and is not covered by it.
    pub is_not: &'static str,
    /// Whether its healing is put on record; what the start of the distribution heals is not.
    pub is_recorded: bool,
    /// Does it, to a settled host whose main cluster commits. Returns when it is done, not when it is healed.
    pub inject: fn(&Host),
    /// Whether the postmaster must live through it and its repair.
    pub keeps_postmaster: bool,
    /// The longest time that a client may go without a commit.
    pub deadline: Duration,
}

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Fault> {
    [
        m1_oom_killer::FAULTS,
        p1_postmaster_killed::FAULTS,
        p2_postmaster_stopped::FAULTS,
        p2_all_processes_stopped::FAULTS,
        p3_checkpointer_stopped::FAULTS,
        p6_postmaster_pid_unusable::FAULTS,
        p7_pid_recycled::FAULTS,
        p8_postmaster_pid_removed::FAULTS,
        p9_orphan_backend::FAULTS,
        p11_socket_directory::FAULTS,
        p12_socket_removed::FAULTS,
        s7_data_directory_permissions::FAULTS,
        s8_missing_folders::FAULTS,
        s9_pg_control_missing::FAULTS,
        c1_bad_postgresql_conf::FAULTS,
        c2_bad_pg_hba_conf::FAULTS,
        c3_missing_preload_library::FAULTS,
    ]
    .into_iter()
    .flatten()
}

/// A fault that is done once to a host that was made for it.
pub struct Staged {
    /// As of [`Fault`].
    pub class: &'static str,
    pub name: &'static str,
    pub imitates: &'static str,
    pub is_not: &'static str,
    /// Makes the host ready for it.
    pub prepare: fn(&Host) -> Kept,
    /// Does it; it gets what `prepare` has left.
    pub inject: fn(&Host, &Kept) -> Kept,
    pub end: End,
    /// The longest time until that is seen.
    pub deadline: Duration,
}

/// What lasts as long as its fault: a disk, clients.
pub type Kept = Box<dyn Any>;

/// How a staged fault has to end.
pub enum End {
    /// A client commits again, and the healing is on record. It is the application's own role, if one is named.
    Healed(Option<&'static str>),
    /// It is on record with this outcome, and the server was started so often at most.
    OnRecord(&'static str, usize),
    /// The server goes on as before, nothing is on record and no check says anything about it.
    Unnoticed,
    /// This check of pg-health-check says so with this status, on a server that goes on as before.
    Told(&'static str, &'static str),
}

/// All of them.
pub fn staged() -> impl Iterator<Item = &'static Staged> {
    [
        p4_backend_killed::STAGED,
        p10_port_taken::STAGED,
        s1_tablespace_full::STAGED,
        s2_wal_disk_full::STAGED,
        s3_log_disk_full::STAGED,
        s4_read_only::STAGED,
        s5_disk_error::STAGED,
        s6_volume_missing::STAGED,
        s8_missing_folders::STAGED,
        s10_wal_missing::STAGED,
        s11_newest_wal_removed::STAGED,
        s12_damaged_page::STAGED,
        s14_visibility_map::STAGED,
        s15_short_file::STAGED,
        s16_missing_file::STAGED,
        s17_damaged_catalog::STAGED,
        s18_backup_label::STAGED,
        c4_too_little_memory::STAGED,
        c5_tls_key::STAGED,
        c6_certificate_expired::STAGED,
        l1_connection_storm::STAGED,
        l2_left_open::STAGED,
        l3_lock_queue::STAGED,
        l4_temporary_files::STAGED,
        l5_wraparound_near::STAGED,
        l6_forgotten_slot::STAGED,
        l7_archiver_fails::STAGED,
        l8_forgotten_transaction::STAGED,
        l9_no_standby::STAGED,
        h3_half_an_upgrade::STAGED,
        h4_other_major_version::STAGED,
    ]
    .into_iter()
    .flatten()
}

impl Staged {
    /// Does it to a host of this suite. Returns how long it took until its end was seen, or how long a client waited for it to be
    /// healed.
    #[track_caller]
    pub fn run(&self, suite: Suite) -> Duration {
        let host = Host::boot(suite);
        host.wait_until_settled();
        let prepared = (self.prepare)(&host);
        host.settle();
        let ledger = match self.end {
            End::Healed(Some(role)) => host.ledger_of(role),
            _ => host.ledger_of_fresh_sessions(),
        };
        ledger.wait_for_commits(20);
        let before = host.recoveries().len();
        let _kept = (self.inject)(&host, &prepared);
        let injected = Instant::now();
        let postmaster = || host.run(&format!("head -n 1 {}/postmaster.pid", host.data_directory())).stdout;
        let as_it_was = postmaster();
        let on_record = |outcome: &str| {
            let seen = || host.recoveries().split_off(before).into_iter().find(|record| record["fault"] == self.class);
            let record = poll_until(self.deadline, seen);
            let record = record.unwrap_or_else(|| panic!("{} is not on record: {:#?}", self.name, host.recoveries()));
            assert_eq!(record["outcome"], outcome, "{}: {record:#}", self.name);
        };
        let state = format!("cat /var/lib/pg-recovery/health/{}-main.json", host.version());
        match self.end {
            End::Healed(_) => {
                on_record("recovered");
                ledger.wait_for_commits_within(20, self.deadline);
                let tally = ledger.stop_and_check();
                tally.assert_nothing_lost();
                tally.longest_gap()
            }
            End::OnRecord(outcome, starts) => {
                on_record(outcome);
                let took = injected.elapsed();
                let steps = host.recoveries().into_iter().flat_map(|record| record["steps"].as_array().cloned());
                let started = steps.flatten().filter(|step| step["step"] == "start").count();
                assert!(started <= starts, "{}: {:#?}", self.name, host.recoveries());
                took
            }
            End::Unnoticed => {
                let client = host.ledger_of_fresh_sessions();
                host.start_and_wait("pg-health-check.service");
                client.wait_for_commits(20);
                let seen = host.json(&state);
                let said = seen["checks"].as_array().expect("there are checks").iter().find(|c| c["name"] == "damage");
                assert_eq!(said.expect("damage is looked for")["status"], "ok", "{}: {seen:#}", self.name);
                assert_eq!((postmaster(), host.recoveries().len()), (as_it_was, before), "{}", self.name);
                client.stop_and_check().longest_gap()
            }
            End::Told(check, status) => {
                let mut seen = serde_json::Value::Null;
                let told = poll_until(self.deadline, || {
                    seen = serde_json::from_str(&host.run(&state).stdout).ok()?;
                    let mut checks = seen["checks"].as_array()?.iter();
                    // A tablespace has its number in the name.
                    checks
                        .any(|c| {
                            c["status"] == status && c["name"].as_str().is_some_and(|name| name.starts_with(check))
                        })
                        .then_some(())
                });
                assert!(told.is_some(), "{} is not told: {seen:#}", self.name);
                let took = injected.elapsed();
                assert_eq!((postmaster(), host.recoveries().len()), (as_it_was, before), "{}", self.name);
                took
            }
        }
    }
}

/// What became of a fault.
pub struct Healing {
    /// What the client saw.
    pub tally: Tally,
    /// Its line of recoveries.jsonl, if it has one.
    pub record: Option<serde_json::Value>,
}

impl Fault {
    /// Does it to a host, which is settled first, under a client with a new session for each commit, and waits until that one
    /// commits again and the healing is on record as what it is.
    #[track_caller]
    pub fn heal(&self, host: &Host) -> Healing {
        host.settle();
        let ledger = host.ledger_of_fresh_sessions();
        ledger.wait_for_commits(20);
        let (postmaster, healings) = (host.postmaster_pid(), host.recoveries().len());
        (self.inject)(host);
        // A client may be served on for a while before it is not, or all the time.
        let _ = poll_until(Duration::from_secs(5), || (ledger.gap_so_far() > Duration::from_millis(200)).then_some(()));
        ledger.wait_for_commits_within(20, self.deadline);
        let record = || host.recoveries().split_off(healings).into_iter().find(|record| record["fault"] == self.class);
        let record = self.is_recorded.then(|| {
            poll_until(self.deadline, record).unwrap_or_else(|| panic!("no healing of {} on record", self.class))
        });
        if let Some(record) = &record {
            assert_eq!(record["outcome"], "recovered", "{record:#}");
        }
        // A server that looks after its lock file in the very second until it is put back ends itself.
        let ended_itself =
            record.as_ref().is_some_and(|record| record["evidence"].to_string().contains("it ended itself"));
        if self.keeps_postmaster && !ended_itself {
            assert_eq!(host.postmaster_pid(), postmaster, "the postmaster is another one: {record:#?}");
        }
        let tally = ledger.stop_and_check();
        tally.assert_nothing_lost();
        assert!(tally.longest_gap() < self.deadline, "{tally:?}");
        Healing { tally, record }
    }
}
