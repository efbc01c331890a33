//! A booted machine and what a test can do with it and ask of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::machine::Machine;
use crate::poll::poll_until;
use crate::{Cluster, Disk, File, Journal, Ledger, Output, Signal, Suite, image, trace};

/// No command of a test may hang the test.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long units and servers may take to get where a test wants them before it looks.
const SOON: Duration = Duration::from_secs(60);

/// A booted machine. Dropping it removes it; when the test is failing, its journal and logs are printed first.
pub struct Host {
    suite: Suite,
    machine: Machine,
}

impl Drop for Host {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.assert_nothing_forbidden();
        }
    }
}

impl Host {
    // ---- booting -------------------------------------------------------------------------------------------------

    /// Boots a machine with the package installed and its cluster accepting connections.
    pub fn boot(suite: Suite) -> Host {
        Host::on(suite, &image::with_package(suite, ""))
    }

    /// The same on a distribution with these packages as well: `,one,two`.
    pub fn boot_beside(suite: Suite, packages: &str) -> Host {
        Host::on(suite, &image::with_package(suite, packages))
    }

    /// The same, with everything that backs it up switched on; it is off in other machines, for it is a load.
    pub fn boot_with_backups(suite: Suite) -> Host {
        let host = Host::boot(suite);
        let units = image::BACKUPS.join(" ");
        host.sh(&format!("systemctl unmask {units}; systemctl start {units}"));
        host
    }

    /// Boots a machine without the package: the distribution's PostgreSQL as it is.
    pub fn boot_plain(suite: Suite) -> Host {
        Host::on(suite, &image::plain(suite, ""))
    }

    pub(crate) fn on(suite: Suite, layers: &[PathBuf]) -> Host {
        let host = Host { suite, machine: Machine::boot(layers, trace::prepare) };
        host.wait_until_accepting(SOON);
        host
    }

    /// Installs the package under test, as an operator would, and returns what apt said.
    pub fn install_package(&self) -> Output {
        let package = image::package();
        let content =
            fs::read(&package).unwrap_or_else(|error| panic!("could not read {}: {error}", package.display()));
        self.file("/pg-recovery.deb").write(content);
        self.run("systemd-run --quiet --pipe --wait --setenv=DEBIAN_FRONTEND=noninteractive apt-get install --yes /pg-recovery.deb")
    }

    /// Cuts the power and boots again from the same disk. The page cache of the outside survives: see [`Disk`] for disks
    /// that forget what was not flushed.
    pub fn power_cut_and_boot(&self) {
        self.cut_power();
        self.boot_again();
    }

    /// Cuts the power: all processes are gone at once.
    pub fn cut_power(&self) {
        self.machine.cut_power();
    }

    /// Boots from the same disk, and returns when the boot has finished, whatever became of the cluster.
    pub fn boot_again(&self) {
        self.machine.start();
    }

    /// Whether it has power.
    pub fn is_up(&self) -> bool {
        self.machine.is_up()
    }

    /// Shuts the machine down cleanly and boots it again.
    pub fn reboot(&self) {
        self.shut_down();
        self.boot_again();
    }

    /// Shuts the machine down cleanly.
    pub fn shut_down(&self) {
        self.run("systemctl poweroff");
        self.machine.wait_for_poweroff();
    }

    /// Nothing that must never be done was done by an actor so far, as far as it is traced ([`trace::trace_actors`]). Returns how many
    /// of its acts were seen.
    #[track_caller]
    pub fn assert_nothing_forbidden(&self) -> usize {
        let (forbidden, seen) = trace::forbidden_acts(&self.machine.root());
        assert!(forbidden.is_empty(), "forbidden acts:\n{}", forbidden.join("\n"));
        seen
    }

    // ---- commands ------------------------------------------------------------------------------------------------

    /// Runs a shell command as root, outside of any unit. What it leaves running must go through [`Host::run_as_unit`].
    pub fn run(&self, command: &str) -> Output {
        self.run_words(&["/bin/bash", "-c", command])
    }

    /// The same, and it must succeed; returns its standard output without the last line's end.
    #[track_caller]
    pub fn sh(&self, command: &str) -> String {
        let output = self.run(command);
        assert!(output.success(), "{command}\n{output}");
        output.stdout.trim_end().to_owned()
    }

