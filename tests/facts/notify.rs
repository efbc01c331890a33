//! One message for an incident and one when it is over, through every kind of channel, whatever becomes of the receiver.

use std::time::Duration;

use host::{Host, Suite, facts_on_both_suites, faults};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);
/// Some tries of a channel that failed, with their pauses.
const TRIES: Duration = Duration::from_secs(240);

/// Takes every request on a port of the machine's loopback, and keeps each as one line: method, path, token, body.
const RECEIVER: &str = r#"
use strict; use IO::Socket::INET;
my ($port, $file, $status) = @ARGV;
my $listen = IO::Socket::INET->new(LocalAddr => "127.0.0.1:$port", Listen => 50, ReuseAddr => 1) or die $!;
while (my $client = $listen->accept) {
    my ($request, $length, $token) = (scalar <$client>, 0, "-");
    next unless defined $request;
    while (defined(my $line = <$client>) ) {
        last if $line eq "\r\n";
        $length = $1 if $line =~ /^content-length:\s*(\d+)/i;
        $token = $1 if $line =~ /^authorization:\s*bearer\s+(\S+)/i;
    }
    my $body = "";
    read $client, $body, $length if $length;
    $body =~ s/\n/ /g;
    my ($method, $path) = split " ", $request;
    open my $out, ">>", $file or die $!;
    print $out "$method $path $token $body\n";
    close $out;
    print $client "HTTP/1.1 $status x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    close $client;
}
"#;

fn receive(host: &Host, status: u16) {
    host.file("/usr/local/lib/receiver.pl").write(RECEIVER);
    host.run_as_unit("receiver", "root", &format!("exec perl /usr/local/lib/receiver.pl 8080 /run/received {status}"));
    host.wait_until("the receiver listens", SOON, || host.run("(: </dev/tcp/127.0.0.1/8080)").success());
}

fn received(host: &Host) -> Vec<String> {
    host.run("grep -v '^ ' /run/received").stdout.lines().map(String::from).collect()
}

/// The messages that a webhook got, the oldest first.
fn messages(host: &Host) -> Vec<Value> {
    let bodies = received(host).into_iter().filter_map(|line| Some(line[line.find('{')?..].to_string()));
    bodies.map(|body| serde_json::from_str(&body).expect("it is JSON")).collect()
}

fn kinds(host: &Host) -> Vec<String> {
    messages(host).iter().map(|message| message["kind"].as_str().expect("a kind").to_string()).collect()
}

const WEBHOOK: &str = "[[notify.channel]]\nname = \"hook\"\nkind = \"webhook\"\nurl = \"http://127.0.0.1:8080/hook\"\n";

/// A machine whose first run of pg-notify is over.
fn boot(suite: Suite, configuration: &str) -> Host {
    let host = Host::boot(suite);
    host.wait_until_settled();
    // What the computer that runs the tests is short of is no news here.
    host.file("/etc/pg-recovery/config.d/busy.toml")
        .write("[health]\npressure_warn = 100\nmemory_warn = 100\nmemory_fail = 100\n");
    host.start_and_wait("pg-health-check.service");
    host.configure(configuration);
    look(&host);
    host
}

/// One run of pg-notify.
#[track_caller]
fn look(host: &Host) {
    let output = host.start_and_wait("pg-notify@test.service");
    assert!(output.success(), "{output}");
}

