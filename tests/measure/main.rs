//! measure: breaks one machine again and again, and prints what docs/measurements.md holds.
//!
//! `cargo run --release -p tests --bin measure -- trixie 20` (or `bookworm`), with a third word only the faults whose
//! name contains it; `-- trixie idle 600` measures pg-watchdog over so many idle seconds instead, and
//! `-- trixie check 20 SCRIPT` one pass of pg-health-check against one of a shell script that does the same work, and
//! `-- trixie backup 10 2000` pg-backup against pg_basebackup alone, of a cluster with so many megabytes more than an empty
//! one, `-- trixie drill 10 2000` a drill against a restore of the same backup typed by hand, and `-- trixie stream 5 20`
//! what the stream, and the synchronous one, cost so many runs of pgbench of so many seconds. Run it on a quiet computer: what else runs there is in the figures.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use host::{Host, Ledger, Suite, faults, poll_until};

/// A fault that is measured: what it is called, what pg-watchdog says when it sees it, and how it is done.
type Fault = (&'static str, &'static str, fn(&Host));

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (suite, rest) = match words.split_first() {
        Some((&"bookworm", rest)) => (Suite::Bookworm, rest),
        Some((&"trixie", rest)) => (Suite::Trixie, rest),
        _ => return usage(),
    };
    match rest {
        ["idle", seconds] => seconds.parse().map_or_else(|_| usage(), |seconds| idle(suite, seconds)),
        ["check", runs, script] => match (runs.parse(), std::fs::read_to_string(script)) {
            (Ok(runs), Ok(script)) => checks(suite, runs, &script),
            (Err(_), _) => usage(),
            (_, Err(error)) => {
                eprintln!("could not read {script}: {error}");
                ExitCode::FAILURE
            }
        },
        ["backup", runs, megabytes] => match (runs.parse(), megabytes.parse()) {
            (Ok(runs @ 1..), Ok(megabytes)) => backups(suite, runs, megabytes),
            _ => usage(),
        },
        ["drill", runs, megabytes] => match (runs.parse(), megabytes.parse()) {
            (Ok(runs @ 1..), Ok(megabytes)) => drills(suite, runs, megabytes),
            _ => usage(),
        },
        ["stream", runs, seconds] => match (runs.parse(), seconds.parse()) {
            (Ok(runs @ 1..), Ok(seconds)) => streams(suite, runs, seconds),
            _ => usage(),
        },
        [runs] => runs.parse().map_or_else(|_| usage(), |runs| downtimes(suite, runs, "")),
        [runs, only] => runs.parse().map_or_else(|_| usage(), |runs| downtimes(suite, runs, only)),
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!(
        "usage: measure bookworm|trixie RUNS [FAULT] | idle SECONDS | check RUNS SCRIPT | backup RUNS MEGABYTES \
        | drill RUNS MEGABYTES | stream RUNS SECONDS"
    );
    ExitCode::from(64)
}

fn downtimes(suite: Suite, runs: usize, only: &str) -> ExitCode {
    let table: [Fault; 4] = [
        ("SIGKILL of the postmaster", "has ended", |host| faults::p1_postmaster_killed::inject(host)),
        ("SIGSTOP of the postmaster", "hangs", |host| {
            faults::p2_postmaster_stopped::inject(host);
        }),
        ("SIGSTOP of all processes", "hangs", |host| {
            faults::p2_all_processes_stopped::inject(host);
        }),
        ("bad configuration line, then restart", "could not be started", |host| {
            faults::c1_bad_postgresql_conf::inject(host);
        }),
    ];
    println!("| suite | fault | runs | without a commit: median, worst | until noticed: median, worst | lost |");
    println!("|---|---|---|---|---|---|");
    for (what, noticed, inject) in table.into_iter().filter(|(what, ..)| what.contains(only)) {
        let host = Host::boot(suite);
        let (mut gaps, mut delays, mut lost) = (Vec::new(), Vec::new(), 0);
        for _ in 0..runs {
            host.settle();
            let ledger = host.ledger_of_fresh_sessions();
            ledger.wait_for_commits(100);
            let before = now(&host);
            inject(&host);
            wait_until_healed(&ledger);
            delays.extend(first_said(&host, noticed, before));
            let tally = ledger.stop_and_check();
            lost += tally.lost;
            gaps.push(tally.longest_gap());
        }
        println!(
            "| {} | {what} | {runs} | {} | {} | {lost} |",
            suite.name(),
            median_and_worst(&mut gaps),
            median_and_worst(&mut delays)
        );
    }
    ExitCode::SUCCESS
}

