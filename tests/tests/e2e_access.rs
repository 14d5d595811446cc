//! Allow and deny lists: who is on one is not heard, and nobody else notices. Needs root.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use lb_common::outcome::DropReason;
use tests::edge::{Forward, L7Config, Status};
use tests::privilege::require_root;
use tests::seed::seed;
use tests::site::{CHAT, Plan, Site, WEB};

const SOON: Duration = Duration::from_secs(15);
const LATER: Duration = Duration::from_secs(60);

/// Where the lab's clients are.
const CLIENTS: [&str; 2] = ["10.1.0.0/24", "fd01::/64"];

fn clients() -> Vec<String> {
    CLIENTS.map(str::to_owned).into()
}

fn connect(site: &Site, target: SocketAddr) -> std::io::Result<TcpStream> {
    let patience = Duration::from_millis(1500);
    site.lab.client(0).run(|| TcpStream::connect_timeout(&target, patience))
}

fn denied(status: &Status) -> bool {
    status.dropped(DropReason::DeniedSource) > 0
}

#[test]
fn a_denied_source_is_cut_off_and_goes_on_where_it_was_when_the_list_is_gone() {
    require_root();
    let mut site = Plan::new(Forward::Nat, seed("denied source")).build().unwrap();
    let load = site.start(site.chats(8)).unwrap();
    load.wait_progress(2, LATER).unwrap();

    site.edge.configure(|config| config.deny = clients()).unwrap();
    site.edge.wait_for("the clients are denied", SOON, denied).unwrap();
    for target in site.listeners(CHAT) {
        assert!(connect(&site, target).is_err(), "{target} answers");
    }
    let stats = load.stats();
    assert_eq!((stats.errors, stats.wrong), (0, 0), "{stats}");

    site.edge.configure(|config| config.deny.clear()).unwrap();
    let stats = load.wait_progress(2, LATER).unwrap();
    assert_eq!((stats.errors, stats.wrong, stats.reconnects), (0, 0, 0), "{stats}");
    site.visit(2).unwrap();
}

#[test]
fn a_services_list_is_its_own_and_the_sidecar_hears_nobody_who_is_on_it() {
    require_root();
    for spliced in [true, false] {
        let l7 = L7Config { spliced, ..L7Config::default() };
        let plan = Plan { l7: Some(l7), ..Plan::new(Forward::Nat, seed("a service's list")) };
        let mut site = plan.build_with(|config| config.service(WEB).deny = clients()).unwrap();
        let accepted = |site: &Site| site.edge.status().unwrap().happened(WEB, "connection");
        for target in site.listeners(WEB) {
            assert!(connect(&site, target).is_err(), "{target} answers");
        }
        assert_eq!(accepted(&site), 0, "a handshake came through");
        assert!(denied(&site.edge.status().unwrap()));
        let chats = site.start(site.chats(2)).unwrap();

        site.edge.configure(|config| config.service(WEB).deny.clear()).unwrap();
        for target in site.listeners(WEB) {
            site.knock(target, None).unwrap();
        }
        chats.wait_progress(2, LATER).unwrap();
        let stats = chats.stop();
        assert_eq!((stats.errors, stats.wrong), (0, 0), "{stats}");
    }
}
