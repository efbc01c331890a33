//! Certificates renew themselves, and the server is seen to serve the new one.

use std::time::Duration;

use host::{Authority, Host, Issued, Suite, facts_on_both_suites, faults};

const SOON: Duration = Duration::from_secs(60);
const NAMES: [&str; 2] = ["localhost", "db.example"];

/// A machine whose cluster lets clients in over TLS, and whose certificates come from a program: from `/srv/next.*`, from an
/// authority that clients trust by `/srv/root.crt`.
fn boot(suite: Suite) -> (Host, Authority) {
    let (host, authority) = (Host::boot(suite), Authority::new());
    host.file("/srv/root.crt").write(authority.root());
    host.file("/usr/local/sbin/new-pair").write(
        "#!/bin/sh -e\n[ ! -e /srv/broken ] || { cat /srv/broken >&2; exit 3; }\n\
         cp -P /srv/next.crt \"$PG_CERT_DIRECTORY/server.crt\"; cp -P /srv/next.key \"$PG_CERT_DIRECTORY/server.key\"\n",
    );
    host.sh("chmod 755 /usr/local/sbin/new-pair; chmod 700 /srv");
    configure(&host, "source = \"command\"\ncommand = [\"/usr/local/sbin/new-pair\"]");
    let rules = host.file(&format!("{}/pg_hba.conf", host.configuration_directory()));
    rules.write(format!("hostssl all postgres samehost trust\n{}", rules.read()));
    host.psql("SELECT pg_reload_conf()");
    host.sh("install -m 644 /srv/root.crt /tmp/root.crt");
    (host, authority)
}

fn configure(host: &Host, source: &str) {
    let name = host.cluster();
    host.configure(&format!(
        "[[tls.certificate]]\nname = \"{name}\"\nnames = [\"localhost\"]\nca_file = \"/srv/root.crt\"\n{source}\n"
    ));
}

/// What the program will bring next time.
fn offer(host: &Host, issued: &Issued) {
    host.file("/srv/next.crt").write(&issued.chain);
    host.file("/srv/next.key").write(&issued.key);
}

fn psql_over_tls(host: &Host, sql: &str) -> host::Output {
    let words =
        "psql -XAtq 'host=localhost user=postgres dbname=postgres sslmode=verify-full sslrootcert=/tmp/root.crt'";
    host.run(&format!("timeout 20 {words} -c \"{sql}\""))
}

/// SHA-256 of the certificate that is served on an address.
fn served(host: &Host, address: &str) -> String {
    fingerprint(host, &format!("echo | timeout 20 openssl s_client -starttls postgres -connect {address} 2>/dev/null"))
}

fn fingerprint(host: &Host, of: &str) -> String {
    host.sh(&format!("{of} | openssl x509 -noout -fingerprint -sha256 | cut -d= -f2"))
}

fn offered(host: &Host) -> String {
    fingerprint(host, "cat /srv/next.crt")
}

fn store(host: &Host) -> String {
    format!("/var/lib/pg-recovery-tls/{}-main", host.version())
}

/// A real authority that speaks ACME, on loopback: Debian's pebble, and its DNS, in which each name is 127.0.0.1.
fn start_authority(host: &Host) {
    host.run_as_unit(
        "dns",
        "root",
        "exec pebble-challtestsrv -defaultIPv4 127.0.0.1 -defaultIPv6 '' -dns01 127.0.0.1:8053 \
        -http01 '' -https01 '' -tlsalpn01 '' -management 127.0.0.1:8055",
    );
    host.run_as_unit(
        "authority",
        "root",
        "PEBBLE_VA_NOSLEEP=1 PEBBLE_AUTHZREUSE=0 exec pebble -config /srv/pebble.json -dnsserver 127.0.0.1:8053",
    );
    let root = "echo -e 'GET /roots/0 HTTP/1.0\\r\\n\\r' | timeout 10 openssl s_client -quiet -connect 127.0.0.1:15000 2>/dev/null \
                | openssl x509 > /srv/acme-root.crt";
    host.wait_until("the authority answers", SOON, || {
        host.run(root).success() && host.run("test -s /srv/acme-root.crt").success()
    });
}

/// A machine with such an authority, which is not started yet; what clients of it trust is in `/srv/web-root.crt`.
fn boot_with_authority(suite: Suite) -> Host {
    let host = Host::boot_beside(suite, ",pebble");
    let authority = Authority::new();
    let web = authority.issue(&["localhost", "127.0.0.1"], -10, 80);
    host.file("/srv/web.crt").write(&web.chain);
    host.file("/srv/web.key").write(&web.key);
    host.file("/srv/web-root.crt").write(format!("{}{}", authority.root(), &web.chain[web.certificate.len()..]));
    host.file("/srv/pebble.json").write(
        r#"{"pebble":{"listenAddress":"127.0.0.1:14000","managementListenAddress":"127.0.0.1:15000","certificate":"/srv/web.crt",
            "privateKey":"/srv/web.key","httpPort":80,"tlsPort":443,"ocspResponderURL":"","externalAccountBindingRequired":false}}"#,
    );
    host
}

fn use_acme(host: &Host, names: &str, challenge: &str) {
    host.configure(&format!(
        "[[tls.certificate]]\nname = \"{}\"\nsource = \"acme\"\nnames = {names}\nca_file = \"/srv/acme-root.crt\"\n\
         acme_directory = \"https://localhost:14000/dir\"\nacme_ca_file = \"/srv/web-root.crt\"\n{challenge}\n",
        host.cluster()
    ));
}

/// What pg-cert-renew knows of the certificate of the main cluster.
fn known(host: &Host) -> serde_json::Value {
    host.json(&format!("cat /var/lib/pg-recovery/cert-renew/{}-main.json", host.version()))
}

