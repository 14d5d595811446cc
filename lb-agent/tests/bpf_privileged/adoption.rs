//! Maps: created, adopted, refused, removed.

use std::{env, fs, os::fd::AsFd, path::Path, process::Command};

use aya::{
    EbpfLoader,
    maps::{Array, MapData, MapType},
};
use lb_agent::bpf::{
    self, TableSizes, capabilities,
    pins::{self, Adoption, PinError},
    specs::{self, MapSpec, names},
    sys,
};
use lb_common::{
    abi::{self, Edge},
    next_hop::NextHop,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

use crate::{
    fixture::{Pins, SIZES, assert_says, built_object, text},
    object::{INVALID, PASS, object},
};

#[test]
fn maps_are_created_and_then_adopted_with_what_is_in_them() {
    let pins = Pins::new();
    let first = pins.load(PASS).unwrap();
    assert!(!first.adopted());
    let hop = NextHop { ifindex: 5, mtu: 1_500, ..Default::default() };
    let mut hops: Array<_, NextHop> = pins.map(names::NEXT_HOPS).unwrap().try_into().unwrap();
    hops.set(3, hop, 0).unwrap();
    drop((first, hops));

    let second = pins.load(PASS).unwrap();
    assert!(second.adopted());
    let hops: Array<_, NextHop> = pins.map(names::NEXT_HOPS).unwrap().try_into().unwrap();
    assert_eq!(hops.get(&3, 0).unwrap(), hop);
    let edge: Array<_, Edge> = pins.map(names::EDGE).unwrap().try_into().unwrap();
    assert_eq!(edge.get(&0, 0).unwrap().abi_version, abi::VERSION);
}

#[test]
fn only_root_can_reach_the_pins() {
    use std::os::unix::fs::PermissionsExt;
    let pins = Pins::new();
    pins.load(PASS).unwrap();
    assert_eq!(fs::metadata(pins.path()).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn an_idle_edge_can_do_without_preallocation() {
    let pins = Pins::new();
    let sizes = TableSizes { preallocate: false, ..SIZES };
    pins.load_sizes(PASS, &sizes).unwrap();
    let flags = |name| MapData::from_pin(pins.map_path(name)).unwrap().info().unwrap().map_flags();
    assert_eq!(flags(names::FLOWS4), sys::NO_PREALLOC);
    assert_eq!(flags(names::FLOWS6), sys::NO_PREALLOC);
    assert_eq!(flags(names::HANDSHAKES4), 0);
    // Adopted with the same setting, refused with the other.
    pins.load_sizes(PASS, &sizes).unwrap();
    let error = text(pins.load(PASS));
    assert_says(&error, &["maps/FLOWS4", "flags 1 (not preallocated)", "needs 0 (preallocated)"]);
}

/// Puts another map in place of a pinned one.
fn replace(pins: &Pins, spec: &MapSpec) {
    let MapSpec { name, map_type, key_size, value_size, max_entries, flags } = *spec;
    let map = sys::map_create(name, map_type as u32, key_size, value_size, max_entries, flags);
    pins.replace(map.unwrap(), &pins.map_path(name)).unwrap();
}

#[test]
fn every_difference_is_refused() {
    let pins = Pins::new();
    let program = pins.load(PASS).unwrap();
    let specs = specs::maps(&SIZES);
    let flows = *specs.iter().find(|spec| spec.name == names::FLOWS4).unwrap();
    for (property, other) in [
        ("type", MapSpec { map_type: MapType::LruHash, ..flows }),
        ("key size", MapSpec { key_size: 16, ..flows }),
        ("value size", MapSpec { value_size: 72, ..flows }),
        ("max_entries", MapSpec { max_entries: 2_000, ..flows }),
        ("flags", MapSpec { flags: sys::NO_PREALLOC, ..flows }),
    ] {
        replace(&pins, &other);
        let error = pins::validate(&pins, &specs).unwrap_err();
        let PinError::Different { property: found, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*found, property);
        assert_says(&error.to_string(), &["maps/FLOWS4", property, "lb-agent unload"]);
        // The loader refuses it too, and leaves it as it is.
        assert_says(&text(pins.load(PASS)), &["maps/FLOWS4", property]);
    }

    pins.replace(program.program(), &pins.map_path(names::FLOWS4)).unwrap();
    let error = pins::validate(&pins, &specs).unwrap_err().to_string();
    assert_says(&error, &["maps/FLOWS4", "not a map", "lb-agent unload"]);

    fs::remove_file(pins.map_path(names::FLOWS4)).unwrap();
    let error = pins::validate(&pins, &specs).unwrap_err().to_string();
    assert_says(&error, &["maps/FLOWS4", "no map is pinned", "lb-agent unload"]);

    replace(&pins, &flows);
    assert_eq!(pins::validate(&pins, &specs).unwrap(), Adoption::Complete);
}

#[test]
fn another_abi_version_is_refused_before_anything_else() {
    let pins = Pins::new();
    pins.load(PASS).unwrap();
    let mut edge: Array<_, Edge> = pins.map(names::EDGE).unwrap().try_into().unwrap();
    edge.set(0, Edge { abi_version: 99, ..Default::default() }, 0).unwrap();
    let specs = specs::maps(&TableSizes { flows_ipv4: 5, ..SIZES });
    let error = pins::validate(&pins, &specs).unwrap_err();
    assert!(matches!(error, PinError::AbiVersion { found: 99, .. }), "{error:?}");
    assert_says(&error.to_string(), &["maps/EDGE", "ABI version 99", "lb-agent unload"]);
}

#[test]
fn what_an_interrupted_agent_left_is_made_anew() {
    let specs = specs::maps(&SIZES);
    for (what, count) in [("the first three", 3), ("all but the version", specs.len())] {
        let pins = Pins::new();
        pins.create().unwrap();
        for spec in &specs[..count] {
            replace(&pins, spec);
        }
        assert_eq!(pins::validate(&pins, &specs).unwrap(), Adoption::Unfinished, "{what}");
        assert!(!pins.load(PASS).unwrap().adopted(), "{what}");
        assert_eq!(pins::validate(&pins, &specs).unwrap(), Adoption::Complete, "{what}");
    }
}

#[test]
fn unload_leaves_nothing() {
    let pins = Pins::new();
    assert!(bpf::unload(&pins).unwrap().is_empty());
    pins.load(PASS).unwrap();
    let unloaded = bpf::unload(&pins).unwrap();
    assert_eq!(unloaded.maps.len(), specs::maps(&SIZES).len());
    assert_eq!(unloaded.to_string(), "removed the program, 21 maps, and was attached nowhere");
    assert!(!pins.path().exists());
    assert!(bpf::unload(&pins).unwrap().is_empty());
}

#[test]
fn what_the_verifier_says_is_in_the_error() {
    let pins = Pins::new();
    assert_says(&text(pins.load(INVALID)), &["refuses the program sluice", "R0 !read_ok"]);
    assert!(!pins.program_path().exists());
}

#[test]
fn an_object_of_another_build_is_refused() {
    let pins = Pins::new();
    let specs = specs::maps(&SIZES);
    let object = object(PASS, &specs[1..]);
    assert_says(&text(bpf::load(&object, &pins, &SIZES)), &["no map EDGE"]);
    assert_says(&text(bpf::load(b"no ELF at all", &pins, &SIZES)), &["cannot be loaded"]);
}

/// The list of maps in the agent repeats what the data plane declares.
#[test]
fn the_built_object_declares_the_same_maps() {
    let Some(path) = built_object() else { return };
    let specs = specs::maps(&SIZES);
    let mut loader = EbpfLoader::new();
    for spec in &specs {
        loader.map_max_entries(spec.name, spec.max_entries);
    }
    let ebpf = loader.load(&fs::read(path).unwrap()).unwrap();
    for spec in &specs {
        let map = ebpf.map(spec.name).unwrap_or_else(|| panic!("no map {}", spec.name));
        let dir = Pins::new();
        dir.create().unwrap();
        map.pin(dir.map_path(spec.name)).unwrap();
        let info = MapData::from_pin(dir.map_path(spec.name)).unwrap().info().unwrap();
        let found = MapSpec {
            name: spec.name,
            map_type: info.map_type().unwrap(),
            key_size: info.key_size(),
            value_size: info.value_size(),
            max_entries: info.max_entries(),
            flags: info.map_flags(),
        };
        assert_eq!(found, *spec);
    }
}

#[test]
fn bpffs_is_mounted_where_it_is_not() {
    // This thread's own mounts: other tests keep theirs.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    let path = Path::new(pins::BPFFS);
    while pins::is_bpffs(path) {
        umount2(path, MntFlags::MNT_DETACH).unwrap();
    }
    pins::mount_bpffs().unwrap();
    assert!(pins::is_bpffs(path));
    pins::mount_bpffs().expect("a second time is harmless");
}

#[test]
fn a_missing_capability_is_named() {
    const INSIDE: &str = "SLUICE_TEST_WITHOUT_CAPABILITY";
    if env::var_os(INSIDE).is_some() {
        assert_says(&text(capabilities::check()), &["CAP_NET_ADMIN (to", "AmbientCapabilities="]);
        return;
    }
    pins::mount_bpffs().unwrap();
    capabilities::check().expect("the tests run as root");
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin", "--"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "adoption::a_missing_capability_is_named", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("setpriv of util-linux can be run");
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && out.contains("1 passed"), "{output:?}");
}

#[test]
fn a_pin_is_replaced_without_a_gap() {
    let pins = Pins::new();
    let loaded = pins.load(PASS).unwrap();
    pins.replace(loaded.program().as_fd(), &pins.program_path()).unwrap();
    let names: Vec<_> =
        fs::read_dir(pins.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
}