    /// Runs a shell command as the user postgres.
    pub fn as_postgres(&self, command: &str) -> Output {
        self.run_words(&["runuser", "-u", "postgres", "--", "/bin/bash", "-c", command])
    }

    /// Runs a program with these arguments, without a shell.
    pub fn run_words(&self, words: &[&str]) -> Output {
        let mut command = self.machine.enter();
        command.args(["timeout", "--kill-after=2", &PATIENCE.as_secs().to_string()]).args(words);
        let output = command.output().unwrap_or_else(|error| panic!("could not start nsenter: {error}"));
        Output::from(&output)
    }

    /// Leaves a shell command running as a unit of its own, as this user, and returns its pid in the machine.
    #[track_caller]
    pub fn run_as_unit(&self, unit: &str, user: &str, command: &str) -> i32 {
        let unit = format!("--unit={unit}");
        let user = format!("--uid={user}");
        let words = ["systemd-run", "--quiet", "--collect", &unit, &user, "/bin/bash", "-c", command];
        let output = self.run_words(&words);
        assert!(output.success(), "{command}\n{output}");
        self.property_of(&unit[7..], "MainPID").parse().expect("systemd knows the pid")
    }

    /// Runs SQL in the database postgres of the main cluster; it must succeed. Columns are separated by `|`.
    #[track_caller]
    pub fn psql(&self, sql: &str) -> String {
        self.psql_on(&self.main_cluster(), sql)
    }

    /// The same on another cluster.
    #[track_caller]
    pub fn psql_on(&self, cluster: &Cluster, sql: &str) -> String {
        let output = self.try_psql_on(cluster, sql);
        assert!(output.success(), "{sql}\n{output}");
        output.stdout.trim_end().to_owned()
    }

    /// Runs SQL that may fail. A server that does not answer costs ten seconds, and status 124.
    pub fn try_psql(&self, sql: &str) -> Output {
        self.try_psql_on(&self.main_cluster(), sql)
    }

    /// The same on another cluster.
    pub fn try_psql_on(&self, cluster: &Cluster, sql: &str) -> Output {
        let port = cluster.port().to_string();
        let psql = cluster.program("psql");
        let words =
            ["runuser", "-u", "postgres", "--", "timeout", "10", &psql, "-XAtq", "-v", "ON_ERROR_STOP=1", "-p", &port];
        self.run_words(&[&words[..], &["-d", "postgres", "-c", sql]].concat())
    }

    /// Runs a program as root and reads the JSON it prints, whatever its exit status.
    #[track_caller]
    pub fn json(&self, command: &str) -> serde_json::Value {
        let output = self.run(command);
        serde_json::from_str(&output.stdout)
            .unwrap_or_else(|error| panic!("{command} printed no JSON: {error}\n{output}"))
    }

    /// A moment after everything that was recorded on this host, as its programs write it down.
    pub fn later(&self) -> serde_json::Value {
        // The unit may be told another boot ID than this shell; then it is both clocks that tell one boot.
        let now = self.sh("cat /proc/sys/kernel/random/boot_id; date +%s.%N; cut -d ' ' -f 1 /proc/uptime");
        let now: Vec<&str> = now.lines().collect();
        let in_a_year = |seconds: &str| seconds.parse::<f64>().expect("a number") + 365.0 * 86_400.0;
        serde_json::json!({"wall": in_a_year(now[1]), "boot": in_a_year(now[2]), "boot_id": now[0]})
    }

    /// Leaves the word of a run of pg-recover that is killed between a stop and the start.
    pub fn was_stopped_by_us(&self) {
        let verdict = serde_json::json!({"version": 1, "serial": 1, "stopped_by_us": true, "at": self.later()});
        self.file(&format!("/var/lib/pg-recovery/recover/{}-main.json", self.version())).write(verdict.to_string());
    }

    // ---- units ---------------------------------------------------------------------------------------------------

    /// Starts a unit without waiting for it.
    #[track_caller]
    pub fn start(&self, unit: &str) {
        self.sh(&format!("systemctl start --no-block '{unit}'"));
    }

