//! The channel between worker and broker.

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use lb_sidecar::splice::{ANSWER_BYTES, Answer, Refusal};
use rustix::{
    cmsg_space,
    net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg},
};

use crate::site::{Connection, Ip, Site};

pub fn send(worker: &OwnedFd, id: u64, connection: &Connection) {
    send_descriptors(worker, id, &[connection.accepted.as_fd(), connection.upstream.as_fd()]);
}

fn send_descriptors(worker: &OwnedFd, id: u64, descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    let id = id.to_ne_bytes();
    sendmsg(worker, &[IoSlice::new(&id)], &mut control, SendFlags::empty()).unwrap();
}

pub fn receive(worker: &OwnedFd) -> (u64, Answer) {
    let mut message = [0; 64];
    let (length, _) = recv(worker, &mut message, RecvFlags::empty()).unwrap();
    assert_eq!(length, ANSWER_BYTES);
    let id = u64::from_ne_bytes(message[..8].try_into().unwrap());
    (id, Answer::from_byte(message[8]).unwrap())
}

#[test]
fn every_offer_gets_its_answer_whatever_comes_with_it() {
    let site = Site::new();
    let worker = site.splicer.start("test").unwrap();
    let (good, mut unknown) = (site.connect(Ip::V4), site.connect_unseen(Ip::V4, Ip::V4));
    let file = std::fs::File::open("/dev/null").unwrap();
    let unix = std::os::unix::net::UnixStream::pair().unwrap().0;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    send(&worker, 1, &unknown);
    send_descriptors(&worker, 2, &[good.accepted.as_fd()]);
    send_descriptors(&worker, 3, &[file.as_fd(), file.as_fd()]);
    send_descriptors(&worker, 4, &[unix.as_fd(), unix.as_fd()]);
    send_descriptors(&worker, 5, &[listener.as_fd(), listener.as_fd()]);
    send_descriptors(&worker, 6, &[good.upstream.as_fd(), good.accepted.as_fd()]);
    send(&worker, 7, &good);
    let refused = Answer::Refused;
    for wanted in [
        (1, refused(Refusal::UnknownHandshake)),
        (2, refused(Refusal::Failed)),
        (3, refused(Refusal::Failed)),
        (4, refused(Refusal::Failed)),
        (5, refused(Refusal::Closing)),
        (6, refused(Refusal::NotSpliced)),
        (7, Answer::Spliced),
    ] {
        assert_eq!(receive(&worker), wanted);
    }
    site.assert_untouched(&mut unknown);
}

#[test]
fn the_thread_ends_with_the_worker() {
    let site = Site::new();
    let worker = site.splicer.start("sl-end").unwrap();
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names =
            tasks.filter_map(|it| std::fs::read_to_string(it.ok()?.path().join("comm")).ok());
        names.filter(|name| name.trim() == "splice-sl-end").count()
    };
    crate::splice::wait_until("the thread has its name", || threads() == 1);
    drop(worker);
    crate::splice::wait_until("the thread ends", || threads() == 0);
}

#[test]
fn a_worker_can_read_the_flow_tables_and_not_write_them() {
    let site = Site::new();
    for flows in site.splicer.flows() {
        let map = aya::maps::MapData::from_fd(flows.try_clone().unwrap()).unwrap();
        let map = aya::maps::Map::from_map_data(map).unwrap();
        // Either kind of key is long enough for a look that finds nothing.
        let mut map: aya::maps::HashMap<_, [u8; 12], [u8; 64]> = match map.try_into() {
            Ok(map) => map,
            Err(_) => continue,
        };
        assert!(matches!(map.get(&[1; 12], 0), Err(aya::maps::MapError::KeyNotFound)));
        let error = map.insert([1; 12], [1; 64], 0).unwrap_err();
        assert!(format!("{error:?}").contains("PermissionDenied"), "{error:?}");
    }
}
