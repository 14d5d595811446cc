//! The commands that need no running agent, and what is refused before anything is changed.

use std::{fs, process::Command};

use lb_agent::bpf::lock::RUN_DIR;
use nix::sys::signal::Signal;

use crate::{
    edge::{AGENT, Edge},
    network::text,
};

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
}

#[test]
fn check_names_every_error_and_sums_a_good_file_up() {
    let directory = std::env::temp_dir().join(format!("sluice-check-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let file = directory.join("edge.toml");
    let check = || Command::new(AGENT).args(["check", "--config"]).arg(&file).output().unwrap();

    let example = include_str!("../../../edge.example.toml");
    fs::write(&file, example).unwrap();
    // The certificates and the token that it names are not there, which is no error here.
    let output = check();
    assert!(output.status.success());
    assert_says(
        &text(&output),
        &[
            "edge.toml: ok, 5 services, 8 listeners, 11 backends, 10 warnings\n",
            "rooms.pem: service",
        ],
    );

    fs::write(&file, example.replace("127.0.0.1:9900", "10.2.0.1:9900")).unwrap();
    let output = check();
    assert!(output.status.success());
    assert_says(
        &text(&output),
        &["warning:", "not a loopback address", "11 backends, 11 warnings\n"],
    );

    fs::write(&file, example.replace("10.2.0.2:9000", "10.2.0.300:9000").replace("xdp =", "xpd ="))
        .unwrap();
    let output = check();
    assert_eq!(output.status.code(), Some(1));
    assert_says(&text(&output), &["edge.toml:", "10.2.0.300:9000", "xpd", ": 2 errors\n"]);

    fs::remove_dir_all(directory).unwrap();
    let output = check();
    assert_eq!(output.status.code(), Some(1));
    assert_says(&text(&output), &["edge.toml: cannot be read: No such file"]);
}

#[test]
fn a_missing_capability_is_named_with_its_remedy() {
    let edge = Edge::new();
    edge.save(&edge.config("", &[("b2", "10.2.0.2:9000")]));
    for (drop, name) in [("-net_raw", "CAP_NET_RAW"), ("-net_admin", "CAP_NET_ADMIN")] {
        let arguments = format!("--bounding-set {drop} {AGENT} {}", edge.run_arguments());
        let output = edge.wrapped("setpriv", &arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let remedy = format!("AmbientCapabilities={name}");
        assert_says(&text(&output), &["this process lacks", name, &remedy]);
        assert!(!edge.pins().path().exists(), "nothing was changed");
    }
}

#[test]
fn a_second_agent_learns_who_is_the_first() {
    let mut edge = Edge::new();
    edge.start(&edge.config("", &[("b2", "10.2.0.2:9000")]));
    let holder = format!("pid {}", edge.pid());
    let output = edge.output(&edge.run_arguments());
    assert_eq!(output.status.code(), Some(1));
    assert_says(&text(&output), &["another agent", &holder]);
    let output = edge.output(&format!("unload --edge {}", edge.name));
    assert_eq!(output.status.code(), Some(1), "nor may its data plane be removed");
    assert_says(&text(&output), &["another agent", &holder]);
    assert!(edge.is_healthy());
}

#[test]
fn an_interface_that_does_not_exist_is_named_and_leaves_nothing_behind() {
    let edge = Edge::new();
    let config = edge.config("", &[("b2", "10.2.0.2:9000")]);
    edge.save(&config.replace(r#"["front0", "back0"]"#, r#"["nowhere0"]"#));
    let output = edge.output(&edge.run_arguments());
    assert_eq!(output.status.code(), Some(1));
    assert_says(&text(&output), &["interface nowhere0: there is none of this name", "ip link"]);
    assert!(!edge.pins().path().exists());
}

#[test]
fn an_admin_address_in_use_is_named_and_leaves_nothing_behind() {
    let edge = Edge::new();
    edge.save(&edge.config("", &[("b2", "10.2.0.2:9000")]));
    let _taken = edge.netns.run(|| std::net::TcpListener::bind(crate::edge::ADMIN)).unwrap();
    let output = edge.output(&edge.run_arguments());
    assert_eq!(output.status.code(), Some(1));
    assert_says(&text(&output), &["admin = \"127.0.0.1:9900\": cannot listen", "ss -ltnp"]);
    assert!(!edge.pins().path().exists());
}

#[test]
fn unload_leaves_no_trace_and_can_be_repeated() {
    let mut edge = Edge::new();
    edge.start(&edge.config("", &[("b2", "10.2.0.2:9000")]));
    assert!(edge.addresses("front0").contains("10.1.0.10/32"));
    edge.signal(Signal::SIGKILL);
    edge.wait();
    assert!(edge.has_xdp("front0") && edge.has_xdp("back0"));

    let output = edge.output(&format!("unload --config {}", edge.config_file().display()));
    assert!(output.status.success(), "{}", text(&output));
    assert_says(&text(&output), &["removed the program", "back0, front0", "VIP 10.1.0.10"]);
    assert!(!edge.has_xdp("front0") && !edge.has_xdp("back0"));
    assert!(!edge.addresses("front0").contains("10.1.0.10"));
    assert!(!edge.pins().path().exists());
    assert!(!std::path::Path::new(RUN_DIR).join(format!("{}.lock", edge.name)).exists());

    let output = edge.output(&format!("unload --edge {}", edge.name));
    assert!(output.status.success());
    assert_says(&text(&output), &["nothing was loaded"]);
}

#[test]
fn status_says_when_no_agent_runs() {
    let edge = Edge::new();
    edge.save(&edge.config("", &[("b2", "10.2.0.2:9000")]));
    let config = format!("--config {}", edge.config_file().display());
    let socket = format!("{}/admin.sock (", edge.name);
    for (at, place) in [("--admin 127.0.0.1:9900", "127.0.0.1:9900 ("), (&config, &socket)] {
        let output = edge.output(&format!("status {at}"));
        assert_eq!(output.status.code(), Some(1));
        assert_says(
            &text(&output),
            &["nobody answers at ", place, "lb-agent run", "lb-agent flows"],
        );
    }
    let output = edge.output(&format!("flows --edge {}", edge.name));
    assert_eq!(output.status.code(), Some(1));
    assert_says(&text(&output), &["nothing is loaded"]);
}
