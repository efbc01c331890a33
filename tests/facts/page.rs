//! The page and its endpoints: what they tell, what they bear, and what they refuse.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use host::{Browser, Host, facts_on_both_suites, faults};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);
const TOKEN: &str = "3f1b7c9a5d2e8f604b1c";

/// A connection from within the network of the machine.
fn connect(host: &Host) -> TcpStream {
    let network = format!("/proc/{}/ns/net", host.leader());
    let connection = std::thread::spawn(move || {
        // Of this thread alone.
        setns(File::open(network).expect("the machine is up"), CloneFlags::CLONE_NEWNET).expect("tests run as root");
        TcpStream::connect("127.0.0.1:9432").expect("systemd listens there")
    });
    let connection = connection.join().expect("it connects");
    connection.set_read_timeout(Some(SOON)).expect("a timeout can be set");
    connection
}

struct Reply {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Reply {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    #[track_caller]
    fn says(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.body.contains(part), "{part:?} is not in\n{}", self.body);
        }
    }
}

/// Says this, and reads until the other end closes.
fn say(host: &Host, request: &[u8]) -> Reply {
    let mut connection = connect(host);
    // The other end may have heard enough.
    let _ = connection.write_all(request);
    let mut bytes = Vec::new();
    let _ = connection.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or_default();
    let headers =
        lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_lowercase(), value.into()));
    Reply { status, headers: headers.collect(), body: body.into() }
}

fn ask(host: &Host, method: &str, path: &str, headers: &str) -> Reply {
    say(host, format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n").as_bytes())
}

#[track_caller]
fn get(host: &Host, path: &str) -> Reply {
    let reply = ask(host, "GET", path, "");
    assert_eq!(reply.status, 200, "{path}: {}", reply.body);
    reply
}

#[track_caller]
fn json(host: &Host, path: &str) -> Value {
    serde_json::from_str(&get(host, path).body).expect("it is JSON")
}

fn recover(host: &Host, token: &str) -> Reply {
    ask(host, "POST", "/health/recover", &format!("Authorization: Bearer {token}\r\n"))
}

/// Nobody helps by himself.
fn leave_alone(host: &Host) {
    host.wait_until_settled();
    host.start_and_wait("pg-health-check.service");
    host.sh("systemctl stop pg-health-check.timer pg-watchdog.service");
}

/// What promtool has to say of metrics.
fn lint(metrics: &str) -> String {
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().expect("promtool is installed: tests/run does that");
    promtool.stdin.take().expect("it is a pipe").write_all(metrics.as_bytes()).expect("promtool reads");
    let output = promtool.wait_with_output().expect("promtool ends");
    let said = [output.stdout, output.stderr].concat();
    format!("{}{}", String::from_utf8_lossy(&said), if output.status.success() { "" } else { "it failed" })
}

/// As if it had been watched for a day, in which its volume filled and an hour was bad.
fn remember_a_day(host: &Host) {
    let file = host.file(&format!("/var/lib/pg-recovery/health/{}.json", host.cluster().replace('/', "-")));
    let mut health: Value = serde_json::from_str(&file.read()).expect("it is JSON");
    let now = health["at"]["boot"].as_f64().expect("a number") as i64;
    let series = |amount: &dyn Fn(i64) -> i64| {
        let samples = (1..144).rev().map(|ago| format!("{}:{}", now - 600 * ago, amount(ago)));
        Value::from(samples.collect::<Vec<_>>().join(" "))
    };
    let left = health["trends"]["left"].as_object_mut().expect("it keeps trends");
    for (name, known) in left.iter_mut() {
        let newest: i64 = known.as_str().and_then(|all| all.rsplit(':').next()?.parse().ok()).expect("a sample");
        *known = match name.as_str() {
            "score" => series(&|ago| if (50..56).contains(&ago) { 10 * (ago - 50) } else { 100 }),
            "disk_data" => series(&|ago| newest + newest * ago / 100),
            _ => series(&|_| newest),
        };
    }
    let took = health["trends"]["took"].as_object_mut().expect("it keeps times");
    assert!(took.contains_key("query") && took.contains_key("write"), "{took:?}");
    for known in took.values_mut() {
        let newest: i64 = known.as_str().and_then(|all| all.rsplit(':').next()?.parse().ok()).expect("a sample");
        *known = series(&|ago| newest * if (48..60).contains(&ago) { 400 } else { 1 + ago % 3 });
    }
    file.write(health.to_string());
}

/// What a person cannot read, in a page that a browser shows: text that is too small, or too much like what is behind it
/// (WCAG 2.2, 1.4.3), and what sticks out of the window.
const UNREADABLE: &str = r#"(() => {
    const found = [];
    const part = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
    const colour = text => text.match(/[\d.]+/g).map(Number);
    const behind = e => {
        for (; e; e = e.parentElement) {
            const c = colour(getComputedStyle(e).backgroundColor);
            if (c.length < 4 || c[3] > 0) return c;
        }
    };
    // Not innerWidth: a phone shows more at once when a page is wider than it.
    const wide = document.documentElement.scrollWidth, window = document.documentElement.clientWidth;
    if (wide > window) found.push(`${wide} pixels in a window of ${window}`);
    for (const e of document.querySelectorAll('body *')) {
        const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
        if (!own || e.closest('title, head') || !e.getClientRects().length) continue;
        const style = getComputedStyle(e), drawn = e instanceof SVGTextElement;
        const said = `${e.tagName} "${e.textContent.trim().slice(0, 40)}"`;
        const size = parseFloat(style.fontSize) * (drawn ? e.getScreenCTM().a : 1);
        if (size < (drawn ? 9.5 : 12)) found.push(`${said} is ${size} pixels high`);
        const [a, b] = [colour(drawn ? style.fill : style.color), behind(e)].map(light);
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (contrast < 4.5) found.push(`${said} has a contrast of ${contrast}`);
        const { left, right } = e.getBoundingClientRect();
        const within = drawn ? e.ownerSVGElement.getBoundingClientRect() : { left: 0, right: window };
        if (left < within.left - 0.5 || right > within.right + 0.5) found.push(`${said} reaches from ${left} to ${right}`);
    }
    return found;
})()"#;

