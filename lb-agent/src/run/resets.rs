//! Sends the resets that the sweeper orders, on the way that the receiver's packets take.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use lb_common::{
    addr::{Addr, Tuple},
    flow::forward,
};

use super::roster::Way;
use crate::{
    flows::{ResetOrder, Rst},
    reset::{Reset, ResetSender, Via},
};

/// A device's queue is emptied within this; beyond `TRIES` the receiver finds out when it speaks.
const RETRY: Duration = Duration::from_millis(1);
const TRIES: u32 = 10;

/// The resets of an order: to the client, and to the backend where it can be reached.
pub fn of<A: Addr + Into<IpAddr>>(order: &ResetOrder<A>, way: Way) -> impl Iterator<Item = Reset> {
    let to_client = order.to_client.map(|rst| reset(rst, Via::Route));
    let via = match order.forward {
        forward::IPIP => {
            way.tunnel.map(|(outer_src, outer_dst)| Via::Tunnel { outer_src, outer_dst })
        }
        forward::DSR => way.link.and_then(|link| {
            let (dst_mac, src_mac) = link.macs?;
            Some(Via::Link { ifindex: link.ifindex, dst_mac, src_mac })
        }),
        _ => Some(Via::Route),
    };
    let to_backend = order.to_backend.zip(via).map(|(rst, via)| reset(rst, via));
    to_client.into_iter().chain(to_backend)
}

/// Sends a reset, and waits a little where a queue is full.
pub fn send(sender: &ResetSender, reset: Reset) -> io::Result<()> {
    for _ in 1..TRIES {
        match sender.send(reset) {
            Err(error)
                if error.kind() == ErrorKind::WouldBlock
                    || error.raw_os_error() == Some(nix::libc::ENOBUFS) =>
            {
                thread::sleep(RETRY);
            }
            result => return result,
        }
    }
    sender.send(reset)
}

fn reset<A: Addr + Into<IpAddr>>(rst: Rst<A>, via: Via) -> Reset {
    let Tuple { src, dst, sport, dport } = rst.tuple;
    Reset {
        src: SocketAddr::new(src.into(), u16::from_be(sport)),
        dst: SocketAddr::new(dst.into(), u16::from_be(dport)),
        seq: rst.seq,
        ack: None,
        via,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use lb_common::addr::V4;

    use super::*;
    use crate::run::roster::OnLink;

    fn order(forward: u8) -> ResetOrder<V4> {
        let addr = |n| V4::from(Ipv4Addr::new(10, 0, 0, n));
        let tuple =
            Tuple { src: addr(1), dst: addr(2), sport: 80_u16.to_be(), dport: 9_u16.to_be() };
        let rst = |tuple| Some(Rst { tuple, seq: 7 });
        ResetOrder { backend: 1, forward, to_client: rst(tuple), to_backend: rst(tuple.reversed()) }
    }

    #[test]
    fn each_end_is_told_on_the_way_of_its_packets() {
        let (from, to) = ("10.9.0.1".parse().unwrap(), "10.9.0.2".parse().unwrap());
        let link = OnLink { ifindex: 3, neighbour: to, macs: Some(([1; 6], [2; 6])) };
        let way = Way { link: Some(link), tunnel: Some((from, to)) };
        for (forward, via) in [
            (forward::NAT, Via::Route),
            (forward::SPLICE, Via::Route),
            (forward::DSR, Via::Link { ifindex: 3, dst_mac: [1; 6], src_mac: [2; 6] }),
            (forward::IPIP, Via::Tunnel { outer_src: from, outer_dst: to }),
        ] {
            let resets: Vec<_> = of(&order(forward), way).collect();
            let [to_client, to_backend] = resets.as_slice() else { panic!("{resets:?}") };
            assert_eq!(to_client.via, Via::Route);
            assert_eq!(to_client.src, "10.0.0.1:80".parse().unwrap());
            assert_eq!(to_client.dst, "10.0.0.2:9".parse().unwrap());
            assert_eq!((to_backend.via, to_backend.seq), (via, 7));
        }
    }

    #[test]
    fn a_backend_that_cannot_be_reached_is_left_out() {
        assert_eq!(of(&order(forward::DSR), Way::default()).count(), 1);
        assert_eq!(of(&order(forward::IPIP), Way::default()).count(), 1);
    }
}
