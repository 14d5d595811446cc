//! Splices of ends with all sorts of TCP options and paths, each with bulk in both directions; and those that must
//! be relayed, counted by reason. Needs root.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_common::outcome::Event;
use tests::edge::HealthConfig;
use tests::effort;
use tests::netns::{Netns, NsHandle, NsTask};
use tests::pipe::{Dial, Pipe, Terms};
use tests::privilege::require_root;
use tests::process;
use tests::seed::seed;
use tests::spliced::{SERVICES, SplicedPlan, SplicedSite, Watch, start_server};
use tests::topology::Topology;

/// For a connection to be spliced, or refused.
const SPLICED: Duration = Duration::from_secs(20);

/// What is done to the ends, and what shall come of it.
#[derive(Clone, Debug, Default)]
struct Case {
    what: String,
    client: Vec<(&'static str, &'static str)>,
    edge: Vec<(&'static str, &'static str)>,
    backend: Vec<(&'static str, &'static str)>,
    /// Of the route to the edge, as `ip` takes it.
    client_route: String,
    backend_route: String,
    /// Of the three links' devices: client's, edge's back side, backend's.
    mtu: Option<[u32; 2]>,
    /// Window scales of the client and of the edge to it.
    client_scale: Option<u8>,
    /// Counted where it shall be relayed.
    refused: Option<&'static str>,
}

impl Case {
    fn new(what: &str) -> Self {
        Self { what: what.to_owned(), ..Self::default() }
    }

    fn refused(self, label: &'static str) -> Self {
        Self { refused: Some(label), ..self }
    }
}

fn plan(what: &str) -> SplicedPlan {
    require_root();
    // Bulk keeps the machine busy, and the probes wait.
    let interval = Duration::from_secs(5);
    let health = HealthConfig {
        interval,
        timeout: interval,
        fall: 10,
        rise: 1,
        ..HealthConfig::websocket()
    };
    SplicedPlan { backends: 1, health, ..SplicedPlan::new(seed(what)) }
}

/// A site, and the ends as they are when nobody has changed them.
struct Bench {
    site: SplicedSite,
    cases: u64,
}

impl Bench {
    fn new(what: &str) -> Self {
        Self { site: plan(what).build().unwrap(), cases: 0 }
    }

    /// The nodes whose settings change.
    fn ends(&self) -> [&NsHandle; 3] {
        let lab = &self.site.lab;
        [lab.client(0).handle(), lab.edge().handle(), lab.backend(0).handle()]
    }

    fn routes(&self, client: &str, backend: &str) -> Result<()> {
        let [of_client, _, of_backend] = self.ends();
        let vips = self.site.lab.vips();
        of_client.ip(&format!(
            "route replace {} via 10.1.0.1 dev eth0 {client}\n\
             route replace {} via fd01::1 dev eth0 {client}",
            vips[0], vips[1]
        ))?;
        of_backend.ip(&format!(
            "route replace 10.2.0.1/32 dev eth0 {backend}\nroute replace fd02::1/128 dev eth0 {backend}"
        ))
    }

    fn mtus(&self, [front, back]: [u32; 2]) -> Result<()> {
        let lab = &self.site.lab;
        lab.client(0).port("eth0").set_mtu(front)?;
        lab.edge().port("eth0").set_mtu(front)?;
        lab.edge().port("eth1").set_mtu(back)?;
        lab.backend(0).port("eth0").set_mtu(back)
    }

    /// Makes the ends so, has an exchange over IPv4 and IPv6, and undoes it.
    fn run(&mut self, case: &Case) {
        self.cases += 1;
        let done = self.try_run(case);
        done.unwrap_or_else(|error| panic!("{}: {error:#}", case.what));
    }

