//! Puts the program on interfaces, and keeps it there when agents come and go.
//!
//! A pinned link outlives the agent. The next agent swaps the program in it, so that each packet meets
//! either the old program or the new one. Network namespaces: interfaces are looked up in the calling
//! thread's.

use std::{io, os::fd::AsFd};

use anyhow::{Context, Result, anyhow, bail};
use aya::programs::loaded_programs;
use nix::libc;

use super::{
    interface::{self, Interface, Mode},
    loader::Loaded,
    pins::{PinDir, optional},
    sys::Link,
};

/// Bits of `IFLA_XDP_FLAGS`.
const FLAG_GENERIC: u32 = 1 << 1;
const FLAG_NATIVE: u32 = 1 << 2;

/// Which kind of XDP is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver, or an error.
    Native,
    /// After the driver.
    Generic,
    /// In the driver if it can, else after it, with a warning.
    Auto,
}

/// A program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Number of the interface.
    pub ifindex: u32,
    /// How the program is attached: native or generic.
    pub mode: Mode,
    /// Whether an earlier agent's link was taken over, without a packet missed.
    pub adopted: bool,
}

/// What has become of an interface's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// The program meets the interface's packets.
    Attached,
    /// The interface that the link was for is gone, or another one has its name: call
    /// [`Loaded::attach`] once it is back.
    Gone,
    /// No link is pinned.
    Absent,
}

impl Loaded {
    /// Attaches the program to an interface, or swaps it in where an earlier agent attached its own.
    /// Calling it again is harmless, and right after an interface was deleted and came back.
    pub fn attach(&self, name: &str, wanted: XdpMode) -> Result<Attached> {
        let interface = lookup(name)?.ok_or_else(|| {
            anyhow!(
                "interface {name}: there is none of this name; see `ip link` and [edge] interfaces"
            )
        })?;
        adopt_renamed(self.pins(), name, interface)?;
        let pinned = self
            .pins()
            .link(name)
            .with_context(|| format!("{}", self.pins().link_path(name).display()))?;
        match pinned {
            Some(link) if owns(&link, interface)? => self.take_over(name, interface, &link, wanted),
            _ => {
                refuse_foreign(name, interface)?;
                self.attach_anew(name, interface, wanted)
            }
        }
    }

    fn take_over(
        &self,
        name: &str,
        interface: Interface,
        link: &Link,
        wanted: XdpMode,
    ) -> Result<Attached> {
        let mode = interface.xdp.map_or(Mode::Other, |xdp| xdp.mode);
        let suits = match wanted {
            XdpMode::Native => mode == Mode::Native,
            XdpMode::Generic => mode == Mode::Generic,
            XdpMode::Auto => true,
        };
        if suits {
            link.update(self.program().as_fd())
                .with_context(|| format!("interface {name}: cannot swap the XDP program"))?;
            return Ok(Attached { ifindex: interface.index, mode, adopted: true });
        }
        // The kernel does not allow both modes at once, so packets pass the program by for a moment.
        tracing::warn!(
            interface = name,
            from = ?mode,
            to = ?wanted,
            "changing the XDP mode: for a moment, packets reach the host's own TCP stack"
        );
        link.detach().with_context(|| format!("interface {name}: cannot detach XDP"))?;
        self.attach_anew(name, interface, wanted).inspect_err(|_| {
            let old = if mode == Mode::Generic { XdpMode::Generic } else { XdpMode::Native };
            if let Err(error) = self.attach_anew(name, interface, old) {
                tracing::error!(interface = name, "the old XDP mode does not come back: {error:#}");
            }
        })
    }

    fn attach_anew(&self, name: &str, interface: Interface, wanted: XdpMode) -> Result<Attached> {
        let create = |flags| Link::create(self.program().as_fd(), interface.index, flags);
        let (link, mode) = match wanted {
            XdpMode::Generic => {
                (create(FLAG_GENERIC).map_err(|e| refused(name, wanted, e))?, Mode::Generic)
            }
            XdpMode::Native => {
                (create(FLAG_NATIVE).map_err(|e| refused(name, wanted, e))?, Mode::Native)
            }
            XdpMode::Auto => match create(FLAG_NATIVE) {
                Ok(link) => (link, Mode::Native),
                Err(error) if is_of_the_driver(&error) => {
                    let link = create(FLAG_GENERIC).map_err(|e| refused(name, wanted, e))?;
                    tracing::warn!(
                        interface = name,
                        "the driver refuses native XDP ({error}): attached in generic mode. {COST}"
                    );
                    (link, Mode::Generic)
                }
                Err(error) => return Err(refused(name, wanted, error)),
            },
        };
        let path = self.pins().link_path(name);
        self.pins()
            .replace(&link, &path)
            .with_context(|| format!("{}: cannot pin the link", path.display()))?;
        Ok(Attached { ifindex: interface.index, mode, adopted: false })
    }

