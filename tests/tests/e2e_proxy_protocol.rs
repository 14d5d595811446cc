//! The PROXY protocol, with HAProxy before the edge and at the backends. Needs root and packages: `cargo xtask test --full`
//! installs them.

use std::fs;
use std::net::SocketAddr;

use serde_json::Value;
use tests::edge::HealthConfig;
use tests::owner::OwnedDir;
use tests::privilege::require_root;
use tests::process;
use tests::tls::{Authority, Files, NAME};
use tests::web::seen::stayed;
use tests::web::{Gate, Haproxy, WebPlan, WebSite};

/// Where the proxy listens.
const PORT: u16 = 8080;

/// The proxy is another host than the client.
struct Proxied {
    site: WebSite,
    _before: Haproxy,
}

/// With what the proxy puts before, and the plan of the site behind it.
fn proxied(options: &str, send: &str, plan: WebPlan) -> Proxied {
    require_root();
    let tables = format!(
        "{}\n[service.proxy_protocol]\naccept = \"required\"\ntrusted = [\"10.1.0.3\", \"fd01::3\"]\nsend = \"{send}\"\n",
        plan.tables
    );
    // Every probe is refused that does not begin with a header.
    let site = WebPlan { clients: 2, tables, ..plan }.build().unwrap();
    let proxy = site.lab.client(1);
    let ways: Vec<_> = proxy.sockets(PORT).into_iter().zip(site.listeners()).collect();
    let before = Haproxy::before(proxy, &ways, options).unwrap();
    Proxied { site, _before: before }
}

fn plain(options: &str, send: &str) -> Proxied {
    let health = HealthConfig { path: Some("/ws"), ..HealthConfig::websocket() };
    let gate = Some(Gate { options: "accept-proxy".to_owned() });
    proxied(options, send, WebPlan { health, gate, ..WebPlan::default() })
}

impl Proxied {
    /// The proxy's addresses, and those of the client behind it.
    fn ways(&self) -> Vec<(SocketAddr, String)> {
        let client = self.site.lab.client(0).sockets(0).map(|it| it.ip().to_string());
        self.site.lab.client(1).sockets(PORT).into_iter().zip(client).collect()
    }

    /// What the application was told of a request.
    fn told(&self, arguments: &[&str]) -> Value {
        let answer = self.site.answers(arguments).unwrap().pop().unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json().unwrap()["headers"].clone()
    }
}

/// The client's address has come through both proxies and the edge.
fn whole(told: &Value, proxy: SocketAddr, client: &str) {
    assert_eq!(told["x-gate-source"], client, "{told}");
    let host = proxy.ip().to_string();
    assert_eq!(told["x-gate-destination"], format!("{host}:{PORT}"), "{told}");
    assert_eq!(told["x-forwarded-for"], client, "{told}");
    assert_eq!(told["x-forwarded-port"], PORT.to_string(), "{told}");
}

#[test]
fn haproxy_says_who_the_client_is_and_is_told_in_either_version() {
    for (options, send) in [("send-proxy", "v2"), ("send-proxy-v2", "v1")] {
        let it = plain(options, send);
        for (proxy, client) in it.ways() {
            for _ in 0..6 {
                whole(&it.told(&[&format!("http://{proxy}/echo")]), proxy, &client);
            }
            // Several requests of one connection, each on a connection of its own to the backend.
            let url = format!("http://{proxy}/nothing");
            let said = it.site.curl(&["--include", &url, &url, &url]).unwrap();
            assert_eq!(said.matches("HTTP/1.1 204").count(), 3, "{said}");
        }
        assert_eq!(it.site.counted("reused").unwrap(), 0);
        let log = it.site.wait_logged("request", 18).unwrap();
        let clients: Vec<_> = log.iter().map(|it| it["client"].as_str().unwrap()).collect();
        let known = |it: &&str| it.starts_with("10.1.0.2:") || it.starts_with("[fd01::2]:");
        assert!(clients.iter().all(known), "{clients:?}");
        // The backends' gates take nobody who does not say who he is: probes do.
        let gate = it.site.edge.config().services[0].backends[0].address;
        let mut command = it.site.lab.edge().command("curl");
        let url = format!("http://{gate}/echo");
        let error =
            process::run(command.args(["--silent", "--show-error", "--max-time", "5", &url]));
        assert!(error.is_err(), "{error:?}");
    }
}

