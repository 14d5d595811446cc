//! The interfaces of the configuration: whether they are there, what their drivers can, which offloads hurt.

use std::path::Path;

use super::{Finding, ethtool::Ethtool};
use crate::{
    bpf::{PinDir, interface},
    config::{Config, XdpMode},
    netlink::NetState,
};

/// Drivers that run XDP programs themselves, as of Linux 6.12.
const NATIVE: [&str; 40] = [
    "atlantic",
    "bnxt_en",
    "bonding",
    "cpsw-switch",
    "dpaa2-eth",
    "ena",
    "enetc",
    "fec",
    "fsl_dpa",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "idpf",
    "igb",
    "igc",
    "ionic",
    "ixgbe",
    "ixgbevf",
    "lan966x-switch",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mtk_soc_eth",
    "mvneta",
    "mvpp2",
    "netdevsim",
    "netsec",
    "nfp",
    "nicvf",
    "octeontx2",
    "qede",
    "rvu_nicpf",
    "sfc",
    "stmmac",
    "tsnep",
    "tun",
    "veth",
    "virtio_net",
    "vmxnet3",
];

/// What is known of an interface.
pub struct Facts {
    name: String,
    /// None if there is none of the name.
    there: Option<There>,
}

#[derive(Clone)]
struct There {
    up: bool,
    kind: Option<String>,
    driver: Option<String>,
    tx_checksum: Option<bool>,
    lro: Option<bool>,
    /// An XDP program that is not this edge's.
    foreign_program: Option<u32>,
}

pub fn gather(config: &Config, state: &NetState) -> Vec<Facts> {
    let pins = PinDir::of_edge(&config.edge.name);
    let of = |name: &String| {
        let there = state.link_named(name).map(|link| {
            let ethtool = Ethtool::open(name).ok();
            let ask = |question: fn(&Ethtool) -> Option<bool>| ethtool.as_ref().and_then(question);
            There {
                up: link.up,
                kind: link.kind.clone(),
                driver: ethtool.as_ref().and_then(Ethtool::driver),
                tx_checksum: ask(Ethtool::tx_checksum),
                lro: ask(Ethtool::lro),
                foreign_program: foreign_program(name, &pins.link_path(name)),
            }
        });
        Facts { name: name.clone(), there }
    };
    config.edge.interfaces.iter().map(of).collect()
}

/// One without this edge's pinned link is somebody else's.
fn foreign_program(name: &str, link: &Path) -> Option<u32> {
    let xdp = interface::find(name).ok()??.xdp?;
    (!link.exists()).then_some(xdp.program_id)
}

pub fn judge(facts: &[Facts], config: &Config) -> Vec<Finding> {
    facts.iter().flat_map(|facts| judge_one(facts, config.edge.xdp)).collect()
}

fn judge_one(facts: &Facts, xdp: XdpMode) -> Vec<Finding> {
    let name = &facts.name;
    let Some(there) = &facts.there else {
        let remedy = "create it, or name another in [edge] interfaces (`ip link` lists them)";
        return vec![Finding::problem(format!("interface {name}"), "there is none", remedy)];
    };
    let mut findings = vec![match there.up {
        true => Finding::ok(format!("interface {name}"), "up"),
        false => {
            let remedy = format!("ip link set {name} up, and look for the carrier");
            Finding::problem(format!("interface {name}"), "down, or without a carrier", remedy)
        }
    }];
    findings.push(driver(name, there, xdp));
    findings.extend(program(name, there.foreign_program));
    findings.extend(offloads(name, there));
    findings
}

