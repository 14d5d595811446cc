//! Brings the data plane into the kernel: maps created or adopted, the program loaded and pinned.
//!
//! The maps are created here and not by aya's loader, because an object file cannot leave
//! `BPF_F_NO_PREALLOC` open; the loader then finds every map pinned and takes it. Maps that are not in
//! [`super::specs`] (scratch memory, aya-log's buffer) are the program's own and end with it.

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    programs::{Program, ProgramError, ProgramFd},
};

use nix::libc;

use super::{
    pins::{self, Adoption, PinDir},
    specs::{self, MapSpec, TableSizes},
    unload::unload,
};

/// Name of the XDP program in the object file.
pub const PROGRAM: &str = "sluice";

/// The data plane in the kernel, ready to be attached. Dropping it changes nothing there.
pub struct Loaded {
    pins: PinDir,
    adopted: bool,
    program: ProgramFd,
    program_id: u32,
    ebpf: Ebpf,
}

impl Loaded {
    /// Where everything is pinned.
    pub fn pins(&self) -> &PinDir {
        &self.pins
    }

    /// Whether the maps were those of an earlier agent, with its flows in them.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Id of the program that was loaded.
    pub fn program_id(&self) -> u32 {
        self.program_id
    }

    /// The program that was loaded.
    pub fn program(&self) -> &ProgramFd {
        &self.program
    }

    /// The object as aya sees it: for the program's own maps, such as aya-log's.
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}

/// Loads the data plane from an object file, with the maps of an earlier agent if there are any.
///
/// Packets go on meeting the earlier program until [`Loaded::attach`] swaps it.
pub fn load(object: &[u8], pins: &PinDir, sizes: &TableSizes) -> Result<Loaded> {
    load_program(object, PROGRAM, pins, &specs::maps(sizes))
}

/// The same for any XDP program and its maps.
pub fn load_program(object: &[u8], name: &str, pins: &PinDir, specs: &[MapSpec]) -> Result<Loaded> {
    pins.create()?;
    let adoption = pins::validate(pins, specs)?;
    match adoption {
        Adoption::Complete => tracing::info!(path = %pins.path().display(), "adopting pinned maps"),
        Adoption::Unfinished => {
            tracing::warn!(
                path = %pins.path().display(),
                "removing maps that no program ever used: an agent was interrupted while it started"
            );
            unload(pins)?;
            pins.create()?;
        }
        Adoption::Fresh => {}
    }
    match adoption {
        Adoption::Complete => pins::create_added(pins, specs)?,
        _ => pins::create_maps(pins, specs)?,
    }

    let mut ebpf = open(object, pins, specs.iter().map(|spec| spec.name))?;
    if let Some(spec) = specs.iter().find(|spec| ebpf.map(spec.name).is_none()) {
        bail!("the BPF object has no map {}: it was not built together with this agent", spec.name);
    }
    let (program, program_id) = verify(&mut ebpf, name)?;
    pins.replace(&program, &pins.program_path())
        .with_context(|| format!("{}: cannot pin the program", pins.program_path().display()))?;
    Ok(Loaded {
        pins: pins.clone(),
        adopted: adoption == Adoption::Complete,
        program,
        program_id,
        ebpf,
    })
}

/// Makes an object's maps but for these, which are pinned and taken from there.
pub(super) fn open<'a>(
    object: &[u8],
    pins: &PinDir,
    pinned: impl Iterator<Item = &'a str>,
) -> Result<Ebpf> {
    // The parser reads the file's tables in place, so they must be aligned.
    let mut words = vec![0_u64; object.len().div_ceil(size_of::<u64>())];
    let aligned = &mut bytemuck::cast_slice_mut(&mut words)[..object.len()];
    aligned.copy_from_slice(object);
    let mut loader = EbpfLoader::new();
    for name in pinned {
        loader.map_pin_path(name, pins.map_path(name));
    }
    loader.load(aligned).context("the BPF object cannot be loaded")
}

/// Has the kernel verify and take the program.
pub(super) fn verify(ebpf: &mut Ebpf, name: &str) -> Result<(ProgramFd, u32)> {
    let Some(Program::Xdp(program)) = ebpf.program_mut(name) else {
        bail!("the BPF object has no XDP program {name}: it was not built for this agent");
    };
    program.load().map_err(|error| match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            tracing::debug!(program = name, %log, "the verifier's whole log");
            anyhow::anyhow!(
                "the kernel refuses the program {name}: {io_error}{}\n{}",
                match io_error.raw_os_error() {
                    Some(libc::EPERM) => " (loading needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN)",
                    Some(libc::E2BIG) => " (it is too large for this kernel's verifier)",
                    _ => " (it needs Linux 5.18 or later)",
                },
                summary(&log)
            )
        }
        error => anyhow::Error::from(error),
    })?;
    let id = program.info()?.id();
    Ok((program.fd()?.try_clone()?, id))
}

/// The end of a verifier's log: the last instructions before the complaint, and the complaint.
fn summary(log: &str) -> String {
    const LINES: usize = 12;
    const WIDTH: usize = 200;
    let lines: Vec<_> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let skipped = lines.len().saturating_sub(LINES);
    let mut text = match skipped {
        0 => String::new(),
        n => format!("  ({n} lines before; all of them with RUST_LOG=debug)\n"),
    };
    for line in &lines[skipped..] {
        // With the registers of a long function, a line has hundreds of bytes.
        let shown: String = line.chars().take(WIDTH).collect();
        text.push_str(&format!("  {shown}\n"));
    }
    if lines.is_empty() { "  (the verifier says nothing)".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_is_cut_to_its_end() {
        let log: String = (0..100).map(|n| format!("{n}: (b7) r0 = {n}\n\n")).collect();
        let text = summary(&(log + "R0 !read_ok\nprocessed 100 insns\n"));
        assert!(text.contains("(90 lines before"), "{text}");
        assert!(text.contains("R0 !read_ok") && text.contains("90: (b7)"), "{text}");
        assert!(!text.contains("89: (b7)"), "{text}");
        assert_eq!(summary("bad\n"), "  bad\n");
        assert!(summary("").contains("says nothing"));
    }
}
