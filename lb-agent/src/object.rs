//! The XDP objects inside this binary.
//!
//! They are put there by `cargo xtask build`. A plain `cargo build` works without them; whoever then asks for one is told
//! what to run.

use std::fmt;

/// Aligned, for it is read as an ELF file in place.
static SLUICE: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sluice.o"));
static TRACED: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/traced.o"));
static DECAP: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/decap.o"));

/// The edge's object: the program `sluice` and its maps.
pub fn ebpf() -> Result<&'static [u8], MissingObject> {
    present(SLUICE)
}

/// The edge's object that tells of each packet's way; its program and pinned maps are those of [`ebpf`].
pub fn traced() -> Result<&'static [u8], MissingObject> {
    present(TRACED)
}

/// The object for backends: the program `decap` and its maps.
pub fn decap() -> Result<&'static [u8], MissingObject> {
    present(DECAP)
}

fn present(object: &[u8]) -> Result<&[u8], MissingObject> {
    if object.is_empty() { Err(MissingObject) } else { Ok(object) }
}

/// This binary was built without the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingObject;

impl fmt::Display for MissingObject {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("this lb-agent was built without the XDP program: run `cargo xtask build`")
    }
}

impl std::error::Error for MissingObject {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_the_object_says_what_to_run() {
        let error = present(&[]).unwrap_err();
        assert!(error.to_string().contains("run `cargo xtask build`"), "{error}");
    }

    #[test]
    fn the_objects_are_elf_files_aligned_for_reading_in_place() {
        for object in [ebpf(), traced(), decap()] {
            let Ok(object) = object else { continue };
            assert_eq!(object[..4], *b"\x7fELF");
            assert_eq!(object.as_ptr().addr() % 8, 0);
        }
    }
}