facts_on_both_suites! {
    fn a_crash_that_was_healed_is_one_message_that_arrives_at_once(suite: Suite) {
        let host = boot(suite, WEBHOOK);
        receive(&host, 200);
        let ledger = host.ledger();
        ledger.wait_for_commits(50);
        faults::p1_postmaster_killed::inject(&host);
        // Long before the timer comes round.
        host.wait_until("it is told", Duration::from_secs(30), || !messages(&host).is_empty());
        let message = messages(&host).remove(0);
        assert_eq!((&message["kind"], &message["severity"]), (&"healed".into(), &"warning".into()), "{message:#}");
        assert_eq!(message["about"], host.cluster());
        let (subject, text) = (message["subject"].to_string(), message["text"].to_string());
        assert!(subject.contains("pghost: healed: cluster"), "{subject}");
        let id = message["recovery_id"].as_str().expect("an id");
        assert!(text.contains(&format!("pg-recover explain {id}")), "{text}");
        assert!(host.sh(&format!("pg-recover explain {id}")).contains("recovered"));
        look(&host);
        assert_eq!(kinds(&host).len(), 1);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn what_pg_recover_healed_is_told_as_healed_though_the_journal_lost_what_was_before(suite: Suite) {
        let host = boot(suite, WEBHOOK);
        receive(&host, 200);
        // The entry that was read last is gone.
        faults::p1_postmaster_killed::inject(&host);
        host.wait_until("it is told", SOON, || messages(&host).len() == 1);
        host.wait_until("it serves", SOON, || host.is_accepting());
        host.sh("rm -f /var/lib/pg-recovery/notify/outbox.json.bad; journalctl --sync --rotate --vacuum-time=1s");
        host.configure(&format!("[notify]\ncalm = \"1s\"\n{WEBHOOK}"));
        host.wait_until("that is over", SOON, || {
            look(&host);
            host.sh("pg-notify list") == "nothing to tell"
        });
        // A check in the middle of it would tell the trouble first.
        host.sh("systemctl stop pg-health-check.timer pg-health-check.service");
        faults::c1_bad_postgresql_conf::inject(&host);
        host.wait_until("it is told", TRIES, || messages(&host).len() == 2);
        let message = messages(&host).remove(1);
        assert_eq!(message["kind"], "healed", "{message:#}");
        assert!(message["subject"].to_string().contains("recovered"), "{message:#}");
    }

    fn a_mistake_in_the_configuration_silences_nobody(suite: Suite) {
        let host = boot(suite, &format!("[notify]\ndelay = \"0s\"\n{WEBHOOK}"));
        receive(&host, 200);
        host.configure(&format!("nonsense = 1\n{WEBHOOK}"));
        look(&host);
        look(&host);
        let told = messages(&host);
        assert_eq!((told.len(), &told[0]["about"], &told[0]["severity"]), (1, &"configuration".into(), &"critical".into()), "{told:?}");
        assert!(told[0]["text"].to_string().contains("unknown field `nonsense`"), "{told:?}");
    }

    fn mail_goes_to_root_without_any_configuration(suite: Suite) {
        let host = boot(suite, "");
        // As one of postfix or exim4 would need it.
        host.file("/usr/sbin/sendmail").write(
            "#!/bin/sh\nset -e\necho \"$@\"\nexec >>/var/tmp/mail\ngrep NoNewPrivs /proc/self/status\nid -un\necho \"arguments $*\"\ncat\n",
        );
        host.sh("chmod 755 /usr/sbin/sendmail; install -o _pg-notify -m 600 /dev/null /var/tmp/mail");
        faults::p1_postmaster_killed::inject(&host);
        let mail = host.file("/var/tmp/mail");
        host.wait_until("it is mailed", SOON, || mail.read().contains("explain"));
        let text = mail.read();
        for part in ["NoNewPrivs:\t0\n", "_pg-notify\n", "arguments -t -i\n", "To: root\n", "Subject: [pg-recovery] pghost: healed: ", "\n\n"] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        host.wait_until("nothing waits", SOON, || host.sh("ls /var/lib/pg-recovery/notify/mail").is_empty());
        assert_eq!(text.matches("To: root").count(), 1);

        // What sendmail does not take stays, is said, and is tried again.
        host.file("/usr/sbin/sendmail").write("#!/bin/sh\nexit 75\n");
        assert!(host.sh("pg-notify test").contains("root: taken"));
        host.run("systemctl start pg-notify-mail.service");
        host.wait_for_journal("pg-notify", "exit status: 75; trying again", SOON);
        assert_eq!(host.state_of("pg-notify-mail.service"), "failed");
        look(&host);
        assert!(host.sh("pg-notify list").contains("pg-notify-mail.service: in trouble since"));
        assert!(host.sh("ls /var/lib/pg-recovery/notify/mail").contains("test-"));
        host.sh("touch --date='4 days ago' /var/lib/pg-recovery/notify/mail/test-*");
        host.run("systemctl start pg-notify-mail.service");
        host.wait_for_journal("pg-notify", "exit status: 75; given up", SOON);
        assert!(!host.sh("ls /var/lib/pg-recovery/notify/mail").contains("test-"));
    }

    fn a_receiver_that_is_down_gets_its_message_afterwards_across_a_reboot(suite: Suite) {
        let host = boot(suite, WEBHOOK);
        faults::p1_postmaster_killed::inject(&host);
        host.wait_for_journal("pg-notify", "could not send through channel hook", SOON);
        assert!(host.sh("pg-notify list").contains("waits for hook: pghost: healed: "));
        host.reboot();
        host.wait_until_accepting(SOON);
        receive(&host, 200);
        host.wait_until("it arrives", TRIES, || !messages(&host).is_empty());
        assert_eq!(kinds(&host)[0], "healed");
        host.wait_until("nothing waits", SOON, || !host.sh("pg-notify list").contains("waits for"));
    }

    fn what_lasts_is_told_when_it_begins_and_when_it_is_over(suite: Suite) {
        let host = boot(suite, &format!("[notify]\ndelay = \"0s\"\ncalm = \"1s\"\n{WEBHOOK}"));
        receive(&host, 200);
        host.sh("systemctl stop pg-health-check.timer");
        // Full, as far as the health check is concerned.
        host.configure(&format!("[health]\ndisk_warn = 0\ndisk_fail = 0\n[notify]\ndelay = \"0s\"\ncalm = \"1s\"\n{WEBHOOK}"));
        host.start_and_wait("pg-health-check.service");
        look(&host);
        look(&host);
        let told = messages(&host);
        assert_eq!((told.len(), &told[0]["kind"], &told[0]["severity"]), (1, &"trouble".into(), &"critical".into()), "{told:?}");
        assert!(told[0]["text"].to_string().contains("disk"), "{told:?}");
        assert!(host.sh("pg-notify list").contains(&format!("{}: in trouble since", host.cluster())));

        // Paused, a person knows that it is not well; and nothing is over because of that.
        host.sh("pg-recover pause 1h tests");
        look(&host);
        assert_eq!(messages(&host).len(), 1);
        host.sh("pg-recover resume");

        host.configure(&format!("[notify]\ndelay = \"0s\"\ncalm = \"1s\"\n{WEBHOOK}"));
        host.wait_until("it is over", SOON, || {
            host.start_and_wait("pg-health-check.service");
            look(&host);
            messages(&host).iter().any(|message| message["kind"] == "over" && message["about"] == host.cluster())
        });
        let over = messages(&host).into_iter().find(|message| message["kind"] == "over").expect("it was told");
        assert_eq!(over["severity"], "critical", "whoever got the first one gets this one too");

        // Up for as long as the computer is; and the timer has been stopped for longer than it was.
        host.sh("awk '{ $22 = 1 } 1' /proc/1/stat > /run/stat; mount --bind /run/stat /proc/1/stat");
        let file = host.file(&format!("/var/lib/pg-recovery/health/{}.json", host.cluster().replace('/', "-")));
        let mut health: Value = serde_json::from_str(&file.read()).expect("it is JSON");
        for clock in ["wall", "boot"] {
            health["at"][clock] = (health["at"][clock].as_f64().expect("a number") - 200.0).into();
        }
        file.write(health.to_string());
        let screen = host.run("pg-status").stdout;
        assert!(screen.contains("NOT CHECKED") && screen.contains("not checked  for 3min: systemctl status"), "{screen}");
        let metrics = host.sh("pg-status --metrics");
        assert!(metrics.contains(&format!("{{cluster=\"{}\",state=\"not checked\"}} 1\n", host.cluster())), "{metrics}");
        let page = host.sh("exec 3<>/dev/tcp/127.0.0.1/9432; printf 'GET / HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3");
        assert!(page.contains("<span class=\"pill warning\">not checked</span>"), "{page}");
        // Outside of its sandbox, where systemd 252 shows another /proc/1.
        let look_around = || host.sh("runuser -u _pg-notify -- pg-notify send");
        let kinds_of_checks = || messages(&host).iter().filter(|one| one["about"] == "health checks").map(|one| one["kind"].to_string()).collect::<Vec<_>>();
        host.wait_until("that is told", SOON, || {
            look_around();
            !kinds_of_checks().is_empty()
        });
        // Five starts within ten seconds are as many as systemd allows.
        host.sh("systemctl reset-failed pg-health-check.service");
        host.start_and_wait("pg-health-check.service");
        host.wait_until("that is over", SOON, || {
            look_around();
            kinds_of_checks().len() == 2
        });
        assert_eq!(kinds_of_checks(), ["\"trouble\"", "\"over\""]);
    }

    fn each_channel_gets_what_it_is_for_and_what_has_time_waits_for_the_end_of_the_night(suite: Suite) {
        let configuration = |hours: &str, health: &str| {
            let channel = |kind: &str| {
                let url = format!("url = \"http://127.0.0.1:8080/{kind}\"");
                format!("[[notify.channel]]\nname = \"{kind}\"\nkind = \"{kind}\"\nseverity = \"critical\"\n{url}\n")
            };
            format!(
                "{health}[notify]\ndelay = \"0s\"\ncalm = \"1s\"\nquiet_hours = \"{hours}\"\n{WEBHOOK}{}{}",
                channel("slack"),
                channel("ntfy")
            )
        };
        let host = boot(suite, &configuration("", ""));
        let night = host.sh("echo $(date -d '1 hour ago' +%H:%M)-$(date -d '2 hours' +%H:%M)");
        host.configure(&configuration(&night, ""));
        receive(&host, 200);
        host.sh("systemctl stop pg-health-check.timer");
        faults::p1_postmaster_killed::inject(&host);
        host.wait_until("it is healed", SOON, || host.recoveries().last().is_some_and(|r| r["outcome"] == "recovered"));
        host.wait_until("that waits to be told", SOON, || {
            look(&host);
            host.sh("pg-notify list").contains("healed")
        });
        look(&host);
        assert_eq!(received(&host), Vec::<String>::new(), "it has time");

        // Somebody is needed: told on every channel, whatever the hour.
        host.configure(&configuration(&night, "[health]\ndisk_warn = 0\ndisk_fail = 0\n"));
        host.start_and_wait("pg-health-check.service");
        let to = |path: &str| received(&host).into_iter().filter(|line| line.starts_with(&format!("POST {path} "))).collect::<Vec<_>>();
        host.wait_until("it is told", SOON, || {
            look(&host);
            ["/hook", "/slack", "/ntfy"].iter().all(|path| !to(path).is_empty())
        });
        assert_eq!((to("/hook").len(), to("/slack").len(), to("/ntfy").len()), (1, 1, 1), "{:?}", received(&host));
        let chat: Value = serde_json::from_str(to("/slack")[0].trim_start_matches("POST /slack - ")).expect("it is JSON");
        let text = chat["text"].as_str().expect("a text");
        assert!(text.starts_with("*pghost: ") && text.contains("disk"), "{text}");
        assert!(to("/ntfy")[0].contains("disk") && !to("/ntfy")[0].contains('{'), "{:?}", to("/ntfy"));

        // The night is over.
        host.configure(&configuration("", "[health]\ndisk_warn = 0\ndisk_fail = 0\n"));
        host.wait_until("what has waited is told", SOON, || {
            look(&host);
            to("/hook").iter().any(|line| line.contains("healed"))
        });
        assert_eq!((to("/slack").len(), to("/ntfy").len()), (1, 1), "which is not what they are for");
    }

    fn a_unit_that_has_failed_is_told(suite: Suite) {
        let host = boot(suite, WEBHOOK);
        receive(&host, 200);
        let drop_in = "/run/systemd/system/pg-restore-drill.service.d";
        host.sh(&format!("systemctl unmask pg-restore-drill.service; mkdir -p {drop_in}"));
        host.file(&format!("{drop_in}/x.conf")).write("[Service]\nExecStart=\nExecStart=/bin/false\n");
        host.sh("systemctl daemon-reload");
        host.run("systemctl start pg-restore-drill.service");
        host.journal_of("pg-notify@pg-restore-drill.service.service").does_not_say("could not");
        host.configure(&format!("[notify]\ndelay = \"0s\"\n{WEBHOOK}"));
        host.wait_until("it is told", SOON, || {
            look(&host);
            !messages(&host).is_empty()
        });
        let message = messages(&host).remove(0);
        assert_eq!(message["about"], "pg-restore-drill.service");
        assert!(message["text"].to_string().contains("has failed (exit-code)"), "{message:#}");
    }

    fn what_is_secret_reaches_the_receiver_and_nobody_else(suite: Suite) {
        let folder = "/etc/pg-recovery/credentials/notify";
        let host = boot(
            suite,
            "[notify]\nheartbeat_credential = \"beat\"\n\
             [[notify.channel]]\nname = \"hook\"\nkind = \"webhook\"\nurl_credential = \"url\"\ntoken_credential = \"token\"\n\
             [[notify.channel]]\nname = \"chat\"\nkind = \"slack\"\nurl_credential = \"none\"\n",
        );
        receive(&host, 200);
        host.journal_of("pg-notify").says("could not send the heartbeat: there is no file");
        for (name, secret) in [("url", "http://127.0.0.1:8080/s3cret-path"), ("token", "s3cret-token"), ("beat", "http://127.0.0.1:8080/s3cret-beat")] {
            host.sh(&format!("install -m 600 /dev/null {folder}/{name}"));
            host.file(&format!("{folder}/{name}")).write(format!("{secret}\n"));
        }
        // By hand.
        let output = host.run("pg-notify test");
        assert_eq!(output.status, 1, "{output}");
        assert!(output.stdout.contains("hook: taken\n") && output.stdout.contains("chat: not taken: there is no file"), "{output}");
        assert!(received(&host)[0].starts_with("POST /s3cret-path s3cret-token {"), "{:?}", received(&host));
        // By its unit.
        faults::p1_postmaster_killed::inject(&host);
        host.wait_until("it is told", SOON, || received(&host).iter().filter(|line| line.contains("\"healed\"")).count() == 1);
        host.start_and_wait("pg-health-check.service");
        host.wait_until("there is a heartbeat", SOON, || {
            look(&host);
            received(&host).iter().any(|line| line.starts_with("GET /s3cret-beat -"))
        });
        assert!(!host.sh("journalctl --all --output=export | grep --text -c s3cret || true").parse::<u32>().is_ok_and(|n| n > 0));
        assert_eq!(host.run("grep -r s3cret /var/lib/pg-recovery /run/pg-recovery-notify").stdout, "");

        // No heartbeat while somebody is needed.
        host.sh("systemctl stop pg-health-check.timer pg-notify.timer pg-notify.path pg-watchdog");
        host.operator_masks("pg-recovery.service");
        faults::p1_postmaster_killed::inject(&host);
        host.start_and_wait("pg-health-check.service");
        let beats = || received(&host).iter().filter(|line| line.contains("s3cret-beat")).count();
        let before = beats();
        look(&host);
        assert_eq!(beats(), before);

        // One that others may read is refused, as far as this program can see that.
        host.sh(&format!("chmod 644 {folder}/token"));
        let output = host.run("pg-notify test");
        assert!(output.stdout.contains("hook: not taken: cannot use the credential") && !output.stdout.contains("s3cret"), "{output}");
    }

    fn tls_is_verified(suite: Suite) {
        let host = boot(suite, "[[notify.channel]]\nname = \"hook\"\nkind = \"webhook\"\nurl = \"https://localhost:8443/\"\n");
        host.sh(
            "cd /run && openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost \
             -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE 2>/dev/null",
        );
        // Answers whatever it is asked, and keeps what that was.
        host.run_as_unit(
            "receiver",
            "root",
            "cd /run; while :; do (printf 'HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n'; sleep 2) | \
             openssl s_server -quiet -accept 127.0.0.1:8443 -naccept 1 -cert cert.pem -key key.pem >> got 2>/dev/null; done",
        );
        let refused = |output: &host::Output| output.stdout.to_lowercase().contains("certificate");
        host.wait_until("it is refused", SOON, || refused(&host.run("pg-notify test")));
        assert!(!host.file("/run/got").read().contains("test"), "nothing is said to whom nobody knows");
        host.sh("mkdir -p /etc/ssl/certs; cat /run/cert.pem >> /etc/ssl/certs/ca-certificates.crt");
        host.wait_until("it is taken once its certificate is trusted", SOON, || {
            host.run("pg-notify test").stdout.contains("hook: taken")
        });
        assert!(host.file("/run/got").read().contains("\"kind\":\"test\""));
    }

    fn programs_and_terminals_are_channels(suite: Suite) {
        let host = boot(
            suite,
            "[[notify.channel]]\nname = \"own\"\nkind = \"exec\"\ncommand = [\"/usr/local/bin/own\", \"a b\"]\n\
             [[notify.channel]]\nname = \"people\"\nkind = \"wall\"\n",
        );
        host.file("/usr/local/bin/own").write("#!/bin/sh\n{ echo \"$1\"; id -un; cat; echo; } > /var/lib/pg-recovery/notify/own\n");
        host.sh("chmod 755 /usr/local/bin/own");
        host.run_as_unit("terminal", "root", "exec script --quiet --flush --command 'su --login postgres' /login.log");
        host.wait_until("somebody is logged in", SOON, || host.run("loginctl list-sessions").stdout.contains("pts/"));
        faults::p1_postmaster_killed::inject(&host);
        host.wait_until("the program gets it", SOON, || host.run("cat /var/lib/pg-recovery/notify/own").stdout.contains("\"healed\""));
        let got = host.sh("cat /var/lib/pg-recovery/notify/own");
        assert!(got.starts_with("a b\n_pg-notify\n{"), "{got}");
        host.wait_until("the terminal shows it", SOON, || host.run("cat /login.log").stdout.contains("pg-notify: pghost: healed:"));
        let mistakes = host.run("journalctl -u 'pg-notify@*' | grep 'could not'");
        assert_eq!(mistakes.stdout, "");
    }

    fn without_a_channel_it_does_nothing_and_says_how_to_test_one(suite: Suite) {
        let host = boot(suite, "");
        let output = host.run("pg-notify test");
        assert_eq!(output.status, 78, "{output}");
        assert!(output.stderr.contains("no channel is configured"), "{output}");
        faults::p1_postmaster_killed::inject(&host);
        host.wait_until("it is healed", SOON, || host.recoveries().len() == 1);
        look(&host);
        assert_eq!(host.sh("pg-notify list"), "nothing to tell");
        host.configure("[[notify.channel]]\nname = \"x\"\nkind = \"mail\"\n");
        let output = host.run("pg-notify test");
        assert_eq!(output.status, 78, "{output}");
        assert!(output.stderr.contains("line 1, key notify.channel: channel x: \"to\" is needed for mail"), "{output}");
    }
}

/// So many crashes of the server that a person would drown in messages.
#[test]
fn two_hundred_failures_are_no_two_hundred_messages() {
    let host = Host::boot(Suite::Trixie);
    host.wait_until_settled();
    host.configure(&format!("[notify]\ncalm = \"10s\"\n{WEBHOOK}"));
    receive(&host, 200);
    look(&host);
    host.sh("systemctl stop pg-health-check.timer");
    host.file("/usr/local/bin/storm").write(
        "#!/bin/bash\nfor ((crashes = 0; crashes < 200;)); do\n  kill -9 $(pgrep -f 'postgres: .*: checkpointer') && crashes=$((crashes + 1))\n  \
         sleep 0.05\n  until runuser -u postgres -- psql -qc 'SELECT 1' >/dev/null 2>&1; do sleep 0.05; done\ndone\n",
    );
    host.run_as_unit("storm", "root", "bash /usr/local/bin/storm; touch /run/storm-is-over");
    host.wait_until("the storm is over", Duration::from_secs(300), || host.file("/run/storm-is-over").exists());
    let crashes = host.sh(&format!("grep -c 'terminated by signal 9' {}", host.main_cluster().log_file()));
    assert!(crashes.parse::<u32>().is_ok_and(|crashes| crashes >= 200), "{crashes}");
    host.wait_until("all of it is on record", SOON, || host.recoveries().len() > 150);
    host.wait_until("it is over", SOON, || {
        host.start_and_wait("pg-health-check.service");
        look(&host);
        kinds(&host).contains(&"over".to_string())
    });
    let kinds = kinds(&host);
    assert!(kinds.len() <= 3 && kinds.iter().filter(|kind| *kind == "over").count() == 1, "{kinds:?}");
    let told = messages(&host);
    let over = told.last().expect("there is one");
    assert!(over["text"].to_string().contains("times"), "{over:#}");
    assert!(told.iter().any(|message| message["subject"].to_string().contains("needs you")), "{told:#?}");
}