    /// Starts a unit and waits for its job; a oneshot has then run to its end. Returns what systemctl said.
    pub fn start_and_wait(&self, unit: &str) -> Output {
        self.run(&format!("systemctl start '{unit}'"))
    }

    /// A unit's ActiveState.
    #[track_caller]
    pub fn state_of(&self, unit: &str) -> String {
        self.property_of(unit, "ActiveState")
    }

    /// Any property of a unit.
    #[track_caller]
    pub fn property_of(&self, unit: &str, property: &str) -> String {
        let output = self.run_words(&["systemctl", "show", "--value", "-p", property, unit]);
        assert!(output.success(), "systemctl show {unit}\n{output}");
        output.stdout.trim_end().to_owned()
    }

    /// Waits until a unit has this ActiveState.
    #[track_caller]
    pub fn wait_for_state(&self, unit: &str, state: &str, deadline: Duration) {
        let mut last = String::new();
        let done = poll_until(deadline, || {
            last = self.state_of(unit);
            (last == state).then_some(())
        });
        assert!(done.is_some(), "{unit} was not {state} within {deadline:?}, but {last}");
    }

    /// Stops a unit the way an operator does.
    #[track_caller]
    pub fn operator_stops(&self, unit: &str) {
        self.sh(&format!("systemctl stop '{unit}'"));
    }

    /// Switches a unit off for good the way an operator does. For a cluster that is `start.conf`, because Debian's generator
    /// enables each `auto` cluster at each boot and `systemctl disable` of the instance changes nothing.
    #[track_caller]
    pub fn operator_disables(&self, unit: &str) {
        let instance = unit.strip_prefix("postgresql@").and_then(|rest| rest.strip_suffix(".service"));
        match instance.and_then(|instance| instance.split_once('-')) {
            Some((version, name)) => {
                self.sh(&format!(
                    "sed -i 's/^auto$/disabled/' /etc/postgresql/{version}/{name}/start.conf && systemctl daemon-reload"
                ));
                self.operator_stops(unit);
            }
            None => {
                self.sh(&format!("systemctl disable --now '{unit}'"));
                if unit == "postgresql.service" {
                    // systemctl does not wait for the instances, which go down with the umbrella.
                    self.wait_for_state(&self.unit(), "inactive", SOON);
                }
            }
        }
    }

    /// Masks and stops a unit.
    #[track_caller]
    pub fn operator_masks(&self, unit: &str) {
        self.sh(&format!("systemctl mask --now '{unit}'"));
    }

    // ---- the journal -----------------------------------------------------------------------------------------------

    /// What a program (`pg-recover`) or a unit (`pg-recovery.service`, with systemd's own lines about it) has said.
    pub fn journal_of(&self, program: &str) -> Journal {
        let which = which(program);
        let text =
            self.run(&format!("journalctl --sync; journalctl --quiet --no-pager -o cat {which} '{program}'")).stdout;
        Journal { of: program.to_owned(), text }
    }