#[test]
fn a_header_from_a_stranger_is_refused_and_so_is_a_proxy_without_one() {
    let it = plain("send-proxy", "v1");
    for (n, target) in (1..).zip(it.site.listeners()) {
        let url = format!("http://{target}/echo");
        // curl puts a header before, as a client that wants to be somebody else.
        let error = it.site.curl(&["--haproxy-protocol", &url]).unwrap_err().to_string();
        // It may be closed before curl has asked who is at the other end.
        let closed = ["reset", "Recv failure", "not connected"];
        assert!(closed.iter().any(|it| error.contains(it)), "{error}");
        it.site.wait_counted("proxy_header_untrusted", n).unwrap();
        // Without one it is served as who it is.
        let told = it.told(&[&url]);
        let client = it.site.lab.client(0).sockets(0)[usize::from(target.is_ipv6())].ip();
        assert_eq!(told["x-gate-source"], client.to_string(), "{told}");
        // And from the proxy's host nobody is served without one.
        let mut command = it.site.lab.client(1).command("curl");
        command.args(["--silent", "--show-error", "--max-time", "5", &url]);
        process::run(&mut command).unwrap_err();
        it.site.wait_counted("proxy_header_missing", n).unwrap();
    }
    let metrics = it.site.edge.get("/metrics").unwrap().body;
    for label in ["proxy_header_untrusted", "proxy_header_missing"] {
        let counted = metrics.lines().filter(|line| line.contains(label) && line.ends_with(" 1.0"));
        assert_eq!(counted.count(), 2, "{metrics}");
    }
}

#[test]
fn what_began_with_headers_is_spliced_and_stays_as_it_is() {
    for (options, send) in [("send-proxy-v2", "v2"), ("send-proxy", "v1")] {
        let it = plain(options, send);
        for (proxy, _) in it.ways() {
            // Every byte of some megabytes both ways is checked by the client.
            let sessions = it.site.node("ws.js", &[&format!("ws://{proxy}"), "4"]).unwrap();
            stayed(&sessions, 4);
            stayed(&it.site.python("chat.py", &[&format!("ws://{proxy}"), "2"]).unwrap(), 2);
        }
        it.site.wait_spliced(12).unwrap();
    }
}

#[test]
fn headers_come_before_tls_on_both_sides() {
    for (options, send) in [("send-proxy-v2", "v1"), ("send-proxy", "v2")] {
        let scratch = OwnedDir::scratch("tls").unwrap();
        let (authority, files) = (Authority::new().unwrap(), Files::new(scratch.path()));
        authority.issue(&files, &["10.1.0.3", "fd01::3"]).unwrap();
        let [ca, both] = ["ca.pem", "both.pem"].map(|name| scratch.path().join(name));
        fs::write(&ca, authority.pem()).unwrap();
        let text = |path| fs::read_to_string(path).unwrap();
        fs::write(&both, text(&files.certificate) + &text(&files.key)).unwrap();
        let Files { certificate, key } = &files;
        let tables = format!(
            "\n[service.tls]\ncertificates = [{{ certificate = {certificate:?}, key = {key:?} }}]\n\
             \n[service.backend_tls]\nca = {ca:?}\nsni = \"{NAME}\"\n"
        );
        let health = HealthConfig {
            kind: "https",
            path: Some("/nothing"),
            more: format!("ca = {ca:?}, sni = \"{NAME}\""),
            ..HealthConfig::default()
        };
        let gate = Some(Gate { options: format!("accept-proxy ssl crt {}", both.display()) });
        let plan = WebPlan { port: 443, health, gate, tables, ..WebPlan::default() };
        let it = proxied(options, send, WebPlan { authority: Some(ca.clone()), ..plan });
        for (proxy, client) in it.ways() {
            let resolve = format!("{NAME}:{PORT}:{}", proxy.ip());
            let url = format!("https://{NAME}:{PORT}/echo");
            for version in ["--http1.1", "--http2"] {
                let told = it.told(&[version, "--resolve", &resolve, &url]);
                whole(&told, proxy, &client);
                assert_eq!(told["x-forwarded-proto"], "https", "{told}");
            }
            stayed(&it.site.node("ws.js", &[&format!("wss://{proxy}"), "2"]).unwrap(), 2);
        }
        it.site.wait_counted("upgraded", 4).unwrap();
    }
}