fn wait_until_healed(ledger: &Ledger) {
    // The gap is only over when the client commits behind it.
    let _ = poll_until(Duration::from_secs(20), || (ledger.gap_so_far() > Duration::from_millis(200)).then_some(()));
    ledger.wait_for_commits_within(100, Duration::from_secs(120));
}

/// Microseconds since 1970, as the journal counts them.
fn now(host: &Host) -> u64 {
    host.sh("date +%s%6N").parse().expect("date prints a number")
}

/// How long after `since` pg-watchdog first said this.
fn first_said(host: &Host, text: &str, since: u64) -> Option<Duration> {
    let lines = host.sh("journalctl --sync; journalctl -q -o json -t pg-watchdog -n 50");
    let entries = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let times = entries.filter(|e| e["MESSAGE"].as_str().is_some_and(|m| m.contains(text)));
    let times = times.filter_map(|e| e["__REALTIME_TIMESTAMP"].as_str()?.parse::<u64>().ok());
    times.filter(|at| *at >= since).min().map(|at| Duration::from_micros(at - since))
}

fn median_and_worst(times: &mut [Duration]) -> String {
    times.sort();
    let (Some(worst), Some(median)) = (times.last(), times.get(times.len() / 2)) else { return "-".into() };
    format!("{:.2} s, {:.2} s", median.as_secs_f64(), worst.as_secs_f64())
}

fn in_ms(times: &mut [Duration]) -> String {
    times.sort();
    let ms = |time: &Duration| time.as_secs_f64() * 1000.0;
    let (Some(worst), Some(median)) = (times.last(), times.get(times.len() / 2)) else { return "-".into() };
    format!("{:.1} ms, {:.1} ms", ms(median), ms(worst))
}

/// CPU time and memory of pg-watchdog while nothing happens.
fn idle(suite: Suite, seconds: u64) -> ExitCode {
    let host = Host::boot(suite);
    host.settle();
    let pid = host.property_of("pg-watchdog.service", "MainPID");
    // utime and stime, in ticks of 10 ms (proc(5)); schedstat has nanoseconds.
    let cpu = || -> u64 {
        let all = host.sh(&format!("cat /proc/{pid}/task/*/schedstat"));
        all.lines().filter_map(|line| line.split(' ').next()?.parse::<u64>().ok()).sum()
    };
    let before = cpu();
    // Nobody asks meanwhile: each question to the machine would be part of the figure.
    std::thread::park_timeout(Duration::from_secs(seconds));
    let used = Duration::from_nanos(cpu() - before);
    let memory = host.sh(&format!("grep -E 'VmRSS|VmHWM|Rss(Anon|File)' /proc/{pid}/status"));
    println!(
        "{}: pg-watchdog used {:.0} ms of CPU in {seconds} s ({:.3} % of a core)\n{memory}",
        suite.name(),
        used.as_secs_f64() * 1000.0,
        used.as_secs_f64() * 100.0 / seconds as f64
    );
    ExitCode::SUCCESS
}

