//! The dashboard in Chromium: what a person sees and presses, and what a page of another site cannot do. Needs root and
//! Chromium: `cargo xtask test --full` installs it.
//!
//! `SLUICE_SCREENSHOT=docs/dashboard.png cargo test -p tests --features web --test e2e_dashboard shows` makes the picture
//! of the README again, and some for a look in the directory for temporary files.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tests::browser::Browser;
use tests::chat::LoadConfig;
use tests::edge::{EdgeConfig, Forward, L7Config, ServiceConfig};
use tests::netns::NsHandle;
use tests::owner::OwnedDir;
use tests::privilege::require_root;
use tests::seed::seed;
use tests::site::{CHAT, Plan, Site, WEB};

const TOKEN: &str = "a-token-of-the-tests-0123456789";
const SOON: Duration = Duration::from_secs(30);
/// Where to write a picture.
const SCREENSHOT: &str = "SLUICE_SCREENSHOT";

fn page() -> String {
    format!("http://{}/", EdgeConfig::ADMIN)
}

/// A row of the backends' table.
fn row(service: &str, backend: &str) -> String {
    let key = serde_json::json!([service, backend]).to_string();
    format!(
        "[...document.querySelectorAll('#backends tbody tr')].find((it) => it.dataset.key === {key:?})"
    )
}

/// The same services once more, by other names and ports.
fn more_services(config: &mut EdgeConfig) {
    for (name, like, port) in [("presence", CHAT, 90), ("api", WEB, 91)] {
        let mut service: ServiceConfig = config.service(like).clone();
        service.name = name.to_owned();
        service.listen.iter_mut().for_each(|at| at.set_port(port));
        config.services.push(service);
    }
}

fn site(name: &str, change: impl FnOnce(&mut EdgeConfig)) -> Site {
    require_root();
    let plan = Plan { l7: Some(L7Config::default()), ..Plan::new(Forward::Nat, seed(name)) };
    plan.build_with(change).unwrap()
}

fn token_file(scratch: &OwnedDir) -> PathBuf {
    let path = scratch.path().join("admin.token");
    fs::write(&path, TOKEN).unwrap();
    path
}

/// Clients that come and go all the time.
fn coming_and_going(site: &Site, service: &str, connections: usize) -> LoadConfig {
    LoadConfig {
        messages_per_session: Some(5),
        interval: Duration::from_millis(200),
        reconnect: true,
        ..site.chats_of(service, connections)
    }
}

