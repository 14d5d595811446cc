//! The interfaces that the program is attached to, and attaching it again when one comes back.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

use crate::{
    bpf::{self, Loaded, Mode, interface},
    config::{Edge, XdpMode},
};

/// What has become of each interface of the configuration.
#[derive(Clone, Debug, Default)]
pub struct Interfaces(BTreeMap<String, State>);

/// An interface of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The program meets its packets.
    Attached { ifindex: u32, mode: Mode },
    /// It does not, and why.
    Detached { problem: String },
}

impl Interfaces {
    /// Name and state of each.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &State)> {
        self.0.iter().map(|(name, state)| (name.as_str(), state))
    }

    /// Attaches the program to every interface of the configuration. One that does not exist is waited for as long as
    /// there is another; whatever else goes wrong is an error, and then those that were not attached before are
    /// detached again.
    pub fn attach(&mut self, loaded: &Loaded, edge: &Edge) -> Result<()> {
        let mut states = BTreeMap::new();
        let mut new = Vec::new();
        let mut result = Ok(());
        for name in &edge.interfaces {
            let before = loaded.link_state(name)?;
            match attach_one(loaded, name, edge.xdp, self.0.get(name)) {
                Ok(state) => {
                    if before != bpf::LinkState::Attached {
                        new.push(name);
                    }
                    states.insert(name.clone(), state);
                }
                Err(error) if exists(name) => {
                    result = Err(error);
                    break;
                }
                Err(error) => {
                    states.insert(name.clone(), State::Detached { problem: error.to_string() });
                }
            }
        }
        let attached = |state: &State| matches!(state, State::Attached { .. });
        if result.is_ok() && !states.values().any(attached) {
            let problems: Vec<_> = states.values().map(State::problem).collect();
            result = Err(anyhow::anyhow!("{}", problems.join("\n")));
        }
        if let Err(error) = result {
            for name in new {
                loaded.detach(name)?;
            }
            bail!(error);
        }
        for (name, state) in &states {
            if let State::Detached { problem } = state {
                tracing::error!(interface = name, "not attached, waiting for it: {problem}");
            }
        }
        self.0 = states;
        Ok(())
    }

    /// Detaches the program from what the configuration has no more.
    pub fn detach_others(&self, loaded: &Loaded, edge: &Edge) {
        match loaded.detach_others(&edge.interfaces) {
            Ok(names) => {
                for name in names {
                    tracing::info!(interface = name, "detached: not in the configuration");
                }
            }
            Err(error) => tracing::error!("{error:#}"),
        }
    }

    /// Looks whether the program still meets the packets of all interfaces, and attaches it where it does not and can.
    /// Whether anything changed.
    pub fn check(&mut self, loaded: &Loaded, wanted: XdpMode) -> bool {
        let mut changed = false;
        for (name, state) in &mut self.0 {
            let new = match loaded.link_state(name) {
                Ok(bpf::LinkState::Attached) if matches!(state, State::Attached { .. }) => continue,
                Ok(_) if !exists(name) => State::Detached {
                    problem: format!("interface {name}: there is none of this name"),
                },
                Ok(_) => attach_one(loaded, name, wanted, None)
                    .unwrap_or_else(|error| State::Detached { problem: format!("{error:#}") }),
                Err(error) => State::Detached { problem: format!("{error:#}") },
            };
            if new != *state {
                if let State::Detached { problem } = &new {
                    tracing::error!(interface = name, "no longer attached: {problem}");
                }
                *state = new;
                changed = true;
            }
        }
        changed
    }
}

impl State {
    fn problem(&self) -> &str {
        match self {
            Self::Attached { .. } => "",
            Self::Detached { problem } => problem,
        }
    }
}

/// Attaches the program, or makes sure that it is; says so unless that is what was known `before`.
fn attach_one(
    loaded: &Loaded,
    name: &str,
    wanted: XdpMode,
    before: Option<&State>,
) -> Result<State> {
    let attached = attach_as(loaded, name, wanted)?;
    let state = State::Attached { ifindex: attached.ifindex, mode: attached.mode };
    if before == Some(&state) {
        return Ok(state);
    }
    let bpf::Attached { ifindex, mode, adopted } = attached;
    tracing::info!(interface = name, ifindex, ?mode, adopted, "attached");
    if mode == Mode::Generic && wanted == XdpMode::Generic {
        tracing::warn!(
            interface = name,
            "[edge] xdp = \"generic\": every packet gets a socket buffer before the program sees it: expect \
             several times the cost per packet; \"native\" or \"auto\" is for drivers that can do better"
        );
    }
    Ok(state)
}

fn attach_as(loaded: &Loaded, name: &str, wanted: XdpMode) -> Result<bpf::Attached> {
    let mode = match wanted {
        XdpMode::Auto => bpf::XdpMode::Auto,
        XdpMode::Native => bpf::XdpMode::Native,
        XdpMode::Generic => bpf::XdpMode::Generic,
    };
    loaded.attach(name, mode)
}

fn exists(name: &str) -> bool {
    interface::find(name).is_ok_and(|found| found.is_some())
}
