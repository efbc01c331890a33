//! What a fault means and what a person is to type: one table, by class, for the words of a server that could not start and
//! for everything that is handed over. A new fault is a new row.

use crate::cluster::Cluster;

pub struct Meaning {
    pub class: &'static str,
    /// Reads on from "cluster 16/main: ".
    pub means: &'static str,
    /// What to do next; `{data}`, `{conf}`, `{unit}`, `{owner}` and `{cluster}` are the cluster's.
    advice: &'static str,
    /// Pieces of PostgreSQL's own messages (src/backend, untranslated): all pieces of one entry have to be there.
    words: &'static [&'static [&'static str]],
    /// Codes that mean this and nothing else, for a log in another language (manual, appendix A).
    sqlstates: &'static [&'static str],
}

/// The first row that fits a message counts, so what is more special stands before what is more general.
const TABLE: &[Meaning] = &[
    Meaning {
        class: "C1",
        means: "a configuration file cannot be read",
        advice: "Correct the line that the server's log names, then: systemctl start {unit}.",
        words: &[&["configuration file", "contains errors"]],
        sqlstates: &["F0000"],
    },
    Meaning {
        class: "C2",
        means: "pg_hba.conf or pg_ident.conf cannot be read",
        advice: "Correct the line that the server's log names, then: systemctl start {unit}.",
        words: &[&["could not load", "pg_hba"], &["could not load", "pg_ident"]],
        sqlstates: &[],
    },
    Meaning {
        class: "C4",
        means: "the host does not give it the memory that its configuration asks for",
        advice: "Lower shared_buffers, max_connections or huge_pages in {conf}, then: systemctl start {unit}.",
        words: &[
            &["could not map anonymous shared memory"],
            &["could not create shared memory segment"],
            &["could not resize shared memory segment"],
            &["could not create semaphores"],
        ],
        sqlstates: &[],
    },
    Meaning {
        class: "C5",
        means: "its TLS key or certificate cannot be used",
        advice: "Put the pair that belongs together in place (ssl_cert_file, ssl_key_file); the key has mode 0600 and belongs to \
                 {owner}, or 0640 and to root. Then: systemctl start {unit}. Do not set ssl = off: passwords would travel in clear.",
        words: &[
            &["private key"],
            &["could not load server certificate"],
            &["could not load root certificate"],
            &["certificate revocation list"],
        ],
        sqlstates: &[],
    },
    Meaning {
        class: "C6",
        means: "its certificate has expired or is about to, and clients that verify it are refused",
        advice: "pg-cert-renew --check says how it stands. A [[tls.certificate]] of /etc/pg-recovery/config.toml says where a new \
                 one comes from, then: systemctl start pg-cert-renew. Do not restart the server for it: a reload is enough.",
        words: &[],
        sqlstates: &[],
    },
    Meaning {
        class: "P9",
        means: "processes of the dead server live on, or may do so",
        advice: "Look at them (ps -o pid,user,stat,cmd -C postgres) and end those of {data}; never ipcrm.",
        words: &[&["pre-existing shared memory block"]],
        sqlstates: &[],
    },
    Meaning {
        class: "P6",
        means: "postmaster.pid cannot be used",
        advice: "If no process of {data} is left, move the file away, then: systemctl start {unit}.",
        words: &[&["lock file", "is empty"], &["bogus data in lock file"]],
        sqlstates: &[],
    },
    Meaning {
        class: "P7",
        means: "postmaster.pid names a process of which it cannot be told what it is",
        advice: "If that process is not PostgreSQL of {data}, move the file away, then: systemctl start {unit}.",
        words: &[&["lock file", "postmaster.pid", "already exists"]],
        sqlstates: &["F0001"],
    },
    Meaning {
        class: "P10",
        means: "somebody else has its port; it is started as soon as that is free",
        advice: "Stop that process, or give one of the two another port ({conf}).",
        words: &[&["Address already in use"], &["lock file", ".s.PGSQL", "already exists"]],
        sqlstates: &[],
    },
    Meaning {
        class: "P11",
        means: "its socket directory cannot be used",
        advice: "Make the directory of unix_socket_directories writable for {owner}, then: systemctl start {unit}.",
        words: &[
            &["could not create lock file", ".s.PGSQL"],
            &["could not create Unix socket"],
            &["could not create any Unix-domain sockets"],
        ],
        sqlstates: &[],
    },
    Meaning {
        class: "P12",
        means: "its socket is gone while it runs",
        advice: "Clients on TCP go on. It is restarted for it once no session is at work, unless recover.socket_restart says \
                 \"never\"; to do it now: systemctl restart {unit}.",
        words: &[],
        sqlstates: &[],
    },
    Meaning {
        class: "S4",
        means: "its file system is read-only",
        advice: "journalctl -k tells why: the kernel does that after an error of the disk. Stop what uses the volume, unmount it, \
                 check it (fsck), mount it, then: systemctl start {unit}. Do not remount it unchecked, do not remove postmaster.pid \
                 as the server advises, never initdb.",
        words: &[&["Read-only file system"]],
        sqlstates: &[],
    },
    Meaning {
        class: "S5",
        means: "its disk fails, or it waits for the disk, or its recovery does not move",
        advice: "journalctl -k tells what the disk has. Copy {data} from a disk that fails before anything else; when the disk is \
                 in order again, check the file system (fsck), then: systemctl start {unit}. Never fsync = off, never \
                 data_sync_retry = on.",
        // A thin volume whose pool is full says so only when data is flushed; df shows room.
        words: &[&["Input/output error"], &["could not fsync file", "No space left on device"]],
        sqlstates: &["58030"],
    },
    Meaning {
        class: "S2",
        means: "there is no room for WAL",
        advice: "Make room on the volume of {data}/pg_wal, or make it larger; never remove anything in pg_wal.",
        words: &[&["No space left on device"]],
        sqlstates: &["53100"],
    },
    Meaning {
        class: "S7",
        means: "its user may not use a file of its own",
        advice: "Give it back to {owner}; pg-recover --plan names it.",
        words: &[&["invalid permissions"], &["wrong ownership"], &["Permission denied"]],
        sqlstates: &["42501"],
    },
    Meaning {
        class: "S18",
        means: "it has a backup_label or recovery.signal, and not the WAL that it needs",
        advice: "If this is a restored backup, give it that WAL: restore_command, or the segments in {data}/pg_wal. Do not \
                 follow the server's hint and remove backup_label: a restored cluster is corrupt without it.",
        words: &[
            &["could not locate required checkpoint record"],
            &["could not find redo location referenced by"],
            &["WAL ends before end of online backup"],
        ],
        sqlstates: &[],
    },
    Meaning {
        class: "S10",
        means: "WAL that crash recovery needs is missing or damaged",
        advice: "Bring the segments back from the archive into {data}/pg_wal (pg_controldata {data} names the first, \
                 \"REDO WAL file\"), or restore a backup. Never pg_resetwal: it gives commits up.",
        words: &[&["could not locate a valid checkpoint record"]],
        sqlstates: &[],
    },
    Meaning {
        class: "S8",
        means: "a folder or file of its data directory is missing that cannot be made anew",
        advice: "Bring it back from a backup of {data}, or restore the whole. An empty pg_xact or pg_twophase in its place would \
                 turn commits into aborts.",
        words: &[
            &["could not open directory", "\"pg_"],
            &["could not access status of transaction"],
            &["could not open file", "\"pg_xact/", "No such file"],
            &["could not open file", "\"pg_multixact/", "No such file"],
        ],
        sqlstates: &[],
    },
    Meaning {
        class: "S9",
        means: "pg_control is missing or damaged, and there is no copy to put back",
        advice: "Restore a backup. Never pg_resetwal: it gives commits up.",
        words: &[&["incorrect checksum in control file"], &["global/pg_control"]],
        sqlstates: &[],
    },
    Meaning {
        class: "S17",
        means: "a system catalog or the map to it is damaged",
        advice: "Keep a copy of {data} before anything else, check the disk (journalctl -k), then restore a backup beside it \
                 (pg-backup restore --latest --to DIRECTORY). Never initdb, never zero_damaged_pages, no edits in single-user mode.",
        words: &[&["relation mapping file"], &["pg_filenode.map"]],
        sqlstates: &[],
    },
    Meaning {
        class: "S15",
        means: "a file of a table or index is shorter than it was",
        advice: "Keep everybody from writing to that table, or stop the cluster (systemctl stop {unit}): new rows would be put where \
                 the lost ones were. Keep a copy of {data}, then restore a backup beside it (pg-backup restore --latest --to \
                 DIRECTORY) and take the rows from there. Its name: SELECT pg_filenode_relation(0, number of the file), in the \
                 database whose oid is the folder's name.",
        words: &[&["could not read block", "read only"]],
        sqlstates: &[],
    },
    Meaning {
        class: "S13",
        means: "an index is damaged",
        advice: "Check the disk (journalctl -k). When pg_amcheck finds its table in order: REINDEX INDEX CONCURRENTLY. Do not drop a \
                 unique index, and no REINDEX while its table is damaged as well.",
        words: &[&["contains corrupted page at block"], &["contains unexpected zero page at block"]],
        sqlstates: &["XX002"],
    },
    Meaning {
        class: "S16",
        means: "a file of a table or index is missing",
        advice: "Do not restart the cluster, for a process of it may still have that file open (ls -l /proc/*/fd, \"(deleted)\"), and \
                 make no empty file in its place. Keep a copy of {data}, then restore a backup beside it (pg-backup restore \
                 --latest --to DIRECTORY) and take the rows from there. Its name: SELECT pg_filenode_relation(0, number of the \
                 file), in the database whose oid is the folder's name.",
        words: &[
            // Not a file that a client names: "could not open file "/x" for reading".
            &["could not open file \"base/", "\": No such file or directory"],
            &["could not open file \"global/", "\": No such file or directory"],
            &["could not open file \"pg_tblspc/", "\": No such file or directory"],
            &["could not fsync file", "No such file or directory"],
        ],
        sqlstates: &[],
    },
    Meaning {
        class: "S12",
        means: "a page of a table or index is damaged",
        advice: "Check the disk (journalctl -k), and keep a copy of {data} and the backups that there are (pg-backup list). If it is \
                 an index whose table pg_amcheck finds in order: REINDEX INDEX CONCURRENTLY. If it is a table: restore a backup \
                 beside it (pg-backup restore --latest --to DIRECTORY) and take the rows from there. Its name: SELECT \
                 pg_filenode_relation(0, number of the file), in the database whose oid is the folder's name. Never \
                 zero_damaged_pages, ignore_checksum_failure or VACUUM FULL: they lose what is on that page.",
        words: &[&["invalid page in block"]],
        sqlstates: &["XX001"],
    },
    Meaning {
        class: "H4",
        means: "its data directory is of another version or build than its programs",
        advice: "{data}/PG_VERSION names the version: install postgresql of that one and start the cluster with it. Never edit \
                 PG_VERSION, never initdb.",
        words: &[&["database files are incompatible"]],
        sqlstates: &[],
    },
    Meaning {
        class: "H3",
        means: "a library does not belong to its programs, as in the middle of an upgrade",
        advice: "dpkg --audit and dpkg --configure -a; then install the extension's package of this version and: systemctl start \
                 {unit}.",
        words: &[&["incompatible library"], &["undefined symbol"]],
        sqlstates: &[],
    },
    Meaning {
        class: "C3",
        means: "a setting does not let it start",
        advice: "Correct the setting that the server's log names, in {conf} or in {data}/postgresql.auto.conf, then: systemctl \
                 start {unit}.",
        words: &[
            &["could not access file"],
            &["could not load library"],
            &["invalid value for parameter"],
            &["unrecognized configuration parameter"],
            &["requires \"wal_level\""],
            &["requires wal_level"],
            &["cannot be enabled when"],
            &["must be less than"],
            &["could not create any TCP/IP sockets"],
            &["maximum number of prepared transactions reached"],
            &["recovery aborted because of insufficient parameter settings"],
        ],
        sqlstates: &[],
    },
    Meaning {
        class: "S6",
        means: "the data directory is missing or another one; its volume may not be mounted",
        advice: "Mount it (systemctl --failed, findmnt); never initdb. Then: systemctl start {unit}.",
        words: &[&["data directory", "does not exist"]],
        sqlstates: &[],
    },
    Meaning {
        class: "S11",
        means: "WAL that was flushed is missing; a start would lose commits",
        advice: "Bring it back into {data}/pg_wal, from an archive or a standby; the next recovery starts it. To start it without that \
                 WAL, and lose the commits in it: pg-recover approve give-up-wal --cluster {cluster}.",
        words: &[],
        sqlstates: &[],
    },
    Meaning {
        class: "L1",
        means: "all connection slots are in use",
        advice: "End sessions that nobody needs (pg_terminate_backend), or set a limit for the role that has most of them.",
        words: &[],
        sqlstates: &[],
    },
];