#[test]
fn the_dashboard_shows_a_busy_edge_on_any_screen() {
    let picture = std::env::var_os(SCREENSHOT).map(PathBuf::from);
    let scratch = OwnedDir::scratch("dashboard").unwrap();
    let mut site = site("dashboard", |config| {
        more_services(config);
        config.admin_token_file = Some(token_file(&scratch));
    });
    let staying = |service: &str, connections: usize| LoadConfig {
        interval: Duration::from_secs(1),
        ..site.chats_of(service, connections)
    };
    let loads = [
        staying(WEB, 60),
        staying("presence", 40),
        coming_and_going(&site, CHAT, 10),
        coming_and_going(&site, "api", 10),
    ];
    let loads = loads.map(|load| site.start(load).unwrap());

    let mut browser = Browser::start(site.edge.namespace(), &[]).unwrap();
    browser.look(1280, 1000, false).unwrap();
    browser.open(&page()).unwrap();
    browser
        .wait_for("it is live", "document.querySelector('#live').textContent === 'live'")
        .unwrap();
    let rows = |of: &str| format!("document.querySelectorAll('#{of} tbody tr').length");
    let services = browser.value(&rows("services")).unwrap();
    assert_eq!(services, site.edge.config().services.len());
    let backends: usize = site.edge.config().services.iter().map(|it| it.backends.len()).sum();
    assert_eq!(browser.value(&rows("backends")).unwrap(), backends);
    // Rates, connections by path, and what probes have found.
    let of_path = |name: &str| {
        format!(
            "Number(document.querySelector('#paths .key.{name}').parentElement.querySelector('strong').textContent)"
        )
    };
    browser.wait_for("XDP carries some", &of_path("l4")).unwrap();
    browser.wait_for("and some that are spliced", &of_path("splice")).unwrap();
    let points = if picture.is_some() { 58 } else { 3 };
    let drawn = format!("Number(document.querySelector('#tiles svg').dataset.points) >= {points}");
    browser.wait_for("charts have points", &drawn).unwrap();
    let rate = "Number(document.querySelectorAll('#tiles strong')[1].textContent) > 0";
    browser.wait_for("clients come", rate).unwrap();
    let probes =
        format!("{}.querySelector('.probes .good').getAttribute('d')", row(CHAT, "chat-1"));
    browser.wait_for("probes are drawn", &probes).unwrap();

    // What fails is seen at once: in its row, in its history and among the events.
    site.kill_chat(2).unwrap();
    let down =
        format!("{}.querySelector('.badge.bad')?.textContent === 'down'", row(WEB, "chat-3"));
    browser.wait_for("chat-3 is down", &down).unwrap();
    let failed = format!("{}.querySelector('.probes .bad').getAttribute('d')", row(WEB, "chat-3"));
    browser.wait_for("its probes fail", &failed).unwrap();
    let told = "[...document.querySelectorAll('#events li')].some((it) => it.innerText.includes('backend down') \
                && it.innerText.includes('web / chat-3'))";
    browser.wait_for("an event tells it", told).unwrap();
    let file = site.edge.config_path();
    let drain = ["drain", CHAT, "chat-2", "--deadline", "1h", "--config", file.to_str().unwrap()];
    site.edge.cli(&drain).unwrap();
    let drains =
        format!("{}.querySelector('.badge.warn')?.textContent === 'draining'", row(CHAT, "chat-2"));
    browser.wait_for("chat-2 drains", &drains).unwrap();
    if let Some(path) = &picture {
        browser.look(1120, 1180, false).unwrap();
        browser.screenshot(&at_root(path)).unwrap();
    }

    // Only those in trouble, of one service, chosen by its name.
    browser.value("document.querySelector('#troubled').click()").unwrap();
    let troubled = browser.value(&rows("backends")).unwrap().as_u64().unwrap();
    assert!(troubled >= 3 && troubled < backends as u64, "{troubled}");
    browser.value("document.querySelector('#troubled').click()").unwrap();
    let choose = "[...document.querySelectorAll('#services button.name')].find((it) => it.textContent === 'web').click()";
    browser.value(choose).unwrap();
    assert_eq!(browser.value(&rows("backends")).unwrap(), 3);
    assert_eq!(browser.value("document.activeElement.id").unwrap(), "backends-title");
    browser.value("document.querySelector('#of-service').value = ''; document.querySelector('#of-service').dispatchEvent(new Event('input'))").unwrap();

    let background = "getComputedStyle(document.body).backgroundColor";
    let light = browser.value(background).unwrap();
    for (width, height) in [(360, 740), (768, 1000), (1280, 1000), (2560, 1400)] {
        for dark in [false, true] {
            browser.look(width, height, dark).unwrap();
            let overflow =
                "document.documentElement.scrollWidth - document.documentElement.clientWidth";
            assert_eq!(browser.value(overflow).unwrap(), 0, "{width} is too narrow");
            assert_eq!(browser.value(background).unwrap() != light, dark);
            // On a narrow screen a row is a card whose cells say what they are.
            let cell =
                "getComputedStyle(document.querySelector('#services td'), '::before').content";
            let label = browser.value(cell).unwrap();
            assert_eq!(label == "\"Service\"", width < 900, "{width}: {label}");
            if picture.is_some() {
                // Beside the one of the README, to look at.
                let kind = if dark { "dark" } else { "light" };
                let name = format!("dashboard-{width}-{kind}.png");
                browser.screenshot(&std::env::temp_dir().join(&name)).unwrap();
            }
        }
    }
    // Whoever cannot see the pictures hears what they say, and tables are tables also as cards.
    let labels = "[...document.querySelectorAll('svg')].every((it) => it.getAttribute('role') === 'img' && it.getAttribute('aria-label'))";
    assert_eq!(browser.value(labels).unwrap(), true);
    let cells = "[...document.querySelectorAll('td')].every((it) => it.getAttribute('role') === 'cell' && it.dataset.label)";
    assert_eq!(browser.value(cells).unwrap(), true);

    // An agent that comes again is seen again, without anybody's doing.
    site.edge.terminate().unwrap();
    browser
        .wait_for("it is gone", "document.querySelector('#live').textContent === 'not connected'")
        .unwrap();
    site.edge.run().unwrap();
    let again = format!(
        "document.querySelector('#about').textContent.includes('pid {},')",
        site.edge.process().pid()
    );
    browser.wait_for("the new one is shown", &again).unwrap();
    browser
        .wait_for("it is live again", "document.querySelector('#live').textContent === 'live'")
        .unwrap();
    let complaints: Vec<_> = browser.complaints();
    let other = complaints.iter().filter(|it| !it.contains("net::ERR_"));
    assert_eq!(other.count(), 0, "{complaints:#?}");
    drop(loads);
}

