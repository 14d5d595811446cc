//! Where the built objects are.

use std::{env, fs, ops::Deref, path::PathBuf};

/// Names another data plane than the one in target/bpf, as for lb-agent's build.
const VARIABLE: &str = "SLUICE_EBPF_OBJECT";

/// The path of an object that `cargo xtask build` makes.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    match env::var_os(VARIABLE) {
        Some(sluice) => PathBuf::from(sluice).with_file_name(format!("{name}.o")),
        None => {
            let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
            manifest.join(format!("../target/bpf/{name}.o"))
        }
    }
}

/// The contents of an object file, aligned, since aya reads the tables of the file in place.
pub struct Object {
    words: Vec<u64>,
    len: usize,
}

impl Deref for Object {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }
}

/// Reads an object.
///
/// # Panics
/// If it is not built: a test that skips itself would be green without having tested anything.
#[must_use]
pub fn object(name: &str) -> Object {
    let path = path(name);
    let bytes = fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; run `cargo xtask build`", path.display()));
    let mut words = vec![0_u64; bytes.len().div_ceil(size_of::<u64>())];
    bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(&bytes);
    Object { words, len: bytes.len() }
}
