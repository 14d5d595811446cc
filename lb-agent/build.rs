//! Puts the XDP objects where `object.rs` includes them. Without them the agent still builds, and says at run time
//! what is missing: nobody needs a BPF compiler to work on the agent.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// The objects, and the variables that name others to use instead.
const OBJECTS: [(&str, &str); 3] = [
    ("sluice.o", "SLUICE_EBPF_OBJECT"),
    ("traced.o", "SLUICE_TRACED_OBJECT"),
    ("decap.o", "SLUICE_DECAP_OBJECT"),
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for (name, variable) in OBJECTS {
        println!("cargo::rerun-if-env-changed={variable}");
        let object = match env::var_os(variable).map(PathBuf::from) {
            Some(path) => read_given(variable, &path),
            None => read_default(name),
        };
        let out = out.join(name);
        if let Err(error) = fs::write(&out, object) {
            panic!("cannot write {}: {error}", out.display());
        }
    }
}

fn read_given(variable: &str, path: &Path) -> Vec<u8> {
    println!("cargo::rerun-if-changed={}", path.display());
    fs::read(path).unwrap_or_else(|error| {
        panic!("{variable}={}: {error}; unset it or run `cargo xtask build`", path.display())
    })
}

fn read_default(name: &str) -> Vec<u8> {
    let manifest =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let directory = manifest.join("../target/bpf");
    let object = directory.join(name);
    if let Ok(bytes) = fs::read(&object) {
        println!("cargo::rerun-if-changed={}", object.display());
        return bytes;
    }
    // cargo takes a watched path that does not exist for one that has changed, each time: watch where it will appear.
    // A directory made just now would be newer than this run and cause another one: make it old.
    if !directory.exists() && fs::create_dir_all(&directory).is_ok() {
        let _ = fs::File::open(&directory).and_then(|it| it.set_modified(SystemTime::UNIX_EPOCH));
    }
    println!("cargo::rerun-if-changed={}", directory.display());
    Vec::new()
}