/// Paths in a variable are from where the repository begins, wherever a test runs.
fn at_root(path: &Path) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

#[test]
fn a_backend_is_drained_by_keyboard_with_the_token_alone() {
    let scratch = OwnedDir::scratch("dashboard").unwrap();
    let token = token_file(&scratch);
    let site = site("keyboard", |config| config.admin_token_file = Some(token));
    let mut browser = Browser::start(site.edge.namespace(), &[]).unwrap();
    browser.open(&page()).unwrap();
    let unlock =
        "document.querySelector('#unlock:not([hidden])')?.textContent === 'Unlock changes'";
    browser.wait_for("changes can be unlocked", unlock).unwrap();
    let shown = "[...document.querySelectorAll('#backends button')].filter((it) => it.checkVisibility()).length";
    assert_eq!(browser.value(shown).unwrap(), 0, "no buttons without the token");

    browser.tab_to("it.id === 'unlock'").unwrap();
    let outline = "getComputedStyle(document.activeElement).outlineStyle";
    assert_eq!(browser.value(outline).unwrap(), "solid", "the focus is seen");
    browser.press("Enter").unwrap();
    browser.wait_for("a dialog asks for it", "document.activeElement.id === 'token'").unwrap();
    browser.type_text("a-wrong-token-0123").unwrap();
    browser.press("Enter").unwrap();
    let wrong =
        "document.querySelector('#token-error').textContent.includes('the token is a wrong one')";
    browser.wait_for("it is refused", wrong).unwrap();
    browser.value("document.querySelector('#token').value = ''").unwrap();
    browser.tab_to("it.id === 'token'").unwrap();
    browser.type_text(TOKEN).unwrap();
    browser.press("Enter").unwrap();
    browser.wait_for("it is taken", "!document.querySelector('#token-dialog').open").unwrap();
    assert_eq!(browser.value("document.cookie").unwrap(), "");
    assert_eq!(
        browser.value("document.activeElement.id").unwrap(),
        "unlock",
        "focus is where it was"
    );

    // Escape changes nothing.
    let label =
        |action: &str| format!("it.getAttribute('aria-label') === '{action} chat-1 of web'");
    browser.tab_to(&label("Drain")).unwrap();
    browser.press("Enter").unwrap();
    let open = "document.querySelector('#change-dialog').open";
    browser.wait_for("it asks first", open).unwrap();
    browser.press("Escape").unwrap();
    browser.wait_for("it is closed", &format!("!{open}")).unwrap();
    assert!(!draining(&site, WEB, "chat-1"));

    // Rows are made anew each second for what is in them, and the focus stays.
    assert_eq!(
        browser.value(&format!("((it) => {})(document.activeElement)", label("Drain"))).unwrap(),
        true
    );
    browser.press("Enter").unwrap();
    browser.wait_for("it asks again", open).unwrap();
    browser.tab_to("it.id === 'deadline'").unwrap();
    browser.type_text("soon").unwrap();
    browser.tab_to("it.id === 'change-do'").unwrap();
    browser.press("Enter").unwrap();
    let refused =
        "document.querySelector('#change-error').textContent.includes('deadline \"soon\"')";
    browser.wait_for("the edge says what is wrong", refused).unwrap();
    browser.value("document.querySelector('#deadline').value = '5m'").unwrap();
    browser.tab_to("it.id === 'change-do'").unwrap();
    browser.press("Enter").unwrap();
    browser.wait_for("it is done", &format!("!{open}")).unwrap();
    site.edge.wait_for("it drains", SOON, |_| draining(&site, WEB, "chat-1")).unwrap();
    let badge =
        format!("{}.querySelector('.badge').textContent === 'draining'", row(WEB, "chat-1"));
    browser.wait_for("it is shown to drain", &badge).unwrap();

    browser.tab_to(&label("Undrain")).unwrap();
    browser.press("Enter").unwrap();
    browser.wait_for("it asks first", open).unwrap();
    browser.tab_to("it.id === 'change-do'").unwrap();
    browser.press("Enter").unwrap();
    let up = format!("{}.querySelector('.badge').textContent === 'up'", row(WEB, "chat-1"));
    browser.wait_for("it is up again", &up).unwrap();
    assert!(!draining(&site, WEB, "chat-1"));
    let complaints = browser.complaints();
    // The refusals that this test asked for.
    let other = complaints
        .iter()
        .filter(|it| !it.contains("status of 401") && !it.contains("status of 422"));
    assert_eq!(other.count(), 0, "{complaints:#?}");
}

