//! `cargo xtask bench NAME`: the tests crate's binary `bench-NAME`, optimised, with fresh objects.

use anyhow::{Result, bail};

use crate::{
    build::{self, Profile},
    process,
    provision::{self, Package, program},
    run::{need_root, testbed_binary},
    web,
    workspace::{self, Metadata},
};

const PREFIX: &str = "bench-";
/// What `l7` makes networks with, and what it measures the sidecar beside.
const L7: [Package; 2] = [program("iproute2", "ip"), program("haproxy", "haproxy")];
/// The same for `splice`.
const SPLICE: [Package; 4] = [
    program("iproute2", "ip"),
    program("ethtool", "ethtool"),
    program("haproxy", "haproxy"),
    program("nginx-light", "nginx"),
];

/// What networks are made with.
const NETWORKS: [Package; 2] = [program("iproute2", "ip"), program("ethtool", "ethtool")];

/// The same for `tls`, and what asks by HTTP/2.
const TLS: [Package; 4] = [
    program("iproute2", "ip"),
    program("ethtool", "ethtool"),
    program("haproxy", "haproxy"),
    program("nghttp2-client", "h2load"),
];

pub fn bench(name: Option<&str>, args: &[String]) -> Result<()> {
    let metadata = Metadata::own(&workspace::root().join("Cargo.toml"))?;
    let known: Vec<String> = metadata
        .binaries("tests")
        .iter()
        .filter_map(|binary| binary.strip_prefix(PREFIX).map(String::from))
        .collect();
    let Some(name) = name else {
        println!("{}", known.join("\n"));
        return Ok(());
    };
    if known.is_empty() {
        bail!("the tests crate has no binary named {PREFIX}... to measure with");
    }
    if !known.iter().any(|it| it == name) {
        bail!("no benchmark `{name}`; there is: {}", known.join(", "));
    }
    need_root("the benchmarks run BPF programs", &format!("cargo xtask bench {name}"))?;
    match name {
        "l7" => provision::packages("this benchmark", &L7)?,
        "splice" => provision::packages("this benchmark", &SPLICE)?,
        "dashboard" => provision::packages("this benchmark", &NETWORKS)?,
        "tls" => provision::packages("this benchmark", &TLS)?,
        "slow" => web::install()?,
        _ => {}
    }
    let binaries = build::build(Profile::Release)?;
    if name == "splice" {
        testbed_binary("chat-server")?;
    }
    let binary = format!("{PREFIX}{name}");
    testbed_binary(&binary)?;
    process::replace(
        std::process::Command::new(binaries.join(&binary))
            .args(args)
            .env("SLUICE_BENCH_OBJECT", workspace::objects().join("bench.o"))
            .env("SLUICE_AGENT", binaries.join("lb-agent")),
    )
}
