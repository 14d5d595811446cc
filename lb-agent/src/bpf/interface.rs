//! What the kernel says about an interface: its number, and the XDP program that it has.

use std::io;

use rtnetlink::{
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

/// How an XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the kernel's receive path, after the driver.
    Generic,
    /// On the NIC, or several programs at once: none of ours.
    Other,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xdp {
    /// Id of the program; one of them if there are several.
    pub program_id: u32,
    pub mode: Mode,
}

/// An interface of the calling thread's network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its number in the namespace; never 0.
    pub index: u32,
    pub xdp: Option<Xdp>,
}

/// Looks an interface up by its name.
pub fn find(name: &str) -> io::Result<Option<Interface>> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetLink(request));
    request.header.flags = NLM_F_REQUEST;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);

    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer =
        NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(Some(parse(&link))),
        NetlinkPayload::Error(error) => {
            let error = error.to_io();
            match error.raw_os_error() {
                // A name that no interface can have is refused as out of range.
                Some(nix::libc::ENODEV | nix::libc::ERANGE | nix::libc::EINVAL) => Ok(None),
                _ => Err(error),
            }
        }
        other => Err(io::Error::other(format!("unexpected answer of rtnetlink: {other:?}"))),
    }
}

fn parse(link: &LinkMessage) -> Interface {
    let mut program_id = 0;
    let mut mode = None;
    for attribute in &link.attributes {
        let LinkAttribute::Xdp(attributes) = attribute else { continue };
        for attribute in attributes {
            match attribute {
                LinkXdp::Attached(XdpAttached::None) => {}
                LinkXdp::Attached(XdpAttached::Driver) => mode = Some(Mode::Native),
                LinkXdp::Attached(XdpAttached::SocketBuffer) => mode = Some(Mode::Generic),
                LinkXdp::Attached(_) => mode = Some(Mode::Other),
                LinkXdp::ProgId(id)
                | LinkXdp::DrvProgId(id)
                | LinkXdp::SkbProgId(id)
                | LinkXdp::HwProgId(id) => program_id = *id,
                _ => {}
            }
        }
    }
    Interface { index: link.header.index, xdp: mode.map(|mode| Xdp { program_id, mode }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(xdp: Vec<LinkXdp>) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = 7;
        link.attributes.push(LinkAttribute::Xdp(xdp));
        link
    }

    #[test]
    fn the_program_and_its_mode_are_found() {
        let native = [LinkXdp::Attached(XdpAttached::Driver), LinkXdp::ProgId(5)];
        assert_eq!(
            parse(&link(native.to_vec())).xdp,
            Some(Xdp { program_id: 5, mode: Mode::Native })
        );
        let generic = [LinkXdp::Attached(XdpAttached::SocketBuffer), LinkXdp::ProgId(6)];
        assert_eq!(
            parse(&link(generic.to_vec())).xdp,
            Some(Xdp { program_id: 6, mode: Mode::Generic })
        );
        let none = parse(&link(vec![LinkXdp::Attached(XdpAttached::None)]));
        assert_eq!(none, Interface { index: 7, xdp: None });
    }

    #[test]
    fn the_loopback_is_there_and_nonsense_is_not() {
        assert!(find("lo").unwrap().is_some_and(|lo| lo.index > 0));
        assert_eq!(find("no-such-dev").unwrap(), None);
        assert_eq!(find("a-name-which-is-far-too-long-for-an-interface").unwrap(), None);
    }
}
