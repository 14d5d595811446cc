//! `lb-agent flows`: who talks to whom, read from the pinned tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufWriter, Write},
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use lb_agent::{
    bpf::{PinDir, capabilities, sys::now_ticks},
    config::Config,
    flows::list::{Carried, Filter, Listed, list},
    run,
    state::{actual::Actual, backend_addr, maps::Maps},
};
use serde::Serialize;

use super::WhichEdge;

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    which: WhichEdge,
    /// Only flows of this service: its name (with --config), its id, or one of its listeners
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    /// Only flows of this backend: its name (with --config), its id, or its address and port
    #[arg(long, value_name = "BACKEND")]
    backend: Option<String>,
    /// Only flows of this client
    #[arg(long, value_name = "ADDRESS")]
    client: Option<IpAddr>,
    /// At most so many flows
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// One JSON object per line
    #[arg(long)]
    json: bool,
}

pub fn flows(arguments: &Arguments) -> Result<()> {
    capabilities::check()?;
    let config = match &arguments.which.config {
        Some(file) => Some(run::load_config(file)?.config),
        None => None,
    };
    let edge = match (&config, &arguments.which.edge) {
        (Some(config), _) => config.edge.name.clone(),
        (None, edge) => edge.clone().unwrap_or_default(),
    };
    let pins = PinDir::of_edge(&edge);
    if !pins.path().exists() {
        bail!("edge {edge:?}: nothing is loaded: there is no {}", pins.path().display());
    }
    let actual = Maps::from_pins(&pins.path().join("maps"))?.read()?;
    let names = Names::new(&actual, config.as_ref());
    let filter = Filter {
        client: arguments.client,
        listeners: arguments.service.as_deref().map(|text| names.listeners_of(text)).transpose()?,
        backends: arguments.backend.as_deref().map(|text| names.backends_of(text)).transpose()?,
    };
    let (rows, more) = list(&pins, &filter, arguments.limit, now_ticks())
        .with_context(|| format!("edge {edge:?}: the flow tables cannot be read"))?;
    match print(&rows, &names, arguments.json) {
        // Whoever read our output has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        result => result?,
    }
    if more {
        eprintln!("there may be more: --limit {} was reached", arguments.limit);
    }
    Ok(())
}

/// What the numbers in the maps stand for.
struct Names {
    listeners: BTreeMap<SocketAddr, u16>,
    services: BTreeMap<u16, String>,
    addresses: BTreeMap<u16, SocketAddr>,
    backends: BTreeMap<u16, String>,
    /// Services with flows but no listeners in the maps, as those that are no longer spliced: who is called what, by the
    /// listener and the backend's address.
    unlisted: BTreeMap<SocketAddr, (String, BTreeMap<SocketAddr, String>)>,
}

impl Names {
    fn new(actual: &Actual, config: Option<&Config>) -> Self {
        let listeners: BTreeMap<SocketAddr, u16> = actual
            .listeners
            .iter()
            .filter(|(_, listener)| listener.service != 0)
            .map(|(at, listener)| (SocketAddr::new(at.ip, at.port), listener.service))
            .collect();
        let addresses: BTreeMap<u16, SocketAddr> =
            actual.backends.iter().map(|(id, backend)| (*id, backend_addr(backend))).collect();
        let (mut services, mut backends) = (BTreeMap::new(), BTreeMap::new());
        let mut unlisted = BTreeMap::new();
        for service in config.into_iter().flat_map(|config| &config.services) {
            let Some(id) = service.listen.iter().find_map(|addr| listeners.get(addr)) else {
                let of_service = service.backends.iter().map(|it| (it.address, it.name.clone()));
                let named = (service.name.clone(), of_service.collect::<BTreeMap<_, _>>());
                unlisted.extend(service.listen.iter().map(|at| (*at, named.clone())));
                continue;
            };
            services.insert(*id, service.name.clone());
            for backend in &service.backends {
                let of_service = |(_, it): &(&u16, &lb_common::service::Backend)| {
                    it.service == *id && backend_addr(it) == backend.address
                };
                if let Some((id, _)) = actual.backends.iter().find(of_service) {
                    backends.insert(*id, backend.name.clone());
                }
            }
        }
        Self { listeners, services, addresses, backends, unlisted }
    }