    /// Waits until a program has said something.
    #[track_caller]
    pub fn wait_for_journal(&self, program: &str, text: &str, deadline: Duration) {
        let end = Instant::now() + deadline;
        while !self.is_heard(program, text, end) {
            if Instant::now() < end {
                // It ends only with its machine, which may be about to boot.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
            panic!("within {deadline:?} {program} did not say {text:?}; it said:\n{}", self.journal_of(program));
        }
    }

    /// Listens to what a program has said and says, until a line of it contains this text.
    fn is_heard(&self, program: &str, text: &str, end: Instant) -> bool {
        let mut follow = self.machine.enter();
        follow.args(["journalctl", "--quiet", "--follow", "--no-tail", "-o", "cat", which(program), program]);
        let mut follow = follow.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("nsenter can be started");
        let lines = BufReader::new(follow.stdout.take().expect("it is a pipe")).split(b'\n').map_while(Result::ok);
        let (tell, heard) = channel();
        std::thread::spawn(move || lines.into_iter().try_for_each(|line| tell.send(line)));
        let mut next = || heard.recv_timeout(end.saturating_duration_since(Instant::now())).ok();
        let is_heard = std::iter::from_fn(&mut next).any(|line| String::from_utf8_lossy(&line).contains(text));
        // nsenter has made one more, in its process group.
        let group = nix::unistd::Pid::from_raw(i32::try_from(follow.id()).expect("a pid is an i32"));
        let _ = nix::sys::signal::killpg(group, Signal::SIGKILL);
        let _ = follow.wait();
        is_heard
    }

    /// Waits until pg-watchdog has saved what a later recovery of the main cluster may need.
    #[track_caller]
    pub fn wait_until_settled(&self) {
        let good = format!("-{}-main-good", self.version());
        let evidence = format!("/var/lib/pg-recovery/evidence/{}-main/postmaster.pid", self.version());
        self.wait_until("the good configuration and the evidence are saved", SOON, || {
            let mut points =
                fs::read_dir(self.file("/var/lib/pg-recovery/points").path()).into_iter().flatten().flatten();
            points.any(|point| point.file_name().to_string_lossy().ends_with(&good)) && self.file(&evidence).exists()
        });
    }

    /// Forgets what was healed before, and waits until all is well: budgets are full, and the evidence is of this postmaster.
    #[track_caller]
    pub fn settle(&self) {
        self.wait_until_accepting(SOON);
        // The server answers two seconds before systemd has it for started, and a death in these is another fault.
        self.wait_for_state(&self.unit(), "active", SOON);
        self.sh("systemctl stop pg-watchdog.service; rm -f /var/lib/pg-recovery/watchdog/*.json; pg-recover reset");
        self.sh(&format!("systemctl reset-failed; truncate -s 0 {}", self.main_cluster().log_file()));
        self.sh("systemctl start pg-watchdog.service");
        // Each ledger counts from one.
        self.psql("DROP TABLE IF EXISTS ledger");
        let copy = self.file(&format!("/var/lib/pg-recovery/evidence/{}-main/postmaster.pid", self.version()));
        let running = self.postmaster_pid().to_string();
        self.wait_until("the evidence is of this postmaster", SOON, || {
            copy.exists() && copy.read().lines().next() == Some(running.as_str())
        });
        self.wait_until_settled();
    }

    /// Waits until something holds.
    #[track_caller]
    pub fn wait_until(&self, description: &str, deadline: Duration, mut holds: impl FnMut() -> bool) {
        let done = poll_until(deadline, || holds().then_some(()));
        assert!(done.is_some(), "not within {deadline:?}: {description}");
    }

    // ---- the cluster -----------------------------------------------------------------------------------------------

    /// The suite it runs.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// The cluster that the package postgresql has made.
    pub fn main_cluster(&self) -> Cluster {
        Cluster::new(self.suite.postgresql(), "main", 5432)
    }

    /// `15` or `17`.
    pub fn version(&self) -> &'static str {
        self.suite.postgresql()
    }

    /// `15/main`.
    pub fn cluster(&self) -> String {
        self.main_cluster().name()
    }

    /// `postgresql@15-main.service`.
    pub fn unit(&self) -> String {
        self.main_cluster().unit()
    }

    /// `/var/lib/postgresql/15/main`.
    pub fn data_directory(&self) -> String {
        self.main_cluster().data_directory()
    }

    /// `/etc/postgresql/15/main`.
    pub fn configuration_directory(&self) -> String {
        self.main_cluster().configuration_directory()
    }

    /// Makes and starts a second cluster; its port is the next free one.
    #[track_caller]
    pub fn create_cluster(&self, name: &str) -> Cluster {
        self.sh(&format!("pg_createcluster {} {name}", self.version()));
        let port = self.sh(&format!("pg_lsclusters -h {} {name} | awk '{{print $3}}'", self.version()));
        let cluster = Cluster::new(self.version(), name, port.parse().expect("a port is a number"));
        self.sh(&format!("systemctl daemon-reload && systemctl start {}", cluster.unit()));
        cluster
    }

    /// Whether the main cluster lets a new session in and answers it.
    pub fn is_accepting(&self) -> bool {
        self.try_psql("SELECT 1").success()
    }

    /// Waits for that.
    #[track_caller]
    pub fn wait_until_accepting(&self, deadline: Duration) {
        self.wait_until("the cluster accepts connections", deadline, || self.is_accepting());
    }

