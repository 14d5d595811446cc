//! The maps that are looked up by the longest prefix: routes, and access lists.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::Result;
use aya::{
    Pod,
    maps::{LpmTrie, Map, MapData, lpm_trie::Key},
};
use lb_common::{
    access::{self, AccessKey},
    addr::{V4, V6},
    next_hop::RouteValue,
};

use super::{super::Prefix, failed, removed, typed};
use crate::bpf::specs::names::*;

/// Routes and access lists, by IP version.
pub struct Tries {
    routes4: LpmTrie<MapData, V4, RouteValue>,
    routes6: LpmTrie<MapData, V6, RouteValue>,
    access4: LpmTrie<MapData, AccessKey<V4>, u32>,
    access6: LpmTrie<MapData, AccessKey<V6>, u32>,
}

impl Tries {
    pub fn open(take: &mut impl FnMut(&str) -> Result<Map>) -> Result<Self> {
        Ok(Self {
            routes4: typed(ROUTES4, take)?,
            routes6: typed(ROUTES6, take)?,
            access4: typed(ACCESS4, take)?,
            access6: typed(ACCESS6, take)?,
        })
    }

    pub fn set_route(&mut self, to: Prefix, next_hop: u16) -> Result<()> {
        let (value, len) = (RouteValue::from(next_hop), u32::from(to.prefix_len()));
        match to.addr() {
            IpAddr::V4(addr) => self
                .routes4
                .insert(&Key::new(len, V4::from(addr)), value, 0)
                .map_err(|error| failed(ROUTES4, "write", &to, error)),
            IpAddr::V6(addr) => self
                .routes6
                .insert(&Key::new(len, V6::from(addr)), value, 0)
                .map_err(|error| failed(ROUTES6, "write", &to, error)),
        }
    }

    pub fn clear_route(&mut self, to: Prefix) -> Result<()> {
        let len = u32::from(to.prefix_len());
        match to.addr() {
            IpAddr::V4(addr) => {
                removed(ROUTES4, &to, self.routes4.remove(&Key::new(len, V4::from(addr))))
            }
            IpAddr::V6(addr) => {
                removed(ROUTES6, &to, self.routes6.remove(&Key::new(len, V6::from(addr))))
            }
        }
    }

    pub fn set_access(&mut self, scope: u16, from: Prefix, admit: bool) -> Result<()> {
        let verdict = if admit { access::ADMIT } else { access::DENY };
        match from.addr() {
            IpAddr::V4(addr) => self
                .access4
                .insert(&access_key(scope, from, V4::from(addr)), verdict, 0)
                .map_err(|error| failed(ACCESS4, "write", &from, error)),
            IpAddr::V6(addr) => self
                .access6
                .insert(&access_key(scope, from, V6::from(addr)), verdict, 0)
                .map_err(|error| failed(ACCESS6, "write", &from, error)),
        }
    }

    pub fn clear_access(&mut self, scope: u16, from: Prefix) -> Result<()> {
        match from.addr() {
            IpAddr::V4(addr) => {
                let key = access_key(scope, from, V4::from(addr));
                removed(ACCESS4, &from, self.access4.remove(&key))
            }
            IpAddr::V6(addr) => {
                let key = access_key(scope, from, V6::from(addr));
                removed(ACCESS6, &from, self.access6.remove(&key))
            }
        }
    }

    pub fn read_routes(&self) -> Result<BTreeMap<Prefix, u16>> {
        let mut routes = BTreeMap::new();
        for entry in self.routes4.iter() {
            let (key, value) = entry.map_err(|error| failed(ROUTES4, "read", &"all", error))?;
            routes.insert(Prefix::new(key.data().into(), key.prefix_len() as u8), value as u16);
        }
        for entry in self.routes6.iter() {
            let (key, value) = entry.map_err(|error| failed(ROUTES6, "read", &"all", error))?;
            routes.insert(Prefix::new(key.data().into(), key.prefix_len() as u8), value as u16);
        }
        Ok(routes)
    }

    pub fn read_access(&self) -> Result<BTreeMap<(u16, Prefix), bool>> {
        let mut lists = BTreeMap::new();
        for entry in self.access4.iter() {
            let (key, verdict) = entry.map_err(|error| failed(ACCESS4, "read", &"all", error))?;
            lists.insert(access_entry(&key), verdict == access::ADMIT);
        }
        for entry in self.access6.iter() {
            let (key, verdict) = entry.map_err(|error| failed(ACCESS6, "read", &"all", error))?;
            lists.insert(access_entry(&key), verdict == access::ADMIT);
        }
        Ok(lists)
    }
}

fn access_key<A: Pod>(scope: u16, from: Prefix, addr: A) -> Key<AccessKey<A>>
where
    AccessKey<A>: Pod,
{
    let len = access::SCOPE_BITS + u32::from(from.prefix_len());
    Key::new(len, AccessKey { scope: scope.into(), addr })
}

fn access_entry<A: Copy + Into<IpAddr>>(key: &Key<AccessKey<A>>) -> (u16, Prefix)
where
    AccessKey<A>: Pod,
{
    let AccessKey { scope, addr } = key.data();
    let len = key.prefix_len() - access::SCOPE_BITS;
    (scope as u16, Prefix::new(addr.into(), len as u8))
}
