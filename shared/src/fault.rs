//! What is known of each class of faults beyond one case of it: how urgent it is, the rule behind its name and its repair,
//! and what is left for a person. The one table of them; a class without a row is `unknown`.

use std::time::Duration;

/// How soon it is to be over. The lower the more urgent.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Priority {
    /// Nobody is served, and nothing has to be put right but the server itself.
    P0,
    /// Nobody is served, or soon so, until something is put right.
    P1,
    /// It serves some, or its repair is not for this host alone.
    P2,
    /// It serves, or it is to be as it is.
    P3,
}

impl Priority {
    pub fn target(self) -> Duration {
        Duration::from_secs(match self {
            Priority::P0 => 30,
            Priority::P1 => 120,
            Priority::P2 => 300,
            Priority::P3 => 3600,
        })
    }
}

pub struct Class {
    pub name: &'static str,
    pub priority: Priority,
    /// A sentence: what has to be seen for this name, and why it is repaired as it is.
    pub rule: &'static str,
    /// What is left for a person, healed or not; `-ID` stands for the recovery's.
    pub next: &'static str,
}

pub fn class(name: &str) -> &'static Class {
    CLASSES.iter().find(|class| class.name == name).unwrap_or(&UNKNOWN)
}

const UNKNOWN: Class = Class {
    name: "unknown",
    priority: Priority::P1,
    rule: "It does not serve as it should, and nothing that is known explains what was seen; so nothing is tried.",
    next: "Read the end of the server log and what was seen; it may be a fault that nobody has met yet.",
};

