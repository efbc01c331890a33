//! L1: clients connect until no slot is left: those of an application that leaks its sessions, or that comes back without
//! end.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio_postgres::{Config, NoTls};

use super::{End, Staged};
use crate::Host;

/// See [`super::staged`].
pub const STAGED: &[Staged] = &[Staged {
    class: "L1",
    name: "connection storm",
    imitates: "an application whose pool has gone wild",
    is_not: "many clients that are at work: nobody is sent away for them",
    prepare: |host| Box::new(prepare(host, &["storm", "shop"])),
    inject: |host, _| Box::new(inject(host, "storm", 25)),
    end: End::Healed(Some("shop")),
    deadline: Duration::from_secs(60),
}];

const SOON: Duration = Duration::from_secs(60);

/// Restarts the cluster with 20 slots, 17 of them for everybody, and with these roles, who may log in without a password.
pub fn prepare(host: &Host, roles: &[&str]) {
    for role in roles {
        host.psql(&format!("CREATE ROLE \"{}\" LOGIN", role.replace('"', "\"\"")));
    }
    host.psql("GRANT CREATE ON SCHEMA public TO PUBLIC");
    host.psql("ALTER SYSTEM SET max_connections = 20");
    host.sh(&format!("sed -i '1i local all all trust' {}/pg_hba.conf", host.configuration_directory()));
    let before = host.postmaster_pid();
    host.sh(&format!("systemctl restart {}", host.unit()));
    host.wait_until_accepting(SOON);
    assert_ne!(host.postmaster_pid(), before);
    host.wait_for_journal("pg-watchdog", &format!("has a postmaster, PID {}", host.postmaster_pid()), SOON);
}

/// Clients outside of the machine; dropping it ends them.
pub struct Storm {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// So many clients of this role that try until they have a session, and keep it idle. One that loses it has had enough.
pub fn leak(host: &Host, role: &str, clients: usize) -> Storm {
    storm(host, role, clients, false)
}

/// The same, but whoever loses the session tries again at once, and for ever.
pub fn inject(host: &Host, role: &str, clients: usize) -> Storm {
    storm(host, role, clients, true)
}

fn storm(host: &Host, role: &str, clients: usize, comes_back: bool) -> Storm {
    let stop = Arc::new(AtomicBool::new(false));
    let mut config = Config::new();
    config
        .host_path(host.outside().join("machine/run/postgresql"))
        .user(role)
        .dbname("postgres")
        .application_name("storm");
    let theirs = stop.clone();
    let work = move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
        runtime.block_on(async {
            for _ in 0..clients {
                tokio::spawn(client(config.clone(), comes_back));
            }
            while !theirs.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    };
    Storm { stop, thread: Some(std::thread::spawn(work)) }
}

async fn client(config: Config, comes_back: bool) {
    loop {
        if let Ok((_client, connection)) = config.connect(NoTls).await {
            // Until the server ends the session.
            let _ = connection.await;
            if !comes_back {
                return;
            }
        } else {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
