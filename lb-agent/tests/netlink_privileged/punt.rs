//! Packets which XDP punted because their neighbour was unknown.

use lb_agent::reset::{ResetSender, packet};

use super::{netns::Netns, sniffer::Sniffer};

#[test]
fn a_packet_of_a_stranger_goes_out_whole_and_its_neighbour_is_resolved() {
    let (edge, backend) = (Netns::new(), Netns::new());
    edge.link("eth0", &backend, "eth0");
    for (netns, host) in [(&edge, 1), (&backend, 2)] {
        netns.ip(&format!("addr add 10.0.0.{host}/24 dev eth0"));
        netns.ip(&format!("addr add 2001:db8::{host}/64 dev eth0 nodad"));
    }
    let sender = edge.enter(|| ResetSender::open().unwrap());
    let mut sniffer = Sniffer::new(&backend);
    // Any IP packet would do; a reset is one that can be built here.
    for (src, dst) in [("198.51.100.1:5", "10.0.0.2:6"), ("[2001:db8:9::1]:5", "[2001:db8::2]:6")] {
        let mut packet =
            packet::reset(src.parse().unwrap(), dst.parse().unwrap(), 7, None).unwrap();
        if packet[0] >> 4 == 4 {
            // With an identification of its own nothing in the header is the kernel's to fill in.
            packet[4..6].copy_from_slice(&[0x12, 0x34]);
            packet[10..12].fill(0);
            let sum: u32 =
                packet[..20].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
            let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        sender.send_packet(&packet).unwrap();
        sniffer.find(|seen| (seen == packet).then_some(()));
    }
    for broken in [&[][..], &[0x45; 20], &[0x60; 40], &[0x00; 40]] {
        assert!(sender.send_packet(broken).is_err());
    }
}
