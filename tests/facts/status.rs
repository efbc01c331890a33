//! One screen tells how every cluster is, whatever is down.

use std::time::{Duration, Instant};

use host::{Host, facts_on_both_suites, faults};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

fn status(host: &Host) -> Value {
    host.json("pg-status --json")["clusters"][0].clone()
}

#[track_caller]
fn screen(host: &Host, parts: &[&str]) {
    // As somebody without any privilege.
    let output = host.run_words(&["runuser", "-u", "nobody", "--", "pg-status"]);
    assert_eq!((output.status, output.stderr.as_str()), (0, ""), "{output}");
    for part in parts {
        assert!(output.stdout.contains(part), "{part:?} is not in\n{output}");
    }
}

facts_on_both_suites! {
    fn one_screen_tells_the_state_of_a_cluster_and_what_was_done(host: Host) {
        host.wait_until_settled();
        host.start_and_wait("pg-health-check.service");
        let cluster = host.cluster();
        let seen = status(&host);
        assert!(matches!(seen["state"].as_str(), Some("ok" | "warning")), "{seen:#}");
        assert_eq!((&seen["cluster"], &seen["listening"]), (&Value::from(cluster.as_str()), &true.into()));
        assert!(seen["day"].as_array().is_some_and(|day| day.len() == 48 && day[47].as_u64() <= seen["score"].as_u64() && day[47].is_u64()), "{seen:#}");

        faults::p1_postmaster_killed::inject(&host);
        host.wait_until("it is healed", SOON, || host.recoveries().len() == 1);
        screen(&host, &[&cluster, "recovery", "P1 recovered in", "by pg-watchdog", "1 of 5 restarts in 10min"]);

        // On a terminal of 80 columns, in colour.
        let terminal = host.sh("script --quiet --command 'stty columns 80 rows 24; pg-status' /dev/null </dev/null");
        assert!(terminal.contains("\u{1b}[32mrecovery"), "{terminal:?}");
        for line in terminal.lines() {
            let seen = line.trim_end().split('\u{1b}').map(|part| part.split_once('m').filter(|_| part.starts_with('[')).map_or(part, |(_, rest)| rest));
            assert!(seen.collect::<String>().chars().count() <= 80, "{line:?}");
        }

        host.sh("pg-recover pause 1h 'moving house'");
        screen(&host, &["PAUSED", "moving house", "pg-recover resume ends it"]);
        // What the last check did not know yet.
        host.operator_stops(&host.unit());
        host.sh("systemctl stop pg-health-check.timer; pg-recover resume");
        screen(&host, &["DOWN", "nobody listens there"]);
        host.start_and_wait("pg-health-check.service");
        // The timer may have come round before it was stopped.
        screen(&host, &["CRITICAL", "in a row without service"]);
        assert!(status(&host)["failures"].as_u64().is_some_and(|failures| failures >= 1));
    }

    fn what_is_not_meant_to_run_is_off_and_not_down(host: Host) {
        host.wait_until_settled();
        host.operator_disables(&host.unit());
        host.start_and_wait("pg-health-check.service");
        screen(&host, &["OFF", "is disabled in start.conf"]);
    }

    fn it_answers_while_all_else_is_down(host: Host) {
        host.wait_until_settled();
        host.start_and_wait("pg-health-check.service");
        host.sh("systemctl stop pg-health-check.timer pg-watchdog");
        faults::p2_all_processes_stopped::inject(&host);
        let began = Instant::now();
        screen(&host, &[&host.cluster(), "pg-watchdog.service is inactive", "pg-health-check.timer is inactive"]);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert_eq!(status(&host)["listening"], true);
        // Torn, gone, and not to be read.
        host.sh("cd /var/lib/pg-recovery && echo '{' > health/*.json && rm -rf recover watchdog && chmod 000 recoveries.jsonl; true");
        let output = host.run_words(&["runuser", "-u", "nobody", "--", "pg-status"]);
        assert!(output.success() && output.stdout.contains("NOT CHECKED"), "{output}");
        // A mistake in the configuration hides nothing, and is told.
        host.configure("nonsense = 1\n");
        let output = host.run("pg-status");
        assert!(output.status == 78 && output.stdout.contains("unknown field `nonsense`"), "{output}");
        assert!(output.stdout.contains(&host.cluster()) && output.stdout.contains("pg-watchdog.service is"), "{output}");
        assert!(host.json("pg-status --json")["mistake"].to_string().contains("line 1"));
        assert!(host.sh("pg-status --metrics").contains("pg_recovery_configuration_valid 0"));
        host.sh("systemctl kill --signal=CONT $(systemctl list-units --plain --no-legend 'postgresql@*' | cut -d' ' -f1)");
    }

    fn who_is_needed_is_told_what_to_type(host: Host) {
        host.wait_until_settled();
        host.file("/var/lib/pg-recovery/recover/x").write("");
        let cluster = host.cluster();
        let file = format!("/var/lib/pg-recovery/recover/{}.json", cluster.replace('/', "-"));
        host.file(&file).write("{\"version\": 1, \"serial\": 99, \"manual\": true, \"attempts\": 3}\n");
        screen(&host, &["NEEDS YOU", &format!("pg-recover reset --cluster {cluster}"), "3 of 3 recoveries failed"]);
        host.sh("pg-recover reset");
        assert_eq!(status(&host)["manual"], false);
        assert_eq!(host.run("pg-status --cluster 99/none").status, 64);
        let watched = host.run("timeout 5 pg-status --watch --json");
        assert!(watched.stdout.matches("\"clusters\"").count() >= 2, "{watched}");
    }
}