/// Answers each request of an authority's client with "too many", for two hours.
const LIMIT: &str = r#"problem='{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many orders"}'
while :; do
    coproc server { openssl s_server -quiet -accept 127.0.0.1:14000 -naccept 1 -cert /srv/web.crt -key /srv/web.key 2>/dev/null; }
    read -r request <&${server[0]} && echo "$request" >> /srv/asked
    printf 'HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7200\r\nContent-Type: application/problem+json\r\n' >&${server[1]}
    printf 'Content-Length: %s\r\nConnection: close\r\n\r\n%s' ${#problem} "$problem" >&${server[1]}
    sleep 1
    kill $server_PID
    wait
done"#;

/// Serves `/srv/www` on port 80.
const WEB_SERVER: &str = r#"
use strict; use IO::Socket::INET;
my $listen = IO::Socket::INET->new(LocalAddr => "127.0.0.1:80", Listen => 50, ReuseAddr => 1) or die $!;
while (my $client = $listen->accept) {
    my ($method, $path) = split " ", scalar(<$client>) // "- -";
    while (defined(my $line = <$client>)) { last if $line eq "\r\n" }
    my $found = open my $file, "<", "/srv/www$path";
    my $body = $found ? join("", <$file>) : "";
    print $client "HTTP/1.0 ", ($found ? "200" : "404"), " x\r\nContent-Length: ", length $body, "\r\n\r\n$body";
    open my $log, ">>", "/srv/www.log"; print $log "$path\n"; close $log;
    close $client;
}
"#;

/// Has the DNS of the authority's tests make and remove records.
const HOOK: &str = r#"#!/bin/bash -e
[ $1 = add ] && path=/set-txt || path=/clear-txt
body="{\"host\":\"$2.\",\"value\":\"$3\"}"
exec 3<>/dev/tcp/127.0.0.1/8055
printf 'POST %s HTTP/1.0\r\nContent-Length: %s\r\n\r\n%s' $path ${#body} "$body" >&3
grep -q '200 OK' <&3
echo "$1 $2" >> /srv/hook.log
"#;

/// Deactivates the account that is in the only file of this folder (RFC 8555, 7.3.6), by hand.
const REVOKE: &str = r#"set -e
cd /srv && cat /var/lib/pg-recovery/cert-renew/acme/* > account
field() { perl -ne "print \$1 if /\"$1\":\s*\"([^\"]*)\"/" account; }
coded() { base64 -w0 | tr '+/' '-_' | tr -d =; }
ask() { timeout 20 openssl s_client -quiet -connect 127.0.0.1:14000 2>/dev/null; }
url=$(field id)
field key_pkcs8 | tr '_-' '/+' | perl -0pe '$_ .= "=" x (-length($_) % 4)' | base64 -d | openssl pkey -inform DER -out account.pem
nonce=$(printf 'HEAD /nonce-plz HTTP/1.0\r\n\r\n' | ask | perl -ne 'print $1 if /^replay-nonce: (\S+)/i')
protected=$(printf '{"alg":"ES256","kid":"%s","nonce":"%s","url":"%s"}' "$url" "$nonce" "$url" | coded)
payload=$(printf '{"status":"deactivated"}' | coded)
# Of the two numbers that a signature is, 32 bytes each.
signature=$(printf '%s.%s' "$protected" "$payload" | openssl dgst -sha256 -sign account.pem | openssl asn1parse -inform DER |
    perl -ne 'print pack "H64", substr "0" x 64 . $1, -64 if /INTEGER +:([0-9A-F]+)/' | coded)
body=$(printf '{"protected":"%s","payload":"%s","signature":"%s"}' "$protected" "$payload" "$signature")
head='Host: localhost:14000\r\nUser-Agent: fact\r\nConnection: close\r\nContent-Type: application/jose+json'
printf "POST %s HTTP/1.1\r\n$head\r\nContent-Length: %s\r\n\r\n%s" "/${url#https://*/}" ${#body} "$body" |
    ask | tee answer | grep -q '"status": *"deactivated"' || { cat answer; false; }"#;

/// A renewal is not had for this reason, and the old certificate is served on.
#[track_caller]
fn refused(host: &Host, old: &str, why: &str) -> String {
    let output = host.run("pg-cert-renew --force");
    assert!(output.stderr.contains(why), "{why}: {output}");
    assert_eq!(served(host, "127.0.0.1:5432"), old, "{why}");
    output.stderr
}

/// Every file that gets a key was made for its owner alone, and every folder for one.
#[track_caller]
fn assert_keys_are_private(trace: &str) {
    let made = |line: &&str| line.contains("O_CREAT") && (line.contains(".key") || line.contains("cert-renew/acme/"));
    let keys: Vec<&str> = trace.lines().filter(made).collect();
    assert!(!keys.is_empty() && keys.iter().all(|line| line.contains(", 0600)")), "{keys:#?}");
    let opened = |line: &&str| line.contains("chmod") && (line.contains("0644") || line.contains("0640"));
    let chmods: Vec<&str> = trace.lines().filter(opened).filter(|line| line.contains(".key")).collect();
    assert!(chmods.is_empty(), "{chmods:#?}");
}

fn resolve_to(host: &Host, address: &str) {
    let body = format!("{{\"ip\":\"{address}\"}}");
    let request = format!("POST /set-default-ipv4 HTTP/1.0\\r\\nContent-Length: {}\\r\\n\\r\\n", body.len());
    host.sh(&format!("exec 3<>/dev/tcp/127.0.0.1/8055; printf '{request}%s' '{body}' >&3; grep -q '200 OK' <&3"));
}

facts_on_both_suites! {
    fn an_authority_that_speaks_acme_signs_renews_and_refuses(suite: Suite) {
        let host = boot_with_authority(suite);
        use_acme(&host, "[\"pg.example.test\"]", "listen = \"127.0.0.1:80\"");
        start_authority(&host);
        let address = "127.0.0.1:5432";
        let snakeoil = served(&host, address);
        assert!(host.start_and_wait("pg-cert-renew.service").success());
        let first = served(&host, address);
        assert_ne!(first, snakeoil);
        host.journal_of("pg-cert-renew").says("registered an account").says("served on 127.0.0.1:5432").does_not_say("PRIVATE KEY");
        let account = "stat -c '%U %a' /var/lib/pg-recovery/cert-renew/acme /var/lib/pg-recovery/cert-renew/acme/*";
        assert_eq!(host.sh(account), "root 700\nroot 600");
        assert!(host.run("ss -Hltn sport = 80").stdout.is_empty(), "nobody listens any more");

        host.sh("pg-cert-renew --force");
        let second = served(&host, address);
        assert_ne!(second, first);
        assert_eq!(host.journal_of("pg-cert-renew").count("registered an account"), 1);

        // Of the two only Debian 13's authority says when it would like to renew (RFC 9773).
        host.sh("pg-cert-renew");
        let suggests = |host: &Host| known(host)["suggestion"]["until"].as_i64().is_some_and(|until| until > 0);
        assert_eq!((suggests(&host), known(&host)["failures"].as_u64()), (suite == Suite::Trixie, Some(0)), "{}", known(&host));
        assert_eq!(served(&host, address), second, "there is time");

        // The name leads to another host.
        resolve_to(&host, "127.0.0.9");
        // Debian 12's authority was seen to sign all the same, once.
        let is_refused = (0..3).any(|_| {
            let old = served(&host, address);
            let output = host.run("pg-cert-renew --force");
            output.stderr.contains("does not believe that this host is pg.example.test") && served(&host, address) == old
        });
        assert!(is_refused, "{}", host.journal_of("pg-cert-renew"));
        let second = served(&host, address);
        resolve_to(&host, "127.0.0.1");
        // The clock is a day behind, and a day ahead.
        faults::h1_clock_jump::prepare(&host);
        faults::h1_clock_jump::inject(&host, -86_400);
        let output = host.run(&faults::h1_clock_jump::of("pg-cert-renew --force"));
        assert!(output.stderr.contains("is not valid yet"), "{output}");
        assert_eq!(served(&host, address), second);
        faults::h1_clock_jump::inject(&host, 86_400);
        assert!(host.run(&faults::h1_clock_jump::of("pg-cert-renew --force")).success());
        let second = served(&host, address);
        // It would like to before there is need to, and two days have passed since the last one.
        faults::h1_clock_jump::inject(&host, 4 * 86_400);
        let state = format!("/var/lib/pg-recovery/cert-renew/{}-main.json", host.version());
        host.sh(&faults::h1_clock_jump::of("pg-cert-renew"));
        let past = r#"s/("suggestion": \{[^}]*"from": )\d+(,\s*"until": )[1-9]\d*/${1}100${2}200/"#;
        host.sh(&format!("perl -0pi -e '{past}' {state}"));
        let output = host.run(&faults::h1_clock_jump::of("pg-cert-renew"));
        assert_eq!(output.stderr.contains("its authority asks for it"), suite == Suite::Trixie, "{output}");
        assert_eq!(served(&host, address) != second, suite == Suite::Trixie, "{output}");
        let second = served(&host, address);
        // Its account is revoked; a new one is made where a person says so.
        host.sh(REVOKE);
        refused(&host, &second, "without /var/lib/pg-recovery/cert-renew/acme/");
        host.sh("rm -r /var/lib/pg-recovery/cert-renew/acme; pg-cert-renew --force");
        let second = served(&host, address);
        // The authority is down for a day: the old one stays, and tries become rarer.
        host.sh("systemctl stop authority");
        refused(&host, &second, "onnect");
        let tries = host.file(&format!("/var/lib/pg-recovery/cert-renew/{}-main.json", host.version()));
        assert!(tries.read().contains("\"failures\": 1"), "{}", tries.read());
        // It comes back without its accounts.
        host.sh("systemctl stop dns");
        start_authority(&host);
        refused(&host, &second, "without /var/lib/pg-recovery/cert-renew/acme/");
        assert!(tries.read().contains("\"failures\": 2"), "{}", tries.read());
        // A new account, where a person says so.
        host.sh("rm -r /var/lib/pg-recovery/cert-renew/acme; pg-cert-renew --force");
        assert_ne!(served(&host, address), second);
        assert_eq!(host.sh("pg-cert-renew --check | grep -c ^OK"), "1");
    }

    fn twenty_renewals_are_served_and_no_session_is_refused_or_lost(suite: Suite) {
        let (host, authority) = boot(suite);
        offer(&host, &authority.issue(&NAMES, -1, 80));
        let plan = host.sh("pg-cert-renew --plan");
        assert!(plan.contains("to be renewed: "), "{plan}");
        assert!(host.start_and_wait("pg-cert-renew.service").success());
        assert_eq!((served(&host, "127.0.0.1:5432"), served(&host, "[::1]:5432")), (offered(&host), offered(&host)));
        assert!(psql_over_tls(&host, "SELECT 1").success());
        host.journal_of("pg-cert-renew").says("served on 127.0.0.1:5432, [::1]:5432").does_not_say("PRIVATE KEY");

        let client = "psql -XAtq 'host=localhost user=postgres dbname=postgres sslmode=verify-full sslrootcert=/tmp/root.crt'";
        host.run_as_unit("opened", "postgres", &format!(
            "{{ echo 'SELECT 1;'; while [ ! -e /tmp/end ]; do sleep 0.5; done; echo 'SELECT 42;'; }} | {client} > /tmp/opened 2>&1"
        ));
        host.run_as_unit("again-and-again", "postgres", &format!(
            "while [ ! -e /tmp/end ]; do {client} -c 'SELECT 1' >> /tmp/each 2>&1 || echo FAILED >> /tmp/each; sleep 0.3; done"
        ));
        let opened = host.file("/tmp/opened");
        host.wait_until("a session is open", SOON, || opened.exists() && opened.read().contains('1'));
        let (postmaster, each) = (host.postmaster_pid(), host.file("/tmp/each"));
        let sessions = || if each.exists() { each.read().lines().count() } else { 0 };
        for n in 0..20 {
            let before = sessions();
            host.wait_until("a session is opened in between", SOON, || sessions() > before);
            offer(&host, &authority.issue(&NAMES, -1, 81 + n));
            host.sh("pg-cert-renew --force");
            assert_eq!(served(&host, "127.0.0.1:5432"), offered(&host), "renewal {n}");
        }
        host.file("/tmp/end").write("");
        host.wait_until("the open session has lived on", SOON, || opened.read() == "1\n42\n");
        assert!(each.read().lines().all(|line| line == "1"), "{}", each.read());
        assert_eq!(host.postmaster_pid(), postmaster, "never a restart");

        // Nothing is left but what is needed to go back; and a restart takes what is there.
        assert_eq!(host.sh(&format!("ls {} | wc -l", store(&host))), "5");
        let rights = host.sh(&format!("cd {}; stat -Lc '%U %a' . current current/server.key", store(&host)));
        assert_eq!(rights, "postgres 700\npostgres 700\npostgres 600");
        host.sh(&format!("systemctl restart {}", host.unit()));
        host.wait_until_accepting(SOON);
        assert_eq!(served(&host, "127.0.0.1:5432"), offered(&host));
        assert!(host.sh("pg-cert-renew --plan").contains("nothing to do"));

        // Nobody else can read a key at any moment: it is made for its owner alone, in a folder that is for its owner alone.
        offer(&host, &authority.issue(&NAMES, -1, 200));
        host.sh("strace -f -o /tmp/trace -e trace=open,openat,creat,mkdir,mkdirat,chmod,fchmod,fchmodat pg-cert-renew --force");
        let trace = host.file("/tmp/trace").read();
        let keys: Vec<&str> = trace.lines().filter(|line| line.contains("pg-recovery-tls") && line.contains("server.key") && line.contains("O_CREAT")).collect();
        assert!(keys.len() == 1 && keys[0].contains(", 0600) = "), "{keys:?}");
        let folders: Vec<&str> = trace.lines().filter(|line| line.contains("mkdir") && line.contains("pg-recovery")).collect();
        assert!(folders.len() > 1 && folders.iter().all(|line| line.contains(", 0700) = ")), "{folders:?}");
        assert!(!trace.lines().any(|line| line.contains("chmod") && line.contains("server.key")), "{trace}");
        assert!(host.run("ls /run/pg-recovery/cert-renew.*").status != 0, "no key stays in a temporary folder");
    }

    fn whatever_is_wrong_with_a_new_pair_the_old_one_goes_on_being_served(suite: Suite) {
        let (host, authority) = boot(suite);
        let good = authority.issue(&NAMES, -1, 80);
        offer(&host, &good);
        host.sh("pg-cert-renew");
        let before = offered(&host);
        let renewed = |days: i64| authority.issue(&NAMES, -1, days);
        let broken = |issued: Issued, key: &str| Issued { key: key.into(), ..issued };
        let half = renewed(81).chain;
        let half = Issued { chain: half[..half.len() - 300].into(), ..renewed(81) };
        let incomplete = renewed(81);
        let incomplete = Issued { chain: incomplete.certificate.clone(), ..incomplete };
        let backwards = renewed(81);
        let backwards = Issued { chain: format!("{}{}{}", backwards.certificate, authority.root(), &backwards.chain[backwards.certificate.len()..]), ..backwards };
        let stranger = Authority::new();
        for (issued, says) in [
            (broken(renewed(81), &renewed(81).key), "the key does not belong to the certificate"),
            (authority.issue(&NAMES, -90, -1), "has expired"),
            (authority.issue(&NAMES, 1, 90), "is not valid yet"),
            (authority.issue(&["other.example"], -1, 81), "does not cover localhost, but other.example"),
            (incomplete, "the chain is not complete"),
            (backwards, "the chain is not in order"),
            (stranger.issue(&NAMES, -1, 81), "the chain is not complete"),
            (Authority::self_signed(&NAMES, -1, 81), "is signed by itself"),
            (half, "the certificate is not whole"),
            (broken(renewed(81), &"\0".repeat(300)), "the key cannot be read"),
            (Issued { chain: "\0".repeat(2000), ..renewed(81) }, "no certificate"),
            (broken(renewed(81), ""), "the key cannot be read"),
        ] {
            offer(&host, &issued);
            let output = host.run("pg-cert-renew --force");
            assert!(output.stderr.contains(says), "{says}: {output}");
            assert_eq!(served(&host, "127.0.0.1:5432"), before, "{says}");
        }
        host.sh("rm /srv/next.key; ln -s /nowhere /srv/next.key");
        assert!(host.run("pg-cert-renew --force").stderr.contains("has not left a pair"));
        host.sh("rm /srv/next.key");
        host.file("/srv/broken").write("no network\n");
        assert!(host.run("pg-cert-renew --force").stderr.contains("no network"));
        // There is time: one warning, and ever longer pauses.
        let state = host.file(&format!("/var/lib/pg-recovery/cert-renew/{}-main.json", host.version()));
        assert!(state.read().contains("\"failures\": 14"), "{}", state.read());

        // It is told at the level that is right: little is left, and nothing comes.
        host.file("/srv/broken").remove();
        offer(&host, &authority.issue(&NAMES, -80, 10));
        host.sh("pg-cert-renew --force");
        host.file("/srv/broken").write("no network\n");
        assert!(!host.run("pg-cert-renew --force").success(), "10 of 90 days are left");
        let waits = host.run("pg-cert-renew");
        assert!(!waits.success() && waits.stderr.contains("one try failed, the next is in"), "{waits}");
        assert!(host.journal_of("pg-notify").text().is_empty());
    }

    fn killed_at_every_step_a_restart_works_and_the_next_run_completes_it(suite: Suite) {
        let (host, authority) = boot(suite);
        let data = host.data_directory();
        let old = authority.issue(&NAMES, -80, 10);
        host.file("/srv/old.crt").write(&old.chain);
        host.file("/srv/old.key").write(&old.key);
        let plain = |host: &Host| {
            host.sh(&format!("install -o postgres -m 600 /srv/old.crt {data}/server.crt; install -o postgres -m 600 /srv/old.key {data}/server.key"));
            host.psql("ALTER SYSTEM SET ssl_cert_file = 'server.crt'");
            host.psql("ALTER SYSTEM SET ssl_key_file = 'server.key'");
            host.psql("SELECT pg_reload_conf()");
            host.sh(&format!("rm -rf {}", store(host)));
            host.wait_until("the old one is served", SOON, || psql_over_tls(host, "SHOW ssl_cert_file").stdout == "server.crt\n");
        };
        plain(&host);
        offer(&host, &authority.issue(&NAMES, -1, 80));
        host.sh("mount -t tmpfs -o size=4k tmpfs /var/lib/pg-recovery-tls");
        let full = host.run("pg-cert-renew");
        assert!(!full.success() && full.stderr.contains("No space left"), "{full}");
        assert_eq!(psql_over_tls(&host, "SHOW ssl_cert_file").stdout, "server.crt\n");
        host.sh("umount /var/lib/pg-recovery-tls");

        for step in 1..=8 {
            let killed = host.run(&format!("PG_RECOVERY_KILL_BEFORE_STEP={step} pg-cert-renew --force"));
            assert_eq!(killed.status, 137, "step {step}: {killed}");
            assert!(psql_over_tls(&host, "SELECT 1").success(), "step {step}");
            host.sh(&format!("systemctl restart {}", host.unit()));
            host.wait_until_accepting(SOON);
            assert!(psql_over_tls(&host, "SELECT 1").success(), "after a restart, step {step}");
            host.sh("pg-cert-renew --force");
            assert_eq!(served(&host, "127.0.0.1:5432"), offered(&host), "step {step}");
            assert!(host.sh("pg-cert-renew --plan").contains("nothing to do"), "step {step}");
            plain(&host);
        }
        // A key that keeps the server from starting gives way to the one that was seen to be served, and TLS stays on.
        host.sh("pg-cert-renew");
        host.sh(&format!("chmod 644 {0}/current/server.key; echo x > {0}/current/server.crt", store(&host)));
        host.run(&format!("systemctl restart {}", host.unit()));
        host.wait_until("it serves again", Duration::from_secs(120), || psql_over_tls(&host, "SHOW ssl").stdout == "on\n");
        assert_eq!(served(&host, "127.0.0.1:5432"), offered(&host));
        // It is written when all is proven, which is after the first client is served.
        host.wait_until("it is on record", SOON, || host.recoveries().last().is_some_and(|record| record["fault"] == "C5"));
        assert!(host.sh("pg-rollback list").contains("before its certificate is renewed"));
    }

    fn an_expired_certificate_is_renewed_and_its_server_is_never_restarted_for_it(suite: Suite) {
        let (host, authority) = boot(suite);
        faults::c6_certificate_expired::prepare(&host);
        host.sh("systemctl stop pg-health-check.timer");
        let (postmaster, begun) = (host.postmaster_pid(), host.recoveries().len());
        faults::c6_certificate_expired::inject(&host, &authority.issue(&NAMES, -90, -1));
        host.wait_until("clients that verify it are refused", SOON, || {
            psql_over_tls(&host, "SELECT 1").stderr.contains("certificate verify failed")
        });
        let plan = host.run("pg-recover --plan").stdout;
        assert!(plan.contains("C6") && plan.contains("renew-certificate"), "{plan}");

        // The authority is away: told, once tried and not in a loop, and the server is as it was.
        host.file("/srv/broken").write("no network\n");
        let of_tries = || host.journal_of("pg-cert-renew").count("no network");
        for _ in 0..2 {
            assert_eq!(host.run("pg-recover").status, 1);
        }
        let failed: Vec<_> = host.recoveries().split_off(begun);
        assert!(failed.len() == 2 && failed.iter().all(|record| record["fault"] == "C6" && record["outcome"] == "failed"), "{failed:#?}");
        let said = host.journal_of("pg-cert-renew");
        assert_eq!(said.count("one try failed, the next is in"), 1, "{}", said.text());
        assert_eq!((of_tries(), host.postmaster_pid()), (1, postmaster));
        // What ails the certificate keeps nothing from healing the server.
        let verdict = host.file(&format!("/var/lib/pg-recovery/recover/{}-main.json", host.version()));
        assert!(!verdict.exists() || verdict.read().contains("\"attempts\": 0"), "{}", verdict.read());

        // It is back, and so is the health check: three passes later the new one is served.
        host.file("/srv/broken").remove();
        offer(&host, &authority.issue(&NAMES, -1, 80));
        host.sh("rm /var/lib/pg-recovery/cert-renew/*-main.json");
        for failures in 1..=3 {
            host.start_and_wait("pg-health-check.service");
            let state = host.property_of("pg-health-check.service", "ExecMainStatus");
            assert_eq!(state, if failures < 3 { "2" } else { "10" });
        }
        host.wait_until("it is renewed", SOON, || host.recoveries().last().is_some_and(|record| record["outcome"] == "recovered"));
        let healed = host.recoveries().pop().expect("there is one");
        assert_eq!((&healed["fault"], &healed["detected_by"]), (&"C6".into(), &"pg-recover".into()), "{healed:#}");
        assert_eq!(served(&host, "127.0.0.1:5432"), offered(&host));
        assert!(psql_over_tls(&host, "SELECT 1").success());
        assert_eq!(host.postmaster_pid(), postmaster, "never a restart");
    }

    fn names_are_proven_by_a_web_server_and_by_dns_and_who_is_asked_too_often_is_left_alone(suite: Suite) {
        let host = boot_with_authority(suite);
        let address = "127.0.0.1:5432";
        let snakeoil = served(&host, address);
        let folder = "/srv/www/.well-known/acme-challenge";
        use_acme(&host, "[\"pg.example.test\"]", &format!("webroot = \"{folder}\""));
        host.file("/srv/acme-root.crt").write("");
        host.file("/usr/local/lib/limit").write(LIMIT);
        host.run_as_unit("limit", "root", "exec bash /usr/local/lib/limit");
        host.wait_until("it answers", SOON, || host.run("ss -Hltn sport = 14000").stdout.contains("14000"));
        let limited = host.run("pg-cert-renew");
        assert!(limited.stderr.contains("it asks to be left alone until 2"), "{limited}");
        let asked = || host.run("grep -c ^GET /srv/asked").stdout;
        let before = asked();
        let waits = host.run("pg-cert-renew");
        assert!(waits.stderr.contains("one try failed, the next is in 1"), "{waits}");
        assert_eq!((asked(), served(&host, address)), (before, snakeoil.clone()));
        assert!(known(&host)["not_before"].as_i64().is_some(), "{}", known(&host));
        host.sh("systemctl stop limit");

        start_authority(&host);
        host.sh(&format!("mkdir -p {folder}"));
        host.file("/usr/local/lib/web.pl").write(WEB_SERVER);
        host.run_as_unit("web", "root", "exec perl /usr/local/lib/web.pl");
        host.wait_until("the web server listens", SOON, || host.run("(: </dev/tcp/127.0.0.1/80)").success());
        host.sh("strace -f -o /tmp/trace -e trace=open,openat,creat,chmod,fchmod,fchmodat pg-cert-renew --force");
        assert_keys_are_private(&host.file("/tmp/trace").read());
        let by_web = served(&host, address);
        assert_ne!(by_web, snakeoil);
        assert!(host.file("/srv/www.log").read().contains("/.well-known/acme-challenge/"));
        assert_eq!(host.sh(&format!("ls {folder}")), "", "what was to be shown has been seen");
        assert!(known(&host)["not_before"].is_null());

        host.file("/usr/local/sbin/our-dns").write(HOOK);
        host.sh("chmod 755 /usr/local/sbin/our-dns; systemctl stop web");
        let dns = "challenge = \"dns-01\"\nhook = [\"/usr/local/sbin/our-dns\"]";
        use_acme(&host, "[\"*.db.example.test\", \"db.example.test\"]", dns);
        // The names are others now, which is reason enough.
        assert!(host.start_and_wait("pg-cert-renew.service").success());
        assert_ne!(served(&host, address), by_web);
        let hook = host.file("/srv/hook.log").read();
        let record = "_acme-challenge.db.example.test";
        assert_eq!(hook, format!("add {record}\nadd {record}\nremove {record}\nremove {record}\n"));
        let served = "echo | openssl s_client -starttls postgres -connect 127.0.0.1:5432 2>/dev/null";
        assert!(host.sh(&format!("{served} | openssl x509 -noout -ext subjectAltName")).contains("DNS:*.db.example.test"));
    }

    fn an_authority_of_the_host_signs_lego_is_watched_and_what_is_anothers_is_refused(suite: Suite) {
        let host = Host::boot(suite);
        let address = "127.0.0.1:5432";
        let (snakeoil, name) = (served(&host, address), host.cluster());
        host.configure(&format!("[[tls.certificate]]\nname = \"{name}\"\nsource = \"ca\"\nkey = \"rsa\"\nnames = [\"localhost\"]\n"));
        let own = host.file(&format!("{}/conf.d/own.conf", host.configuration_directory()));
        let set = |setting: &str, value: &str, lines: &str| {
            own.write(lines);
            host.psql("SELECT pg_reload_conf()");
            host.wait_until("the server has it", SOON, || host.psql(&format!("SHOW {setting}")) == value);
        };
        let refused = |why: &str| refused(&host, &snakeoil, why);
        set("ssl_passphrase_command", "/bin/false", "ssl_passphrase_command = '/bin/false'\n");
        refused("keeps its key encrypted");
        set("ssl_passphrase_command", "", "");
        if suite == Suite::Trixie {
            set("allow_alter_system", "off", "allow_alter_system = off\n");
            let hint = refused("has allow_alter_system = off");
            assert!(hint.contains("the pair that it has is there already"), "{hint}");
            // A person does as the hint says.
            let store = format!("{}/current", store(&host));
            set("ssl_key_file", &format!("{store}/server.key"), &format!(
                "allow_alter_system = off\nssl_cert_file = '{store}/server.crt'\nssl_key_file = '{store}/server.key'\n"
            ));
            assert_eq!(served(&host, address), snakeoil);
        }
        host.sh("strace -f -o /tmp/trace -e trace=open,openat,creat,chmod,fchmod,fchmodat pg-cert-renew --force");
        assert_keys_are_private(&host.file("/tmp/trace").read());
        let handshake = "echo | openssl s_client -starttls postgres -connect 127.0.0.1:5432 -verify_return_error \
                         -verify_hostname localhost -CAfile /var/lib/pg-recovery-tls/ca.crt 2>/dev/null";
        assert!(host.sh(&format!("{handshake} | openssl x509 -noout -text")).contains("rsaEncryption"));
        // Wherever there is a key, recovery points too, it is for its owner alone.
        let keys = "grep -rl 'PRIVATE KEY' /var/lib/pg-recovery /var/lib/pg-recovery-tls /etc/pg-recovery /run/pg-recovery";
        let files = host.run(keys).stdout;
        for place in ["/points/", "credentials/cert-renew/ca.key", "server.key"] {
            assert!(files.contains(place), "{place}: {files}");
        }
        assert_eq!(host.sh(&format!("{keys} | xargs stat -c %a | sort -u")), "600");

        let authority = Authority::new();
        host.file("/srv/root.crt").write(authority.root());
        configure(&host, "source = \"directory\"\ndirectory = \"/srv/lego/certificates\"");
        offer(&host, &authority.issue(&NAMES, -1, 200));
        host.sh("install -d -m 700 /srv/lego /srv/lego/certificates; cd /srv/lego/certificates; \
                 install -m 600 /srv/next.key localhost.key; install -m 600 /srv/next.crt localhost.crt");
        assert!(host.start_and_wait("pg-cert-renew.service").success());
        assert_eq!(served(&host, address), offered(&host));
    }

    fn what_ends_is_shown_until_then_and_told_once(suite: Suite) {
        let (host, authority) = boot(suite);
        host.file("/etc/pg-recovery/config.d/told.toml").write(
            "[notify]\ndelay = \"0s\"\n[[notify.channel]]\nname = \"own\"\nkind = \"exec\"\ncommand = [\"/usr/local/bin/own\"]\n",
        );
        host.file("/usr/local/bin/own").write("#!/bin/sh\n{ cat; echo; } >> /var/lib/pg-recovery/notify/own\n");
        host.sh("chmod 755 /usr/local/bin/own");
        offer(&host, &authority.issue(&NAMES, -1, 80));
        host.sh("pg-cert-renew");
        let pass = || {
            host.sh("systemctl reset-failed pg-health-check.service");
            host.start_and_wait("pg-health-check.service");
            let checks = host.json(&format!("cat /var/lib/pg-recovery/health/{}-main.json", host.version()));
            let find = |name: &str| checks["checks"].as_array().and_then(|all| all.iter().find(|check| check["name"] == name)).cloned();
            (find("certificate").expect("a certificate"), find("certificate_files").unwrap_or_default())
        };
        assert_eq!(pass().0["status"], "ok");
        let screen = host.sh("pg-status");
        assert!(screen.contains("days are left, its renewal is due in 5"), "{screen}");
        let shown = host.json("pg-status --json")["clusters"][0]["certificate"].clone();
        assert_eq!((shown["renewal_days"].as_i64().map(|days| days / 10), shown["failures"].as_u64()), (Some(5), Some(0)), "{shown}");
        let metrics = host.sh("pg-status --metrics");
        for name in ["certificate_remaining_seconds", "certificate_renewal_timestamp_seconds", "certificate_renewal_failures"] {
            assert!(metrics.contains(&format!("pg_recovery_{name}{{cluster=\"{}\"}}", host.cluster())), "{name}: {metrics}");
        }

        let put = |authorities: &str, list: &str| {
            host.file("/etc/ssl/clients.crt").write(authorities);
            host.file("/etc/ssl/clients.crl").write(list);
            host.sh("chmod 644 /etc/ssl/clients.*");
        };
        let clients = authority.issue(&["clients"], -350, 15);
        put(&clients.certificate, &authority.revocation_list(-1, 30));
        for (setting, file) in [("ssl_ca_file", "/etc/ssl/clients.crt"), ("ssl_crl_file", "/etc/ssl/clients.crl")] {
            host.psql(&format!("ALTER SYSTEM SET {setting} = '{file}'"));
        }
        host.psql("SELECT pg_reload_conf()");
        host.wait_until("it has them", SOON, || host.psql("SHOW ssl_crl_file") == "/etc/ssl/clients.crl");
        let (_, soon) = pass();
        assert!(soon["status"] == "warning" && soon["message"].as_str().is_some_and(|text| text.contains("CN=clients")), "{soon}");
        put(&format!("{}{}", clients.certificate, authority.root()), &authority.revocation_list(-1, 30));
        assert_eq!(pass().1["status"], "ok", "the next authority is there already");
        put(authority.root(), &authority.revocation_list(-30, -2));
        let (_, over) = pass();
        assert!(over["status"] == "critical" && over["message"].as_str().is_some_and(|text| text.contains("it expired 2 days ago")), "{over}");
        put(&authority.issue(&["clients"], -350, -1).certificate, &authority.revocation_list(-1, 30));
        let (_, over) = pass();
        assert!(over["status"] == "critical" && over["message"].as_str().is_some_and(|text| text.contains("/etc/ssl/clients.crt")), "{over}");
        for _ in 0..3 {
            pass();
            host.start_and_wait("pg-notify@test.service");
        }
        let told = host.file("/var/lib/pg-recovery/notify/own").read();
        let about = |line: &&str| line.contains("\"kind\":\"trouble\"") && line.contains("certificate_files") && line.contains("critical");
        assert_eq!(told.lines().filter(about).count(), 1, "{told}");

        // Who signs is down. That is nobody's night while there is time, and somebody's when there is not.
        put(authority.root(), &authority.revocation_list(-1, 30));
        let unit = "pg-cert-renew.service";
        let failing = |days: i64| {
            offer(&host, &authority.issue(&NAMES, days - 365, days));
            host.sh("rm -f /srv/broken; pg-cert-renew --force; echo the authority is down > /srv/broken");
            host.start_and_wait(unit).success()
        };
        assert!(failing(110));
        host.journal_of("pg-cert-renew").says("the authority is down").says("good for long enough, trying again later");
        assert!(!failing(20));
        host.wait_until("it is told", SOON, || {
            let told = host.file("/var/lib/pg-recovery/notify/own").read();
            let about = |line: &&str| line.contains("\"kind\":\"trouble\"") && line.contains("critical") && line.contains(unit);
            told.lines().filter(about).count() == 1
        });

        // An hour goes by, two, and one more: the pauses grow.
        let tries = || known(&host)["failures"].as_u64().expect("a number");
        let file = host.file(&format!("/var/lib/pg-recovery/cert-renew/{}-main.json", host.version()));
        for (hours, failures) in [(0.0, 1), (1.05, 2), (1.05, 2), (1.0, 3), (2.1, 3), (2.0, 4)] {
            let mut known = known(&host);
            for clock in ["wall", "boot"] {
                known["at"][clock] = (known["at"][clock].as_f64().expect("a number") - 3600.0 * hours).into();
            }
            file.write(known.to_string());
            assert!(!host.start_and_wait(unit).success(), "it is no less true while it waits");
            assert_eq!(tries(), failures, "{hours}");
        }
    }

    fn what_certbot_renews_is_served_within_a_minute(suite: Suite) {
        let (host, authority) = boot(suite);
        let live = "/etc/letsencrypt/live/db.example";
        let renew = |n: u32, issued: &Issued| {
            let archive = "/etc/letsencrypt/archive/db.example";
            offer(&host, issued);
            host.sh(&format!(
                "install -d -m 700 /etc/letsencrypt/live /etc/letsencrypt/archive; mkdir -p {archive} {live}; \
                 install -m 644 /srv/next.crt {archive}/fullchain{n}.pem; install -m 600 /srv/next.key {archive}/privkey{n}.pem; \
                 ln -sfn ../../archive/db.example/privkey{n}.pem {live}/privkey.pem; \
                 ln -sfn ../../archive/db.example/fullchain{n}.pem {live}/fullchain.pem"
            ));
        };
        renew(1, &authority.issue(&NAMES, -1, 80));
        configure(&host, &format!("source = \"directory\"\ndirectory = \"{live}\""));
        assert!(host.start_and_wait("pg-cert-renew.service").success());
        assert_eq!(served(&host, "127.0.0.1:5432"), offered(&host));
        for n in 2..4 {
            host.wait_for_state("pg-cert-renew.service", "inactive", SOON);
            renew(n, &authority.issue(&NAMES, -1, 80 + i64::from(n)));
            host.wait_until("it is served", SOON, || served(&host, "127.0.0.1:5432") == offered(&host));
        }
        assert!(psql_over_tls(&host, "SELECT 1").success());
        host.journal_of("pg-cert-renew").says("there is a new one").does_not_say("rror");
    }

    fn a_service_that_does_not_take_a_new_pair_has_the_old_one_again(suite: Suite) {
        let host = Host::boot(suite);
        let pair = "/var/lib/pg-recovery-tls/web/current";
        host.file("/etc/systemd/system/web.service").write(format!(
            "[Service]\nExecStart=openssl s_server -quiet -accept 127.0.0.1:8443 -cert {pair}/server.crt -key {pair}/server.key\n\
             ExecReload=/bin/true\n"
        ));
        host.configure(
            "[[tls.certificate]]\nname = \"web\"\nsource = \"self-signed\"\nnames = [\"web.example\", \"127.0.0.1\"]\n\
             owner = \"nobody\"\nreload = \"web.service\"\naddresses = [\"127.0.0.1:8443\"]\nprotocol = \"tls\"\n",
        );
        let served = || fingerprint(&host, "echo | timeout 20 openssl s_client -connect 127.0.0.1:8443 2>/dev/null");
        let in_place = || fingerprint(&host, &format!("cat {pair}/server.crt"));
        // It cannot run before there is a pair, so the first one is proven by the next run.
        assert!(!host.start_and_wait("pg-cert-renew.service").success());
        host.sh("systemctl start web");
        host.wait_until("it listens", SOON, || !host.run("ss -Hltn sport = 8443").stdout.is_empty());
        assert!(host.start_and_wait("pg-cert-renew.service").success());
        assert_eq!(host.sh(&format!("stat -Lc '%U %a' {pair}/server.key")), "nobody 600");
        let first = in_place();
        assert_eq!(served(), first);

        let output = host.run("pg-cert-renew --force");
        assert!(!output.success() && output.stderr.contains("putting the last good pair back"), "{output}");
        assert!(output.stderr.contains("web has its last good certificate again, served on 127.0.0.1:8443"), "{output}");
        assert_eq!((served(), in_place()), (first.clone(), first));
    }

    fn what_nobody_has_told_is_left_alone_but_for_the_snake_oil_that_expires(suite: Suite) {
        let host = Host::boot(suite);
        let snakeoil = "/etc/ssl/certs/ssl-cert-snakeoil.pem";
        let was = served(&host, "127.0.0.1:5432");
        assert!(host.start_and_wait("pg-cert-renew.service").success());
        host.journal_of("pg-cert-renew").says("nothing to do");
        assert_eq!(served(&host, "127.0.0.1:5432"), was);

        // Signed by an authority, expired, and of nobody's configuration: told, not touched.
        let put = |issued: &Issued| {
            host.file(snakeoil).write(&issued.chain);
            host.file("/etc/ssl/private/ssl-cert-snakeoil.key").write(&issued.key);
            host.psql("SELECT pg_reload_conf()");
            offer(&host, issued);
            host.wait_until("it is served", SOON, || served(&host, "127.0.0.1:5432") == offered(&host));
        };
        let authority = Authority::new();
        put(&authority.issue(&["pghost"], -90, -1));
        host.sh("pg-cert-renew --force");
        assert_eq!(served(&host, "127.0.0.1:5432"), offered(&host));
        let check = host.run("pg-cert-renew --check");
        assert!(!check.success() && check.stdout.contains("CRITICAL"), "{check}");
        assert!(check.stdout.contains("expired 1 days ago"), "{check}");

        put(&Authority::self_signed(&["pghost"], -3640, 10));
        let key = host.sh("stat -c '%U:%G %a' /etc/ssl/private/ssl-cert-snakeoil.key");
        assert!(host.start_and_wait("pg-cert-renew.service").success());
        assert_ne!(served(&host, "127.0.0.1:5432"), offered(&host));
        let new = host.json("pg-cert-renew --check --json");
        assert_eq!(new["certificates"][0]["status"], "ok", "{new}");
        assert_eq!(fingerprint(&host, &format!("cat {snakeoil}")), offered(&host), "the host's own file is as it was");
        assert_eq!(host.sh("stat -c '%U:%G %a' /etc/ssl/private/ssl-cert-snakeoil.key"), key);
        host.sh(&format!("systemctl restart {}", host.unit()));
        host.wait_until_accepting(SOON);
        assert_ne!(served(&host, "127.0.0.1:5432"), offered(&host));
    }
}