/// Shows a page to people with a phone and with a desk, who like it light and dark; keeps what they see as pictures.
#[track_caller]
fn show(browser: &mut Browser, host: &Host, path: &str, name: &str) {
    for (width, is_phone) in [(360, true), (1280, false)] {
        for scheme in ["dark", "light"] {
            browser.be(width, is_phone, scheme);
            browser.go(&format!("http://127.0.0.1:9432{path}"));
            browser.picture(&format!("{}-{name}-{width}-{scheme}", host.suite().name()));
            assert_eq!(browser.look(UNREADABLE), Value::Array(Vec::new()), "{path}, {scheme}, {width}");
            let shade = browser.look("Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])");
            assert_eq!(shade.as_u64().is_some_and(|shade| shade < 128), scheme == "dark", "{path}: {shade}");
        }
    }
}

facts_on_both_suites! {
    fn in_a_browser_a_person_sees_how_it_is_and_is_led_to_the_story(host: Host) {
        host.wait_until_settled();
        // A service that nobody has, for how that looks.
        host.configure("[[service]]\nname = \"shop\"\nrestart = \"never\"\n");
        host.sh("systemctl reload pg-watchdog");
        host.start_and_wait("pg-health-check.service");
        host.sh("systemctl stop pg-health-check.timer pg-health-check.service");
        remember_a_day(&host);
        host.sh("systemctl start pg-health-check.timer");
        host.start_and_wait("pg-health-check.service");
        faults::p1_postmaster_killed::inject(&host);
        host.wait_until("it is healed", SOON, || host.recoveries().len() == 1);
        host.wait_until_accepting(SOON);
        let record = host.recoveries().remove(0);
        let id = record["id"].as_str().expect("an id");

        let mut browser = Browser::start(&host);
        show(&mut browser, &host, "/", "page");
        let plots = browser.look(
            "[...document.querySelectorAll('svg')].map(svg => { const r = svg.getBoundingClientRect(); \
             return r.width > 250 && r.height > 90 ? svg.getAttribute('aria-label') : 'too small' })",
        );
        let plots = plots.to_string();
        for plot in ["Health score", "Latency", "Recoveries", "left on the volume of data"] {
            assert!(plots.contains(plot), "{plot}: {plots}");
        }
        let drawn = browser.look("['rect.bad', 'circle.good', 'path.other', 'path.ahead'].map(s => document.querySelectorAll(s).length)");
        assert!(drawn.as_array().is_some_and(|all| all.iter().all(|count| count.as_u64() > Some(0))), "{drawn}");
        let requests = browser.look("performance.getEntriesByType('resource').map(r => r.name)");
        assert_eq!(requests, serde_json::json!(["http://127.0.0.1:9432/style.css"]), "nothing from anywhere else");

        // By the dot on the time line, and by the list.
        for way in ["svg a", "ol.recoveries a"] {
            browser.go("http://127.0.0.1:9432/");
            browser.click(way);
            assert_eq!(browser.look("location.pathname"), format!("/recovery/{id}"), "{way}");
        }
        let told = browser.look("document.body.innerText").to_string();
        for part in [host.cluster().as_str(), "recovered", "What it saw", "was killed by signal 9", "How it ended"] {
            assert!(told.contains(part), "{part}: {told}");
        }
        show(&mut browser, &host, &format!("/recovery/{id}"), "story");
        show(&mut browser, &host, "/recoveries", "recoveries");
    }

    fn a_recovery_is_on_the_page_with_its_story_and_in_the_figures(host: Host) {
        host.wait_until_settled();
        host.start_and_wait("pg-health-check.service");
        faults::p1_postmaster_killed::inject(&host);
        host.wait_until("it is healed", SOON, || host.recoveries().len() == 1);
        host.wait_until_accepting(SOON);
        let record = host.recoveries().remove(0);
        let (id, cluster) = (record["id"].as_str().expect("an id"), host.cluster());

        let page = get(&host, "/");
        let link = format!("href=\"/recovery/{id}\"");
        page.says(&[&cluster, &link, "<svg", "recovered", "by pg-watchdog"]);
        get(&host, "/style.css").says(&["prefers-color-scheme: dark"]);
        get(&host, "/recoveries").says(&[&link, "1 of 1", "100 %"]);
        let story = get(&host, &format!("/recovery/{id}"));
        story.says(&["What it saw", "was killed by signal 9", "What was tried", "<b>start</b>", "How it ended", "target 30s met"]);
        for line in record["evidence"].as_array().expect("a list") {
            story.says(&[&line.as_str().expect("text").replace('"', "&quot;")]);
        }
        for path in ["/", "/recoveries", "/health/live", "/health/status", "/metrics", "/nothing", &format!("/recovery/{id}")] {
            let reply = ask(&host, "GET", path, "");
            let policy = reply.header("content-security-policy");
            assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{path}: {policy}");
            assert!(!policy.contains("unsafe") && !policy.contains("script"), "{path}: {policy}");
            let others = ["x-content-type-options", "referrer-policy", "cache-control"].map(|name| reply.header(name));
            assert_eq!(others, ["nosniff", "no-referrer", "no-store"], "{path}");
            for active in ["<script", "style=", "http://", "https://", " onload"] {
                assert!(!reply.body.contains(active), "{path} has {active}");
            }
        }

        assert_eq!(get(&host, "/health/live").body, "ok\n");
        let (status, by_hand) = (json(&host, "/health/status"), host.json("pg-status --json"));
        assert_eq!(status["clusters"][0]["recoveries"], by_hand["clusters"][0]["recoveries"]);
        assert_eq!((&status["clusters"][0]["listening"], &status["units"]), (&true.into(), &by_hand["units"]));
        let stats = json(&host, "/health/recovery-stats");
        for of in [&stats["all"], &stats["clusters"][&cluster], &stats["faults"]["P1"]] {
            assert_eq!((&of["recovered"], &of["success_rate"], &of["target_rate"]), (&1.into(), &1.0.into(), &1.0.into()), "{stats:#}");
            assert_eq!(of["median_ms"], record["downtime_ms"]);
        }
        let labels = format!("{{cluster=\"{cluster}\",fault=\"P1\",outcome=\"recovered\"");
        let metrics = get(&host, "/metrics");
        metrics.says(&[
            &format!("pg_recovery_recoveries_total{labels}}} 1\n"),
            &format!("pg_recovery_recovery_duration_seconds_count{labels}}} 1\n"),
            &format!("pg_recovery_cluster_listening{{cluster=\"{cluster}\"}} 1\n"),
            &format!("pg_recovery_restart_budget_remaining{{cluster=\"{cluster}\"}} 4\n"),
            "pg_recovery_unit_healthy{unit=\"pg-watchdog.service\"} 1\n",
        ]);
        assert_eq!(lint(&metrics.body), "");
        // For node_exporter, by somebody without any privilege.
        let by_hand = host.sh("runuser -u nobody -- pg-status --metrics");
        assert!(by_hand.contains(&format!("pg_recovery_recoveries_total{labels}}} 1\n")), "{by_hand}");
        assert_eq!(lint(&(by_hand + "\n")), "");
        let open = ask(&host, "GET", "/metrics", "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n");
        assert!(open.header("content-type").starts_with("application/openmetrics-text") && open.body.ends_with("\n# EOF\n"));

        host.configure("nonsense = 1\n");
        host.wait_until("the mistake is told", SOON, || get(&host, "/").body.contains("unknown field `nonsense`"));
        get(&host, "/").says(&[&cluster, "pg-watchdog goes on with what was configured before"]);
        get(&host, "/metrics").says(&["pg_recovery_configuration_valid 0\n"]);
    }

    fn the_page_answers_at_once_while_the_server_hangs_and_ends_when_nobody_asks(host: Host) {
        leave_alone(&host);
        let stopped = faults::p2_all_processes_stopped::inject(&host);
        get(&host, "/");
        let mut took: Vec<Duration> = Vec::new();
        for _ in 0..30 {
            let began = Instant::now();
            let page = get(&host, "/");
            took.push(began.elapsed());
            page.says(&[&host.cluster()]);
        }
        took.sort();
        // The computer may be busy; one that waited for the server would need seconds.
        assert!(took[5] < Duration::from_millis(500), "{took:?}");
        let status = json(&host, "/health/status");
        assert_eq!(status["clusters"][0]["listening"], true);
        let units = status["units"].to_string();
        assert!(units.contains("pg-watchdog.service") && units.contains("pg-health-check.timer"), "{units}");
        for pid in stopped {
            host.signal(pid, host::Signal::SIGCONT);
        }

        // Without rights, and without a network but what was handed over.
        let pid = host.property_of("pg-status.service", "MainPID");
        let process = host.sh(&format!("cat /proc/{pid}/status; readlink /proc/{pid}/ns/net /proc/1/ns/net; ps -o user= -p {pid}"));
        for part in ["CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "_pg-status"] {
            assert!(process.contains(part), "{part} is not in\n{process}");
        }
        let networks: Vec<&str> = process.lines().filter(|line| line.starts_with("net:[")).collect();
        assert_ne!(networks[0], networks[1]);
        host.wait_for_state("pg-status.service", "inactive", Duration::from_secs(150));
        assert_eq!(host.property_of("pg-status.service", "Result"), "success");
        get(&host, "/health/live");
    }

    fn a_thousand_requests_a_second_fail_none_cost_little_memory_and_disturb_no_recovery(host: Host) {
        host.wait_until_settled();
        host.start_and_wait("pg-health-check.service");
        get(&host, "/");
        let pid = host.property_of("pg-status.service", "MainPID");
        let ledger = host.ledger();
        ledger.wait_for_commits(50);
        // As many as the computer has time for; it has no time for a thousand when it is busy.
        let network = format!("--net=/proc/{}/ns/net", host.leader());
        let mut load = Command::new("nsenter");
        load.args([&network, "wrk", "-t1", "-c8", "-d8s", "--timeout=60s", "http://127.0.0.1:9432/"]);
        let mut load = load.stdout(Stdio::piped()).spawn().expect("nsenter can be started");
        let cost = || host.property_of("pg-status.service", "CPUUsageNSec").parse::<u64>().expect("a number");
        let before = cost();
        host.wait_until("it is under load", SOON, || cost() > before + 100_000_000);
        faults::p1_postmaster_killed::inject(&host);
        assert!(load.try_wait().expect("it is a child").is_none(), "the load was over before");
        host.wait_until("it is healed", SOON, || host.recoveries().len() == 1);
        ledger.wait_for_commits(50);
        assert_eq!(host.recoveries()[0]["outcome"], "recovered");
        ledger.stop_and_check().assert_nothing_lost();

        let output = load.wait_with_output().expect("wrk ends");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains(" requests in "), "{said}");
        // It says so only if there were some.
        assert!(!said.contains("Non-2xx") && !said.contains("Socket errors"), "{said}");
        assert_eq!(host.property_of("pg-status.service", "MainPID"), pid, "it bore all of that");
        let status = host.file(&format!("/proc/{pid}/status")).read();
        let most: u64 = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok()).expect("a number");
        assert!(most < 24 << 10, "{most} kB\n{said}");
    }

    fn what_is_slow_huge_or_malformed_is_refused_and_keeps_nobody_out(host: Host) {
        host.wait_until_settled();
        get(&host, "/");
        let pid = host.property_of("pg-status.service", "MainPID");
        let mut slow: Vec<TcpStream> = Vec::new();
        for _ in 0..300 {
            let mut connection = connect(&host);
            connection.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").expect("it is open");
            slow.push(connection);
        }
        let began = Instant::now();
        get(&host, "/");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        // More of them each time, and never the end.
        let ended = |connection: &mut TcpStream| {
            connection.set_nonblocking(true).expect("it is a socket");
            let gone = connection.write_all(b"a").is_err();
            gone || connection.read(&mut [0; 512]).is_ok()
        };
        host.wait_until("all are closed", SOON, || {
            std::thread::sleep(Duration::from_millis(500));
            slow.retain_mut(|connection| !ended(connection));
            slow.is_empty()
        });

        let line = format!("X-Long: {}\r\n", "a".repeat(1 << 20));
        // What it has not read when it closes takes the answer along, sometimes.
        assert!(matches!(ask(&host, "GET", "/", &line).status, 431 | 0));
        assert_eq!(ask(&host, "GET", "/", &"X-Many: a\r\n".repeat(100)).status, 431);
        assert_eq!(say(&host, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").status, 400);
        for path in ["/recovery/../../../etc/passwd", "/../etc/passwd", "//etc/passwd", "/%2e%2e/etc/passwd", "/recovery/", "/recovery/%00"] {
            let reply = ask(&host, "GET", path, "");
            assert!(reply.status == 404 && !reply.body.contains("root:"), "{path}: {} {}", reply.status, reply.body);
        }
        let refused = ask(&host, "POST", "/", "Content-Length: 1000000000\r\n");
        assert_eq!((refused.status, refused.header("allow")), (405, "GET, HEAD"));
        assert_eq!(ask(&host, "DELETE", "/health/status", "").status, 405);
        let head = ask(&host, "HEAD", "/", "");
        assert_eq!((head.status, head.body.as_str()), (200, ""));
        // As a browser asks that was led here under another name.
        let other = say(&host, b"GET /health/status HTTP/1.1\r\nHost: rebound.example:9432\r\nConnection: close\r\n\r\n");
        assert!(other.status == 421 && !other.body.contains("clusters"), "{}", other.body);

        get(&host, "/");
        assert_eq!(host.property_of("pg-status.service", "MainPID"), pid, "it bore all of that");
    }

    fn a_recovery_is_asked_for_with_the_token_only_and_not_again_at_once(host: Host) {
        leave_alone(&host);
        faults::p1_postmaster_killed::inject(&host);
        host.wait_for_state(&host.unit(), "failed", SOON);
        assert_eq!(recover(&host, TOKEN).status, 404, "it is off");
        host.sh(&format!("umask 077; echo {TOKEN} >/etc/pg-recovery/credentials/recover_token; systemctl try-restart pg-status.service"));
        assert_eq!(ask(&host, "GET", "/health/recover", "").header("allow"), "POST");
        let refused = [recover(&host, "3f1b7c9a5d2e8f604b1d"), recover(&host, ""), ask(&host, "POST", "/health/recover", "")];
        assert_eq!(refused.map(|reply| reply.status), [401; 3]);
        assert_eq!(host.property_of("pg-recovery.service", "ExecMainStartTimestampMonotonic"), "0", "nothing was started");

        assert_eq!(recover(&host, TOKEN).status, 202);
        host.wait_until_accepting(SOON);
        host.wait_until("it is on record", SOON, || host.recoveries().len() == 1);
        assert_eq!(host.recoveries()[0]["outcome"], "recovered");
        // Also after it was started anew.
        host.sh("systemctl restart pg-status.service");
        let again = recover(&host, TOKEN);
        let seconds: u64 = again.header("retry-after").parse().expect("it says when");
        assert!(again.status == 429 && (100..=300).contains(&seconds), "{} {seconds}", again.status);

        let mut connection = connect(&host);
        let guess = |number: u32| format!("POST /health/recover HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {number:020}\r\n\r\n");
        let mut answers = String::new();
        for hundred in 0..100 {
            let guesses: String = (0..100).map(|one| guess(100 * hundred + one)).collect();
            connection.write_all(guesses.as_bytes()).expect("it is open");
            while answers.matches("HTTP/1.1 ").count() < 100 * (hundred as usize + 1) {
                let mut bytes = [0; 65536];
                let read = connection.read(&mut bytes).expect("it answers");
                assert_ne!(read, 0, "it was closed after {} answers", answers.matches("HTTP/1.1 ").count());
                answers.push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
        }
        assert_eq!(answers.matches("HTTP/1.1 401").count(), 10);
        assert_eq!(answers.matches("HTTP/1.1 429").count(), 9990);
        assert_eq!(recover(&host, TOKEN).status, 429, "nobody learns which one it is");
        let journal = host.journal_of("pg-status");
        journal.says("10 wrong tokens");
        assert_eq!(journal.count("wrong tokens"), 1);
        assert!(!host.sh("journalctl --no-pager").contains(TOKEN));
        assert_eq!(host.recoveries().len(), 1);
    }
}