fn driver(name: &str, there: &There, xdp: XdpMode) -> Finding {
    let thing = format!("XDP on {name}");
    let driver = there.driver.as_deref().or(there.kind.as_deref()).unwrap_or("unknown");
    let native = NATIVE.contains(&driver);
    let generic = "every packet gets a socket buffer first, at several times the cost";
    match (xdp, native) {
        (XdpMode::Generic, _) => Finding::warning(
            thing,
            format!("[edge] xdp = \"generic\": {generic}"),
            "write xdp = \"auto\", unless the driver is known to fail",
        ),
        (_, true) => Finding::ok(thing, format!("driver {driver} runs programs itself")),
        (XdpMode::Native, false) => Finding::problem(
            thing,
            format!(
                "driver {driver} is not known to run programs itself, and [edge] xdp = \"native\""
            ),
            "write xdp = \"auto\", or use a NIC whose driver does",
        ),
        (XdpMode::Auto, false) => Finding::warning(
            thing,
            format!(
                "driver {driver} is not known to run programs itself: if it refuses, {generic}"
            ),
            "use a NIC whose driver does",
        ),
    }
}

fn program(name: &str, foreign: Option<u32>) -> Option<Finding> {
    let id = foreign?;
    Some(Finding::problem(
        format!("XDP on {name}"),
        format!("program {id} is attached there, and is not this edge's"),
        format!(
            "`bpftool prog show id {id}` says whose it is; `ip link set {name} xdp off` removes it, or \
                 `lb-agent unload` of another edge"
        ),
    ))
}

fn offloads(name: &str, there: &There) -> Vec<Finding> {
    let mut findings = Vec::new();
    if there.lro == Some(true) {
        findings.push(Finding::problem(
            format!("LRO of {name}"),
            "on: drivers refuse XDP, or merge packets that must be forwarded as they came",
            format!("ethtool -K {name} lro off"),
        ));
    }
    if there.kind.as_deref() == Some("veth") && there.tx_checksum == Some(true) {
        findings.push(Finding::warning(
            format!("TX checksums of {name}"),
            "left to the device, and a veth has none: who gets such frames past the kernel finds wrong checksums",
            format!("ethtool -K {name} tx off, and the same at the other end"),
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{config, short},
        *,
    };

    const GOOD: There = There {
        up: true,
        kind: None,
        driver: None,
        tx_checksum: Some(true),
        lro: Some(false),
        foreign_program: None,
    };

    fn judged(there: Option<There>, xdp: &str) -> Vec<String> {
        let facts = Facts { name: "eth0".to_owned(), there };
        short(&judge(&[facts], &config(&format!("xdp = {xdp:?}"), "")))
    }

    #[test]
    fn each_interface_is_judged_by_what_it_is() {
        let with = |driver: &str| There { driver: Some(driver.to_owned()), ..GOOD };
        assert_eq!(judged(None, "auto"), ["problem interface eth0"]);
        assert_eq!(judged(Some(with("ice")), "native"), ["ok interface eth0", "ok XDP on eth0"]);
        assert_eq!(judged(Some(with("e1000")), "auto")[1], "warning XDP on eth0");
        assert_eq!(judged(Some(with("e1000")), "native")[1], "problem XDP on eth0");
        assert_eq!(judged(Some(with("ice")), "generic")[1], "warning XDP on eth0");
        let down = There { up: false, ..with("ice") };
        assert_eq!(judged(Some(down), "auto")[0], "problem interface eth0");
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let veth = There { kind: Some("veth".to_owned()), ..GOOD };
        assert_eq!(
            judged(Some(veth.clone()), "auto")[1..],
            ["ok XDP on eth0", "warning TX checksums of eth0"]
        );
        let quiet = There { tx_checksum: Some(false), ..veth.clone() };
        assert_eq!(judged(Some(quiet), "auto").len(), 2);
        let bad = There { lro: Some(true), foreign_program: Some(7), ..veth };
        let wanted = ["problem XDP on eth0", "problem LRO of eth0", "warning TX checksums of eth0"];
        assert_eq!(judged(Some(bad), "auto")[2..], wanted);
    }

    #[test]
    fn the_list_of_drivers_is_sorted() {
        assert!(NATIVE.is_sorted());
    }
}
