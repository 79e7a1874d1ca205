//! Chromium without a window, told what to do in its own protocol over a socket.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, timeout},
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, tungstenite::Message};

const LIMIT: Duration = Duration::from_secs(60);

/// A browser with one page. It ends with this, and with the thread that started it.
pub(crate) struct Browser {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    session: Option<String>,
    next: u64,
    /// What the page complained of.
    pub(crate) errors: Vec<String>,
    _child: Child,
    _profile: TempDir,
}

fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let places = std::env::split_paths(&path).collect::<Vec<_>>();
    let mut candidates = names.iter().flat_map(|name| places.iter().map(move |dir| dir.join(name)));
    let found = candidates.find(|program| program.is_file());
    found.expect("needs chromium (apt-get install chromium)")
}

impl Browser {
    pub(crate) async fn start() -> Self {
        let profile = mainstay_test_support::temporary();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program());
        // Root has no sandbox; the page is our own.
        command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]);
        command.args(["--disable-dev-shm-usage", "--hide-scrollbars", "--no-proxy-server"]);
        command.args(["--disable-background-networking", "--disable-component-update"]);
        command.args(["--remote-debugging-port=0", "about:blank"]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = timeout(LIMIT, async {
            loop {
                let line = lines.next_line().await.unwrap().expect("chromium ended");
                if let Some(address) = line.strip_prefix("DevTools listening on ") {
                    break address.to_owned();
                }
            }
        });
        let address = address.await.expect("chromium says where it listens");
        // It would stop when nobody reads what it says.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let (socket, _) = tokio_tungstenite::connect_async(address).await.unwrap();
        let (_child, _profile) = (child, profile);
        let mut browser =
            Self { socket, session: None, next: 0, errors: Vec::new(), _child, _profile };
        let page = browser.tell("Target.createTarget", json!({"url": "about:blank"})).await;
        let target = json!({"targetId": page["targetId"], "flatten": true});
        let session = browser.tell("Target.attachToTarget", target).await;
        browser.session = Some(session["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.tell(&format!("{domain}.enable"), json!({})).await;
        }
        browser
    }

    /// One command, and its result.
    pub(crate) async fn tell(&mut self, method: &str, parameters: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut order = json!({"id": id, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            order["sessionId"] = session.clone().into();
        }
        self.socket.send(Message::text(order.to_string())).await.unwrap();
        timeout(LIMIT, async {
            loop {
                let message = self.hear().await;
                if message["id"] == id {
                    assert!(message["error"].is_null(), "{method}: {message}");
                    break message["result"].clone();
                }
            }
        })
        .await
        .unwrap_or_else(|_| panic!("no answer to {method}"))
    }

    async fn hear(&mut self) -> Value {
        loop {
            let message = self.socket.next().await.expect("chromium ended").unwrap();
            let Message::Text(text) = message else { continue };
            let message: Value = serde_json::from_str(&text).unwrap();
            let parameters = &message["params"];
            match message["method"].as_str() {
                Some("Runtime.exceptionThrown") => {
                    self.errors.push(parameters["exceptionDetails"].to_string());
                }
                Some("Runtime.consoleAPICalled") if parameters["type"] == "error" => {
                    self.errors.push(parameters["args"].to_string());
                }
                Some("Log.entryAdded") if parameters["entry"]["level"] == "error" => {
                    self.errors.push(parameters["entry"]["text"].to_string());
                }
                _ => {}
            }
            return message;
        }
    }

    pub(crate) async fn open(&mut self, url: &str) {
        let answer = self.tell("Page.navigate", json!({"url": url})).await;
        assert!(answer["errorText"].is_null(), "{url}: {answer}");
        self.until("document.readyState === 'complete'").await;
    }

    /// The value of an expression in the page.
    pub(crate) async fn ask(&mut self, expression: &str) -> Value {
        let order = json!({
            "expression": expression, "returnByValue": true, "awaitPromise": true,
            "userGesture": true,
        });
        let answer = self.tell("Runtime.evaluate", order).await;
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression in the page is true, which the page sees to in its own time.
    pub(crate) async fn until(&mut self, expression: &str) {
        let began = Instant::now();
        while self.ask(expression).await != true {
            if began.elapsed() > LIMIT {
                let page = self.ask("document.body.innerText").await;
                panic!("never so: {expression}\n{}", page.as_str().unwrap_or_default());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The width of a window or of a phone; in CSS pixels.
    pub(crate) async fn size(&mut self, width: u32, height: u32) {
        let phone = width < 600;
        let order = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone,
        });
        self.tell("Emulation.setDeviceMetricsOverride", order).await;
    }

    pub(crate) async fn dark(&mut self, on: bool) {
        let value = if on { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": value}]);
        self.tell("Emulation.setEmulatedMedia", json!({"features": features})).await;
    }

    pub(crate) async fn press(&mut self, key: &str, code: u32) {
        for kind in ["keyDown", "keyUp"] {
            let text = if key == "Enter" && kind == "keyDown" { "\r" } else { "" };
            let order = json!({
                "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text,
            });
            self.tell("Input.dispatchKeyEvent", order).await;
        }
    }

    /// Kept beside the test's binary, in `target/`, for people to look at.
    pub(crate) async fn picture(&mut self, name: &str) {
        let answer = self.tell("Page.captureScreenshot", json!({"format": "png"})).await;
        let encoded = answer["data"].as_str().unwrap();
        let engine = base64::engine::general_purpose::STANDARD;
        let bytes = base64::Engine::decode(&engine, encoded).unwrap();
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(format!("{name}.png")), bytes).unwrap();
    }
}
