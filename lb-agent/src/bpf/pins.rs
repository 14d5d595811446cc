//! Where an edge's maps, program and links are pinned, and whether they may be adopted.
//!
//! ```text
//! /sys/fs/bpf/sluice/EDGE/maps/NAME
//!                         links/INTERFACE
//!                         program
//! ```
//!
//! Opening a pinned map checks nothing, and aya's loader takes whatever it finds under a name. So an
//! agent looks here first, at every property that decides how the bytes are read.

use std::{
    fmt, fs,
    io::{self, ErrorKind},
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use aya::maps::{Array, MapData, MapType};
use lb_common::abi::{self, Edge};
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::statfs,
};

use super::{
    specs::{ADDED, MapSpec, names},
    sys::{self, Link},
};

/// Where bpffs is mounted.
pub const BPFFS: &str = "/sys/fs/bpf";

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Whether a bpffs is mounted there.
pub fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type().0 as u64 == BPF_FS_MAGIC)
}

/// Mounts bpffs at [`BPFFS`] unless it is there.
pub fn mount_bpffs() -> Result<()> {
    if is_bpffs(BPFFS.as_ref()) {
        return Ok(());
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700")).with_context(|| {
        format!(
            "{BPFFS}: no bpffs is mounted there, and mounting it failed: let root run \"mount -t bpf \
             bpf {BPFFS}\" (the kernel needs CONFIG_BPF_SYSCALL, and the process a mount namespace in \
             which {BPFFS} exists)"
        )
    })?;
    let namespace = |pid| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    if namespace("thread-self") != namespace("1") {
        tracing::warn!(
            "{BPFFS} was mounted in a private mount namespace: what is pinned there ends with this \
             process, and flows with it; start lb-agent in the host's mount namespace (\"nsenter \
             --net=...\" instead of \"ip netns exec\")"
        );
    }
    Ok(())
}

/// A name as it can stand on a bpffs, which reserves dots: `eth0.100` becomes `eth0%2e100`.
pub fn file_name(name: &str) -> String {
    name.replace('%', "%25").replace('.', "%2e").replace('/', "%2f")
}

/// The opposite of [`file_name`].
pub(crate) fn plain_name(file: &str) -> String {
    file.replace("%2f", "/").replace("%2e", ".").replace("%25", "%")
}

/// The pins of one edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinDir(PathBuf);

impl PinDir {
    /// The place of an edge's pins below [`BPFFS`].
    pub fn of_edge(edge: &str) -> Self {
        Self::at(Path::new(BPFFS).join("sluice").join(file_name(edge)))
    }

    /// Any directory on a bpffs.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where a map is pinned.
    pub fn map_path(&self, name: &str) -> PathBuf {
        self.0.join("maps").join(name)
    }

    /// Where the program is pinned.
    pub fn program_path(&self) -> PathBuf {
        self.0.join("program")
    }

    /// Where the link of an interface is pinned.
    pub fn link_path(&self, interface: &str) -> PathBuf {
        self.0.join("links").join(file_name(interface))
    }

    /// Opens a pinned map, which [`validate`] has found to be as it should.
    pub fn map(&self, name: &str) -> Result<aya::maps::Map> {
        let path = self.map_path(name);
        MapData::from_pin(&path)
            .and_then(aya::maps::Map::from_map_data)
            .with_context(|| format!("{}: cannot open the pinned map", path.display()))
    }

    /// Names of the interfaces with a pinned link, attached or not.
    pub fn interfaces(&self) -> io::Result<Vec<String>> {
        let mut names: Vec<_> =
            list(&self.0.join("links"))?.iter().map(|file| plain_name(file)).collect();
        names.sort();
        Ok(names)
    }

    /// The pinned link of an interface.
    pub fn link(&self, interface: &str) -> io::Result<Option<Link>> {
        optional(Link::open(&self.link_path(interface)))
    }

    /// Makes the directories, for root only.
    pub fn create(&self) -> Result<()> {
        for path in [self.0.clone(), self.0.join("maps"), self.0.join("links")] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).with_context(|| {
                format!("{}: cannot create the directory of pins", path.display())
            })?;
        }
        Ok(())
    }

    /// Pins in place of what is pinned there, without a moment at which nothing is.
    pub fn replace(&self, object: impl AsFd, path: &Path) -> io::Result<()> {
        let mut new = path.as_os_str().to_owned();
        new.push("%new");
        optional(fs::remove_file(&new))?;
        sys::pin(object.as_fd(), Path::new(&new))?;
        fs::rename(new, path)
    }
}

