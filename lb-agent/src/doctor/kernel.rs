//! The kernel: its version, and what the data plane needs of BPF.

use std::{fs, path::Path};

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{is_map_supported, is_program_supported},
};

use super::Finding;

/// What the tests run on, and the packages are made for.
const OLDEST: (u32, u32) = (6, 1);

pub struct Facts {
    /// As `uname -r` says.
    release: String,
    btf: bool,
    /// `net.core.bpf_jit_enable`; none where it cannot be read, as it may be always on.
    jit: Option<u32>,
    /// Whether there is each of what is named; none where this process may not try.
    features: Vec<(&'static str, Option<bool>)>,
}

pub fn gather() -> Facts {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let maps = [
        ("hash maps", MapType::Hash),
        ("LRU hash maps", MapType::LruHash),
        ("per-CPU arrays", MapType::PerCpuArray),
        ("LPM tries", MapType::LpmTrie),
        ("arrays of maps", MapType::ArrayOfMaps),
        ("ring buffers", MapType::RingBuf),
    ];
    let maps = maps.map(|(name, kind)| (name, is_map_supported(kind).ok()));
    let xdp = ("XDP programs", is_program_supported(ProgramType::Xdp).ok());
    Facts {
        release: read("/proc/sys/kernel/osrelease"),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        jit: read("/proc/sys/net/core/bpf_jit_enable").parse().ok(),
        features: [xdp].into_iter().chain(maps).collect(),
    }
}

pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![version(&facts.release), btf(facts.btf), jit(facts.jit)];
    findings.extend(features(&facts.features));
    findings
}

fn version(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        let remedy = format!("run Linux {}.{} or newer", OLDEST.0, OLDEST.1);
        return Finding::warning("kernel", format!("{release:?} is no version"), remedy);
    };
    if (major, minor) >= OLDEST {
        return Finding::ok("kernel", format!("Linux {release}"));
    }
    Finding::problem(
        "kernel",
        format!("Linux {release} is older than what the data plane was tested on"),
        format!("run Linux {}.{} or newer", OLDEST.0, OLDEST.1),
    )
}

fn btf(there: bool) -> Finding {
    match there {
        true => Finding::ok("kernel BTF", "there"),
        false => Finding::warning(
            "kernel BTF",
            "/sys/kernel/btf/vmlinux is missing",
            "run a kernel with CONFIG_DEBUG_INFO_BTF: without it tracing tools see nothing of the program",
        ),
    }
}

fn jit(enabled: Option<u32>) -> Finding {
    match enabled {
        Some(0) => Finding::problem(
            "BPF JIT",
            "off: every packet is interpreted",
            "sysctl net.core.bpf_jit_enable=1",
        ),
        Some(_) | None => Finding::ok("BPF JIT", "on"),
    }
}

fn features(features: &[(&'static str, Option<bool>)]) -> Vec<Finding> {
    let names = |wanted: Option<bool>| {
        let named = features.iter().filter(|(_, there)| *there == wanted);
        named.map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    };
    let mut findings = Vec::new();
    for (names, finding) in [
        (names(Some(true)), Finding::ok as fn(_, _) -> _),
        (names(Some(false)), |thing: &str, names: String| {
            let what = format!("the kernel has no {names}");
            Finding::problem(
                thing,
                what,
                "run a kernel with CONFIG_BPF_SYSCALL and CONFIG_XDP_SOCKETS",
            )
        }),
        (names(None), |thing: &str, names: String| {
            let what = format!("not known of {names}: this process may not try");
            Finding::warning(thing, what, "run `lb-agent doctor` as root")
        }),
    ] {
        if !names.is_empty() {
            findings.push(finding("BPF features", names));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{super::tests::short, *};

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for (release, wanted) in [
            ("6.18.5", "ok kernel"),
            ("6.1.0-44-cloud-amd64", "ok kernel"),
            ("10.0", "ok kernel"),
            ("5.15.0-91-generic", "problem kernel"),
            ("4.19", "problem kernel"),
            ("plan9", "warning kernel"),
            ("", "warning kernel"),
        ] {
            assert_eq!(short(&[version(release)]), [wanted], "{release}");
        }
    }

    #[test]
    fn a_good_kernel_and_a_bad_one() {
        let features = |lpm| vec![("XDP programs", Some(true)), ("LPM tries", lpm)];
        let good =
            Facts { release: "6.18".into(), btf: true, jit: None, features: features(Some(true)) };
        assert!(judge(&good).iter().all(|it| it.remedy.is_none()));
        assert_eq!(judge(&good)[3].what, "XDP programs, LPM tries");
        let bad = Facts {
            release: "5.4".into(),
            btf: false,
            jit: Some(0),
            features: features(Some(false)),
        };
        let wanted = [
            "problem kernel",
            "warning kernel BTF",
            "problem BPF JIT",
            "ok BPF features",
            "problem BPF features",
        ];
        assert_eq!(short(&judge(&bad)), wanted);
        let unknown = Facts { features: features(None), ..good };
        assert_eq!(short(&judge(&unknown)[3..]), ["ok BPF features", "warning BPF features"]);
    }
}