/// As the edge says.
fn draining(site: &Site, service: &str, backend: &str) -> bool {
    let answer = site.edge.get(&format!("/v1/services/{service}")).unwrap();
    let shown: Value = serde_json::from_str(&answer.body).unwrap();
    let backends = shown["backends"].as_array().unwrap();
    let found = backends.iter().find(|it| it["name"] == backend).unwrap();
    !found["draining_until"].is_null()
}

/// A site of somebody else: one page, in the same namespace so that no network is in between.
fn stranger(namespace: &NsHandle, html: &'static str) -> SocketAddr {
    let listener = namespace.run(|| TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            // Chromium opens connections ahead, on which nothing comes: no other one waits for them.
            std::thread::spawn(move || answer(stream, html));
        }
    });
    address
}

fn answer(mut stream: TcpStream, html: &str) {
    let mut head = [0; 4096];
    let _ = stream.read(&mut head);
    let length = html.len();
    let _ = write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{html}"
    );
}

const PAGE: &str = "<!doctype html><title>elsewhere</title><body></body>";

/// What the page tries, against the edge at `edge`, each to an end: what it could read, or why not.
const ATTEMPTS: &str = r#"(async (edge, token) => {
  const path = `${edge}v1/services/web/backends/chat-1/drain`;
  const json = { 'Content-Type': 'application/json' };
  const attempts = {
    read: () => fetch(`${edge}v1/status`).then((it) => it.text()),
    metrics: () => fetch(`${edge}metrics`).then((it) => it.text()),
    script: () => fetch(`${edge}dashboard/main.js`).then((it) => it.text()),
    json: () => fetch(path, { method: 'POST', headers: json, body: '{}', credentials: 'include' }).then((it) => it.text()),
    token: () => fetch(path, { method: 'POST', headers: { ...json, Authorization: `Bearer ${token}` }, body: '{}' }).then((it) => it.text()),
    blind: () => fetch(path, { method: 'POST', mode: 'no-cors', body: '{}' }).then((it) => `${it.type} ${it.status}`),
    beacon: async () => String(navigator.sendBeacon(path, new Blob(['{}'], { type: 'text/plain' }))),
    form: () => new Promise((resolve) => {
      const frame = document.createElement('iframe');
      frame.name = 'target';
      document.body.append(frame);
      const form = document.createElement('form');
      Object.assign(form, { action: path, method: 'POST', enctype: 'text/plain', target: 'target' });
      const input = document.createElement('input');
      input.name = '{"force":true,"deadline":"';
      input.value = '1s"}';
      form.append(input);
      document.body.append(form);
      frame.onload = () => resolve('sent');
      form.submit();
      setTimeout(() => resolve('sent, no answer'), 3000);
    }),
    stream: () => new Promise((resolve, reject) => {
      const stream = new EventSource(`${edge}v1/stream`);
      stream.addEventListener('hello', ({ data }) => resolve(data));
      stream.onerror = () => { stream.close(); reject(new Error('no stream')); };
    }),
    frame: () => new Promise((resolve) => {
      const frame = document.createElement('iframe');
      frame.src = edge;
      frame.onload = () => {
        try {
          resolve(frame.contentDocument ? 'an empty frame' : 'a frame of another site');
        } catch (error) { resolve(String(error)); }
      };
      document.body.append(frame);
    }),
  };
  const seen = {};
  for (const [name, attempt] of Object.entries(attempts)) {
    try { seen[name] = await attempt(); } catch (error) { seen[name] = `refused: ${error.message}`; }
  }
  return seen;
})"#;

