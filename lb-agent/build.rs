//! Puts the XDP object where `object.rs` includes it. Without one the agent still builds, and says at run time
//! what is missing: nobody needs a BPF compiler to work on the agent.

use std::{env, fs, path::PathBuf, time::SystemTime};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SLUICE_EBPF_OBJECT");
    let given = env::var_os("SLUICE_EBPF_OBJECT").map(PathBuf::from);
    let object = match &given {
        Some(path) => read_given(path),
        None => read_default(),
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("sluice.o");
    if let Err(error) = fs::write(&out, object) {
        panic!("cannot write {}: {error}", out.display());
    }
}

fn read_given(path: &PathBuf) -> Vec<u8> {
    println!("cargo::rerun-if-changed={}", path.display());
    fs::read(path).unwrap_or_else(|error| {
        panic!(
            "SLUICE_EBPF_OBJECT={}: {error}; unset it or run `cargo xtask build`",
            path.display()
        )
    })
}

fn read_default() -> Vec<u8> {
    let manifest =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let directory = manifest.join("../target/bpf");
    let object = directory.join("sluice.o");
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
