//! Completions and manual pages of both programs.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::tools;

const PROGRAMS: [(&str, &str); 2] = [("agent", "connect"), ("ginnel", "serve")];

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(tools::binary(program)).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    assert!(output.stderr.is_empty(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a checker with a text as its standard input; returns what it prints.
fn check(checker: &[&str], text: &str) -> String {
    let mut command = Command::new(checker[0]);
    command.args(&checker[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn({
        let text = text.to_owned();
        move || stdin.write_all(text.as_bytes())
    });
    let output = child.wait_with_output().unwrap();
    let _ = writer.join();
    assert!(output.status.success() && output.stderr.is_empty(), "{checker:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn completions_are_scripts_that_know_the_commands() {
    for (program, command) in PROGRAMS {
        for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
            let script = output(program, &["completions", shell]);
            assert!(script.contains(command), "{program} {shell}");
        }
        check(&["bash", "-n"], &output(program, &["completions", "bash"]));
    }
    // The hidden former command is not offered.
    let ask = "COMP_WORDS=(agent doc); COMP_CWORD=1; _agent agent doc agent; echo \"${COMPREPLY[@]}\"";
    let script = format!("{}\n{ask}\n", output("agent", &["completions", "bash"]));
    assert_eq!(check(&["bash"], &script), "doctor\n");
}

fn page_names(folder: &Path) -> BTreeSet<String> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn manual_pages_are_there_for_every_command() {
    for (program, command) in PROGRAMS {
        let main = output(program, &["man"]);
        assert!(main.contains(".SH NAME") && main.contains(command), "{main}");
        let folder = tempfile::tempdir().unwrap();
        let pages = folder.path().join("man1");
        output(program, &["man", pages.to_str().unwrap()]);
        let names = page_names(&pages);
        for page in [format!("{program}.1"), format!("{program}-{command}.1")] {
            assert!(names.contains(&page), "{names:?}");
        }
        assert!(!names.iter().any(|name| name.contains("help")), "{names:?}");
        if tools::happens_to_have(&["mandoc"]) {
            check(&["mandoc", "-T", "utf8", "-W", "error"], &main);
        } else if tools::happens_to_have(&["man"]) {
            let page = pages.join(format!("{program}.1"));
            assert!(check(&["man", "-l", page.to_str().unwrap()], "").contains(command));
        }
    }
}
