//! Links: attached, taken over, lost with their interface, detached.

use std::{fs, os::fd::AsFd, time::Instant};

use lb_agent::bpf::{
    self, LinkState, Mode, XdpMode, interface,
    sys::{Link, LinkInfo},
};

use crate::{
    fixture::{Namespace, Pins, SIZES, add_veth, assert_says, built_object, ip, text},
    object::{DROP, PASS},
};

fn program_on(name: &str) -> Option<(u32, Mode)> {
    interface::find(name).unwrap().unwrap().xdp.map(|xdp| (xdp.program_id, xdp.mode))
}

fn link(pins: &Pins, name: &str) -> LinkInfo {
    pins.link(name).unwrap().unwrap().info().unwrap()
}

#[test]
fn the_next_agent_swaps_the_program_in_the_same_link() {
    let _namespace = Namespace::enter();
    let pins = Pins::new();
    let first = pins.load(PASS).unwrap();
    let attached = first.attach("in0", XdpMode::Native).unwrap();
    assert_eq!((attached.mode, attached.adopted), (Mode::Native, false));
    assert_eq!(program_on("in0"), Some((first.program_id(), Mode::Native)));
    let before = link(&pins, "in0");
    let id = first.program_id();
    drop(first);
    assert_eq!(program_on("in0"), Some((id, Mode::Native)), "attached without an agent");

    let second = pins.load(DROP).unwrap();
    assert_eq!(program_on("in0"), Some((id, Mode::Native)), "until it is swapped");
    let attached = second.attach("in0", XdpMode::Native).unwrap();
    assert!(attached.adopted);
    assert_ne!(second.program_id(), id);
    assert_eq!(program_on("in0"), Some((second.program_id(), Mode::Native)));
    assert_eq!(link(&pins, "in0").id, before.id);
}

#[test]
fn an_interface_that_comes_back_is_attached_again() {
    let _namespace = Namespace::enter();
    let pins = Pins::new();
    let loaded = pins.load(PASS).unwrap();
    assert_eq!(loaded.link_state("in0").unwrap(), LinkState::Absent);
    loaded.attach("in0", XdpMode::Native).unwrap();
    assert_eq!(loaded.link_state("in0").unwrap(), LinkState::Attached);

    ip("link delete in0");
    assert_eq!(loaded.link_state("in0").unwrap(), LinkState::Gone);
    assert_eq!(link(&pins, "in0").ifindex, 0);
    assert_says(&text(loaded.attach("in0", XdpMode::Native)), &["interface in0", "there is none"]);

    add_veth("in0", "out0");
    assert_eq!(loaded.link_state("in0").unwrap(), LinkState::Gone);
    assert!(!loaded.attach("in0", XdpMode::Native).unwrap().adopted);
    assert_eq!(loaded.link_state("in0").unwrap(), LinkState::Attached);
}

#[test]
fn the_number_of_another_namespaces_interface_is_not_mistaken() {
    let pins = Pins::new();
    let loaded = pins.load(PASS).unwrap();
    let _first = Namespace::enter();
    let there = loaded.attach("in0", XdpMode::Native).unwrap();
    let _second = Namespace::enter();
    let here = interface::find("in0").unwrap().unwrap();
    assert_eq!(here.index, there.ifindex, "the test needs equal numbers");
    assert_eq!(loaded.link_state("in0").unwrap(), LinkState::Gone);
    assert!(!loaded.attach("in0", XdpMode::Native).unwrap().adopted);
    assert_eq!(program_on("in0"), Some((loaded.program_id(), Mode::Native)));
}

#[test]
fn a_program_of_somebody_else_is_not_touched() {
    let _namespace = Namespace::enter();
    let (mine, other) = (Pins::new(), Pins::new());
    let foreign = other.load(DROP).unwrap();
    let index = interface::find("in0").unwrap().unwrap().index;
    let _link = Link::create(foreign.program().as_fd(), index, 0).unwrap();
    let loaded = mine.load(PASS).unwrap();
    let error = text(loaded.attach("in0", XdpMode::Auto));
    let id = format!("id {}", foreign.program_id());
    assert_says(&error, &["interface in0", &id, "\"sluice\"", "xdp off"]);
    assert_eq!(program_on("in0"), Some((foreign.program_id(), Mode::Native)));
}

