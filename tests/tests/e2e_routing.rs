//! Routes and pools of a service, with the real agent: rules that curl meets, a canary that keeps its chats, and a live
//! change of the rules. Needs root.

use std::net::SocketAddr;
use std::time::Duration;

use tests::edge::{EdgeConfig, Forward, L7Config, Status};
use tests::privilege::require_root;
use tests::process;
use tests::seed::seed;
use tests::site::{Plan, Site, WEB};

const SOON: Duration = Duration::from_secs(15);

const ROUTES: &str = r#"
[[service.route]]
name = "moved"
path_prefix = "/old"
redirect = { status = 308, prefix = "/new" }

[[service.route]]
name = "note"
host = "*.chat.test"
path = "/note"
answer = { status = 403, body = "not here" }

[[service.route]]
name = "stats"
path_prefix = "/canary"
pool = "canary"
rewrite_prefix = "/"
response_headers = { set = { X-Route = "stats" } }
"#;

/// The third backend is a canary, with a share of the chats.
fn routed(config: &mut EdgeConfig, stable: u32, canary: u32) {
    let service = config.service(WEB);
    let backend = match service.backends.iter().position(|it| it.name == "chat-3") {
        Some(place) => service.backends.remove(place).address.to_string(),
        None => {
            let (_, rest) = service.tables.split_once("address = \"").unwrap();
            rest.split('"').next().unwrap().to_owned()
        }
    };
    service.tables = format!(
        "\n[[service.pool]]\nname = \"canary\"\n[[service.pool.backend]]\nname = \"chat-3\"\naddress = \"{backend}\"\n\
         {ROUTES}\n[[service.route]]\nname = \"chats\"\nupgrade = true\n\
         pools = {{ default = {stable}, canary = {canary} }}\n"
    );
}

fn site() -> Site {
    require_root();
    let l7 = Some(L7Config::default());
    let plan = Plan { l7, ..Plan::new(Forward::Nat, seed("routing")) };
    let site = plan.build_with(|config| routed(config, 1, 1)).unwrap();
    site.edge.wait_for("the canary is up", SOON, |status| status.is_up(WEB, "chat-3")).unwrap();
    site
}

/// Head and body of an answer.
fn curl(site: &Site, target: SocketAddr, host: &str, path: &str) -> String {
    let mut command = site.lab.client(0).command("curl");
    let url = format!("http://{target}{path}");
    command.args(["--silent", "--show-error", "--include", "--path-as-is", "--max-time", "10"]);
    command.args(["--header", &format!("Host: {host}"), &url]);
    process::run(&mut command).unwrap()
}

#[test]
fn curl_meets_the_rules() {
    let site = site();
    for target in site.listeners(WEB) {
        let answer = curl(&site, target, "chat.test", "/old/rooms?a=b");
        assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
        assert!(answer.contains("\r\nlocation: /new/rooms?a=b\r\n"), "{answer}");
        let answer = curl(&site, target, "www.chat.test", "/note");
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.ends_with("not here"), "{answer}");
        let answer = curl(&site, target, "chat.test", "/canary/health");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("chat-3: 200 OK"), "{answer}");
        assert!(answer.contains("\r\nx-route: stats\r\n"), "{answer}");
        let answer = curl(&site, target, "chat.test", "/health");
        assert!(!answer.contains("chat-3: 200 OK"), "the default pool is another: {answer}");
        let answer = curl(&site, target, "chat.test", "/x/../old");
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    // Each worker reports by itself.
    let counts = |it: &Status| {
        let routes = ["moved", "note", "stats", "chats", "none"].map(|name| it.route(WEB, name));
        (routes, it.happened(WEB, "ambiguous_path"))
    };
    let all = ([2, 2, 2, 0, 2], 2);
    let reported = |it: &Status| counts(it) == all;
    site.edge.wait_for("the workers have reported", SOON, reported).unwrap();
    let metrics = site.edge.get("/metrics").unwrap().body;
    let line = "sluice_route_requests_total{service=\"web\",route=\"moved\"} 2.0";
    assert!(metrics.lines().any(|it| it == line), "{metrics}");
    let shown = site.edge.cli(&["status"]).unwrap();
    assert!(shown.contains("  pool canary\n  chat-3 "), "{shown}");
    assert!(
        shown.contains("  requests by route: moved 2, note 2, stats 2, chats 0, none 2\n"),
        "{shown}"
    );
}

#[test]
fn a_canary_keeps_its_chats_through_changes_of_its_share() {
    let mut site = site();
    let target = site.listeners(WEB)[0];
    let first: Vec<_> = (0..24).map(|_| site.knock(target, None).unwrap()).collect();
    let of_canary = first.iter().filter(|it| it.backend == "chat-3").count();
    assert!((8..=16).contains(&of_canary), "{of_canary} of 24");
    let stay = |site: &Site| {
        for knock in &first {
            let again = site.knock(target, knock.cookie()).unwrap();
            assert_eq!((&again.backend, again.set_cookie), (&knock.backend, None));
        }
    };
    stay(&site);

    // The canary takes nobody in any more: a change of the file, with everybody connected.
    let generation = |site: &Site| site.edge.status().unwrap().generation();
    let before = generation(&site);
    site.edge.configure(|config| routed(config, 1, 0)).unwrap();
    site.edge.wait_for("the new shares", SOON, |it| it.generation() > before).unwrap();
    let newcomers_avoid_it = || {
        let knocks: Vec<_> = (0..12).map(|_| site.knock(target, None).unwrap()).collect();
        knocks.iter().all(|it| it.backend != "chat-3")
    };
    // Workers hear of it a moment after the agent has taken it over.
    assert!(newcomers_avoid_it() || newcomers_avoid_it());
    stay(&site);
    // And what a canary has is spliced like all else.
    let load = site.start(site.chats_of(WEB, 8)).unwrap();
    site.edge.wait_for("chats are spliced", SOON, |it| it.happened(WEB, "spliced") > 0).unwrap();
    let stats = load.stop();
    assert_eq!((stats.errors, stats.wrong), (0, 0), "{stats}");
}