pub fn of(class: &str) -> Option<&'static Meaning> {
    TABLE.iter().find(|row| row.class == class)
}

/// The class of a message of the server, from its words, else from its SQLSTATE.
pub fn class_of(message: &str, sqlstate: Option<&str>) -> Option<&'static str> {
    let by_words = |row: &&Meaning| row.words.iter().any(|pieces| pieces.iter().all(|piece| message.contains(piece)));
    let by_code = |row: &&Meaning| sqlstate.is_some_and(|code| row.sqlstates.contains(&code));
    TABLE.iter().find(by_words).or_else(|| TABLE.iter().find(by_code)).map(|row| row.class)
}

/// Whether anything is told by a piece of this message.
pub fn is_looked_for(message: &str) -> bool {
    TABLE.iter().flat_map(|row| row.words.iter().copied().flatten()).any(|piece| message.contains(piece))
}

/// A start meets it again, however often.
pub fn outlives_starts(class: &str) -> bool {
    is_of_storage(class) || matches!(class, "S8" | "S9" | "S10" | "S18" | "H3" | "H4")
}

/// The disk fails, or files of the data directory are damaged: no restart makes these better, and the fewer the better.
pub fn is_of_storage(class: &str) -> bool {
    matches!(class, "S4" | "S5" | "S12" | "S13" | "S15" | "S16" | "S17")
}

