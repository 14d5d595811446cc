//! How what runs differs from the file.

use serde::{Deserialize, Serialize};

use super::Overrides;
use crate::config::{Backend, Config};

/// One thing that is another than in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// None: the edge's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// `drain`, `weight`, ...; `backend` where it is there or not.
    pub key: String,
    pub file: String,
    pub running: String,
}

impl Difference {
    /// All of them, in the order of the file.
    #[must_use]
    pub fn all(file: &Config, in_force: &Config, overrides: &Overrides) -> Vec<Self> {
        let mut all = Vec::new();
        if overrides.edge.is_some() {
            let (before, now) = (file.edge.drain, in_force.edge.drain);
            all.push(Self::new(None, None, "drain", before, now));
        }
        for service in &in_force.services {
            let Some(of_file) = file.services.iter().find(|it| it.name == service.name) else {
                continue;
            };
            let find = |all: &[Backend], name: &str| all.iter().find(|it| it.name == name).cloned();
            let mut push = |name: &str, key: &str, before: &dyn ToString, now: &dyn ToString| {
                let (before, now) = (before.to_string(), now.to_string());
                if before != now {
                    all.push(Self::new(Some(&service.name), Some(name), key, before, now));
                }
            };
            for before in &of_file.backends {
                match find(&service.backends, &before.name) {
                    None => push(&before.name, "backend", &before.address, &"taken out"),
                    Some(now) => {
                        push(&before.name, "weight", &before.weight, &now.weight);
                        push(&before.name, "drain", &before.drain, &shown(&now));
                    }
                }
            }
            for now in &service.backends {
                if find(&of_file.backends, &now.name).is_none() {
                    push(&now.name, "backend", &"none", &now.address);
                }
            }
        }
        all
    }

    fn new(
        service: Option<&str>,
        backend: Option<&str>,
        key: &str,
        file: impl ToString,
        running: impl ToString,
    ) -> Self {
        Self {
            service: service.map(str::to_owned),
            backend: backend.map(str::to_owned),
            key: key.to_owned(),
            file: file.to_string(),
            running: running.to_string(),
        }
    }
}

fn shown(backend: &Backend) -> String {
    match backend.asked {
        None => backend.drain.to_string(),
        Some(asked) => format!("true, deadline {:?}, rate {}", asked.deadline, asked.rate),
    }
}