    fn try_run(&self, case: &Case) -> Result<()> {
        let settings = [&case.client, &case.edge, &case.backend];
        let mut before = Vec::new();
        for (end, settings) in self.ends().into_iter().zip(settings) {
            for (name, value) in settings {
                before.push((end, *name, read(end, name)?));
                end.sysctl(name, value)?;
            }
        }
        self.routes(&case.client_route, &case.backend_route)?;
        if let Some(mtu) = case.mtu {
            self.mtus(mtu)?;
            // The agent sees the devices change, and with them its next hops.
            self.site.edge.wait_all_up()?;
        }
        self.exchange(case)?;
        for (end, name, value) in before.into_iter().rev() {
            end.sysctl(name, &value)?;
        }
        if case.mtu.is_some() {
            self.mtus([1500, 1500])?;
        }
        self.routes("", "")
    }

    /// How often this was the reason; None where nothing shall be refused.
    fn counted(&self, refused: Option<&str>) -> Result<Option<u64>> {
        let Some(label) = refused else { return Ok(None) };
        let status = self.site.edge.status()?;
        Ok(Some(SERVICES.iter().map(|it| status.happened(it, label)).sum()))
    }

    /// Opens a connection over each IP version, waits until it is spliced, or refused for the reason, and sends.
    fn exchange(&self, case: &Case) -> Result<()> {
        let watch = Watch::start(self.site.edge.lister());
        let (seed, first) = (self.site.seed, self.cases * 2);
        let (targets, of_clients) = (self.site.listeners(), case.clone());
        let counted = self.counted(case.refused)?;
        let (go, goes) = tokio::sync::oneshot::channel();
        let bytes = effort::choose(2 << 20, 32 << 20);
        let clients = self.site.start_clients(0, async move |_| -> Result<()> {
            let (mut pipes, opened) = (Vec::new(), Instant::now());
            for (version, target) in targets.into_iter().enumerate() {
                let terms = Terms::awaited(seed, first + version as u64, bytes);
                let pipe = Dial::new(target, terms).open().await?;
                if let Some(scale) = of_clients.client_scale {
                    let (_, ours) = scales(&pipe)?;
                    ensure!(ours == scale, "the client scales by {ours}, not {scale}");
                }
                pipes.push(pipe);
            }
            if of_clients.refused.is_some() {
                goes.await.context("not refused")?;
            }
            for pipe in pipes {
                let target = pipe.target();
                if of_clients.refused.is_none() {
                    watch.spliced(pipe.local(), opened, SPLICED).await?;
                }
                pipe.exchange(bytes).await.with_context(|| format!("to {target}"))?;
            }
            Ok(())
        });
        if let Some(counted) = counted {
            let deadline = Instant::now() + SPLICED;
            while self.counted(case.refused)? < Some(counted + 2) {
                let have = self.site.splices()?;
                ensure!(Instant::now() < deadline, "not twice {:?}: {have:?}", case.refused);
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = go.send(());
        }
        clients.join()
    }
}

fn read(end: &NsHandle, sysctl: &str) -> Result<String> {
    let path = format!("/proc/sys/net/{sysctl}");
    Ok(end.run(|| std::fs::read_to_string(&path)).with_context(|| path.clone())?.trim().to_owned())
}

/// The scales of what a client is sent and of what it sends.
fn scales(pipe: &Pipe) -> Result<(u8, u8)> {
    let port = format!("sport = :{}", pipe.local().port());
    let said = process::run(process::command("ss").args(["-Htin", &port]))?;
    let Some(word) = said.split_whitespace().find_map(|word| word.strip_prefix("wscale:")) else {
        return Ok((0, 0));
    };
    let (theirs, ours) = word.split_once(',').context("no scales")?;
    Ok((theirs.parse()?, ours.parse()?))
}

const TIMESTAMPS_OFF: (&str, &str) = ("ipv4/tcp_timestamps", "0");
const SACK_OFF: (&str, &str) = ("ipv4/tcp_sack", "0");
const ECN_ASKED: (&str, &str) = ("ipv4/tcp_ecn", "1");
const ECN_OFF: (&str, &str) = ("ipv4/tcp_ecn", "0");

#[test]
fn timestamps_and_sack_must_be_the_same_on_both_sides() {
    let mut bench = Bench::new("timestamps and sack");
    bench.run(&Case::new("as they are"));
    for (option, label) in [(TIMESTAMPS_OFF, "splice_timestamps"), (SACK_OFF, "splice_sack")] {
        let client = Case { client: vec![option], ..Case::new("client without") };
        bench.run(&client.clone().refused(label));
        let backend = Case { backend: vec![option], ..Case::new("backend without") };
        bench.run(&backend.clone().refused(label));
        bench.run(&Case { backend: vec![option], ..client });
    }
    // What an edge with many Windows clients does.
    let both = vec![TIMESTAMPS_OFF];
    bench.run(&Case { client: both.clone(), edge: both, ..Case::new("edge without timestamps") });
    let neither = vec![TIMESTAMPS_OFF, SACK_OFF];
    bench.run(&Case {
        client: neither.clone(),
        backend: neither,
        ..Case::new("neither timestamps nor sack")
    });
    bench.site.wait_empty().unwrap();
}

#[test]
fn window_scales_from_none_to_fourteen_on_either_side() {
    let mut bench = Bench::new("window scales");
    // The scale that comes of it, the settings, and an attribute of the route.
    let huge = ("ipv4/tcp_rmem", "4096 131072 1073741824");
    let ways: [(u8, Vec<_>, &str); 5] = [
        (0, vec![("ipv4/tcp_window_scaling", "0")], ""),
        (0, vec![], "window 65535"),
        (2, vec![], "window 200000"),
        (7, vec![], "window 8000000"),
        (14, vec![huge], ""),
    ];
    for (client_scale, client, client_route) in &ways {
        for (backend_scale, backend, backend_route) in &ways {
            bench.run(&Case {
                client: client.clone(),
                backend: backend.clone(),
                client_route: (*client_route).to_owned(),
                backend_route: (*backend_route).to_owned(),
                client_scale: Some(*client_scale),
                ..Case::new(&format!(
                    "client {client_scale} {client:?} {client_route}, backend {backend_scale} \
                     {backend:?} {backend_route}"
                ))
            });
        }
    }
    bench.site.wait_empty().unwrap();
}

#[test]
fn segments_from_536_to_8960_bytes() {
    let mut bench = Bench::new("segment sizes");
    let small = "advmss 536".to_owned();
    bench.run(&Case { client_route: small.clone(), ..Case::new("client 536") });
    bench.run(
        &Case { backend_route: small.clone(), ..Case::new("backend 536") }.refused("splice_mss"),
    );
    bench.run(&Case { client_route: small.clone(), backend_route: small, ..Case::new("both 536") });
    bench.run(&Case { mtu: Some([9000, 9000]), ..Case::new("both 8960") });
    bench.run(&Case { mtu: Some([1500, 9000]), ..Case::new("backend 8960") });
    bench.run(&Case { mtu: Some([9000, 1500]), ..Case::new("client 8960") }.refused("splice_mss"));
    bench.site.wait_empty().unwrap();
}

#[test]
fn ecn_on_one_side_or_both() {
    let mut bench = Bench::new("ecn");
    let (asked, off) = (vec![ECN_ASKED], vec![ECN_OFF]);
    bench.run(&Case { client: asked.clone(), ..Case::new("client") });
    bench.run(&Case {
        client: off.clone(),
        edge: asked.clone(),
        ..Case::new("backend, since the edge asks for it")
    });
    bench.run(&Case { client: asked.clone(), edge: asked.clone(), ..Case::new("both") });
    bench.run(&Case { client: asked, edge: off.clone(), backend: off, ..Case::new("none") });
    bench.site.wait_empty().unwrap();
}

#[test]
fn clients_of_one_ip_version_are_relayed_to_backends_of_the_other() {
    let plan = plan("ip versions");
    let lab = plan.topology().build().unwrap();
    let mut config = plan.config(&lab);
    let [four, six] = SERVICES.map(|it| config.service(it).backends.clone());
    config.service(SERVICES[0]).backends = six;
    config.service(SERVICES[1]).backends = four;
    let mut bench = Bench { site: plan.populate_with(lab, config).unwrap(), cases: 0 };
    bench.run(&Case::new("crossed").refused("splice_ip_versions"));
    bench.site.wait_empty().unwrap();
}

/// Machines behind a node of the lab: the node, a router, an end. The link between the two first is narrow.
struct Behind {
    _router: Netns,
    end: Netns,
}

impl Behind {
    /// `net` is the third number of the addresses: 10.NET.0.0/24 is the narrow link, 10.NET.1.2 the end.
    fn build(lab: &Topology, node: &NsHandle, edge_via: [&str; 2], net: u8, mtu: u32) -> Self {
        let router = Netns::new(&format!("router-{net}")).unwrap();
        let end = Netns::new(&format!("end-{net}")).unwrap();
        for forwards in [node, router.handle()] {
            let both = [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")];
            forwards.sysctls(&both).unwrap();
        }
        let join = |near: &NsHandle, device: &str, far: &NsHandle, part: u8, mtu: u32| {
            let far_name = far.name();
            near.ip(&format!(
                "link add {device} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {far_name}\n\
                 address add 10.{net}.{part}.1/24 dev {device}\n\
                 address add fd{net:02}:{part}::1/64 dev {device} nodad\nlink set {device} up"
            ))
            .unwrap();
            far.ip(&format!(
                "address add 10.{net}.{part}.2/24 dev eth0\n\
                 address add fd{net:02}:{part}::2/64 dev eth0 nodad\nlink set eth0 up\n\
                 route add default via 10.{net}.{part}.1\n\
                 route add default via fd{net:02}:{part}::1"
            ))
            .unwrap();
            // Checksums must be there when XDP sees the packets.
            far.exec("ethtool", &["-K", "eth0", "tx", "off"]).unwrap();
        };
        join(node, "narrow", &router, 0, mtu);
        join(&router, "behind", &end, 1, 1500);
        node.ip(&format!(
            "route add 10.{net}.1.0/24 via 10.{net}.0.2\nroute add fd{net:02}:1::/64 via fd{net:02}:0::2"
        ))
        .unwrap();
        lab.edge()
            .ip(&format!(
                "route add 10.{net}.0.0/16 via {}\nroute add fd{net:02}::/16 via {}",
                edge_via[0], edge_via[1]
            ))
            .unwrap();
        Self { _router: router, end }
    }
}

#[test]
fn a_narrow_link_behind_either_end_is_found_through_the_splice() {
    let plan = plan("path mtu");
    let lab = plan.topology().build().unwrap();
    let clients = Behind::build(&lab, lab.client(0), ["10.1.0.2", "fd01::2"], 31, 1300);
    let servers = Behind::build(&lab, lab.backend(0), ["10.2.0.2", "fd02::2"], 32, 1400);
    let _server = start_server(&servers.end, "chat-behind").unwrap();
    let mut config = plan.config(&lab);
    for (service, address) in SERVICES.into_iter().zip(["10.32.1.2:9080", "[fd32:1::2]:9080"]) {
        config.service(service).backends[0].address = address.parse().unwrap();
    }
    let site = plan.populate_with(lab, config).unwrap();
    let watch = Watch::start(site.edge.lister());
    let (seed, targets) = (site.seed, site.listeners());
    let bytes = effort::choose(2 << 20, 32 << 20);
    let told = |site: &SplicedSite| site.edge.status().unwrap().event(Event::IcmpErrorForwarded);
    for (version, target) in targets.into_iter().enumerate() {
        let before = told(&site);
        let watch = watch.clone();
        NsTask::start(Some(&clients.end), "behind", async move |_| -> Result<()> {
            let terms = Terms::awaited(seed, version as u64, bytes);
            let pipe = Dial::new(target, terms).open().await?;
            watch.spliced(pipe.local(), Instant::now(), SPLICED).await?;
            pipe.exchange(bytes).await
        })
        .join()
        .unwrap();
        let deadline = Instant::now() + SPLICED;
        // One for each direction.
        while told(&site) < before + 2 {
            assert!(Instant::now() < deadline, "{} of 2 errors", told(&site) - before);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    site.wait_empty().unwrap();
}