/// What `lb-agent explain` says of a client of the first listener.
fn explained(site: &Site, client: &str, more: &[&str]) -> String {
    let (target, file) = (site.listeners(WEB)[0].to_string(), site.edge.config_path());
    let asked = ["explain", client, &target, "--config", file.to_str().unwrap()];
    site.edge.cli(&[&asked[..], more].concat()).unwrap()
}

#[test]
fn a_client_is_told_beforehand_which_pool_it_gets_and_why() {
    let site = site();
    let explained = |more: &[&str]| explained(&site, "10.1.0.2", more);
    let said = explained(&["--path", "/canary/health"]);
    assert!(said.contains("\"stats\" matches: pool canary\n"), "{said}");
    assert!(said.contains("pool canary: whose turn it is of chat-3\n"), "{said}");
    assert!(said.contains("=> chat-3 ("), "nobody else is there: {said}");

    let said = explained(&["--path", "/old/rooms"]);
    assert!(said.contains("\"moved\" matches, and answers it\n"), "{said}");
    let said = explained(&["--path", "/note", "--header", "Host: www.chat.test"]);
    assert!(said.contains("\"note\" matches, and answers it\n"), "{said}");
    let said = explained(&["--path", "/x/../old"]);
    assert!(said.contains("it is refused: the request's path can be read in more than"), "{said}");

    let said = explained(&["--path", "/health"]);
    assert!(said.contains("none matches: it goes to the default pool\n"), "{said}");
    assert!(said.contains("pool default: whose turn it is of chat-1, chat-2\n"), "{said}");
    assert!(said.ends_with("=> not decided yet\n"), "{said}");

    let upgrade = ["--path", "/chat", "--header", "Upgrade: websocket"];
    let said = explained(&upgrade);
    let shares = "\"chats\" matches: pools default and canary, with shares of 1 and 1\n";
    assert!(said.contains(shares), "{said}");
    assert!(said.ends_with("=> not decided yet\n"), "{said}");
    // Whoever has a cookie stays in its pool.
    let knock = site.knock(site.listeners(WEB)[0], None).unwrap();
    let said = explained(&[&upgrade[..], &["--cookie", knock.cookie().unwrap()]].concat());
    assert!(said.contains(shares) && said.contains("hit: the cookie's backend"), "{said}");
    assert!(said.contains(&format!("=> {} (", knock.backend)), "{said}");
}

#[test]
fn of_a_pool_its_own_rule_is_told() {
    require_root();
    let l7 = L7Config { balance: "maglev", sticky: false, ..L7Config::default() };
    let plan = Plan { l7: Some(l7), ..Plan::new(Forward::Nat, seed("rules of pools")) };
    let site = plan.build_with(|config| {
        let service = config.service(WEB);
        let others: Vec<_> = service.backends.split_off(1);
        service.tables =
            "\n[[service.pool]]\nname = \"canary\"\nbalance = \"round-robin\"\n".into();
        for other in others {
            let (name, address) = (other.name, other.address);
            let table = "\n[[service.pool.backend]]";
            service.tables += &format!("{table}\nname = \"{name}\"\naddress = \"{address}\"\n");
        }
        service.tables += "\n[[service.route]]\nname = \"stats\"\npath_prefix = \"/canary\"\n\
                           pool = \"canary\"\nrewrite_prefix = \"/\"\n";
    });
    let site = site.unwrap();
    let up = |it: &tests::edge::Status| ["chat-2", "chat-3"].iter().all(|name| it.is_up(WEB, name));
    site.edge.wait_for("the canaries are up", SOON, up).unwrap();
    // A port decides on a ring, and only there.
    let said = explained(&site, "10.1.0.2:40000", &["--path", "/health"]);
    let rule = "pool default: the hash of the client's address and port of chat-1\n";
    assert!(said.contains(rule) && said.contains("=> chat-1 ("), "{said}");
    let said = explained(&site, "10.1.0.2:40000", &["--path", "/canary/health"]);
    assert!(said.contains("pool canary: whose turn it is of chat-2, chat-3\n"), "{said}");
    assert!(said.ends_with("=> not decided yet\n"), "{said}");
}

#[test]
fn a_rule_with_a_mistake_changes_nothing() {
    let mut site = site();
    let target = site.listeners(WEB)[0];
    let mistakes = |config: &mut EdgeConfig| {
        let tables = &mut config.service(WEB).tables;
        *tables = tables.replace("pool = \"canary\"", "pool = \"canray\"");
    };
    site.edge.configure(mistakes).unwrap();
    let (status, _) =
        site.edge.wait_for("it is refused", SOON, |it| it.refusal().is_some()).unwrap();
    let refusal = status.refusal().unwrap();
    assert!(refusal.contains("did you mean \"canary\"?"), "{refusal}");
    let answer = curl(&site, target, "chat.test", "/canary/health");
    assert!(answer.contains("chat-3: 200 OK"), "{answer}");
}