/// One pass of pg-health-check against one of the script, in turns, so that both see the same computer. Each is the main
/// process of a unit, and systemd counts what it and its children use; what the server does for them is in neither.
fn checks(suite: Suite, runs: usize, script: &str) -> ExitCode {
    let host = Host::boot(suite);
    host.sh("systemctl stop pg-watchdog.service pg-health-check.timer");
    // A busy host is a warning, and that a status of its own.
    host.configure("[health]\npressure_warn = 100\n");
    host::install_script(&host, "/usr/local/sbin/script", script);
    let ours = "User=postgres\nExecStart=/usr/sbin/pg-health-check --count";
    let theirs = "Environment=PG_PASSWORD=secret\nExecStart=/usr/local/sbin/script";
    for (name, lines) in [("ours", ours), ("theirs", theirs)] {
        // systemd forgets what it knows of a unit that is inactive and that nothing refers to.
        let text = format!("[Service]\nType=oneshot\nRemainAfterExit=yes\nCPUAccounting=yes\n{lines}\n");
        host.file(&format!("/etc/systemd/system/measured-{name}.service")).write(text);
    }
    let accounting = "/etc/systemd/system/pg-health-check.service.d/measured.conf";
    host.file(accounting).write("[Service]\nCPUAccounting=yes\n");
    host.sh("systemctl daemon-reload");
    let rows = [
        ("the script", "measured-theirs.service"),
        ("`pg-health-check --count`", "measured-ours.service"),
        ("the same in its unit, with the making of its sandbox", "pg-health-check.service"),
    ];
    let mut taken = rows.map(|_| (Vec::new(), Vec::new()));
    for run in 0..=runs {
        for ((_, unit), (cpu, wall)) in rows.iter().zip(&mut taken) {
            let (used, took) = one_pass(&host, unit);
            // The first pass makes tables and reads everything from the disk.
            if run > 0 {
                cpu.push(used);
                wall.push(took);
            }
        }
    }
    println!("| suite | one pass of | runs | CPU: median, worst | wall clock: median, worst | CPU, times cheaper |");
    println!("|---|---|---|---|---|---|");
    let median = |times: &[Duration]| times[times.len() / 2].as_secs_f64();
    for (cpu, wall) in &mut taken {
        cpu.sort();
        wall.sort();
    }
    let of_script = median(&taken[0].0);
    for ((what, _), (cpu, wall)) in rows.iter().zip(&taken) {
        let both = |times: &[Duration]| {
            format!("{:.1} ms, {:.1} ms", median(times) * 1e3, times[times.len() - 1].as_secs_f64() * 1e3)
        };
        let ratio = of_script / median(cpu);
        println!("| {} | {what} | {runs} | {} | {} | {ratio:.1} |", suite.name(), both(cpu), both(wall));
    }
    ExitCode::SUCCESS
}

/// CPU time and wall clock of one start of a unit.
fn one_pass(host: &Host, unit: &str) -> (Duration, Duration) {
    host.sh(&format!("systemctl reset-failed; systemctl restart {unit}"));
    let number = |property: &str| -> u64 {
        let text = host.property_of(unit, property);
        text.parse().unwrap_or_else(|_| panic!("{property} of {unit} is {text}"))
    };
    // A pass that failed has done less.
    assert_eq!(number("ExecMainStatus"), 0, "{}", host.run(&format!("journalctl -u {unit} -n 20")));
    let wall = number("ExecMainExitTimestampMonotonic") - number("ExecMainStartTimestampMonotonic");
    (Duration::from_nanos(number("CPUUsageNSec")), Duration::from_micros(wall))
}

/// `pg-backup now` against `pg_basebackup` with the same options, in turns, of the same cluster: how fast, and what memory
/// pg-backup takes itself. It reads all again to verify it, which pg_basebackup does not; the copy alone has a row of its own.
fn backups(suite: Suite, runs: usize, megabytes: u64) -> ExitCode {
    let host = Host::boot(suite);
    fill(&host, megabytes);
    let size: f64 = host.psql("SELECT sum(pg_tablespace_size(oid)) FROM pg_tablespace").parse().expect("a number");
    let (alone, ours) =
        ("/var/backups/pg-recovery/alone", format!("/var/backups/pg-recovery/{}-main/base", host.version()));
    let bare = format!(
        "runuser -u postgres -- {} --pgdata {alone} --format=tar --compress=client-zstd --wal-method=stream \
         --manifest-checksums=SHA256 --checkpoint=fast --no-password",
        host.main_cluster().program("pg_basebackup")
    );
    let (mut bares, mut copies, mut wholes, mut peak) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for run in 0..=runs {
        host.sh(&format!("rm -rf {alone} {ours}/*; sync"));
        let began = Instant::now();
        host.sh(&bare);
        let of_bare = began.elapsed();
        host.sh(&format!("rm -rf {alone}; sync"));
        let began = Instant::now();
        let pid = host.run_as_unit("measured", "postgres", "exec pg-backup now");
        // Of this process, without those that it starts; the highest so far (proc_pid_status(5)).
        let status = host.file(&format!("/proc/{pid}/status"));
        let high = || {
            let text = std::fs::read_to_string(status.path()).ok()?;
            text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        };
        let _ = poll_until(Duration::from_secs(3600), || match high() {
            Some(high) => {
                peak = peak.max(high);
                None
            }
            None => Some(()),
        });
        let whole = began.elapsed();
        let info = host.sh(&format!("cat {ours}/*/backup.json"));
        let info: serde_json::Value = serde_json::from_str(&info).expect("one backup was made");
        assert!(info["verified"]["error"].is_null() && info["verified"].is_object(), "it is not good: {info}");
        let at = |what: &str| info[what]["boot"].as_f64().expect("a number");
        // The first has everything read from the disk.
        if run > 0 {
            bares.push(of_bare);
            copies.push(Duration::from_secs_f64(at("finished") - at("started")));
            wholes.push(whole);
        }
    }
    println!(
        "| suite | of {:.0} MB | runs | time: median, worst | MB/s of the cluster | own memory at most |",
        size / 1e6
    );
    println!("|---|---|---|---|---|---|");
    for (what, times, memory) in [
        ("`pg_basebackup`", &mut bares, String::new()),
        ("`pg-backup now`, the copy", &mut copies, String::new()),
        ("`pg-backup now`, verified", &mut wholes, format!("{:.1} MB", peak as f64 / 1024.0)),
    ] {
        let both = median_and_worst(times);
        let speed = size / 1e6 / times[times.len() / 2].as_secs_f64();
        println!("| {} | {what} | {runs} | {both} | {speed:.0} | {memory} |", suite.name());
    }
    ExitCode::SUCCESS
}