    fn listeners_of(&self, text: &str) -> Result<BTreeSet<SocketAddr>> {
        let addr = text.parse::<SocketAddr>().ok();
        let is_meant = |(at, id): &(&SocketAddr, &u16)| {
            addr == Some(**at)
                || self.services.get(*id).is_some_and(|name| name == text)
                || id.to_string() == text
        };
        let ids: BTreeSet<u16> = self.listeners.iter().filter(is_meant).map(|it| *it.1).collect();
        let of_ids = self.listeners.iter().filter(|(_, id)| ids.contains(id)).map(|(at, _)| *at);
        let unlisted =
            self.unlisted.iter().filter(|(at, (name, _))| addr == Some(**at) || name == text);
        let found: BTreeSet<_> = of_ids.chain(unlisted.map(|(at, _)| *at)).collect();
        if found.is_empty() {
            bail!(
                "service {text:?}: not known; give its name and --config FILE, or one of its listeners: {}",
                joined(self.listeners.keys().chain(self.unlisted.keys()))
            );
        }
        Ok(found)
    }

    fn backends_of(&self, text: &str) -> Result<BTreeSet<u16>> {
        let addr = text.parse::<SocketAddr>().ok();
        let is_meant = |(id, at): &(&u16, &SocketAddr)| {
            addr == Some(**at)
                || self.backends.get(*id).is_some_and(|name| name == text)
                || id.to_string() == text
        };
        let ids: BTreeSet<u16> = self.addresses.iter().filter(is_meant).map(|it| *it.0).collect();
        if ids.is_empty() {
            bail!(
                "backend {text:?}: not known; give its name and --config FILE, or its address: {}",
                joined(self.addresses.values())
            );
        }
        Ok(ids)
    }

    fn service(&self, listener: SocketAddr) -> String {
        match self.listeners.get(&listener) {
            Some(id) => self.services.get(id).cloned().unwrap_or_else(|| id.to_string()),
            None => self
                .unlisted
                .get(&listener)
                .map_or_else(|| "?".to_owned(), |(name, _)| name.clone()),
        }
    }

    fn backend(&self, listener: SocketAddr, id: u16) -> String {
        let of_unlisted = || {
            let (_, backends) = self.unlisted.get(&listener)?;
            backends.get(self.addresses.get(&id)?).cloned()
        };
        let address = || self.addresses.get(&id).map(ToString::to_string);
        let name = self.backends.get(&id).cloned().or_else(of_unlisted);
        name.or_else(address).unwrap_or_else(|| id.to_string())
    }
}

fn joined<T: ToString>(things: impl Iterator<Item = T>) -> String {
    things.map(|thing| thing.to_string()).collect::<Vec<_>>().join(", ")
}

fn print(rows: &[Listed], names: &Names, as_json: bool) -> io::Result<()> {
    // Standard output alone would make a system call of each line.
    let mut out = BufWriter::new(io::stdout().lock());
    if as_json {
        for row in rows {
            write_json(&mut out, row, names)?;
        }
        return out.flush();
    }
    writeln!(
        out,
        "{:<44} {:<28} {:<20} {:<22} {:<12} {:>9} {:>9} {:>12} {:>12}",
        "client",
        "listener",
        "service",
        "backend",
        "state",
        "age",
        "idle",
        "from client",
        "to client"
    )?;
    for row in rows {
        writeln!(
            out,
            "{:<44} {:<28} {:<20} {:<22} {:<12} {:>8.0}s {:>8.0}s {:>11}B {:>12}",
            row.client.to_string(),
            row.listener.to_string(),
            names.service(row.listener),
            names.backend(row.listener, row.backend),
            row.state,
            row.age_seconds,
            row.idle_seconds,
            row.from_client.1,
            row.to_client.map_or_else(|| "-".to_owned(), |(_, bytes)| format!("{bytes}B")),
        )?;
    }
    out.flush()
}

/// A line of JSON. Values of `serde_json` would take most of the time of a long list.
#[derive(Serialize)]
struct Row<'a> {
    client: SocketAddr,
    listener: SocketAddr,
    service: &'a str,
    backend: &'a str,
    backend_id: u16,
    backend_address: Option<&'a SocketAddr>,
    nat: Option<Nat>,
    forward: &'static str,
    state: &'static str,
    age_seconds: f64,
    idle_seconds: f64,
    from_client: Carried,
    to_client: Option<Carried>,
}

#[derive(Serialize)]
struct Nat {
    edge: SocketAddr,
    backend: SocketAddr,
}

fn write_json(out: &mut impl Write, row: &Listed, names: &Names) -> io::Result<()> {
    let row = Row {
        client: row.client,
        listener: row.listener,
        service: &names.service(row.listener),
        backend: &names.backend(row.listener, row.backend),
        backend_id: row.backend,
        backend_address: names.addresses.get(&row.backend),
        nat: row.nat.map(|(edge, backend)| Nat { edge, backend }),
        forward: row.forward,
        state: row.state,
        age_seconds: row.age_seconds,
        idle_seconds: row.idle_seconds,
        from_client: row.from_client.into(),
        to_client: row.to_client.map(Carried::from),
    };
    serde_json::to_writer(&mut *out, &row)?;
    out.write_all(b"\n")
}
