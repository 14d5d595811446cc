//! Licences and sources of all dependencies, against deny.toml.
//!
//! cargo-deny reads the same file and does more, where it is installed; building it takes longer than all of CI
//! may, so what must hold is checked here from `cargo metadata`.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use toml_edit::{DocumentMut, Item};

use crate::{process, workspace, workspace::Metadata};

pub fn check() -> Result<()> {
    let file = workspace::root().join("deny.toml");
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let deny: DocumentMut = text.parse().context("deny.toml")?;
    let allowed = strings(&deny["licenses"]["allow"]);
    let registries = strings(&deny["sources"]["allow-registry"]);

    let mut wrong = Vec::new();
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for manifest in [workspace::root().join("Cargo.toml"), workspace::ebpf_manifest()] {
        for package in Metadata::full(&manifest)?.packages() {
            wrong.extend(complaint(package, &allowed, &registries));
            let known = versions.entry(text_of(package, "name").into()).or_default();
            let version = text_of(package, "version").to_string();
            if !known.contains(&version) {
                known.push(version);
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    if !wrong.is_empty() {
        bail!("deny.toml does not allow:\n{}", wrong.join("\n"));
    }
    let twice = versions.values().filter(|versions| versions.len() > 1).count();
    let summary = format!(
        "{} packages, all allowed by deny.toml; {twice} in several versions",
        versions.len()
    );
    process::step("check", "licences", &summary);
    Ok(())
}

fn complaint(package: &Value, allowed: &[String], registries: &[String]) -> Option<String> {
    let name = format!("{} {}", text_of(package, "name"), text_of(package, "version"));
    // No source: a package of this repository.
    if let Some(source) = package["source"].as_str() {
        let registry = source.strip_prefix("registry+").or_else(|| source.strip_prefix("sparse+"));
        if !registry.is_some_and(|registry| registries.iter().any(|known| known == registry)) {
            return Some(format!("{name}: source {source}"));
        }
    }
    let Some(licence) = package["license"].as_str() else {
        return Some(format!("{name}: no licence expression"));
    };
    if satisfied(licence, allowed) { None } else { Some(format!("{name}: licence {licence}")) }
}

fn text_of<'a>(package: &'a Value, field: &str) -> &'a str {
    package[field].as_str().unwrap_or_default()
}

fn strings(item: &Item) -> Vec<String> {
    let values = item.as_array().into_iter().flatten();
    values.filter_map(|value| value.as_str().map(String::from)).collect()
}

/// Whether the SPDX expression can be satisfied with the allowed licences. `/` is an old way to write OR.
fn satisfied(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let result = any_of(&mut words, allowed);
    result && words.peek().is_none()
}

type Words<'a, 'b> = &'a mut std::iter::Peekable<std::str::SplitWhitespace<'b>>;

fn any_of(words: Words<'_, '_>, allowed: &[String]) -> bool {
    let mut result = all_of(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        result |= all_of(words, allowed);
    }
    result
}

fn all_of(words: Words<'_, '_>, allowed: &[String]) -> bool {
    let mut result = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        result &= one(words, allowed);
    }
    result
}

fn one(words: Words<'_, '_>, allowed: &[String]) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let inner = any_of(words, allowed);
        return words.next_if_eq(&")").is_some() && inner;
    }
    let Some(licence) = words.next() else { return false };
    let whole = match words.next_if_eq(&"WITH") {
        Some(_) => format!("{licence} WITH {}", words.next().unwrap_or_default()),
        None => licence.to_string(),
    };
    allowed.contains(&whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(expression: &str) -> bool {
        satisfied(
            expression,
            &["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"].map(String::from),
        )
    }

    #[test]
    fn one_allowed_alternative_is_enough_and_every_conjunct_is_needed() {
        assert!(ok("MIT") && ok("MIT OR GPL-3.0") && ok("GPL-3.0/MIT") && ok("MIT AND Apache-2.0"));
        assert!(!ok("GPL-3.0") && !ok("MIT AND GPL-3.0") && !ok("ISC OR GPL-3.0"));
    }

    #[test]
    fn and_binds_closer_than_or_and_brackets_closest() {
        assert!(ok("MIT OR GPL-3.0 AND ISC"));
        assert!(!ok("(MIT OR GPL-3.0) AND ISC"));
        assert!(ok("(GPL-3.0 OR MIT) AND (Apache-2.0 OR ISC)"));
    }

    #[test]
    fn an_exception_is_part_of_the_licence() {
        assert!(ok("Apache-2.0 WITH LLVM-exception"));
        assert!(!ok("MIT WITH LLVM-exception"));
    }

    #[test]
    fn what_is_not_an_expression_is_not_allowed() {
        assert!(!ok("") && !ok("MIT MIT") && !ok("(MIT") && !ok("OR"));
    }
}
