//! What an operator sees and types. Needs root.

use std::collections::BTreeSet;

use tests::edge::{EdgeConfig, Forward};
use tests::netns::NsHandle;
use tests::privilege::require_root;
use tests::seed::seed;
use tests::site::{BULK, CHAT, Plan};

fn ip(namespace: &NsHandle, arguments: &[&str]) -> String {
    namespace.exec("ip", arguments).unwrap()
}

#[test]
fn unload_leaves_nothing() {
    require_root();
    let plan = Plan { backends: 1, ..Plan::new(Forward::Nat, seed("unload")) };
    let mut site = plan.build_with(|config| config.vip_addresses = "always").unwrap();
    let edge = site.lab.edge();
    let addresses = |namespace: &NsHandle| ip(namespace, &["address", "show"]);
    let links = |namespace: &NsHandle| ip(namespace, &["link", "show"]);
    for vip in site.lab.vips() {
        assert!(addresses(edge).contains(&vip.to_string()), "{}", addresses(edge));
    }
    assert_eq!(links(edge).matches("prog/xdp").count(), 2, "{}", links(edge));
    assert!(site.edge.pins().join("maps").exists());

    // While the agent runs, nothing is taken away from under it.
    let error = site.edge.unload().unwrap_err().to_string();
    assert!(error.contains(&site.edge.process().pid().to_string()), "{error}");
    site.edge.terminate().unwrap();
    assert!(site.edge.pins().exists(), "an ended agent leaves the data plane to its successor");
    assert_eq!(links(edge).matches("prog/xdp").count(), 2, "{}", links(edge));

    site.edge.unload().unwrap();
    assert!(!site.edge.pins().exists());
    assert!(!links(edge).contains("xdp"), "{}", links(edge));
    for vip in site.lab.vips() {
        assert!(!addresses(edge).contains(&vip.to_string()), "{}", addresses(edge));
    }
    let lock = format!("/run/sluice/{}.lock", site.edge.name());
    assert!(!std::path::Path::new(&lock).exists());
    // Once more is harmless, and a new agent starts from nothing.
    site.edge.unload().unwrap();
    site.edge.run().unwrap();
    site.edge.wait_all_up().unwrap();
    for target in site.listeners(BULK) {
        site.echo(target, 10_000).unwrap();
    }
}

#[test]
fn flows_are_listed_as_they_are() {
    require_root();
    const CHATS: usize = 20;
    let site = Plan::new(Forward::Nat, seed("listing")).build().unwrap();
    let load = site.start(site.chats(CHATS)).unwrap();
    let stats = load.wait_progress(1, std::time::Duration::from_secs(15)).unwrap();
    let expected: BTreeSet<_> = stats
        .per_connection
        .iter()
        .map(|it| (it.local.unwrap(), it.backend.clone().unwrap()))
        .collect();
    let flows = site.edge.flows().unwrap();
    let listed: BTreeSet<_> = flows
        .iter()
        .filter(|flow| flow.service == CHAT)
        .map(|flow| (flow.client, flow.backend.trim_end_matches("-v6").to_owned()))
        .collect();
    assert_eq!(listed, expected);
    // And for people, by backend and by client.
    let file = site.edge.config_path();
    let of = |filter: [&str; 2]| {
        let words = [&["flows", "--config", file.to_str().unwrap()], filter.as_slice()].concat();
        site.edge.cli(&words).unwrap()
    };
    let flow = &flows[0];
    let (client, backend) = (flow.client.to_string(), flow.backend.as_str());
    for listing in [of(["--backend", backend]), of(["--client", &flow.client.ip().to_string()])] {
        assert!(listing.contains(&client) && listing.contains(backend), "{listing}");
    }
    let of_nobody = of(["--client", "192.0.2.1"]);
    assert!(!of_nobody.contains(&client), "{of_nobody}");
    let status = site.edge.cli(&["status", "--admin", EdgeConfig::ADMIN]).unwrap();
    assert!(status.contains(CHAT) && status.contains("chat-1"), "{status}");
    assert_eq!(load.stop().errors, 0);
}

#[test]
fn a_second_agent_for_the_same_edge_is_refused() {
    require_root();
    let plan = Plan { backends: 1, ..Plan::new(Forward::Nat, seed("second agent")) };
    let site = plan.build().unwrap();
    let file = site.edge.config_path();
    let error = site.edge.cli(&["run", "--config", file.to_str().unwrap()]).unwrap_err();
    let holder = format!("pid {}", site.edge.process().pid());
    assert!(error.to_string().contains(&holder), "{error}");
    // The first one is as before.
    site.edge.wait_all_up().unwrap();
    site.echo(site.listeners(BULK)[0], 10_000).unwrap();
}