    /// `in production`, `shut down`, ...: what pg_controldata says.
    #[track_caller]
    pub fn cluster_state(&self) -> String {
        let cluster = self.main_cluster();
        let command = format!(
            "{} {} | sed -n 's/^Database cluster state: *//p'",
            cluster.program("pg_controldata"),
            cluster.data_directory()
        );
        self.sh(&command)
    }

    /// The end of the main cluster's own log.
    pub fn server_log(&self) -> String {
        self.run(&format!("tail -n 200 {}", self.main_cluster().log_file())).stdout
    }

    /// The postmaster's pid in the machine: line 1 of postmaster.pid.
    #[track_caller]
    pub fn postmaster_pid(&self) -> i32 {
        self.postmaster_pid_of(&self.main_cluster())
    }

    /// The same of another cluster.
    #[track_caller]
    pub fn postmaster_pid_of(&self, cluster: &Cluster) -> i32 {
        let text = self.file(&format!("{}/postmaster.pid", cluster.data_directory())).read();
        text.lines()
            .next()
            .and_then(|line| line.parse().ok())
            .unwrap_or_else(|| panic!("no pid in postmaster.pid: {text:?}"))
    }

    /// A server dies in the very moment in which this is done to its files: all its processes stand still meanwhile, and are then
    /// killed (cgroup.freeze and cgroup.kill of the kernel's control groups). Without that a commit gets in between at times,
    /// makes a missing file anew, or ends the server itself.
    #[track_caller]
    pub fn server_dies_while(&self, script: &str) {
        self.sh(&format!(
            "group=$(systemctl show -p ControlGroup --value {}) && [ -n \"$group\" ] || exit
             cd \"/sys/fs/cgroup$group\" && echo 1 >cgroup.freeze || exit
             until grep -q 'frozen 1' cgroup.events; do sleep 0.01; done
             ({script}); status=$?
             echo 1 >cgroup.kill
             [ ! -e cgroup.freeze ] || echo 0 >cgroup.freeze
             exit $status",
            self.unit()
        ));
    }

    /// Sends a signal to a process, by its pid in the machine.
    #[track_caller]
    pub fn signal(&self, pid: i32, signal: Signal) {
        self.sh(&format!("kill -{} {pid}", signal as i32));
    }

    /// Whether a process is there and not a zombie, by its pid in the machine.
    pub fn is_alive(&self, pid: i32) -> bool {
        self.state_of_process(pid).is_some_and(|state| state != 'Z')
    }

    /// `S`, `T`, `Z`, ... as in /proc/PID/stat.
    pub fn state_of_process(&self, pid: i32) -> Option<char> {
        let stat = fs::read_to_string(self.file(&format!("/proc/{pid}/stat")).path()).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    }

    /// The numeric id of a user of the machine.
    #[track_caller]
    pub fn uid_of(&self, user: &str) -> u32 {
        self.sh(&format!("id -u {user}")).parse().expect("a user id is a number")
    }

    // ---- clients ---------------------------------------------------------------------------------------------------

    /// Starts a ledger against the main cluster, with one session for as long as it lasts.
    pub fn ledger(&self) -> Ledger {
        Ledger::start(self, &self.main_cluster(), &[])
    }

    /// Starts a ledger with a new session for each commit: only such a client notices a postmaster that hangs.
    pub fn ledger_of_fresh_sessions(&self) -> Ledger {
        self.ledger_of("postgres")
    }

    /// The same with less to do for the computer: the figures of somebody else are taken on it at the same time.
    pub fn ledger_of_rare_sessions(&self) -> Ledger {
        Ledger::start(self, &self.main_cluster(), &["--fresh-sessions", "--rate-ms", "50"])
    }

    /// The same as the application's own role, which may log in without a password.
    pub fn ledger_of(&self, role: &str) -> Ledger {
        // A session costs ten milliseconds of a CPU: one after the other would keep half of one busy.
        let rate = if trace::is_wanted() { "50" } else { "5" };
        Ledger::start(self, &self.main_cluster(), &["--fresh-sessions", "--user", role, "--rate-ms", rate])
    }

