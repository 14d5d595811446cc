//! A machine's device and the switch port at its other end.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, bail};
use lb_agent::bpf;

use super::pass;
use crate::link::{Impairments, Link};
use crate::netns::{Netns, NsHandle};

/// How a port is configured, so that it can be made again.
#[derive(Clone, Debug)]
pub(super) struct PortSpec {
    device: String,
    mac: String,
    bridge: &'static str,
    switch_port: String,
    addresses: Vec<String>,
    routes: Vec<String>,
}

impl PortSpec {
    pub(super) fn new(device: &str, mac: String, bridge: &'static str, switch_port: &str) -> Self {
        Self {
            device: device.to_owned(),
            mac,
            bridge,
            switch_port: switch_port.to_owned(),
            addresses: Vec::new(),
            routes: Vec::new(),
        }
    }

    pub(super) fn addresses(self, addresses: Vec<String>) -> Self {
        Self { addresses, ..self }
    }

    pub(super) fn routes(self, routes: Vec<String>) -> Self {
        Self { routes, ..self }
    }
}

/// A device, connected to the switch by a veth pair or an emulated link.
#[derive(Debug)]
pub struct Port {
    spec: PortSpec,
    node: NsHandle,
    switch: NsHandle,
    emulation: Option<(Impairments, u64)>,
    link: Mutex<Option<Arc<Link>>>,
    /// What wakes the switch's end of a veth pair for frames that XDP transmits.
    pass: Mutex<Option<bpf::sys::Link>>,
}

impl Port {
    pub(super) fn connect(
        node: &Netns,
        switch: &Netns,
        spec: PortSpec,
        emulation: Option<(Impairments, u64)>,
    ) -> Result<Self> {
        let (node, switch) = (node.handle().clone(), switch.handle().clone());
        let port =
            Self { spec, node, switch, emulation, link: Mutex::default(), pass: Mutex::default() };
        port.create()?;
        Ok(port)
    }

    #[must_use]
    pub fn device(&self) -> &str {
        &self.spec.device
    }

    #[must_use]
    pub fn mac(&self) -> &str {
        &self.spec.mac
    }

    /// The device at the other end, in the switch's namespace.
    #[must_use]
    pub fn switch_port(&self) -> &str {
        &self.spec.switch_port
    }

    /// The emulated link, if the port is one and connected.
    #[must_use]
    pub fn link(&self) -> Option<Arc<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// `ip link set DEV down`. IPv4 and IPv6 routes go with it, as they do in life.
    pub fn down(&self) -> Result<()> {
        self.node.ip(&format!("link set {} down", self.spec.device))
    }

    /// `ip link set DEV up`, and the routes that were lost.
    pub fn up(&self) -> Result<()> {
        self.node.ip(&self.configuration())
    }

    /// Takes the cable out: the device stays up but has no carrier.
    pub fn unplug(&self) -> Result<()> {
        self.switch.ip(&format!("link set {} down", self.spec.switch_port))
    }

    pub fn plug(&self) -> Result<()> {
        self.switch.ip(&format!("link set {} up", self.spec.switch_port))
    }

    /// Sets the MTU at both ends.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        self.switch.ip(&format!("link set {} mtu {mtu}", self.spec.switch_port))?;
        self.node.ip(&format!("link set {} mtu {mtu}", self.spec.device))
    }

    /// Removes the device: what is attached to it goes with it.
    pub fn delete(&self) -> Result<()> {
        if self.emulation.is_some() {
            let link = self.link.lock().unwrap_or_else(PoisonError::into_inner).take();
            if link.is_some_and(|link| Arc::into_inner(link).is_none()) {
                bail!("{}: its link is still in use by the test", self.spec.device);
            }
            return Ok(());
        }
        self.node.ip(&format!("link delete {}", self.spec.device))
    }

    /// Makes a deleted device again, configured as before, with a new interface index.
    pub fn create(&self) -> Result<()> {
        let PortSpec { device, mac, bridge, switch_port, .. } = &self.spec;
        if let Some((impairments, seed)) = &self.emulation {
            let link = Link::emulate(
                &self.node,
                device,
                &self.switch,
                switch_port,
                impairments.clone(),
                *seed,
            )?;
            self.node.ip(&format!("link set {device} address {mac}"))?;
            *self.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(link));
        } else {
            let node = self.node.name();
            self.switch.ip(&format!(
                "link add {switch_port} type veth peer name {device} address {mac} netns {node}"
            ))?;
            // Redirects into a veth need NAPI at the peer, which GRO brings.
            self.switch.exec("ethtool", &["-K", switch_port, "tx", "off", "gro", "on"])?;
            let pass = pass::attach(&self.switch, switch_port)?;
            *self.pass.lock().unwrap_or_else(PoisonError::into_inner) = Some(pass);
            // Partial checksums in frames would be corrupted by incremental updates.
            self.node.exec("ethtool", &["-K", device, "tx", "off"])?;
        }
        self.switch.ip(&format!("link set {switch_port} master {bridge} up"))?;
        self.node.ip(&self.configuration())
    }

    fn configuration(&self) -> String {
        let PortSpec { device, addresses, routes, .. } = &self.spec;
        let mut lines = Vec::new();
        for address in addresses {
            let flags = if address.contains(':') { "nodad" } else { "" };
            lines.push(format!("address replace {address} dev {device} {flags}"));
        }
        lines.push(format!("link set {device} up"));
        for route in routes {
            lines.push(format!("route replace {route} dev {device}"));
        }
        lines.join("\n")
    }
}
