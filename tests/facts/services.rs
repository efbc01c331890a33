//! Services around the database are brought back, and left alone when that is what a person or the database asks for.

use std::time::{Duration, Instant};

use host::{Host, Signal, facts_on_both_suites, faults};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

/// A small HTTP service. What it answers with is in a file beside it: a status, or `database` for one that needs it; and with
/// `deaf` it goes on without listening.
const SERVER: &str = r#"
use strict; use IO::Socket::INET;
my ($port, $name) = @ARGV;
my $listen = IO::Socket::INET->new(LocalAddr => "127.0.0.1:$port", Listen => 50, ReuseAddr => 1) or die $!;
while (my $client = $listen->accept) {
    while (defined(my $line = <$client>)) { last if $line eq "\r\n" }
    open my $in, "<", "/srv/$name" or die $!;
    chomp(my $status = <$in>);
    if ($status eq "database") {
        $status = system("timeout 2 psql -XAtqc 'SELECT 1' postgres >/dev/null 2>&1") == 0 ? 200 : 500;
    }
    if ($status eq "deaf") { close $listen; sleep }
    print $client "HTTP/1.1 $status x\r\nContent-Length: 5\r\nConnection: close\r\n\r\nshop\n";
    close $client;
}
"#;

/// Starts one as `NAME.service`, enabled, with more lines for its unit.
fn serve(host: &Host, name: &str, port: u16, answer: &str, unit: &str) {
    host.file("/usr/local/lib/server.pl").write(SERVER);
    host.file(&format!("/srv/{name}")).write(format!("{answer}\n"));
    host.file(&format!("/etc/systemd/system/{name}.service")).write(format!(
        "[Unit]\n{unit}\n[Service]\nUser=postgres\nExecStart=/usr/bin/perl /usr/local/lib/server.pl {port} {name}\n\
         [Install]\nWantedBy=multi-user.target\n"
    ));
    host.sh(&format!("systemctl daemon-reload; systemctl enable --now {name}.service"));
    host.wait_until("it listens", SOON, || host.run(&format!("(: </dev/tcp/127.0.0.1/{port})")).success());
}

/// Its section, with these lines.
fn section(name: &str, port: u16, lines: &str) -> String {
    format!("[[service]]\nname = \"{name}\"\nhttp = \"http://127.0.0.1:{port}/\"\n{lines}\n")
}

/// Looked at every second, and judged by one look that may take its time on a busy computer.
const QUICK: &str = "interval = \"1s\"\nfailures = 1\ndeadline = \"10s\"\nstart_timeout = \"1s\"\n";

fn configure(host: &Host, toml: &str) {
    host.configure(toml);
    host.sh("systemctl reload pg-watchdog");
}

fn status(host: &Host, name: &str) -> Value {
    let all = host.json("pg-status services --json");
    let of = |one: &&Value| one["service"] == name;
    all["services"].as_array().and_then(|all| all.iter().find(of)).cloned().unwrap_or_default()
}

#[track_caller]
fn wait_for(host: &Host, name: &str, state: &str) {
    let mut last = Value::Null;
    host.wait_until(&format!("{name} is {state}"), SOON, || {
        last = status(host, name);
        last["state"] == state
    });
}

fn pid(host: &Host, name: &str) -> String {
    host.property_of(&format!("{name}.service"), "MainPID")
}

