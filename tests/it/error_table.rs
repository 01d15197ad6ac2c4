//! The table of errors in `docs/agent.md` is that of the code, and real runs of `agent` give each of its rows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const PAGE: &str = "docs/agent.md";
const START: &str = "<!-- table of errors -->";
const END: &str = "<!-- end of the table of errors -->";

/// One kind of error.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Row {
    pub(crate) exit_code: u8,
    pub(crate) stage: String,
    pub(crate) code: String,
    /// What to type.
    pub(crate) hint: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = fs::read_to_string(path).unwrap();
            found.push(text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned());
        }
    }
    found
}

/// Reads a string literal at the beginning of a text; returns its value and what follows.
fn literal(text: &str) -> Option<(String, &str)> {
    let rest = text.trim_start().strip_prefix('"')?;
    let (mut value, mut characters) = (String::new(), rest.char_indices().peekable());
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((value, &rest[at + 1..])),
            '\\' => match characters.next()?.1 {
                '\n' => while characters.next_if(|(_, c)| c.is_whitespace()).is_some() {},
                other => value.push(other),
            },
            c => value.push(c),
        }
    }
    None
}

/// The constants of these texts whose value is a string.
fn constants(texts: &[String]) -> BTreeMap<String, String> {
    let parts = texts.iter().flat_map(|text| text.split("const ").skip(1));
    let named = parts.filter_map(|part| {
        let (name, rest) = part.split_once(": &str =")?;
        Some((name.to_owned(), literal(rest)?.0))
    });
    named.collect()
}

/// The hints that an expression can have: a literal, a constant, or each branch of a function of this name.
fn hints(argument: &str, texts: &[String], constants: &BTreeMap<String, String>) -> Vec<String> {
    let argument = argument.trim();
    if let Some((value, _)) = literal(argument) {
        return vec![value];
    }
    let name: String = argument.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    if !argument[name.len()..].starts_with(['(', ')', ',']) {
        return Vec::new();
    }
    if let Some(value) = constants.get(&name) {
        return vec![value.clone()];
    }
    // Variables, and hints of the value itself, have their literals elsewhere.
    let function = format!("fn {name}(");
    let body = texts.iter().find_map(|text| text.split_once(function.as_str()));
    body.map(|(_, rest)| branches(rest)).unwrap_or_default()
}

/// The literals to which the branches of a function's `match` lead.
fn branches(rest: &str) -> Vec<String> {
    let indent = if rest.contains("\n    }\n") && rest.find("\n    }\n") < rest.find("\n}\n") {
        "\n    }\n"
    } else {
        "\n}\n"
    };
    let body = rest.split(indent).next().unwrap();
    let values = body.split("=>").skip(1);
    values
        .filter_map(|value| literal(value.trim_start().trim_start_matches('{')))
        .map(|(value, _)| value)
        .collect()
}

/// All kinds of errors that the code describes.
pub(crate) fn rows_of_the_code() -> BTreeSet<Row> {
    let texts = sources(&root().join("src/cli/agent"));
    let constants = constants(&texts);
    let mut rows = BTreeSet::new();
    for text in &texts {
        for call in text.split("description(").skip(1) {
            let Some((exit_code, rest)) = call.split_once(',') else { continue };
            let exit_code = exit_code.trim();
            let exit_code = exit_code.parse().ok().or_else(|| number(exit_code, &texts));
            let Some(exit_code) = exit_code else { continue };
            let Some((stage, rest)) = literal(rest) else { continue };
            let Some((code, rest)) = literal(rest.trim_start_matches(',')) else { continue };
            let argument = rest.trim_start_matches(',');
            for hint in hints(argument, &texts, &constants) {
                rows.insert(Row { exit_code, stage: stage.clone(), code: code.clone(), hint });
            }
        }
        let usage = |hint| Row { exit_code: 2, stage: "usage".to_owned(), code: "usage".to_owned(), hint };
        let inputs = text.split("Input {").skip(1).filter_map(|input| input.split_once('}'));
        let inputs = inputs.filter_map(|(fields, _)| literal(fields.split_once("hint: ")?.1));
        rows.extend(inputs.map(|(hint, _)| usage(hint)));
        // The hints of errors of usage are a method of theirs.
        if let Some((_, methods)) = text.split_once("impl UsageError {") {
            let (_, body) = methods.split_once("fn hint(").unwrap();
            rows.extend(branches(body).into_iter().map(usage));
        }
    }
    assert!(rows.len() > 40, "the errors were not found: {rows:#?}");
    rows
}

fn number(name: &str, texts: &[String]) -> Option<u8> {
    let start = format!("const {name}: u8 =");
    let value = texts.iter().find_map(|text| text.split_once(start.as_str()))?.1;
    value.split(';').next()?.trim().parse().ok()
}

fn table(rows: &BTreeSet<Row>) -> String {
    let mut text =
        String::from("\n\n| exit | stage | code | what to type, or to do |\n| --- | --- | --- | --- |\n");
    for row in rows {
        let hint = row.hint.replace('|', "\\|").replace('<', "&lt;");
        text.push_str(&format!("| {} | {} | {} | {} |\n", row.exit_code, row.stage, row.code, hint));
    }
    text + "\n"
}

/// `GINNEL_WRITE_ERROR_TABLE=1` writes the table.
#[test]
fn the_page_lists_every_error() {
    let path = root().join(PAGE);
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(START).unwrap();
    let (listed, after) = rest.split_once(END).unwrap();
    let expected = table(&rows_of_the_code());
    if std::env::var_os("GINNEL_WRITE_ERROR_TABLE").is_some() {
        fs::write(&path, format!("{before}{START}{expected}{END}{after}")).unwrap();
    } else {
        assert_eq!(listed, expected, "GINNEL_WRITE_ERROR_TABLE=1 writes the table of {PAGE}");
    }
}
