//! One cluster of a machine, named the way Debian names it.

/// Names and paths of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    version: String,
    name: String,
    port: u16,
}

impl Cluster {
    /// One that postgresql-common may not know; only its name and port are then of use.
    pub fn new(version: &str, name: &str, port: u16) -> Self {
        Cluster { version: version.to_owned(), name: name.to_owned(), port }
    }

    /// `15/main`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.version, self.name)
    }

    /// `15`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Its port, which is part of its socket's name as well.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `postgresql@15-main.service`.
    pub fn unit(&self) -> String {
        format!("postgresql@{}-{}.service", self.version, self.name)
    }

    /// `/var/lib/postgresql/15/main`.
    pub fn data_directory(&self) -> String {
        format!("/var/lib/postgresql/{}/{}", self.version, self.name)
    }

    /// `/etc/postgresql/15/main`.
    pub fn configuration_directory(&self) -> String {
        format!("/etc/postgresql/{}/{}", self.version, self.name)
    }

    /// `/var/log/postgresql/postgresql-15-main.log`.
    pub fn log_file(&self) -> String {
        format!("/var/log/postgresql/postgresql-{}-{}.log", self.version, self.name)
    }

    /// A program of this PostgreSQL: `/usr/lib/postgresql/15/bin/pg_controldata`.
    pub fn program(&self, name: &str) -> String {
        format!("/usr/lib/postgresql/{}/bin/{name}", self.version)
    }
}