const CLASSES: &[Class] = &[
    Class {
        name: "P4",
        priority: Priority::P3,
        rule: "A session's process crashed, and the server began anew by itself; one crash is only put on record.",
        next: "If it happens again, look for what the crashes have in common: a statement, a role, an extension.",
    },
    Class {
        name: "S8",
        priority: Priority::P1,
        rule: "A folder of the data directory is missing. One that holds nothing across a restart is made anew; any other \
               would hide what was in it.",
        next: "Find out who removed it. One that cannot be made anew comes back from a backup.",
    },
    Class {
        name: "S17",
        priority: Priority::P1,
        rule: "A system catalog, or the map to it, is damaged, and the server cannot work without it.",
        next: "Keep a copy of the data directory, check the disk, and restore a backup beside it.",
    },
    Class {
        name: "H3",
        priority: Priority::P1,
        rule: "A library does not belong to the server's programs, as in the middle of an upgrade.",
        next: "dpkg --audit, and dpkg --configure -a.",
    },
    Class {
        name: "P1",
        priority: Priority::P0,
        rule: "The postmaster ended without being told to, and nothing of it is left; what was committed is on the disk, \
               so a start is all it needs.",
        next: "If it happens again, find out who ends it: the server log, and journalctl -k for want of memory.",
    },
    Class {
        name: "M1",
        priority: Priority::P0,
        rule: "The kernel's OOM killer ended a process of it for want of memory. A session that ends so takes all others with \
               it, and systemd may stop the whole server for it; a start is all it needs.",
        next: "Find out what took the memory: the statement among what was seen, work_mem, the number of sessions, other \
               programs (journalctl -k). OOMPolicy=continue in a drop-in of its unit keeps the server up then.",
    },
    Class {
        name: "P2",
        priority: Priority::P0,
        rule: "The postmaster takes no connection and does not move, or was stopped by a signal. A stopped one is told to go \
               on, which costs nobody a session; what still hangs is asked to stop, told to stop at once, and only then \
               killed. A start follows.",
        next: "Find out what stopped it: a debugger, a script with kill -STOP, a module that blocks.",
    },
    Class {
        name: "P3",
        priority: Priority::P1,
        rule: "A process of the server was stopped by a signal. It is told to go on, which costs nobody anything; to kill it \
               would end every session.",
        next: "Find out what stopped it: a debugger, a script with kill -STOP.",
    },
    Class {
        name: "P6",
        priority: Priority::P0,
        rule: "postmaster.pid names no process, and none of the cluster is left; a server refuses to start over such a file.",
        next: "Find out what emptied it, such as a disk that was full; the file is kept in the evidence.",
    },
    Class {
        name: "P7",
        priority: Priority::P0,
        rule: "postmaster.pid names a process that is not PostgreSQL of this cluster, for which a server would not start.",
        next: "The other process was left alone; the file is kept in the evidence.",
    },
    Class {
        name: "P8",
        priority: Priority::P0,
        rule: "The lock file of a server that runs is gone or another's. Within a minute the server would end itself, so the \
               byte-exact copy is put back; without one, a clean stop and a start are better than that.",
        next: "Find out who removes files in the data directory.",
    },
    Class {
        name: "P9",
        priority: Priority::P0,
        rule: "Processes of a dead postmaster hold its shared memory; no start is possible until they are gone.",
        next: "If it happens again, look what they waited for: an extension, a disk.",
    },
    Class {
        name: "P10",
        priority: Priority::P1,
        rule: "Another program listens on the port of the cluster, and that one is not for us to end.",
        next: "Find it with ss -ltnp, and end it or give one of the two another port.",
    },
    Class {
        name: "P11",
        priority: Priority::P0,
        rule: "The folder of its socket is missing or cannot be written, without which it does not start.",
        next: "Find out who removed or changed it.",
    },
    Class {
        name: "P12",
        priority: Priority::P2,
        rule: "It runs, but its socket file is gone, so that no client of this host finds it.",
        next: "Find out who removes files there; a restart makes it anew.",
    },
    Class {
        name: "S2",
        priority: Priority::P1,
        rule: "There is no room for the two WAL segments that a start needs. A file that was kept for this is given back; \
               nothing in pg_wal is touched.",
        next: "Make room, for what was given back does not last: look for a replication slot, wal_keep_size or a failing \
               archive_command that keeps WAL, and for other files on that volume.",
    },
    Class {
        name: "S4",
        priority: Priority::P1,
        rule: "Its file system is read-only. The kernel does that after an error of the disk; to write to it unchecked may \
               do more harm.",
        next: "Read journalctl -k, check the disk and the file system, and mount it again.",
    },
    Class {
        name: "S5",
        priority: Priority::P1,
        rule: "It waits for the disk, or its recovery does not move, or a read or a flush failed; no restart mends a disk. A \
               server that died of it is started once, and not again and again.",
        next: "Read journalctl -k and look after the disk.",
    },
    Class {
        name: "S12",
        priority: Priority::P2,
        rule: "A page of a table or index is damaged. Only those who need it notice; what is on it is not given up for them.",
        next: "Check the disk, and get the rows from a backup that was restored beside it.",
    },
    Class {
        name: "S13",
        priority: Priority::P2,
        rule: "An index is damaged. It can be made anew from its table, if that one is in order.",
        next: "pg_amcheck, then REINDEX INDEX CONCURRENTLY.",
    },
    Class {
        name: "S15",
        priority: Priority::P2,
        rule: "A file of a table or index is shorter than it was, and rows are missing without an error.",
        next: "Keep writes away from that table, and get the rows from a backup that was restored beside it.",
    },
    Class {
        name: "S16",
        priority: Priority::P2,
        rule: "A file of a table or index is missing. A restart could make an empty one in its place.",
        next: "Do not restart the cluster; look for the file in /proc/*/fd, or in a backup that was restored beside it.",
    },
    Class {
        name: "S6",
        priority: Priority::P1,
        rule: "The data directory or a tablespace is missing or another one's. A start there would make files anew on a \
               bare mount point.",
        next: "Mount the volume.",
    },
    Class {
        name: "S7",
        priority: Priority::P1,
        rule: "Owner or mode of the data directory, or the mode of something of the server's in it, keeps the server from \
               using it. Exactly what is wrong is put right, to what it was while it ran.",
        next: "Find out who changed it, such as a chmod -R. A file that refuses its mode may be immutable: lsattr.",
    },
    Class {
        name: "S9",
        priority: Priority::P1,
        rule: "pg_control is missing or damaged. A copy of it is put back only if every WAL record from its checkpoint on \
               is there, for then crash recovery loses nothing.",
        next: "Check the disk; the damaged file is kept in the evidence. Without a copy, restore a backup beside it.",
    },
    Class {
        name: "S10",
        priority: Priority::P1,
        rule: "WAL that crash recovery needs is missing; a start without it would lose commits.",
        next: "Bring back the missing segments from the archive, or restore a backup beside it.",
    },
    Class {
        name: "S11",
        priority: Priority::P1,
        rule: "WAL that was known to be flushed is missing. PostgreSQL would take that for the end of WAL and start, without \
               the commits that are in it.",
        next: "Bring back the missing segments, from the archive or a standby.",
    },
    Class {
        name: "S18",
        priority: Priority::P1,
        rule: "backup_label asks for a checkpoint whose WAL is not there: a base backup without its WAL.",
        next: "Set restore_command to where its WAL is. Removing backup_label would leave a corrupt cluster.",
    },
    Class {
        name: "C1",
        priority: Priority::P1,
        rule: "The server's own program refuses the configuration files. They are put back as the server last ran with \
               them, the fewest that can be the cause; the bad ones stay beside.",
        next: "Correct what was meant, from the file .broken-ID beside it, and reload.",
    },
    Class {
        name: "C2",
        priority: Priority::P1,
        rule: "pg_hba.conf or pg_ident.conf cannot be loaded. It is put back as the server last ran with it, and never made \
               wider than that; the bad one stays beside.",
        next: "Correct what was meant, from the file .broken-ID beside it, and reload.",
    },
    Class {
        name: "C3",
        priority: Priority::P1,
        rule: "The server started with changed settings and refused them. What ALTER SYSTEM wrote is undone first, then \
               the other files, then access rules: the fewest that can be the cause.",
        next: "Correct what was meant, from the file .broken-ID beside it.",
    },
    Class {
        name: "C4",
        priority: Priority::P1,
        rule: "It asks for more memory than the host has.",
        next: "Lower shared_buffers, huge_pages or max_connections.",
    },
    Class {
        name: "C5",
        priority: Priority::P1,
        rule: "The server refuses its TLS key or certificate.",
        next: "Put a pair in place that fits, with mode 0600 and the owner of the cluster.",
    },
    Class {
        name: "C6",
        priority: Priority::P2,
        rule: "Its certificate has expired or is about to; it serves all who do not verify it. pg-cert-renew is started, which \
               renews what it is told to renew; the server is reloaded and never restarted for it.",
        next: "journalctl --unit pg-cert-renew.service says why a renewal failed; pg-cert-renew --check how it stands.",
    },
    Class {
        name: "H2",
        priority: Priority::P3,
        rule: "It is starting, stopping or replaying WAL; to disturb that would begin it anew.",
        next: "Wait; systemctl status pg-watchdog says how it stands.",
    },
    Class {
        name: "H4",
        priority: Priority::P1,
        rule: "The data directory is of another major version than the server's program.",
        next: "Start it with the programs of its own version, or run pg_upgradecluster.",
    },
    Class {
        name: "L1",
        priority: Priority::P2,
        rule: "Every connection slot is in use; it serves those who have one.",
        next: "Look at pg_stat_activity for who holds them, and limit that role or pool its connections.",
    },
    Class {
        name: "A1",
        priority: Priority::P2,
        rule: "A service of this host ended without being told to, or did not come up. systemd is asked to start it, so often \
               within a time as its section allows, and not while what it depends on does not serve.",
        next: "Read journalctl of its unit. pg-watchdog adopt shows how systemd itself would restart it.",
    },
    Class {
        name: "A2",
        priority: Priority::P2,
        rule: "A service runs, and its address did not answer as it should several times in a row. A restart ends what it was \
               at, so all that it depends on is seen to serve first.",
        next: "Read journalctl of its unit, and find out what it waited for.",
    },
    Class { name: "none", priority: Priority::P3, rule: "It runs and answers.", next: "Nothing." },
    Class {
        name: "O1",
        priority: Priority::P3,
        rule: "It was stopped cleanly although it is meant to run, and nobody has said for three checks that it is to stay \
               so.",
        next: "To keep it stopped: pg-recover pause, or manual in its start.conf.",
    },
    Class {
        name: "start-failed",
        priority: Priority::P1,
        rule: "Somebody started it, and it did not come up; why is for a diagnosis to find out.",
        next: "The recovery after this one has the diagnosis: pg-recover history.",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_grow_with_the_priority_and_each_class_has_one_row() {
        let targets = [Priority::P0, Priority::P1, Priority::P2, Priority::P3].map(|p| p.target().as_secs());
        assert_eq!(targets, [30, 120, 300, 3600]);
        let mut names: Vec<_> = CLASSES.iter().map(|class| class.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CLASSES.len());
        assert_eq!(class("P1").name, "P1");
        assert_eq!(class("from a later version").name, "unknown");
    }
}
