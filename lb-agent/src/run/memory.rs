//! What is remembered for the next agent: which addresses are the edge's, who was up, and since when what drains. Pure.

use std::collections::BTreeMap;

use super::{checks::key, liveness::Liveness};
use crate::{config::Config, sidecar::Memory};

/// What the next agent must know, from what this one knew before.
pub fn memory(config: &Config, liveness: &Liveness, before: &Memory, now: u64) -> Memory {
    let mut memory = Memory::default();
    if config.edge.drain {
        memory.edge_drains = Some(before.edge_drains.unwrap_or(now));
    }
    for service in &config.services {
        let is_l7 = service.l7().is_some();
        if is_l7 {
            memory.vips.extend(service.listen.iter().map(|addr| addr.ip()));
        }
        let drained = before.drains.get(&service.name);
        let mut drains = BTreeMap::new();
        for backend in &service.backends {
            let known = (service.name.clone(), backend.address);
            // What XDP gives clients to is remembered by the maps.
            match liveness.is_live(&key(&service.name, backend)) {
                _ if !is_l7 => false,
                true => memory.up.insert(known),
                false => memory.down.insert(known),
            };
            if backend.drain {
                let before = drained.and_then(|it| it.get(&backend.name)).copied();
                let since = backend.asked.map(|asked| asked.since).or(before).unwrap_or(now);
                drains.insert(backend.name.clone(), since);
            }
        }
        if !drains.is_empty() {
            memory.drains.insert(service.name.clone(), drains);
        }
    }
    memory
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::health::State;

    fn config(drained: &[&str]) -> Config {
        let mut text = r#"
            [edge]
            name = "e"
            interfaces = ["eth0"]
            hash_seed = "s"
            [[service]]
            name = "chat"
            mode = "l7"
            affinity = "none"
            listen = ["203.0.113.10:80", "203.0.113.11:80"]
            "#
        .to_owned();
        for (n, name) in (2..).zip(["a", "b"]) {
            let drain = drained.contains(&name);
            text += &format!(
                "[[service.backend]]\nname = \"{name}\"\naddress = \"10.2.0.{n}:9000\"\ndrain = {drain}\n"
            );
        }
        crate::config::parse("edge.toml", &text).unwrap().0
    }

    #[test]
    fn a_drain_begins_once_and_is_forgotten_when_it_is_called_off() {
        let liveness = Liveness::default();
        let of = |drained: &[&str], before: &Memory, now| {
            memory(&config(drained), &liveness, before, now)
        };
        let first = of(&["a"], &Memory::default(), 1_000);
        assert_eq!(first.drains["chat"], BTreeMap::from([("a".to_owned(), 1_000)]));
        let second = of(&["a", "b"], &first, 2_000);
        let both = [("a".to_owned(), 1_000), ("b".to_owned(), 2_000)];
        assert_eq!(second.drains["chat"], BTreeMap::from(both));
        let third = of(&["b"], &second, 3_000);
        assert_eq!(third.drains["chat"], BTreeMap::from([("b".to_owned(), 2_000)]));
        assert!(of(&[], &third, 4_000).drains.is_empty());
        assert_eq!(of(&["a"], &third, 5_000).drains["chat"]["a"], 5_000, "it begins anew");
    }

    #[test]
    fn so_does_the_drain_of_the_edge() {
        let liveness = Liveness::default();
        let of = |drain, before: &Memory, now| {
            let mut config = config(&[]);
            config.edge.drain = drain;
            memory(&config, &liveness, before, now)
        };
        let first = of(true, &Memory::default(), 1_000);
        assert_eq!(first.edge_drains, Some(1_000));
        let second = of(true, &first, 2_000);
        assert_eq!(second.edge_drains, Some(1_000));
        let off = of(false, &second, 3_000);
        assert_eq!(off.edge_drains, None);
        assert_eq!(of(true, &off, 4_000).edge_drains, Some(4_000), "it begins anew");
    }

    #[test]
    fn the_next_agent_knows_who_was_up_and_which_addresses_are_the_edges() {
        let (config, mut liveness) = (config(&[]), Liveness::default());
        liveness.follow(&config, |_, _| None);
        let backends = &config.services[0].backends;
        assert!(liveness.observe(&key("chat", &backends[1]), State::Down, Instant::now()));
        let memory = memory(&config, &liveness, &Memory::default(), 0);
        assert_eq!(memory.vips.len(), 2);
        assert_eq!(memory.was_live("chat", backends[0].address), Some(true));
        assert_eq!(memory.was_live("chat", backends[1].address), Some(false));
    }
}
