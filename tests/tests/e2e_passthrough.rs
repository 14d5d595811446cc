//! TLS that the edge passes on: chats over `wss` whose backends end TLS are spliced, and names choose. Needs root.

use std::time::Duration;

use tests::chat::{Load, LoadConfig};
use tests::edge::{BackendConfig, HealthConfig, L7Config};
use tests::owner::OwnedDir;
use tests::privilege::require_root;
use tests::process;
use tests::seed::seed;
use tests::spliced::{BACKEND_PORT, SERVICES, SplicedPlan, SplicedSite, server_name};
use tests::tls::{Authority, Files, Front, NAME};

const SOON: Duration = Duration::from_secs(15);
const LATER: Duration = Duration::from_secs(60);
const TLS_PORT: u16 = 9443;

/// Servers with TLS in front of them: the last one is a pool of its own, which `*.rooms.test` has.
struct Passing {
    site: SplicedSite,
    authority: Authority,
    _fronts: Vec<Front>,
    scratch: OwnedDir,
}

fn passing(what: &str) -> Passing {
    require_root();
    let scratch = OwnedDir::scratch("passthrough").unwrap();
    let authority = Authority::new().unwrap();
    let plan = SplicedPlan {
        l7: L7Config { sticky: false, ..L7Config::default() },
        // Who is asked is the server itself.
        health: HealthConfig { port: Some(BACKEND_PORT), ..HealthConfig::websocket() },
        ..SplicedPlan::new(seed(what))
    };
    let lab = plan.topology().build().unwrap();
    let mut fronts = Vec::new();
    for (index, node) in lab.backends().iter().enumerate() {
        // Each has a certificate that says who it is.
        let own = Files::new(&scratch.path().join(server_name(index)));
        std::fs::create_dir(own.key.parent().unwrap()).unwrap();
        authority.issue(&own, &["a.rooms.test", &server_name(index)]).unwrap();
        fronts.push(Front::start(node, &own, TLS_PORT, BACKEND_PORT).unwrap());
    }
    let mut config = plan.config(&lab);
    for name in SERVICES {
        let service = config.service(name);
        for backend in &mut service.backends {
            backend.address.set_port(TLS_PORT);
        }
        let BackendConfig { name: rooms, address, .. } = service.backends.pop().unwrap();
        service.tables = format!(
            "\n[service.passthrough]\nunknown_sni = \"refuse\"\n\
             route = [\n{{ name = \"chat\", sni = \"{NAME}\", pool = \"default\" }},\n\
             {{ name = \"rooms\", sni = \"*.rooms.test\", pool = \"rooms\" }},\n]\n\
             [[service.pool]]\nname = \"rooms\"\n[[service.pool.backend]]\nname = \"{rooms}\"\n\
             address = \"{address}\"\n"
        );
    }
    let site = plan.populate_with(lab, config).unwrap();
    for name in SERVICES {
        let up = |it: &tests::edge::Status| it.is_up(name, &server_name(2));
        site.edge.wait_for("the rooms are up", SOON, up).unwrap();
    }
    Passing { site, authority, _fronts: fronts, scratch }
}

#[test]
fn chats_over_tls_are_spliced_and_outlive_the_edges_processes() {
    const CONNECTIONS: usize = 40;
    let mut it = passing("passthrough");
    let config = LoadConfig {
        tls: Some(it.authority.client().unwrap()),
        interval: Duration::from_millis(500),
        ..it.site.chats(CONNECTIONS)
    };
    let load = Load::start(Some(it.site.lab.client(0)), config).unwrap();
    load.wait_connected(LATER).unwrap();
    it.site.wait_counted("passed_through", CONNECTIONS as u64).unwrap();
    let spliced = it.site.wait_spliced(CONNECTIONS).unwrap();
    assert_eq!(spliced.len(), CONNECTIONS);
    assert!(spliced.iter().all(|flow| flow.backend != server_name(2)), "{spliced:?}");
    load.wait_progress(2, LATER).unwrap();
    let counted = it.site.splices().unwrap();
    assert!(counted.iter().all(|(label, _)| !label.ends_with("splice_tls")), "{counted:?}");

    it.site.edge.kill().unwrap();
    load.wait_progress(2, LATER).unwrap();
    it.site.edge.run().unwrap();
    load.wait_progress(2, LATER).unwrap();
    let stats = load.stop();
    assert_eq!((stats.errors, stats.wrong, stats.reconnects), (0, 0, 0), "{stats}");
    it.site.wait_empty().unwrap();
}