#[test]
fn a_page_of_another_site_can_neither_read_nor_change() {
    let scratch = OwnedDir::scratch("dashboard").unwrap();
    let token = token_file(&scratch);
    let site = site("stranger", |config| config.admin_token_file = Some(token));
    let namespace = site.edge.namespace();
    let elsewhere = stranger(namespace, PAGE);
    // The stranger's own name leads to the edge, as he could have it do at any time.
    let rebound = "--host-resolver-rules=MAP rebound.example 127.0.0.1";
    let mut browser = Browser::start(namespace, &[rebound]).unwrap();

    browser.open(&format!("http://{elsewhere}/")).unwrap();
    let attempts = format!("{ATTEMPTS}({:?}, {TOKEN:?})", page());
    let seen = browser.value(&attempts).unwrap();
    for name in ["read", "metrics", "script", "json", "token", "blind", "stream"] {
        let came_to = seen[name].as_str().unwrap();
        assert!(came_to.starts_with("refused: "), "{name}: {seen:#}");
    }
    // These are sent, and their answers are not for the page; that nothing came of them is seen below.
    assert_eq!(seen["beacon"], "true", "{seen:#}");
    assert!(seen["form"].as_str().unwrap().starts_with("sent"), "{seen:#}");
    // Chromium shows a page of its own in place of the dashboard, and tells the console why.
    let complaints = browser.complaints();
    let framed = |it: &String| it.contains("frame-ancestors") || it.contains("X-Frame-Options");
    assert!(complaints.iter().any(framed), "{complaints:#?}");

    // By DNS the stranger's page is on the same site as the edge, so that no Origin tells it.
    browser.open(&format!("http://rebound.example:{}/", elsewhere.port())).unwrap();
    assert_eq!(browser.value("document.title").unwrap(), "elsewhere");
    let admin: SocketAddr = EdgeConfig::ADMIN.parse().unwrap();
    browser.open(&format!("http://rebound.example:{}/healthz", admin.port())).unwrap();
    let same = "(async () => { const seen = {}; \
                for (const path of ['/v1/status', '/v1/config', '/', '/v1/stream']) seen[path] = (await fetch(path)).status; \
                const change = { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: '{}' }; \
                seen.change = (await fetch('/v1/services/web/backends/chat-1/drain', change)).status; return seen; })()";
    let seen = browser.value(same).unwrap();
    for (what, status) in seen.as_object().unwrap() {
        assert_eq!(*status, 421, "{what}: {seen}");
    }

    // Nothing has changed at the edge.
    let answer = site.edge.get("/v1/config/diff").unwrap();
    let diff: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((&diff["revision"], diff["differences"].as_array().unwrap().len()), (&0.into(), 0));
    assert!(!draining(&site, WEB, "chat-1"));
}

#[test]
fn what_comes_from_a_file_is_shown_as_text() {
    let mut site = site("text", |_| {});
    let mut browser = Browser::start(site.edge.namespace(), &[]).unwrap();
    // What it makes for a time goes with it, although it is killed.
    let socket = browser.socket().unwrap();
    assert!(socket.starts_with(browser.scratch()), "{}", socket.display());
    browser.open(&page()).unwrap();
    browser
        .wait_for("it is live", "document.querySelector('#live').textContent === 'live'")
        .unwrap();
    // Nobody may change anything by this page: no token file is set.
    let read_only =
        "!document.querySelector('#read-only').hidden && document.querySelector('#unlock').hidden";
    browser.wait_for("it says so", read_only).unwrap();
    let html = "<img src=x onerror=\"document.title='run'\">";
    site.edge.save_text(&format!("{:?} = 1\n", html)).unwrap();
    site.edge.reload().unwrap();
    let told = "document.querySelector('#notices').textContent.includes('onerror=')";
    browser.wait_for("the refused file is told", told).unwrap();
    assert_eq!(browser.value("document.querySelectorAll('img').length").unwrap(), 0);
    let title = browser.value("document.title").unwrap();
    assert!(title.as_str().unwrap().ends_with("Sluice"), "{title}");
    site.edge.configure(|_| {}).unwrap();
    site.edge.reload().unwrap();
    browser
        .wait_for("it is gone", "document.querySelectorAll('#notices li').length === 0")
        .unwrap();
}
