//! Tier 2: the built objects, without loading them. Needs no root; needs `cargo xtask build`, and says so
//! where that has not been run. With CI=true it fails then.

use std::env;

use lb_agent::bpf::specs::{self, TableSizes};
use lb_common::decap;
use tests::dataplane::object_path;

/// The object, or `None` with a word about the remedy.
fn object(name: &str) -> Option<tests::dataplane::Object> {
    let path = object_path(name);
    if path.exists() {
        return Some(tests::dataplane::object(name));
    }
    let remedy = format!("{}: not built; run `cargo xtask build`", path.display());
    assert!(env::var_os("CI").is_none(), "{remedy}");
    eprintln!("skipped: {remedy}");
    None
}

fn parse(object: &tests::dataplane::Object) -> aya_obj::Object {
    aya_obj::Object::parse(object).expect("the object is one that aya reads")
}

#[test]
fn every_object_has_its_program_licence_and_types() {
    for (name, program) in [("sluice", "sluice"), ("traced", "sluice"), ("decap", "decap")] {
        let Some(object) = object(name) else { continue };
        let object = parse(&object);
        let program = object.programs.get(program).unwrap_or_else(|| panic!("no program {name}"));
        assert!(
            matches!(program.section, aya_obj::ProgramSection::Xdp { frags: true, .. }),
            "{name}: {:?}",
            program.section
        );
        assert_eq!(object.license.to_str(), Ok("GPL"), "{name}: the kernel's helpers want it");
        assert!(object.btf.is_some(), "{name}: no BTF");
    }
}

#[test]
fn the_maps_of_sluice_are_those_that_the_agent_makes() {
    for name in ["sluice", "traced"] {
        let Some(object) = object(name) else { return };
        assert_has_the_agents_maps(&parse(&object));
    }
}

/// Only those who trace pay for it: the usual object has nothing that tracing needs.
#[test]
fn tracing_has_maps_in_the_traced_object_alone() {
    let (Some(usual), Some(traced)) = (object("sluice"), object("traced")) else { return };
    let maps = |object: &tests::dataplane::Object| -> std::collections::BTreeSet<String> {
        parse(object).maps.into_keys().collect()
    };
    let (usual, traced) = (maps(&usual), maps(&traced));
    let own: Vec<_> = traced.difference(&usual).map(String::as_str).collect();
    assert_eq!(own, ["TRACE", "TRACES", "TRACE_COUNTS", "TRACE_FILTER", "TRACE_PACE"]);
    assert!(usual.is_subset(&traced));
}

fn assert_has_the_agents_maps(object: &aya_obj::Object) {
    let sizes = TableSizes {
        flows_ipv4: 1,
        flows_ipv6: 1,
        handshakes: 1,
        preallocate: true,
        services: 1,
        backends: 1,
    };
    for spec in specs::maps(&sizes) {
        let map = object.maps.get(spec.name).unwrap_or_else(|| panic!("no map {}", spec.name));
        assert_eq!(
            (map.map_type(), map.key_size(), map.value_size()),
            (spec.map_type as u32, spec.key_size, spec.value_size),
            "{}: type, key size, value size",
            spec.name
        );
    }
}

#[test]
fn the_maps_of_decap_are_those_that_its_loader_fills() {
    let Some(object) = object("decap") else { return };
    let object = parse(&object);
    let map = |name| object.maps.get(name).unwrap_or_else(|| panic!("no map {name}"));
    let vips = map(decap::VIPS);
    assert_eq!((vips.key_size(), vips.value_size(), vips.max_entries()), (16, 4, 1024));
    let counters = map(decap::COUNTERS);
    assert_eq!((counters.key_size(), counters.value_size()), (4, 8));
    assert_eq!(counters.max_entries(), decap::COUNTERS_LEN);
}