impl Passing {
    /// What `openssl s_client` says to a listener.
    fn shake(&self, listener: usize, arguments: &[&str]) -> String {
        let target = self.site.listeners()[listener].to_string();
        let mut command = self.site.lab.client(0).command("timeout");
        command.args(["10", "openssl", "s_client", "-connect", &target]).args(arguments);
        command.stdin(std::process::Stdio::null());
        let output = command.output().unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap());
        format!("{out}{err}")
    }
}

#[test]
fn names_choose_and_strangers_hear_why() {
    let it = passing("names");
    for listener in [0, 1] {
        for (arguments, expected) in [
            (&["-servername", "a.rooms.test"][..], "chat-3"),
            (&["-servername", "a.rooms.test", "-tls1_2"], "chat-3"),
            (&["-servername", "other.test"], "unrecognized name"),
            (&["-noservername"], "unrecognized name"),
        ] {
            let said = it.shake(listener, arguments);
            let certificate = text_of_certificate(&it, &said);
            assert!(
                said.contains(expected) || certificate.contains(&format!("DNS:{expected}")),
                "{arguments:?}: {said}\n{certificate}"
            );
        }
        let certificate = text_of_certificate(&it, &it.shake(listener, &["-servername", NAME]));
        assert!(certificate.contains("DNS:chat-1") || certificate.contains("DNS:chat-2"));
        let mut curl = it.site.lab.client(0).command("curl");
        let url = format!("http://{}/", it.site.listeners()[listener]);
        curl.args(["--silent", "--include", "--max-time", "10", &url]);
        let answer = process::run(&mut curl).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("https://"), "{answer}");
    }
    for (label, times) in [("passed_through", 6), ("tls_unknown_name", 4), ("plain_on_tls", 2)] {
        it.site.wait_counted(label, times).unwrap();
    }
    let status = it.site.edge.status().unwrap();
    assert_eq!(status.route(SERVICES[0], "rooms"), 2);
    assert_eq!(status.route(SERVICES[0], "none"), 2);
}

#[test]
fn operators_are_told_who_gets_a_name_and_add_to_its_pool() {
    let it = passing("operators");
    let edge = &it.site.edge;
    let listener = it.site.listeners()[0].to_string();
    let file = edge.config_path();
    let file = file.to_str().unwrap();
    let explain = |name: &str| {
        let host = format!("Host: {name}");
        let at = ["explain", "10.1.0.2", &listener, "--header", &host, "--config", file];
        edge.cli(&at).unwrap()
    };
    let told = explain("a.rooms.test");
    assert!(told.contains("\"rooms\" has \"a.rooms.test\""), "{told}");
    assert!(told.contains("=> chat-3 (10.2.0."), "{told}");
    let told = explain("other.test");
    assert!(told.contains("none has \"other.test\": it is refused"), "{told}");

    let node = &it.site.lab.backends()[0];
    let more = node.sockets(BACKEND_PORT)[0].to_string();
    let add = |pool: &str, name: &str| {
        let of = ["add-backend", SERVICES[0], &more, "--name", name, "--pool", pool];
        edge.cli(&[&of[..], &["--config", file]].concat())
    };
    let refused = format!("{:#}", add("room", "extra").unwrap_err());
    assert!(refused.contains("has no pool \"room\": did you mean \"rooms\"?"), "{refused}");
    add("rooms", "extra").unwrap();
    let up = |it: &tests::edge::Status| it.is_up(SERVICES[0], "extra");
    edge.wait_for("the new one is up", SOON, up).unwrap();
    let backends: serde_json::Value =
        serde_json::from_str(&edge.get("/v1/backends").unwrap().body).unwrap();
    let backends = backends["backends"].as_array().unwrap();
    let pools: Vec<_> = backends
        .iter()
        .filter(|it| it["service"] == SERVICES[0])
        .map(|it| (it["name"].as_str().unwrap(), it["pool"].as_str().unwrap()))
        .collect();
    let expected =
        [("chat-1", "default"), ("chat-2", "default"), ("chat-3", "rooms"), ("extra", "rooms")];
    assert_eq!(pools, expected);
}

/// Of what `s_client` has printed; empty if there is none.
fn text_of_certificate(it: &Passing, said: &str) -> String {
    let begin = "-----BEGIN CERTIFICATE-----";
    let Some(pem) = said.find(begin).map(|at| &said[at..]) else { return String::new() };
    let path = it.scratch.path().join("shown.pem");
    std::fs::write(&path, pem).unwrap();
    let mut command = process::command("openssl");
    command.args(["x509", "-noout", "-text", "-in"]).arg(path);
    process::run(&mut command).unwrap()
}
