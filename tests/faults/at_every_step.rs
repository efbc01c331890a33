//! Not a fault: a recovery that is interrupted at each of its steps.

use std::time::Duration;

use super::{c5_tls_key, c6_certificate_expired, p2_postmaster_asleep, s11_newest_wal_removed};
use crate::{Authority, Host};

/// A fault that is done again and again, and its repair.
pub struct Ladder {
    pub class: &'static str,
    pub name: &'static str,
    /// Makes the host ready for it.
    prepare: fn(&Host),
    inject: fn(&Host),
    /// The longest time that a client may go without a commit after a recovery that nothing happens to.
    deadline: Duration,
    /// Whether its repair keeps what it gives up before anything else, and is not done without room for that.
    waits_for_room: bool,
}

/// The faults that a host heals by itself, and those whose ladders none of them climbs, which need a host of their own.
pub fn all() -> impl Iterator<Item = Ladder> {
    let of_any_host = super::all().map(|fault| Ladder {
        class: fault.class,
        name: fault.name,
        prepare: |_| (),
        inject: fault.inject,
        deadline: fault.deadline,
        waits_for_room: false,
    });
    let of_its_own = |class, name, prepare, inject| Ladder {
        class,
        name,
        prepare,
        inject,
        deadline: SOON,
        waits_for_room: class == "S11",
    };
    of_any_host.chain([
        of_its_own("P2", "postmaster asleep, deaf to all signals", p2_postmaster_asleep::prepare, |host| {
            p2_postmaster_asleep::inject(host);
            host.run("runuser -u postgres -- timeout 1 psql");
            p2_postmaster_asleep::end(host);
        }),
        of_its_own("S11", "newest WAL segment lost in a crash, and given up", give_up_always, lose_wal_of_nobody_else),
        of_its_own("C6", "certificate that has expired", prepare_renewal, expire),
    ])
}

const SOON: Duration = Duration::from_secs(60);

impl Ladder {
    /// Has pg-recover alone heal it again and again: killed before the first step, the second, and so on, and with a state disk that
    /// is full from its first use on, the second, and so on. The next run finishes what a killed one has begun; a full disk keeps
    /// none from a repair that does not wait for room, and that one is done once there is some. Returns how often each was done.
    #[track_caller]
    pub fn climb(&self, host: &Host) -> (u32, u32) {
        super::t1_state_file::prepare(host);
        host.configure("[recover]\nmax_attempts = 100\nfast_stop_timeout = \"2s\"\nimmediate_stop_timeout = \"2s\"\n");
        host.settle();
        (self.prepare)(host);
        let mut killed = 0;
        while self.is_interrupted(host, || {
            let run = host.run(&format!("PG_RECOVERY_KILL_BEFORE_STEP={} pg-recover", killed + 1));
            assert!(matches!(run.status, 0 | 137), "{}, killed before step {}: {run}", self.name, killed + 1);
            run.status == 137
        }) {
            killed += 1;
        }
        let mut full = 0;
        while self.is_interrupted(host, || {
            let run = super::t1_state_file::run_while_it_fills_up(host, full + 1);
            let is_done = run.as_ref().is_none_or(|run| run.success() || (self.waits_for_room && run.status == 1));
            assert!(is_done, "{}, full at {}: {run:?}", self.name, full + 1);
            run.is_some()
        }) {
            full += 1;
        }
        (killed, full)
    }

    /// Does it, has a recovery run that something happens to, and then another; says whether anything happened to the first.
    fn is_interrupted(&self, host: &Host, first: impl FnOnce() -> bool) -> bool {
        host.settle();
        host.sh("systemctl stop pg-watchdog.service pg-health-check.timer pg-health-check.service");
        let ledger = host.ledger_of_fresh_sessions();
        ledger.wait_for_commits(20);
        (self.inject)(host);
        let interrupted = first();
        host.start_and_wait("pg-recovery.service");
        assert_eq!(host.property_of("pg-recovery.service", "ExecMainStatus"), "0", "{}", self.name);
        ledger.wait_for_commits_within(20, self.deadline);
        ledger.stop_and_check().assert_nothing_lost();
        interrupted
    }
}

fn give_up_always(host: &Host) {
    host.sh("pg-recover approve give-up-wal --always");
}

/// Other clients wait until the server is dead: what they have committed is in segments that stay.
fn lose_wal_of_nobody_else(host: &Host) {
    host.run_as_unit("holder", "postgres", "psql -c 'BEGIN; LOCK ledger; SELECT pg_sleep(600)'");
    let locks = "SELECT count(*) FROM pg_locks WHERE relation = 'ledger'::regclass AND mode = 'AccessExclusiveLock' AND granted";
    host.wait_until("other clients wait", SOON, || host.psql(locks) == "1");
    // What was flushed is recorded by pg-watchdog.
    host.sh("systemctl start pg-watchdog.service");
    s11_newest_wal_removed::inject(host, || {
        s11_newest_wal_removed::wait_until_recorded(host);
        host.sh("systemctl stop pg-watchdog.service");
    });
}

fn prepare_renewal(host: &Host) {
    let certificate = "[[tls.certificate]]\nname = \"NAME\"\nsource = \"ca\"\nnames = [\"localhost\"]\n";
    host.configure(&format!("[recover]\nmax_attempts = 100\n{}", certificate.replace("NAME", &host.cluster())));
    c6_certificate_expired::prepare(host);
}

/// What was renewed is in a place of pg-cert-renew's.
fn expire(host: &Host) {
    c5_tls_key::serve_own(host);
    c6_certificate_expired::inject(host, &Authority::self_signed(&["localhost"], -90, -1));
}