#[test]
fn generic_mode_on_request_and_back() {
    let _namespace = Namespace::enter();
    let pins = Pins::new();
    let loaded = pins.load(PASS).unwrap();
    assert_eq!(loaded.attach("in0", XdpMode::Generic).unwrap().mode, Mode::Generic);
    assert_eq!(program_on("in0"), Some((loaded.program_id(), Mode::Generic)));
    // Auto keeps what there is; native insists.
    let kept = loaded.attach("in0", XdpMode::Auto).unwrap();
    assert_eq!((kept.mode, kept.adopted), (Mode::Generic, true));
    assert_eq!(loaded.attach("in0", XdpMode::Native).unwrap().mode, Mode::Native);
    assert_eq!(program_on("in0"), Some((loaded.program_id(), Mode::Native)));
    assert_eq!(pins.interfaces().unwrap(), ["in0"]);
}

/// The loopback's driver has no XDP.
#[test]
fn where_the_driver_refuses_auto_falls_back_and_native_says_what_to_do() {
    let _namespace = Namespace::enter();
    ip("link set lo up");
    let pins = Pins::new();
    let loaded = pins.load(PASS).unwrap();
    let error = text(loaded.attach("lo", XdpMode::Native));
    assert_says(&error, &["interface lo", "driver refuses", "xdp = \"auto\"", "several times"]);
    assert_eq!(loaded.link_state("lo").unwrap(), LinkState::Absent);
    assert_eq!(loaded.attach("lo", XdpMode::Auto).unwrap().mode, Mode::Generic);
    // A mode that cannot be had does not cost the one that there is.
    assert_says(&text(loaded.attach("lo", XdpMode::Native)), &["driver refuses"]);
    assert_eq!(program_on("lo"), Some((loaded.program_id(), Mode::Generic)));
    assert_eq!(loaded.link_state("lo").unwrap(), LinkState::Attached);
}

#[test]
fn a_renamed_interface_keeps_its_link() {
    let _namespace = Namespace::enter();
    let pins = Pins::new();
    let loaded = pins.load(PASS).unwrap();
    loaded.attach("in0", XdpMode::Native).unwrap();
    let before = link(&pins, "in0");
    ip("link set in0 down");
    ip("link set in0 name uplink.5");
    assert!(loaded.attach("uplink.5", XdpMode::Native).unwrap().adopted);
    assert_eq!(pins.interfaces().unwrap(), ["uplink.5"]);
    assert_eq!(link(&pins, "uplink.5").id, before.id);
}

#[test]
fn interfaces_that_left_the_config_are_detached() {
    let _namespace = Namespace::enter();
    add_veth("in1", "out1");
    let pins = Pins::new();
    let loaded = pins.load(PASS).unwrap();
    loaded.attach("in0", XdpMode::Native).unwrap();
    loaded.attach("in1", XdpMode::Native).unwrap();
    assert_eq!(loaded.detach_others(&["in1".to_owned()]).unwrap(), ["in0"]);
    assert_eq!((program_on("in0"), program_on("in1").is_some()), (None, true));
    assert!(!loaded.detach("in0").unwrap());
}

#[test]
fn unload_detaches_also_what_others_hold_and_what_is_gone() {
    let _namespace = Namespace::enter();
    add_veth("in1", "out1");
    let pins = Pins::new();
    let loaded = pins.load(PASS).unwrap();
    loaded.attach("in0", XdpMode::Native).unwrap();
    loaded.attach("in1", XdpMode::Native).unwrap();
    let _held = pins.link("in0").unwrap().unwrap();
    ip("link delete in1");
    let unloaded = bpf::unload(&pins).unwrap();
    assert_eq!(unloaded.interfaces, ["in0", "in1"]);
    assert_says(&unloaded.to_string(), &["the program", "detached from in0, in1"]);
    assert_eq!(program_on("in0"), None);
    assert!(!pins.path().exists());
}

/// The real data plane, as far as it concerns the loader.
#[test]
fn the_built_object_is_loaded_attached_and_swapped() {
    let Some(path) = built_object() else { return };
    let object = fs::read(path).unwrap();
    let _namespace = Namespace::enter();
    let pins = Pins::new();
    let start = Instant::now();
    let first = bpf::load(&object, &pins, &SIZES).unwrap();
    println!("loading took {:?}", start.elapsed());
    assert_eq!(first.attach("in0", XdpMode::Native).unwrap().mode, Mode::Native);
    // Bytes at an odd address are an object too.
    let shifted = [b"x", object.as_slice()].concat();
    let second = bpf::load(&shifted[1..], &pins, &SIZES).unwrap();
    assert!(second.adopted() && second.attach("in0", XdpMode::Native).unwrap().adopted);
    assert_eq!(program_on("in0"), Some((second.program_id(), Mode::Native)));
}
