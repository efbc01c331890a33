//! A browser: headless Chromium of the computer that runs the tests, within the network of a machine.
//!
//! It is spoken to over a pipe: JSON, each message ended by a zero byte, in the words of the DevTools protocol
//! (<https://chromedevtools.github.io/devtools-protocol/>). It ends with the pipe.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};

use crate::Host;

/// For an answer of a browser on a busy computer.
const PATIENCE: Duration = Duration::from_secs(60);

/// No sandbox, for root has none to give; no talk with anybody but the machine.
const ARGUMENTS: &str = "--no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run --hide-scrollbars \
    --disable-background-networking --disable-component-update --disable-sync --disable-extensions --remote-debugging-pipe";

/// A running browser with one tab, which belongs to a machine and ends with it.
pub struct Browser {
    running: Child,
    say: ChildStdin,
    heard: Receiver<Value>,
    last: u64,
    session: Value,
}

impl Browser {
    /// Starts one. It is installed by `tests/run` when a fact is to be run whose name begins with `in_a_browser`.
    pub fn start(host: &Host) -> Browser {
        let network = format!("--net=/proc/{}/ns/net", host.leader());
        let home = host.outside().join("browser");
        let mut command = host.beside(Path::new("/bin/sh"));
        // What it is to read comes in at 3, what it says leaves at 4.
        command
            .args([
                "-c",
                r#"exec 3<&0 4>&1 </dev/null >/dev/null; exec nsenter "$0" chromium-headless-shell "$@""#,
                &network,
            ])
            .args(ARGUMENTS.split_whitespace())
            .arg(format!("--user-data-dir={}", home.display()))
            .arg("about:blank")
            .env("HOME", &home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut running = command.spawn().expect("sh can be started");
        let say = running.stdin.take().expect("it is a pipe");
        let from = BufReader::new(running.stdout.take().expect("it is a pipe"));
        let (tell, heard) = channel();
        std::thread::spawn(move || {
            let messages = from.split(0).map_while(Result::ok);
            messages
                .filter_map(|message| serde_json::from_slice(&message).ok())
                .try_for_each(|message| tell.send(message))
        });
        let mut browser = Browser { running, say, heard, last: 0, session: Value::Null };
        let tab = browser.ask("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let session = browser.ask("Target.attachToTarget", json!({ "targetId": tab, "flatten": true }));
        browser.session = session["sessionId"].clone();
        browser.ask("Page.enable", json!({}));
        browser
    }

    /// Asks for one thing, and returns its result.
    #[track_caller]
    fn ask(&mut self, method: &str, parameters: Value) -> Value {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": parameters });
        if !self.session.is_null() {
            message["sessionId"] = self.session.clone();
        }
        let sent = self.say.write_all(format!("{message}\0").as_bytes());
        assert!(sent.is_ok(), "{method}: chromium does not run: {sent:?}");
        let id = self.last;
        let answer = self.wait_for(method, |heard| heard["id"] == id);
        assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
        answer["result"].clone()
    }

    #[track_caller]
    fn wait_for(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        while let Ok(heard) = self.heard.recv_timeout(until.saturating_duration_since(Instant::now())) {
            if is_it(&heard) {
                return heard;
            }
        }
        panic!("{what}: chromium said nothing for {PATIENCE:?} or has ended: {:?}", self.running.try_wait());
    }

    /// Has a window of this width in CSS pixels, on a phone or not, in front of somebody who likes it light or dark.
    #[track_caller]
    pub fn be(&mut self, width: u32, is_phone: bool, scheme: &str) {
        let size =
            json!({ "width": width, "height": 800, "deviceScaleFactor": 1 + u8::from(is_phone), "mobile": is_phone });
        self.ask("Emulation.setDeviceMetricsOverride", size);
        let scheme = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.ask("Emulation.setEmulatedMedia", json!({ "features": scheme }));
    }

    /// Goes to a page, and waits until all of it is there.
    #[track_caller]
    pub fn go(&mut self, address: &str) {
        let went = self.ask("Page.navigate", json!({ "url": address }));
        assert!(went["errorText"].is_null(), "{address}: {went}");
        self.wait_for(address, |heard| heard["method"] == "Page.loadEventFired");
    }

    /// What a piece of JavaScript finds in the page that is shown. The page itself is not allowed any.
    #[track_caller]
    pub fn look(&mut self, script: &str) -> Value {
        let answer = self.ask("Runtime.evaluate", json!({ "expression": script, "returnByValue": true }));
        assert!(answer["exceptionDetails"].is_null(), "{script}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Presses the mouse in the middle of the first thing that a selector finds, and waits for the page behind it.
    #[track_caller]
    pub fn click(&mut self, selector: &str) {
        let middle = self.look(&format!(
            "(e => {{ e.scrollIntoView({{ block: 'center' }}); const r = e.getBoundingClientRect(); \
             return [r.x + r.width / 2, r.y + r.height / 2] }})(document.querySelector({selector:?}))"
        ));
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({ "type": kind, "x": middle[0], "y": middle[1], "button": "left", "clickCount": 1 });
            self.ask("Input.dispatchMouseEvent", event);
        }
        self.wait_for(selector, |heard| heard["method"] == "Page.loadEventFired");
    }

    /// Keeps all of the page as a picture, `NAME.png` in `target/screenshots`, for people to look at.
    #[track_caller]
    pub fn picture(&mut self, name: &str) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/screenshots");
        std::fs::create_dir_all(&folder).expect("a folder can be made there");
        let mut clip = self.ask("Page.getLayoutMetrics", json!({}))["cssContentSize"].clone();
        clip["scale"] = 1.into();
        let picture = self.ask("Page.captureScreenshot", json!({ "captureBeyondViewport": true, "clip": clip }));
        let file = folder.join(format!("{name}.png"));
        let data = BASE64_STANDARD.decode(picture["data"].as_str().expect("it is text")).expect("it is base64");
        std::fs::write(&file, data).unwrap_or_else(|error| panic!("could not write {}: {error}", file.display()));
    }
}