/// The class of an answer to a login, if it is one of storage. Whoever logs in reads system catalogs and nothing else.
pub fn of_refused_login(message: &str, sqlstate: &str) -> Option<&'static str> {
    match class_of(message, Some(sqlstate)).filter(|class| is_of_storage(class))? {
        class @ ("S4" | "S5") => Some(class),
        _ => Some("S17"),
    }
}

/// The code in what stands before the message, when exactly one is there that the table has.
pub fn sqlstate(prefix: &str) -> Option<&str> {
    let known = |word: &&str| TABLE.iter().any(|row| row.sqlstates.contains(word));
    let mut codes = prefix.split(|c: char| !c.is_ascii_alphanumeric()).filter(known);
    codes.next().filter(|_| codes.next().is_none())
}

impl Meaning {
    pub fn advice(&self, cluster: &Cluster) -> String {
        self.advice
            .replace("{data}", &cluster.data_directory.display().to_string())
            .replace("{conf}", &cluster.config_directory.join("postgresql.conf").display().to_string())
            .replace("{unit}", &cluster.unit)
            .replace("{owner}", &cluster.owner.name)
            .replace("{cluster}", &cluster.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_classified_the_special_ones_first() {
        for (message, class) in [
            ("configuration file \"/etc/x\" contains errors", "C1"),
            ("could not load /etc/postgresql/15/main/pg_hba.conf", "C2"),
            ("could not access file \"nope\": No such file or directory", "C3"),
            ("could not map anonymous shared memory: Cannot allocate memory", "C4"),
            ("could not create semaphores: No space left on device", "C4"),
            ("private key file \"server.key\" has group or world access", "C5"),
            ("could not load private key file \"server.key\": bad base64 decode", "C5"),
            ("check of private key failed: key values mismatch", "C5"),
            ("could not load server certificate file \"server.crt\": No such file or directory", "C5"),
            ("data directory \"/d\" has invalid permissions", "S7"),
            ("could not open file \"base/5/2601\": Permission denied", "S7"),
            ("could not create lock file \"/run/postgresql/.s.PGSQL.5432.lock\": Permission denied", "P11"),
            ("lock file \"/run/postgresql/.s.PGSQL.5432.lock\" already exists", "P10"),
            ("lock file \"postmaster.pid\" already exists", "P7"),
            ("could not open directory \"pg_notify\": No such file or directory", "S8"),
            ("could not open file \"pg_wal/000000010000000000000001\": No space left on device", "S2"),
            ("could not locate a valid checkpoint record", "S10"),
            ("could not open file \"global/2676\": Read-only file system", "S4"),
            ("could not remove old lock file \"postmaster.pid\": Read-only file system", "S4"),
            ("could not create lock file \"/run/postgresql/.s.PGSQL.5432.lock\": Read-only file system", "P11"),
            ("could not read block 7 in file \"base/5/16391\": Input/output error", "S5"),
            ("could not fsync file \"base/5/16391\": No space left on device", "S5"),
            ("could not write to file \"pg_wal/xlogtemp.9\": No space left on device", "S2"),
            ("could not open file \"global/pg_control\": No such file or directory", "S9"),
            ("could not open file \"global/pg_filenode.map\": No such file or directory", "S17"),
            ("relation mapping file \"base/5/pg_filenode.map\" contains incorrect checksum", "S17"),
            ("invalid page in block 0 of relation base/5/16391", "S12"),
            ("index \"t_pkey\" contains unexpected zero page at block 3", "S13"),
            ("could not read block 862 in file \"base/5/16391\": read only 0 of 8192 bytes", "S15"),
            ("could not open file \"base/5/16391\": No such file or directory", "S16"),
            ("could not fsync file \"base/5/16391\": No such file or directory", "S16"),
            ("could not locate required checkpoint record at 0/2000028", "S18"),
            ("database files are incompatible with server", "H4"),
            ("incompatible library \"/usr/lib/x.so\": version mismatch", "H3"),
            ("could not load library \"/usr/lib/x.so\": libfoo.so.1: cannot open shared object file", "C3"),
        ] {
            assert_eq!(class_of(message, None), Some(class), "{message}");
        }
        assert_eq!(class_of("something nobody has seen", None), None);
    }

    #[test]
    fn a_translated_message_is_known_by_its_code_alone() {
        let german =
            "konnte nicht in Datei »pg_wal/xlogtemp.5« schreiben: Auf dem Gerät ist kein Speicherplatz mehr verfügbar";
        assert_eq!(class_of(german, None), None);
        assert_eq!(class_of(german, sqlstate("2026-11-25 13:00:01 UTC [4711] 53100 ")), Some("S2"));
        // A process number may look like a code.
        assert_eq!(sqlstate("[58030] 53100 "), None);
        assert_eq!(sqlstate("2026-11-25 13:00:01.123 UTC [12] "), None);
    }

    #[test]
    fn a_login_that_meets_damage_has_met_a_system_catalog() {
        let of = of_refused_login;
        assert_eq!(of("FATAL: invalid page in block 0 of relation base/5/1259", "XX001"), Some("S17"));
        assert_eq!(of("FATAL: could not open file \"base/5/1259\": No such file or directory", "58P01"), Some("S17"));
        assert_eq!(of("FATAL: could not open file \"global/2676\": Read-only file system", "42501"), Some("S4"));
        assert_eq!(of("FATAL: Seite kaputt", "58030"), Some("S5"));
        assert_eq!(of("FATAL: permission denied for database \"x\"", "42501"), None);
        assert_eq!(of("FATAL: database \"x\" does not exist", "3D000"), None);
    }

    #[test]
    fn each_class_has_one_row_that_tells_what_to_do() {
        for (index, row) in TABLE.iter().enumerate() {
            assert!(TABLE[index + 1..].iter().all(|other| other.class != row.class), "{}", row.class);
            assert!(row.advice.ends_with('.') && !row.means.ends_with('.'), "{}", row.class);
        }
    }
}