fn fill(host: &Host, megabytes: u64) {
    host.sh("systemctl stop pg-watchdog.service pg-health-check.timer");
    host.psql("CREATE TABLE filler (id bigint, text text)");
    for part in 0..megabytes.div_ceil(100) {
        // Some 8000 rows are a megabyte; compression makes a half of it.
        let rows = 8000 * (megabytes - 100 * part).min(100);
        host.psql(&format!(
            "INSERT INTO filler SELECT i, repeat(md5(i::text), 2) FROM generate_series(1, {rows}) AS i"
        ));
    }
    host.psql("CHECKPOINT");
}

/// A drill against the same restore typed by hand, in turns: from the first command until the restored server answers.
fn drills(suite: Suite, runs: usize, megabytes: u64) -> ExitCode {
    let host = Host::boot_beside(suite, ",zstd");
    host.file("/etc/pg-recovery/config.toml").write("[health]\npressure_warn = 100\n");
    fill(&host, megabytes);
    host.sh("systemctl unmask pg-wal-stream.service; systemctl start pg-wal-stream.service; pg-backup now");
    let store = format!("/var/backups/pg-recovery/{}-main", host.version());
    let pg_ctl = host.main_cluster().program("pg_ctl");
    host.file("/tmp/by-hand").write(format!(
        "set -e; cd {store}; mkdir -m 700 hand; tar --extract --zstd --file base/*/base.tar.zst --directory hand
         tar --extract --file base/*/pg_wal.tar --directory hand/pg_wal
         touch hand/recovery.signal hand/postgresql.conf; echo 'local all all peer' >hand/pg_hba.conf
         {pg_ctl} start --wait --timeout=600 --silent --pgdata=hand --log=/tmp/hand.log -o \"-c listen_addresses= \
           -c unix_socket_directories=$PWD/hand -c shared_buffers=32MB -c autovacuum=off -c max_wal_senders=0 \
           -c hot_standby=off -c max_connections=20 -c jit=off -c max_prepared_transactions=1000 \
           -c restore_command='cp $PWD/wal/*/%f %p 2>/dev/null || cp $PWD/wal/*/%f.partial %p'\"
         until psql --quiet --host=$PWD/hand --command 'SELECT 1' postgres >/dev/null 2>&1; do sleep 0.02; done\n"
    ));
    let (mut hands, mut drills, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..=runs {
        let began = Instant::now();
        host.sh("runuser -u postgres -- bash /tmp/by-hand");
        let hand = began.elapsed();
        host.sh(&format!(
            "runuser -u postgres -- {pg_ctl} stop --mode=immediate --pgdata={store}/hand; rm -rf {store}/hand; sync"
        ));
        host.sh("pg-backup drill; sync");
        let info: serde_json::Value =
            serde_json::from_str(&host.sh(&format!("cat {store}/base/*/backup.json"))).expect("one backup was made");
        let drill = Duration::from_secs_f64(info["drilled"]["seconds"].as_f64().expect("it was drilled"));
        // The first has everything read from the disk.
        if run > 0 {
            hands.push(hand);
            drills.push(drill);
            ratios.push(drill.as_secs_f64() / hand.as_secs_f64());
        }
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "| suite | runs | by hand: median, worst | drill: median, worst | ratio, pair by pair: median (least, most) |"
    );
    println!("|---|---|---|---|---|");
    println!(
        "| {} | {runs} | {} | {} | {:.2} ({:.2}, {:.2}) |",
        suite.name(),
        median_and_worst(&mut hands),
        median_and_worst(&mut drills),
        ratios[ratios.len() / 2],
        ratios[0],
        ratios[ratios.len() - 1]
    );
    ExitCode::SUCCESS
}

/// What commits of pgbench cost without a stream, with it, and when they wait for it, in turns; and how far behind it is meanwhile.
fn streams(suite: Suite, runs: usize, seconds: u64) -> ExitCode {
    let host = Host::boot(suite);
    host.sh("systemctl stop pg-watchdog.service pg-health-check.timer; systemctl unmask pg-wal-stream.service");
    let pgbench = host.main_cluster().program("pgbench");
    host.sh(&format!("runuser -u postgres -- {pgbench} --initialize --quiet --scale=10 postgres"));
    let names = format!("{}/conf.d/measured.conf", host.configuration_directory());
    let is = |state: &str| {
        let sql = "SELECT sync_state FROM pg_stat_replication WHERE application_name = 'pg_recovery_stream'
                   AND state = 'streaming'";
        poll_until(Duration::from_secs(60), || (host.try_psql(sql).stdout.trim() == state).then_some(()))
            .unwrap_or_else(|| panic!("the stream is not {state}"));
    };
    let ways = ["no stream", "stream", "synchronous stream"];
    let (mut latencies, mut lags) = ([const { Vec::new() }; 3], Vec::new());
    for _ in 0..runs {
        for (way, name) in ways.iter().enumerate() {
            host.sh("systemctl stop pg-wal-stream.service");
            let synchronous = way == 2;
            host.file("/etc/pg-recovery/config.toml").write(format!("[backup]\nsynchronous_stream = {synchronous}\n"));
            host.file(&names).write(if synchronous {
                "synchronous_standby_names = 'pg_recovery_stream'\n"
            } else {
                ""
            });
            host.psql("ALTER SYSTEM RESET synchronous_standby_names");
            if way > 0 {
                host.sh("systemctl start pg-wal-stream.service");
                is("async");
            }
            host.psql("SELECT pg_reload_conf()");
            if synchronous {
                is("sync");
            }
            host.psql("CHECKPOINT");
            let log = "/tmp/pgbench";
            let bench = format!("exec {pgbench} --client=4 --time={seconds} --no-vacuum postgres >{log} 2>&1");
            let pid = host.run_as_unit("pgbench", "postgres", &bench);
            while host.is_alive(pid) {
                if way == 1 {
                    lags.extend(lag(&host));
                }
                std::thread::sleep(Duration::from_millis(200));
            }
            let said = host.sh(&format!("cat {log}"));
            let latency = said.lines().find_map(|line| line.strip_prefix("latency average = ")?.strip_suffix(" ms"));
            let latency: f64 = latency.and_then(|ms| ms.parse().ok()).unwrap_or_else(|| panic!("{name}: {said}"));
            latencies[way].push(Duration::from_secs_f64(latency / 1000.0));
        }
    }
    println!(
        "| suite | pgbench, 4 clients | runs of {seconds} s | latency of a transaction: median, worst | how far behind: median, worst |"
    );
    println!("|---|---|---|---|---|");
    for (way, name) in ways.iter().enumerate() {
        let behind = if way == 1 { in_ms(&mut lags) } else { String::new() };
        println!("| {} | {name} | {runs} | {} | {behind} |", suite.name(), in_ms(&mut latencies[way]));
    }
    ExitCode::SUCCESS
}

/// How long after the server has told what it has flushed it is in what was received.
fn lag(host: &Host) -> Option<Duration> {
    let sql = "SELECT file_name, file_offset FROM pg_walfile_name_offset(pg_current_wal_flush_lsn() - 16)";
    let place = host.psql(sql);
    let told = Instant::now();
    let (name, offset) = place.split_once('|')?;
    let offset: u64 = offset.parse().ok()?;
    let store = host.file(&format!("/var/backups/pg-recovery/{}-main/wal", host.version()));
    poll_until(Duration::from_secs(10), || {
        let run = std::fs::read_dir(store.path()).ok()?.flatten().max_by_key(|entry| entry.file_name())?.path();
        let file =
            std::fs::File::open(run.join(format!("{name}.partial"))).or_else(|_| std::fs::File::open(run.join(name)));
        let mut bytes = [0; 16];
        std::os::unix::fs::FileExt::read_exact_at(&file.ok()?, &mut bytes, offset).ok()?;
        (bytes != [0; 16]).then_some(())
    })?;
    Some(told.elapsed())
}