    /// Starts a ledger against another cluster.
    pub fn ledger_on(&self, cluster: &Cluster) -> Ledger {
        Ledger::start(self, cluster, &[])
    }

    /// Adds a line to the table of measured downtimes that `tests/run` prints.
    pub fn publish_downtime(&self, what: &str, downtime: Duration) {
        // libtest leaves its own line open, and tests/run looks for this at the start of one.
        println!("\nDOWNTIME: {} | {what} | {:.2} s", self.suite.name(), downtime.as_secs_f64());
    }

    // ---- the product's own files -------------------------------------------------------------------------------------

    /// Adds these lines to the configuration, as a file of its own in config.d.
    #[track_caller]
    pub fn configure(&self, toml: &str) {
        self.file("/etc/pg-recovery/config.d/test.toml").write(toml);
    }

    /// What recoveries.jsonl records, oldest first.
    #[track_caller]
    pub fn recoveries(&self) -> Vec<serde_json::Value> {
        let file = self.file("/var/lib/pg-recovery/recoveries.jsonl");
        if !file.exists() {
            return Vec::new();
        }
        let line = |line: &str| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in recoveries.jsonl: {line}"))
        };
        file.read().lines().map(line).collect()
    }

    // ---- files and disks -------------------------------------------------------------------------------------------

    /// A file of the machine.
    pub fn file(&self, path: &str) -> File {
        File { path: self.machine.root().join(path.trim_start_matches('/')) }
    }

    /// Mounts a new ext4 disk of this size.
    pub fn attach_disk(&self, mount_point: &str, megabytes: u64) -> Disk {
        Disk::attach(self, mount_point, megabytes)
    }

    /// Compiles a library on this computer, for programs of the machine to be started with in `LD_PRELOAD`.
    #[track_caller]
    pub fn install_library(&self, path: &str, source: &str) {
        let (code, library) = (self.outside().join("library.c"), self.outside().join("library.so"));
        fs::write(&code, source).expect("the run folder can be written");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-Wall", "-Werror", "-O", "-o"]).arg(&library).arg(&code);
        let output = Output::from(&cc.output().unwrap_or_else(|error| panic!("could not start cc: {error}")));
        assert!(output.success(), "{output}");
        self.file(path).write(fs::read(&library).expect("cc has written it"));
    }

    /// Moves the main cluster's data directory to a disk of its own, mounted at the same path, and starts it again.
    pub fn move_data_to_disk(&self, megabytes: u64) -> Disk {
        self.move_data(|data| Disk::attach(self, data, megabytes))
    }

    /// The same on a thin volume, whose pool has room for so many megabytes only.
    pub fn move_data_to_thin_disk(&self, megabytes: u64, room: u64) -> Disk {
        self.move_data(|data| Disk::attach_thin(self, data, megabytes, room))
    }

    fn move_data(&self, attach: impl FnOnce(&str) -> Disk) -> Disk {
        let (unit, data) = (self.unit(), self.data_directory());
        self.operator_stops(&unit);
        self.sh(&format!("mv {data} {data}.moved && install -d -o postgres -g postgres -m 700 {data}"));
        let disk = attach(&data);
        self.sh(&format!("chown postgres: {data} && chmod 700 {data} && cp -a {data}.moved/. {data} && rm -r {data}.moved {data}/lost+found"));
        self.sh(&format!("systemctl start {unit}"));
        self.wait_until_accepting(SOON);
        disk
    }

    // ---- for the harness itself --------------------------------------------------------------------------------------

    /// The folder outside that goes with the machine.
    pub fn outside(&self) -> &Path {
        self.machine.dir()
    }

    /// The machine's control group, outside.
    pub fn control_group(&self) -> &Path {
        self.machine.cgroup()
    }

    /// The machine's PID 1, as seen from outside.
    pub fn leader(&self) -> i32 {
        self.machine.leader()
    }

    pub(crate) fn beside(&self, program: &Path) -> Command {
        self.machine.beside(program)
    }
}

/// How journalctl is asked for a unit, or for what calls itself so.
fn which(program: &str) -> &'static str {
    if program.contains('.') { "-u" } else { "-t" }
}
