//! How long it takes to list all flows of a full table, and what that does to the packets that go on meanwhile.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use lb_agent::bpf::{PinDir, specs::names, sys::now_ticks};
use lb_common::{
    addr::{Tuple, V4},
    flow::{Flow, flags, forward},
};
use serde_json::Value;

use crate::{
    place::{self, PORT, Place},
    report,
    stream::Stream,
};

/// What a page of the API can have.
const PAGE: usize = 10_000;

/// How long the stream runs alone.
const QUIET: Duration = Duration::from_secs(3);

pub fn measure(flows: u32, rounds: usize) -> Result<()> {
    let place = place::start(1, 1, (4 * flows).max(65_536))?;
    fill(&place, flows)?;
    let target = SocketAddr::new(place.lab.vips()[0], PORT);
    let client = place.lab.client(0).handle();
    let alone = Stream::start(client, target);
    std::thread::sleep(QUIET);
    let alone = alone.finish()?;
    type List = fn(&Place) -> Result<usize>;
    let ways: [(&str, List); 2] = [("GET /v1/flows", pages), ("lb-agent flows --json", command)];
    for (way, list) in ways {
        let stream = Stream::start(client, target);
        let mut millis = Vec::new();
        for _ in 0..rounds {
            let start = Instant::now();
            let listed = list(&place)?;
            millis.push(start.elapsed().as_secs_f64() * 1e3);
            // The stream's own connection is one more.
            ensure!(listed >= flows as usize, "{way}: {listed} flows of {flows}");
        }
        report(&format!("{way}, ms ({flows} flows)"), millis, Some(1_000.0));
        report("  a round trip meanwhile, ms", stream.finish()?, None);
    }
    report("a round trip with nobody listing, ms", alone, None);
    Ok(())
}

/// Enters connections as XDP would: both directions, just seen.
fn fill(place: &Place, count: u32) -> Result<()> {
    let status: Value = serde_json::from_str(&place.edge.get("/v1/status")?.body)?;
    let backend = status["services"][0]["backends"][0]["id"].as_u64().context("no backend id")?;
    let backend = u16::try_from(backend)?;
    let map = PinDir::of_edge(place.edge.name()).map(names::FLOWS4)?;
    ensure!(matches!(map, Map::HashMap(_)), "{}: not a hash map", names::FLOWS4);
    let mut table: HashMap<MapData, Tuple<V4>, Flow<V4>> = map.try_into()?;
    let SocketAddr::V4(listener) = SocketAddr::new(place.lab.vips()[0], PORT) else {
        anyhow::bail!("the first address of the services is not an IPv4 address");
    };
    let server = place.lab.backend(0).v4();
    let now = now_ticks();
    let tuple = |(src, sport): (Ipv4Addr, u16), (dst, dport): (Ipv4Addr, u16)| Tuple {
        src: V4::from(src),
        dst: V4::from(dst),
        sport: sport.to_be(),
        dport: dport.to_be(),
    };
    for number in 0..count {
        // Above the ports that the edge gives to the stream's connection.
        let port = 33_000 + u16::try_from(number % 30_000)?;
        let [_, _, c, d] = (number / 30_000 + 1).to_be_bytes();
        let client = (Ipv4Addr::new(198, 18, c, d), port);
        let edge = (Ipv4Addr::new(10, 3, c, d), port);
        let (listener, server) = ((*listener.ip(), listener.port()), (server, PORT));
        let flow = Flow {
            backend,
            forward: forward::NAT,
            packets: 10,
            bytes: 1_000,
            created: now,
            last_seen: now,
            ..Flow::default()
        };
        let inward = Flow { to: tuple(edge, server), ..flow };
        let outward = Flow { to: tuple(listener, client), flags: flags::TO_CLIENT, ..flow };
        table.insert(tuple(client, listener), inward, 0).context("the flow table is full")?;
        table.insert(tuple(server, edge), outward, 0).context("the flow table is full")?;
    }
    Ok(())
}

/// All pages of the API; how many flows they had.
fn pages(place: &Place) -> Result<usize> {
    let (mut count, mut cursor) = (0, String::new());
    loop {
        let answer = place.edge.get(&format!("/v1/flows?limit={PAGE}{cursor}"))?;
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.body);
        // To read all of it as JSON would be the client's work, and more than the agent's.
        count += answer.body.matches("\"backend_id\":").count();
        let (_, next) = answer.body.rsplit_once("\"next\":").context("a page without next")?;
        match next.trim_end_matches('}') {
            "null" => return Ok(count),
            next => cursor = format!("&cursor={}", next.trim_matches('"')),
        }
    }
}

/// The same from the command line.
fn command(place: &Place) -> Result<usize> {
    let file = place.edge.config_path();
    let file = file.to_str().context("a path that is not text")?;
    let said = place.edge.cli(&["flows", "--limit", "1000000", "--json", "--config", file])?;
    Ok(said.lines().count())
}
