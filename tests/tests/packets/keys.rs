//! Keys of the flow and handshake tables, for both IP versions.

use std::net::{IpAddr, SocketAddr};

use aya::Pod;
use lb_common::{
    addr::{Addr, Tuple, V4, V6},
    flow::Flow,
    handshake::Handshake,
};
use tests::dataplane::Dataplane;

use crate::connection::Connection;

/// The tables of an IP version.
pub trait Family: Addr + Pod {
    fn addr(ip: IpAddr) -> Self;
    fn flow(plane: &Dataplane, key: &Tuple<Self>) -> Option<Flow<Self>>;
    fn flow_keys(plane: &Dataplane) -> Vec<Tuple<Self>>;
    /// Enters a flow; false if there is no room.
    fn enter_flow(plane: &mut Dataplane, key: &Tuple<Self>, flow: &Flow<Self>) -> bool;
    fn remove_flow(plane: &mut Dataplane, key: &Tuple<Self>);
    fn handshake(plane: &Dataplane, key: &Tuple<Self>) -> Option<Handshake<Self>>;
    fn handshake_keys(plane: &Dataplane) -> Vec<Tuple<Self>>;
    fn enter_handshake(plane: &mut Dataplane, key: &Tuple<Self>, handshake: &Handshake<Self>);
    fn remove_handshake(plane: &mut Dataplane, key: &Tuple<Self>);
}

macro_rules! family {
    ($addr:ident, $variant:ident, $flows:ident, $handshakes:ident) => {
        impl Family for $addr {
            fn addr(ip: IpAddr) -> Self {
                match ip {
                    IpAddr::$variant(ip) => ip.into(),
                    other => panic!("{other} is of the other version"),
                }
            }

            fn flow(plane: &Dataplane, key: &Tuple<Self>) -> Option<Flow<Self>> {
                plane.tables.$flows.get(key, 0).ok()
            }

            fn flow_keys(plane: &Dataplane) -> Vec<Tuple<Self>> {
                plane.tables.$flows.keys().map(Result::unwrap).collect()
            }

            fn enter_flow(plane: &mut Dataplane, key: &Tuple<Self>, flow: &Flow<Self>) -> bool {
                plane.tables.$flows.insert(key, flow, 0).is_ok()
            }

            fn remove_flow(plane: &mut Dataplane, key: &Tuple<Self>) {
                plane.tables.$flows.remove(key).unwrap();
            }

            fn enter_handshake(
                plane: &mut Dataplane,
                key: &Tuple<Self>,
                handshake: &Handshake<Self>,
            ) {
                plane.tables.$handshakes.insert(key, handshake, 0).unwrap();
            }

            fn remove_handshake(plane: &mut Dataplane, key: &Tuple<Self>) {
                plane.tables.$handshakes.remove(key).unwrap();
            }

            fn handshake(plane: &Dataplane, key: &Tuple<Self>) -> Option<Handshake<Self>> {
                plane.tables.$handshakes.get(key, 0).ok()
            }

            fn handshake_keys(plane: &Dataplane) -> Vec<Tuple<Self>> {
                plane.tables.$handshakes.keys().map(Result::unwrap).collect()
            }
        }
    };
}

family!(V4, V4, flows4, handshakes4);
family!(V6, V6, flows6, handshakes6);

pub fn tuple<A: Family>(from: SocketAddr, to: SocketAddr) -> Tuple<A> {
    Tuple {
        src: A::addr(from.ip()),
        dst: A::addr(to.ip()),
        sport: from.port().to_be(),
        dport: to.port().to_be(),
    }
}

/// The key of what the client sends.
pub fn client_key<A: Family>(connection: &Connection) -> Tuple<A> {
    tuple(connection.client, connection.vip)
}

/// The key of what the backend sends, with `nat`.
pub fn answers<A: Family>(connection: &Connection) -> Tuple<A> {
    tuple(connection.server, connection.source)
}
