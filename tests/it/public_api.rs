//! The public API: the committed list `docs/public-api.txt` against what rustdoc finds, and the foreign types in it.
//!
//! After an intended change, `GINNEL_WRITE_PUBLIC_API=1 cargo test --test it public_api` writes the list anew.

use crate::tools;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Crates whose types may be in the API; of the others only these items.
const CRATES: [&str; 6] = ["std", "core", "alloc", "bytes", "serde", "rand_core"];
const ITEMS: [&str; 3] = ["tokio::AsyncRead", "tokio::AsyncWrite", "tokio::ReadBuf"];

/// What the walk over rustdoc's items has found.
struct Api<'a> {
    doc: &'a Value,
    items: BTreeSet<String>,
    foreign: BTreeSet<String>,
    visited: BTreeSet<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs rustdoc for its JSON. A stable toolchain needs RUSTC_BOOTSTRAP for that.
fn rustdoc() -> Option<Value> {
    let folder = tempfile::tempdir().unwrap();
    let wrapper = folder.path().join("rustdoc");
    fs::write(&wrapper, "#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec rustdoc \"$@\"\n").unwrap();
    fs::set_permissions(&wrapper, Permissions::from_mode(0o755)).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    // The variables of this package would make the build scripts of dependencies run again.
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|it| name.starts_with(it)))
        {
            cargo.env_remove(name);
        }
    }
    let output = cargo
        .current_dir(root())
        .env("RUSTDOC", &wrapper)
        .args([
            "rustdoc",
            "--locked",
            "--offline",
            "--lib",
            "--",
            "-Zunstable-options",
            "--output-format",
            "json",
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let doc: Value = serde_json::from_slice(&fs::read(target.join("doc/ginnel.json")).unwrap()).unwrap();
    // The format is not stable: read what is known, and skip the test where it has changed.
    let known = doc["format_version"].as_u64().is_some_and(|version| (45..=60).contains(&version));
    if !known {
        tools::note(&format!("rustdoc's JSON of version {}", doc["format_version"]));
    }
    known.then_some(doc)
}

impl Api<'_> {
    fn item(&self, id: &Value) -> Option<&Value> {
        let item = &self.doc["index"][id.to_string().as_str()];
        item.is_object().then_some(item)
    }

    fn each(&mut self, ids: &Value, path: &str) {
        for id in ids.as_array().into_iter().flatten() {
            self.visit(id, path, None);
        }
    }

    fn visit(&mut self, id: &Value, path: &str, name: Option<&str>) {
        let Some(item) = self.item(id).cloned() else { return };
        let Some((kind, inner)) = item["inner"].as_object().and_then(|inner| inner.iter().next()) else {
            return;
        };
        if kind == "use" {
            return self.visit(&inner["id"], path, inner["name"].as_str());
        }
        let name = name.or(item["name"].as_str()).unwrap_or_default();
        let path = format!("{path}::{name}");
        self.items.insert(format!("{kind} {path}"));
        if !self.visited.insert(id.to_string()) {
            return;
        }
        match kind.as_str() {
            "module" | "trait" => self.each(&inner["items"], &path),
            "struct" | "enum" => {
                self.each(&inner["variants"], &path);
                self.each(&inner["kind"]["plain"]["fields"], &path);
                self.fields(&inner["kind"]["tuple"], &path);
                for id in inner["impls"].as_array().into_iter().flatten() {
                    self.implementation(id, &path);
                }
            }
            "variant" => {
                self.each(&inner["kind"]["struct"]["fields"], &path);
                self.fields(&inner["kind"]["tuple"], &path);
            }
            _ => self.types(inner, &path),
        }
    }

    /// Looks at the unnamed fields of a tuple.
    fn fields(&mut self, ids: &Value, path: &str) {
        for id in ids.as_array().into_iter().flatten() {
            if let Some(field) = self.item(id).cloned() {
                self.types(&field["inner"], path);
            }
        }
    }

    fn implementation(&mut self, id: &Value, path: &str) {
        let Some(item) = self.item(id).cloned() else { return };
        let inner = &item["inner"]["impl"];
        if inner["trait"].is_null() {
            self.each(&inner["items"], path);
        } else if inner["is_synthetic"] == false && inner["blanket_impl"].is_null() {
            self.types(&inner["trait"]["args"], path);
        }
    }

    /// Collects the foreign types that a signature names.
    fn types(&mut self, value: &Value, path: &str) {
        match value {
            Value::Array(values) => values.iter().for_each(|value| self.types(value, path)),
            Value::Object(fields) => {
                if let Some(id) = fields.get("resolved_path").map(|resolved| resolved["id"].to_string()) {
                    self.foreign_type(&id, path);
                }
                fields.values().for_each(|value| self.types(value, path));
            }
            _ => {}
        }
    }

    fn foreign_type(&mut self, id: &str, path: &str) {
        let summary = &self.doc["paths"][id];
        let Some(number) = summary["crate_id"].as_u64().filter(|number| *number != 0) else { return };
        let krate =
            self.doc["external_crates"][number.to_string().as_str()]["name"].as_str().unwrap_or_default();
        let name = summary["path"]
            .as_array()
            .and_then(|path| path.last())
            .and_then(Value::as_str)
            .unwrap_or_default();
        let item = format!("{krate}::{name}");
        let item_name = item.as_str();
        if !CRATES.contains(&krate) && !ITEMS.contains(&item_name) {
            self.foreign.insert(format!("{path}: {item}"));
        }
    }
}

#[test]
fn the_public_api_is_the_committed_list_without_foreign_types() {
    if !tools::happens_to_have(&["rustdoc", "cargo"]) {
        return;
    }
    let Some(doc) = rustdoc() else { return };
    let (items, foreign, visited) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut api = Api { doc: &doc, items, foreign, visited };
    let root_module = api.item(&doc["root"]).unwrap()["inner"]["module"]["items"].clone();
    api.each(&root_module, "ginnel");
    assert!(api.foreign.is_empty(), "foreign types in the API:\n{:#?}", api.foreign);
    let list = root().join("docs/public-api.txt");
    if tools::switch("GINNEL_WRITE_PUBLIC_API", 0) == 1 {
        let text: String = api.items.iter().map(|item| format!("{item}\n")).collect();
        fs::write(&list, text).unwrap();
        return;
    }
    let committed = fs::read_to_string(&list).unwrap();
    let committed: BTreeSet<String> = committed.lines().map(str::to_owned).collect();
    let added: Vec<_> = api.items.difference(&committed).collect();
    let removed: Vec<_> = committed.difference(&api.items).collect();
    assert!(
        added.is_empty() && removed.is_empty(),
        "docs/public-api.txt is out of date; GINNEL_WRITE_PUBLIC_API=1 writes it anew\nadded: {added:#?}\nremoved: {removed:#?}"
    );
}
