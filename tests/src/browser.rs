//! A headless Chromium (Debian's package), driven by its DevTools protocol: what a person would see and press.

mod protocol;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::netns::NsHandle;
use crate::owner::OwnedDir;
use crate::process::Process;
use protocol::Session;

/// A browser takes its time on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

/// A headless browser, to which arguments can be added. Whatever it writes, also into temporary directories, is below `home`.
pub fn command(namespace: &NsHandle, home: &Path) -> Result<Command> {
    let temporary = home.join("tmp");
    fs::create_dir_all(&temporary)?;
    let mut command = namespace.command("chromium");
    command.env("HOME", home).env("TMPDIR", temporary).args([
        "--headless=new",
        // In a namespace of the tests, as root, its sandbox does not work.
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
    ]);
    command.arg(format!("--user-data-dir={}", profile(home).display()));
    Ok(command)
}

fn profile(home: &Path) -> PathBuf {
    home.join("profile")
}

/// A browser with one page.
#[derive(Debug)]
pub struct Browser {
    session: Session,
    /// Before its profile.
    _process: Process,
    scratch: OwnedDir,
}

impl Browser {
    /// Starts it in a namespace, with an empty page, and with these switches beside the usual ones.
    pub fn start(namespace: &NsHandle, switches: &[&str]) -> Result<Self> {
        let scratch = OwnedDir::scratch("browser")?;
        let mut command = command(namespace, scratch.path())?;
        command.args(["--hide-scrollbars", "--remote-debugging-port=0"]);
        command.args(switches).arg("about:blank");
        let process = Process::spawn("chromium", command)?;
        const SAYS: &str = "DevTools listening on ";
        let line = process.wait_for_line(PATIENCE, |line| line.starts_with(SAYS))?;
        let url = line.trim_start_matches(SAYS).trim();
        let mut session = Session::connect(namespace, url, PATIENCE)?;
        for domain in ["Page", "Runtime", "Log"] {
            session.call(&format!("{domain}.enable"), json!({}))?;
        }
        // Else nothing has the focus where no window has it.
        session.call("Emulation.setFocusEmulationEnabled", json!({ "enabled": true }))?;
        Ok(Self { session, _process: process, scratch })
    }

    /// Where its socket lies, which it makes in a temporary directory.
    pub fn socket(&self) -> Result<PathBuf> {
        let link = profile(self.scratch.path()).join("SingletonSocket");
        fs::read_link(&link).with_context(|| format!("{}", link.display()))
    }

    /// All that it writes lies below, and goes with it.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Opens a page, and waits until its scripts have run.
    pub fn open(&mut self, url: &str) -> Result<()> {
        let answer = self.session.call("Page.navigate", json!({ "url": url }))?;
        if let Some(error) = answer["errorText"].as_str() {
            bail!("{url}: {error}");
        }
        self.wait_for(url, "document.readyState === 'complete'").map(drop)
    }

    /// The value of an expression in the page; of a promise, what it comes to.
    pub fn value(&mut self, expression: &str) -> Result<Value> {
        let asked =
            json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let answer = self.session.call("Runtime.evaluate", asked)?;
        let failed = &answer["exceptionDetails"];
        ensure!(failed.is_null(), "{expression}: {failed}");
        Ok(answer["result"]["value"].clone())
    }

    /// Waits until an expression is true in the page's sense, and returns its value.
    pub fn wait_for(&mut self, what: &str, expression: &str) -> Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // A page that is on its way to another one has no values.
            let value = self.value(expression);
            if let Ok(value) = &value
                && is_true(value)
            {
                return Ok(value.clone());
            }
            if Instant::now() >= deadline {
                let text = self.value("document.body.innerText").unwrap_or_default();
                let said = self.complaints().join("\n");
                bail!("{what}: {expression} is {value:?} after {PATIENCE:?}; {said}\n{text}");
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Makes the window so wide and high, and the page light or dark.
    pub fn look(&mut self, width: u32, height: u32, dark: bool) -> Result<()> {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.session.call("Emulation.setDeviceMetricsOverride", size)?;
        let scheme = if dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.session.call("Emulation.setEmulatedMedia", json!({ "features": features })).map(drop)
    }

    /// Presses a key: `Tab`, `Enter`, `Escape` or a letter.
    pub fn press(&mut self, key: &str) -> Result<()> {
        let (code, text) = match key {
            "Tab" => (9, None),
            "Enter" => (13, Some("\r")),
            "Escape" => (27, None),
            _ => (0, Some(key)),
        };
        let mut event = json!({ "key": key, "code": key, "windowsVirtualKeyCode": code });
        for kind in ["keyDown", "keyUp"] {
            event["type"] = kind.into();
            if let Some(text) = text.filter(|_| kind == "keyDown") {
                event["text"] = text.into();
            } else if let Some(event) = event.as_object_mut() {
                event.remove("text");
            }
            self.session.call("Input.dispatchKeyEvent", event.clone())?;
        }
        Ok(())
    }

    /// Types into what has the focus.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        self.session.call("Input.insertText", json!({ "text": text })).map(drop)
    }

    /// Presses Tab until what has the focus satisfies an expression about `it`.
    pub fn tab_to(&mut self, wish: &str) -> Result<()> {
        const MOST: usize = 200;
        let expression = format!("((it) => Boolean({wish}))(document.activeElement)");
        for _ in 0..MOST {
            self.press("Tab")?;
            if self.value(&expression)? == true {
                return Ok(());
            }
        }
        bail!("{MOST} times Tab, and the focus was never where {wish}")
    }

    /// Writes what is in the window to a PNG file.
    pub fn screenshot(&mut self, path: &Path) -> Result<()> {
        let answer = self.session.call("Page.captureScreenshot", json!({ "format": "png" }))?;
        let data = answer["data"].as_str().context("no picture")?;
        fs::write(path, STANDARD.decode(data)?).with_context(|| path.display().to_string())
    }

    /// What the page's console has complained of so far: exceptions, errors, violated policies.
    pub fn complaints(&self) -> Vec<String> {
        self.session.complaints()
    }
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        _ => true,
    }
}
