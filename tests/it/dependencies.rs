//! Direct dependencies: how many each feature has.

use std::collections::BTreeSet;
use std::fs;
use toml::Table;

/// The most direct dependencies of a feature that can be used without the others.
const MOST: usize = 30;
/// The most that a further feature adds.
const MOST_ADDED: usize = 8;

fn manifest() -> Table {
    fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap().parse().unwrap()
}

/// Returns the direct dependencies of the library with these features.
fn dependencies(manifest: &Table, features: &[&str]) -> BTreeSet<String> {
    let all = manifest["dependencies"].as_table().unwrap();
    let is_optional =
        |name: &str| all[name].get("optional").is_some_and(|optional| optional.as_bool() == Some(true));
    let mut found: BTreeSet<String> = all.keys().filter(|name| !is_optional(name)).cloned().collect();
    let mut open: Vec<String> = features.iter().map(|feature| (*feature).to_owned()).collect();
    while let Some(feature) = open.pop() {
        for entry in manifest["features"][&feature].as_array().unwrap() {
            match entry.as_str().unwrap() {
                entry if entry.starts_with("dep:") => drop(found.insert(entry["dep:".len()..].to_owned())),
                entry => open.push(entry.to_owned()),
            }
        }
    }
    found
}

#[test]
fn every_feature_has_few_direct_dependencies() {
    let manifest = manifest();
    let known: BTreeSet<&str> = manifest["features"].as_table().unwrap().keys().map(String::as_str).collect();
    let bases = [vec!["server"], vec!["agent", "cli"]];
    for base in &bases {
        let used = dependencies(&manifest, base);
        assert!(used.len() <= MOST, "{base:?} has {} dependencies: {used:?}", used.len());
    }
    let both = dependencies(&manifest, &["server", "agent"]);
    for feature in known.iter().filter(|feature| **feature != "default") {
        if bases.iter().any(|base| base[0] == *feature) {
            continue;
        }
        let added = &dependencies(&manifest, &[feature, "server", "agent"]) - &both;
        assert!(added.len() <= MOST_ADDED, "{feature} adds {} dependencies: {added:?}", added.len());
    }
    let all = dependencies(&manifest, &["default"]);
    let listed = manifest["dependencies"].as_table().unwrap().keys().cloned().collect();
    assert_eq!(all, listed, "every optional dependency belongs to a feature");
}