    /// Detaches the program from an interface and removes the pin; false if there was none.
    pub fn detach(&self, name: &str) -> Result<bool> {
        detach(self.pins(), name)
    }

    /// Detaches the program from every interface but these, and returns the names of those: what
    /// follows from a config that no longer lists them.
    pub fn detach_others(&self, keep: &[String]) -> Result<Vec<String>> {
        let mut others = self.pins().interfaces()?;
        others.retain(|name| !keep.contains(name));
        for name in &others {
            self.detach(name)?;
        }
        Ok(others)
    }

    /// Whether the program still meets an interface's packets.
    pub fn link_state(&self, name: &str) -> Result<LinkState> {
        link_state(self.pins(), name)
    }
}

/// Whether the program whose link is pinned meets an interface's packets.
pub fn link_state(pins: &PinDir, name: &str) -> Result<LinkState> {
    let Some(link) = pins.link(name)? else { return Ok(LinkState::Absent) };
    Ok(match lookup(name)? {
        Some(interface) if owns(&link, interface)? => LinkState::Attached,
        _ => LinkState::Gone,
    })
}

/// What generic mode costs, for people.
const COST: &str = "Every packet then gets a socket buffer before the program sees it: expect several \
                    times the cost per packet, and no transmission from the driver";

/// Detaches a pinned link and removes the pin; false if there was none.
pub(super) fn detach(pins: &PinDir, name: &str) -> Result<bool> {
    let path = pins.link_path(name);
    if let Some(link) = pins.link(name).with_context(|| format!("{}", path.display()))? {
        // Also when another process holds the link. One whose interface is gone is detached already.
        if link.info()?.ifindex != 0 {
            link.detach().with_context(|| format!("interface {name}: cannot detach XDP"))?;
        }
    }
    let removed = optional(std::fs::remove_file(&path));
    Ok(removed.with_context(|| format!("{}: cannot remove", path.display()))?.is_some())
}

fn lookup(name: &str) -> Result<Option<Interface>> {
    interface::find(name).with_context(|| format!("interface {name}: rtnetlink"))
}

/// Whether a link's program is on this interface. The number alone does not tell: it may be that of an
/// interface in another network namespace.
fn owns(link: &Link, interface: Interface) -> Result<bool> {
    let info = link.info()?;
    let on_interface = interface.xdp.map(|xdp| xdp.program_id);
    Ok(info.ifindex == interface.index && on_interface == Some(info.program_id))
}

/// Gives a link the interface's new name if the interface was renamed.
fn adopt_renamed(pins: &PinDir, name: &str, interface: Interface) -> Result<()> {
    for old in pins.interfaces()?.iter().filter(|old| *old != name) {
        let renamed = match pins.link(old)? {
            Some(link) => owns(&link, interface)?,
            None => false,
        };
        if renamed {
            tracing::info!(
                from = old,
                to = name,
                "the interface was renamed, and its link is kept"
            );
            std::fs::rename(pins.link_path(old), pins.link_path(name))?;
        }
    }
    Ok(())
}

fn refuse_foreign(name: &str, interface: Interface) -> Result<()> {
    let Some(xdp) = interface.xdp else { return Ok(()) };
    let id = xdp.program_id;
    let program = loaded_programs()
        .filter_map(Result::ok)
        .find(|info| info.id() == id)
        .and_then(|info| info.name_as_str().map(str::to_owned))
        .unwrap_or_else(|| "?".to_owned());
    bail!(
        "interface {name}: another XDP program is attached (id {id}, name {program:?}); only one can be: \
         remove it with `ip link set dev {name} xdp off`, or if it belongs to a link (`bpftool link`), \
         stop the program that holds it"
    )
}

/// Whether generic mode may help.
fn is_of_the_driver(error: &io::Error) -> bool {
    !matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EACCES | libc::EBUSY | libc::EEXIST | libc::ENODEV | libc::EBADF)
    )
}

fn refused(name: &str, wanted: XdpMode, error: io::Error) -> anyhow::Error {
    let remedy = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "the process lacks CAP_NET_ADMIN or CAP_BPF in this network namespace".to_owned()
        }
        Some(libc::EBUSY | libc::EEXIST) => {
            format!("another XDP program is attached: see `ip link show dev {name}`")
        }
        Some(libc::ENODEV) => "the interface has just gone away".to_owned(),
        _ if wanted == XdpMode::Native => format!(
            "the driver refuses native XDP; set [edge] xdp = \"auto\" or \"generic\" (or lower the MTU, \
             or the number of the NIC's queues, where the driver's limits for XDP are the reason). {COST}"
        ),
        _ => "generic XDP is refused too: does the interface have an Ethernet header, and is LRO off \
              (`ethtool -K DEV lro off`)?"
            .to_owned(),
    };
    anyhow!("interface {name}: cannot attach the XDP program ({error}): {remedy}")
}