/// What [`validate`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// No map is pinned: all have to be created.
    Fresh,
    /// An agent was interrupted before it was ready; no packet has ever met these maps, and they are
    /// not worth keeping.
    Unfinished,
    /// Every map is there and can be read.
    Complete,
}

/// Why pins cannot be adopted.
#[derive(Debug)]
pub enum PinError {
    /// The maps have another meaning than this agent knows.
    AbiVersion { path: PathBuf, found: u32 },
    /// A map has another type, size or flag.
    Different { path: PathBuf, property: &'static str, found: String, wanted: String },
    /// Something else than a map has the name of one.
    NotAMap { path: PathBuf, found: String },
    /// The map is not pinned, although packets may be flowing through it.
    Missing { path: PathBuf },
    /// The kernel refused to show it.
    Unreadable { path: PathBuf, source: io::Error },
}

const UNLOAD: &str = "run `lb-agent unload --config FILE` to start afresh (this ends every flow)";

impl fmt::Display for PinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AbiVersion { path, found } => write!(
                f,
                "{}: these maps have ABI version {found}, and this agent knows version {}: start the \
                 agent that made them, or {UNLOAD}",
                path.display(),
                abi::VERSION
            ),
            Self::Different { path, property, found, wanted } => write!(
                f,
                "{}: the pinned map has {property} {found}, and this agent with this config needs \
                 {wanted}: set the old value in the config, or {UNLOAD}",
                path.display()
            ),
            Self::NotAMap { path, found } => {
                write!(f, "{}: not a map but {found} is pinned here: {UNLOAD}", path.display())
            }
            Self::Missing { path } => write!(
                f,
                "{}: no map is pinned here, although a program is attached: {UNLOAD}",
                path.display()
            ),
            Self::Unreadable { path, source } => write!(f, "{}: {source}", path.display()),
        }
    }
}

impl std::error::Error for PinError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Compares the pinned maps with what an agent expects. Nothing is changed.
pub fn validate(pins: &PinDir, expected: &[MapSpec]) -> Result<Adoption, PinError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        |source| PinError::Unreadable { path, source }
    };
    let present = list(&pins.0.join("maps")).map_err(unreadable(&pins.0))?;
    let attached = pins.interfaces().map_err(unreadable(&pins.0))?;
    if present.is_empty() && attached.is_empty() {
        return Ok(Adoption::Fresh);
    }
    // The program is pinned after all maps and before the first link.
    let used = !attached.is_empty() || exists(&pins.program_path());
    match compare(pins, expected, &present) {
        Ok(()) => Ok(Adoption::Complete),
        Err(PinError::Unreadable { path, source }) => Err(PinError::Unreadable { path, source }),
        Err(_) if !used => Ok(Adoption::Unfinished),
        Err(error) => Err(error),
    }
}

fn compare(pins: &PinDir, expected: &[MapSpec], present: &[String]) -> Result<(), PinError> {
    let missing = |spec: &&MapSpec| !present.iter().any(|name| name == spec.name);
    if let Some(spec) = expected.iter().filter(missing).find(|spec| !ADDED.contains(&spec.name)) {
        return Err(PinError::Missing { path: pins.map_path(spec.name) });
    }
    // The version comes first, because it explains every other difference.
    let (edge, others): (Vec<&MapSpec>, Vec<&MapSpec>) =
        expected.iter().partition(|spec| spec.name == names::EDGE);
    for spec in edge {
        let path = pins.map_path(spec.name);
        let found = abi_version(open_as(&path, spec)?)
            .map_err(|source| PinError::Unreadable { path: path.clone(), source })?;
        if found != abi::VERSION {
            return Err(PinError::AbiVersion { path, found });
        }
    }
    for spec in others.into_iter().filter(|spec| !missing(spec)) {
        open_as(&pins.map_path(spec.name), spec)?;
    }
    Ok(())
}