facts_on_both_suites! {
    fn a_service_that_dies_or_hangs_or_answers_500_is_restarted_within_35_seconds(host: Host) {
        let names = ["dies", "hangs", "fails", "deaf"];
        for (name, port) in names.into_iter().zip(8081..) {
            serve(&host, name, port, "200", "");
        }
        let http: String = names.into_iter().zip(8081..).take(3).map(|(name, port)| section(name, port, "")).collect();
        configure(&host, &(http + "[[service]]\nname = \"deaf\"\ntcp = \"127.0.0.1:8084\"\n"));
        names.iter().for_each(|name| wait_for(&host, name, "ok"));
        let before = names.map(|name| pid(&host, name));
        let began = Instant::now();
        host.sh("systemctl kill --kill-whom=main --signal=KILL dies; systemctl kill --signal=STOP hangs; echo 500 > /srv/fails; \
                 echo deaf > /srv/deaf; (echo > /dev/tcp/127.0.0.1/8084); \
                 while (: < /dev/tcp/127.0.0.1/8084) 2>/dev/null; do sleep 0.1; done; echo 200 > /srv/deaf");
        let is_other = |index: usize| !["0", before[index].as_str()].contains(&pid(&host, names[index]).as_str());
        host.wait_until("each is another process", SOON, || (0..4).all(is_other));
        let took = began.elapsed();
        // And what a busy computer adds.
        assert!(took < Duration::from_secs(35 + 5), "{took:?}");
        host.sh("echo 200 > /srv/fails");
        names.iter().for_each(|name| wait_for(&host, name, "ok"));
        host.wait_until("each is on record", SOON, || host.recoveries().len() >= 4);
        let records = host.recoveries();
        for (name, fault) in names.into_iter().zip(["A1", "A2", "A2", "A2"]) {
            let record = records.iter().find(|one| one["cluster"] == format!("service/{name}")).expect("a record");
            assert_eq!((&record["fault"], &record["outcome"]), (&fault.into(), &"recovered".into()), "{record:#}");
            host.sh(&format!("pg-recover explain {}", record["id"].as_str().expect("an id")));
        }
        assert!(host.run("pg-status").stdout.contains("1 of 5 restarts in 5min"));
        let page = host.sh("exec 3<>/dev/tcp/127.0.0.1/9432; printf 'GET / HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3");
        assert!(page.contains("<h2>Services</h2>") && page.contains("<th scope=\"row\">dies</th>"), "{page}");
        assert!(host.run("pg-status --metrics").stdout.contains(
            "pg_recovery_service_state{service=\"dies\",critical=\"false\",state=\"ok\"} 1\n"
        ));
    }

    fn restarts_have_a_limit_that_outlives_the_watchdog_and_a_person_is_told_once(host: Host) {
        // Each message as one line, and what helps as a last resort.
        host.file("/usr/local/bin/told").write("#!/bin/sh\ncat >> /var/lib/pg-recovery/notify/told\necho >> /var/lib/pg-recovery/notify/told\n");
        host.sh("chmod 755 /usr/local/bin/told");
        serve(&host, "shop", 8081, "200", "");
        let rule = "critical = true\nrestarts = 2\nrestart_window = \"30s\"\ncool_down = \"25s\"\n";
        let with = |last_resort: &str| configure(&host, &format!(
            "[notify]\ncalm = \"5s\"\n[[notify.channel]]\nname = \"told\"\nkind = \"exec\"\ncommand = [\"/usr/local/bin/told\"]\n\
             severity = \"critical\"\n{}", section("shop", 8081, &format!("{QUICK}{rule}{last_resort}"))
        ));
        with("escalate_command = [\"/usr/bin/touch\", \"/run/escalated\"]\n");
        host.start_and_wait("pg-notify@test.service");
        wait_for(&host, "shop", "ok");
        let restarts = || host.journal_of("pg-watchdog").count("restarting shop.service");
        host.sh("echo 500 > /srv/shop");
        wait_for(&host, "shop", "needs you");
        let began = Instant::now();
        assert_eq!(restarts(), 2);
        host.wait_until("the last resort is tried", SOON, || host.file("/run/escalated").exists());
        host.sh("systemctl restart pg-watchdog");
        host.wait_for_journal("pg-watchdog", "watching service shop", SOON);
        host.wait_until("it was looked at again", SOON, || status(&host, "shop")["checked_s"].as_u64().is_some_and(|s| s < 3));
        assert!(restarts() == 2 || began.elapsed() > Duration::from_secs(20), "{}", host.journal_of("pg-watchdog"));
        assert_eq!(host.run("runuser -u nobody -- pg-status services --reset shop").status, 77);
        host.file("/etc/systemd/system/repair.service").write("[Service]\nExecStart=/usr/bin/touch /run/repaired\n");
        host.sh("systemctl daemon-reload");
        with("escalate_unit = \"repair.service\"\n");
        host.sh("pg-status services --reset shop");
        host.wait_until("it is tried again", SOON, || restarts() == 4);
        wait_for(&host, "shop", "needs you");
        host.wait_until("the other last resort is tried", SOON, || host.file("/run/repaired").exists());
        let of_shop = || {
            let told = host.run("cat /var/lib/pg-recovery/notify/told").stdout;
            let all: Vec<Value> = told.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            all.into_iter().filter(|one| one["about"] == "service/shop").collect::<Vec<_>>()
        };
        host.start_and_wait("pg-notify@test.service");
        host.wait_until("a person is told", SOON, || !of_shop().is_empty());
        // It is not well by itself: only a restart after the cool-down sees that.
        host.sh("echo 200 > /srv/shop");
        wait_for(&host, "shop", "ok");
        host.wait_until("that is over", SOON, || {
            host.start_and_wait("pg-notify@test.service");
            of_shop().len() > 1
        });
        let kinds: Vec<_> = of_shop().iter().map(|one| one["kind"].to_string()).collect();
        assert_eq!(kinds, ["\"trouble\"", "\"over\""], "{:#?}", of_shop());
        assert!(of_shop()[0]["subject"].to_string().contains("needs you: service shop was restarted 2 times"), "{:#?}", of_shop());
        // A reboot forgives nothing, and what goes down with the host is not brought back.
        let long = format!("{QUICK}restarts = 2\nrestart_window = \"1h\"\ncool_down = \"1h\"\n");
        configure(&host, &section("shop", 8081, &long));
        host.sh("pg-status services --reset shop; echo 500 > /srv/shop");
        wait_for(&host, "shop", "needs you");
        host.reboot();
        host.wait_until("it was looked at again", SOON, || status(&host, "shop")["checked_s"].as_u64().is_some_and(|s| s < 3));
        wait_for(&host, "shop", "needs you");
        assert_eq!(host.run("journalctl --quiet --boot --identifier pg-watchdog | grep 'restarting shop'").stdout, "");
    }

    fn no_service_is_restarted_for_its_database_and_what_went_down_with_it_is_started_after_it(host: Host) {
        host.wait_until_settled();
        let cluster = host.cluster();
        serve(&host, "shop", 8081, "database", "");
        serve(&host, "bound", 8082, "database", &format!("Requires={0}\nAfter={0}", host.unit()));
        let rule = format!("{QUICK}depends_on = [\"{cluster}\"]\n");
        configure(&host, &(section("shop", 8081, &rule) + &section("bound", 8082, &rule)));
        wait_for(&host, "shop", "ok");
        wait_for(&host, "bound", "ok");
        let before = pid(&host, "shop");
        host.operator_stops(&host.unit());
        wait_for(&host, "shop", "waiting");
        wait_for(&host, "bound", "waiting");
        assert_eq!(host.state_of("bound.service"), "inactive");
        host.start(&host.unit());
        wait_for(&host, "shop", "ok");
        wait_for(&host, "bound", "ok");
        assert_eq!(pid(&host, "shop"), before);
        // Its answers come late or never while the server hangs, and before anybody knows why.
        faults::p2_postmaster_stopped::inject(&host);
        host.wait_until("it is healed", SOON, || !host.recoveries().is_empty());
        host.wait_until_accepting(SOON);
        wait_for(&host, "shop", "ok");
        assert_eq!(pid(&host, "shop"), before);
        host.journal_of("pg-watchdog").does_not_say("restarting shop.service").says("service shop depends on");
        assert_eq!(host.journal_of("pg-watchdog").count("restarting bound.service"), 1);
    }

    fn a_tunnel_is_asked_by_its_public_address_and_waits_for_what_it_leads_to(host: Host) {
        serve(&host, "shop", 8081, "200", "");
        host.sh("openssl req -x509 -newkey rsa:2048 -nodes -keyout /srv/key.pem -out /srv/cert.pem -days 1 -subj /CN=shop \
                 -addext subjectAltName=DNS:shop.example -addext basicConstraints=critical,CA:FALSE 2>/dev/null; echo 127.0.0.1 shop.example >> /etc/hosts; \
                 mkdir -p /etc/ssl/certs; cat /srv/cert.pem >> /etc/ssl/certs/ca-certificates.crt");
        host.file("/etc/systemd/system/tunnel.service").write(
            "[Service]\nExecStart=/usr/bin/openssl s_server -quiet -accept 8443 -www -cert /srv/cert.pem -key /srv/key.pem\n\
             [Install]\nWantedBy=multi-user.target\n",
        );
        host.sh("systemctl daemon-reload; systemctl enable --now tunnel");
        let tunnel = "[[service]]\nname = \"tunnel\"\ntunnel = true\nhttp = \"https://shop.example:8443/\"\nbody = \"Ciphers\"\n\
                      interval = \"1s\"\nstart_timeout = \"1s\"\ndepends_on = [\"shop\"]\n";
        configure(&host, &(section("shop", 8081, &format!("{QUICK}restart = \"never\"\n")) + tunnel));
        wait_for(&host, "tunnel", "ok");
        let before = pid(&host, "tunnel");
        host.sh("echo 500 > /srv/shop");
        wait_for(&host, "shop", "down");
        host.sh("systemctl kill --signal=KILL tunnel");
        wait_for(&host, "tunnel", "waiting");
        assert_eq!(host.state_of("tunnel.service"), "failed");
        host.sh("echo 200 > /srv/shop");
        wait_for(&host, "tunnel", "ok");
        assert_ne!(pid(&host, "tunnel"), before);
        host.journal_of("pg-watchdog").does_not_say("restarting shop.service").says("service shop is only reported");
        assert!(status(&host, "tunnel")["restarts"] == serde_json::json!([1, 5, 3600]), "{:#}", status(&host, "tunnel"));
    }

    fn what_a_person_has_stopped_or_disabled_or_paused_is_left_alone(host: Host) {
        serve(&host, "shop", 8081, "200", "");
        // It ends with an error when it is told to end.
        host.file("/etc/systemd/system/sulky.service").write(
            "[Service]\nExecStart=/bin/bash -c 'trap \"exit 3\" TERM; while :; do sleep 0.1; done'\n[Install]\nWantedBy=multi-user.target\n",
        );
        host.sh("systemctl daemon-reload; systemctl enable --now sulky");
        configure(&host, &format!("{}[[service]]\nname = \"sulky\"\n{QUICK}", section("shop", 8081, QUICK)));
        wait_for(&host, "shop", "ok");
        wait_for(&host, "sulky", "ok");
        host.sh("pg-recover pause 1h 'moving house'; systemctl kill --signal=KILL shop; systemctl stop sulky");
        wait_for(&host, "shop", "down");
        host.wait_for_journal("pg-watchdog", "service shop is paused", SOON);
        wait_for(&host, "sulky", "off");
        assert_eq!((host.state_of("shop.service").as_str(), host.state_of("sulky.service").as_str()), ("failed", "failed"));
        host.sh("pg-recover resume");
        wait_for(&host, "shop", "ok");
        let sections = |mode: &str| {
            configure(&host, &format!("mode = \"{mode}\"\n{}[[service]]\nname = \"sulky\"\n{QUICK}", section("shop", 8081, QUICK)));
        };
        let why_not = |why: &str| host.wait_until(why, SOON, || status(&host, "shop")["why"].to_string().contains(why));
        sections("observe");
        host.sh("systemctl kill --signal=KILL shop");
        host.wait_for_journal("pg-watchdog", "service shop", SOON);
        why_not("is only observed; else it would be restarted now");
        let locker = faults::o1_package_manager::inject(&host);
        sections("heal");
        why_not("is left alone while the package manager runs");
        assert_eq!(host.journal_of("pg-watchdog").count("restarting shop.service"), 1);
        host.signal(locker, Signal::SIGTERM);
        wait_for(&host, "shop", "ok");
        host.sh("systemctl kill --signal=KILL sulky; systemctl reset-failed sulky");
        host.sh("systemctl stop shop");
        wait_for(&host, "shop", "off");
        host.sh("systemctl disable shop; systemctl start shop; systemctl kill --signal=KILL shop");
        host.wait_until("it is seen to be disabled", SOON, || status(&host, "shop")["why"].to_string().contains("is disabled"));
        assert_ne!(host.state_of("shop.service"), "active");
        assert_ne!(host.state_of("sulky.service"), "active");
        assert_eq!(host.journal_of("pg-watchdog").count("restarting sulky.service"), 0);
        assert_eq!(host.journal_of("pg-watchdog").count("restarting shop.service"), 2);
    }

    fn a_unit_is_adopted_when_that_is_confirmed_and_given_back_and_a_section_that_is_wrong_changes_nothing(host: Host) {
        serve(&host, "shop", 8081, "200", "");
        let restart = || host.property_of("shop.service", "Restart");
        let shown = host.run("pg-watchdog adopt shop.service < /dev/null");
        assert!(shown.success() && shown.stdout.contains("Restart=on-failure") && restart() == "no", "{shown}");
        // On a terminal it asks.
        host.sh("echo y | script --quiet --command 'pg-watchdog adopt shop.service' /dev/null");
        assert_eq!(restart(), "on-failure");
        let before = pid(&host, "shop");
        host.sh("systemctl kill --signal=KILL shop");
        host.wait_until("systemd brings it back", SOON, || !["0", &before].contains(&pid(&host, "shop").as_str()));
        let again = host.run("pg-watchdog adopt shop.service --yes");
        assert!(again.success() && again.stdout.contains("is adopted already"), "{again}");
        let list = host.json("pg-rollback list --json");
        let point = list["points"].as_array().expect("a list").iter().find(|one| one["why"] == "pg-watchdog adopt shop.service");
        let id = point.expect("there is a point")["id"].as_str().expect("an id").to_string();
        let plan = host.sh(&format!("pg-rollback monitoring {id} --plan"));
        assert!(plan.starts_with("remove /etc/systemd/system/shop.service.d/60-pg-recovery.conf"), "{plan}");
        host.sh(&format!("pg-rollback monitoring {id}"));
        assert_eq!(restart(), "no");
        assert_eq!(host.state_of("pg-watchdog.service"), "active");
        for unit in ["none.service", "pg-watchdog.service", &host.unit(), "shop.timer"] {
            assert_eq!(host.run(&format!("pg-watchdog adopt {unit} --yes")).status, 64, "{unit}");
        }

        configure(&host, &section("shop", 8081, QUICK));
        wait_for(&host, "shop", "ok");
        host.configure(&section("shop", 8081, "interval = \"0s\""));
        let wrong = host.run("pg-status services");
        let said = "config.d/test.toml, line 4, key service.interval of shop: must be between 1s and 1d";
        assert!(wrong.status == 78 && wrong.stderr.contains(said), "{wrong}");
        host.sh("systemctl reload pg-watchdog");
        host.wait_for_journal("pg-watchdog", "stays in force", SOON);
        host.sh("systemctl kill --signal=KILL shop");
        host.wait_for_journal("pg-watchdog", "restarting shop.service (restart 1 of 5)", SOON);
    }
}