/// Opens a pinned map that has to be as `spec` says.
fn open_as(path: &Path, spec: &MapSpec) -> Result<MapData, PinError> {
    let unreadable = |source| PinError::Unreadable { path: path.to_owned(), source };
    let fd = sys::open_pin(path).map_err(unreadable)?;
    let found = sys::kind(fd.as_fd()).map_err(unreadable)?;
    if found != "bpf-map" {
        return Err(PinError::NotAMap { path: path.to_owned(), found });
    }
    let map = MapData::from_fd(fd).map_err(|e| unreadable(io::Error::other(e)))?;
    let info = map.info().map_err(|e| unreadable(io::Error::other(e)))?;
    let found_type = info.map_type().unwrap_or(MapType::Unspecified);
    let differences = [
        ("type", format!("{found_type:?}"), format!("{:?}", spec.map_type)),
        ("key size", info.key_size().to_string(), spec.key_size.to_string()),
        ("value size", info.value_size().to_string(), spec.value_size.to_string()),
        ("max_entries", info.max_entries().to_string(), spec.max_entries.to_string()),
        ("flags", flags(info.map_flags()), flags(spec.flags)),
    ];
    for (property, found, wanted) in differences {
        if found != wanted {
            return Err(PinError::Different { path: path.to_owned(), property, found, wanted });
        }
    }
    Ok(map)
}

fn flags(flags: u32) -> String {
    match flags {
        0 => "0 (preallocated)".to_owned(),
        sys::NO_PREALLOC => "1 (not preallocated)".to_owned(),
        other => format!("{other:#x}"),
    }
}

fn abi_version(edge: MapData) -> io::Result<u32> {
    let edge: Array<_, Edge> =
        aya::maps::Map::from_map_data(edge).and_then(Array::try_from).map_err(io::Error::other)?;
    Ok(edge.get(&0, 0).map_err(io::Error::other)?.abi_version)
}

/// Creates and pins all maps, and writes the ABI version, if there is a place for it, when all are there: maps
/// without it were left by an agent that was interrupted.
pub fn create_maps(pins: &PinDir, specs: &[MapSpec]) -> Result<()> {
    specs.iter().try_for_each(|spec| create_map(pins, spec))?;
    if specs.iter().all(|spec| spec.name != names::EDGE) {
        return Ok(());
    }
    let mut edge: Array<_, Edge> = pins.map(names::EDGE)?.try_into()?;
    let version = Edge { abi_version: abi::VERSION, ..edge.get(&0, 0)? };
    edge.set(0, version, 0).context("EDGE: cannot write the ABI version")
}

/// Creates and pins what an earlier agent of the same ABI version did not have.
pub fn create_added(pins: &PinDir, specs: &[MapSpec]) -> Result<()> {
    let added = specs.iter().filter(|spec| ADDED.contains(&spec.name));
    for spec in added.filter(|spec| !exists(&pins.map_path(spec.name))) {
        create_map(pins, spec)?;
    }
    Ok(())
}

fn create_map(pins: &PinDir, spec: &MapSpec) -> Result<()> {
    let path = pins.map_path(spec.name);
    let MapSpec { name, map_type, key_size, value_size, max_entries, flags } = *spec;
    let map = sys::map_create(name, map_type as u32, key_size, value_size, max_entries, flags);
    let map = map.with_context(|| create_failed(spec))?;
    sys::pin(map.as_fd(), &path).with_context(|| format!("{}: cannot pin the map", path.display()))
}

fn create_failed(spec: &MapSpec) -> String {
    let bytes = u64::from(spec.max_entries) * u64::from(spec.key_size + spec.value_size);
    format!(
        "map {}: the kernel cannot create it ({:?}, {} entries, at least {} MiB): is there enough \
         memory, also in the limits of this process's cgroup, and does the process have CAP_BPF? \
         Smaller tables need less",
        spec.name,
        spec.map_type,
        spec.max_entries,
        bytes >> 20
    )
}

/// What lies in a directory; nothing if there is none.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<String>> {
    let Some(entries) = optional(fs::read_dir(dir))? else { return Ok(Vec::new()) };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// "Not there" as a value.
pub(super) fn optional<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_dots_can_be_pinned() {
        for (name, file) in [("eth0", "eth0"), ("eth0.100", "eth0%2e100"), ("a%2e/", "a%252e%2f")] {
            assert_eq!(file_name(name), file);
            assert_eq!(plain_name(file), name);
        }
        assert_eq!(
            PinDir::of_edge("edge.1").link_path("eth0.5"),
            Path::new("/sys/fs/bpf/sluice/edge%2e1/links/eth0%2e5")
        );
    }

    #[test]
    fn errors_name_the_map_the_values_and_the_remedy() {
        let error = PinError::Different {
            path: "/sys/fs/bpf/sluice/e/maps/FLOWS4".into(),
            property: "max_entries",
            found: "1000".into(),
            wanted: "2000".into(),
        };
        let text = error.to_string();
        for part in ["maps/FLOWS4", "max_entries 1000", "2000", "old value", "lb-agent unload"] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
    }
}
