//! Names from the other side: what they become here, and which are refused.
//!
//! A name is one component of a path. It never chooses the folder: that follows from the folders that the receiver has created. A name that a
//! file system or a terminal could misread is changed, and gets a mark made of the original, so that two names stay two.

use std::fmt::Write;

/// Most bytes of a name on the common file systems.
const MAX_LEN: usize = 255;
/// Most bytes of an extension that a shortened name keeps.
const MAX_EXTENSION: usize = 16;
/// Digits of a mark.
const MARK_LEN: usize = 8;
/// The ending of a partial file, after the number of the transfer, and that of its journal.
const PART: &str = ".part";
const JOURNAL: &str = ".journal";
/// Most bytes of a name that a partial file begins with.
const MAX_PART_STEM: usize = MAX_LEN - 32;

/// Why a name is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NameError {
    #[error("an empty name")]
    Empty,
    #[error("a name that is a folder's own or its parent's")]
    Dots,
    #[error("a name with a path in it")]
    Separator,
}

/// Returns the name under which an entry of the other side is created.
pub(crate) fn local_name(name: &[u8]) -> Result<String, NameError> {
    match name {
        [] => return Err(NameError::Empty),
        b"." | b".." => return Err(NameError::Dots),
        name if name.iter().any(|byte| matches!(byte, b'/' | 0)) => return Err(NameError::Separator),
        _ => {}
    }
    let clean = without_misleading(name);
    if clean.as_bytes() == name && clean.len() <= MAX_LEN {
        return Ok(clean);
    }
    Ok(with_mark(&clean, name))
}

/// Replaces what is not UTF-8, controls a terminal, hides or reorders text, or is a separator elsewhere.
fn without_misleading(name: &[u8]) -> String {
    let mut clean = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            clean.push(if is_misleading(c) { '_' } else { c });
        }
        for byte in chunk.invalid() {
            let _ = write!(clean, "%{byte:02X}");
        }
    }
    clean
}

fn is_misleading(c: char) -> bool {
    c.is_control()
        || matches!(c, '\\' | '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Splits a name before its last full stop, unless the part behind that is long or the name begins with it.
fn split_extension(name: &str) -> (&str, &str) {
    match name.rfind('.') {
        Some(at) if at > 0 && name.len() - at <= MAX_EXTENSION => name.split_at(at),
        _ => (name, ""),
    }
}

/// Returns the longest beginning of at most `max` bytes.
fn shortened(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

fn with_mark(clean: &str, original: &[u8]) -> String {
    let (stem, extension) = split_extension(clean);
    let mark = blake3::hash(original).to_hex();
    let stem = shortened(stem, MAX_LEN - extension.len() - MARK_LEN - 1);
    format!("{stem}~{}{extension}", &mark[..MARK_LEN])
}

/// Returns the name of a further file of the same name: `photo (2).jpg`.
pub(crate) fn numbered(name: &str, number: u32) -> String {
    let (stem, extension) = split_extension(name);
    let suffix = format!(" ({number})");
    format!("{}{suffix}{extension}", shortened(stem, MAX_LEN - extension.len() - suffix.len()))
}

/// Returns the names of a partial file and of its journal.
pub(crate) fn part_names(name: &str, transfer: &[u8]) -> (String, String) {
    let mut part = shortened(name, MAX_PART_STEM).to_owned();
    part.push('.');
    for byte in transfer.iter().take(4) {
        let _ = write!(part, "{byte:02x}");
    }
    part.push_str(PART);
    let journal = format!("{part}{JOURNAL}");
    (part, journal)
}

/// Returns whether a symbolic link in a folder `depth` levels below the top one points to something inside the top folder.
///
/// `..` may stand only in front: behind a name that is itself a link it would lead elsewhere.
pub(crate) fn is_inside(target: &[u8], depth: usize) -> bool {
    if target.is_empty() || target[0] == b'/' || target.contains(&0) {
        return false;
    }
    let (mut ups, mut has_name) = (0, false);
    for component in target.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." if has_name => return false,
            b".." => ups += 1,
            _ => has_name = true,
        }
    }
    ups <= depth
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_that_is_a_path_is_refused() {
        for name in ["", ".", "..", "../../x", "/etc/x", "a/b", "a\0b", "/"] {
            assert!(local_name(name.as_bytes()).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_name_that_misleads_nobody_is_kept() {
        for name in ["a", "CON", ".hidden", "Grüße 🦀.txt", "a:b", "...", "x.tar.gz", &"n".repeat(255)] {
            assert_eq!(local_name(name.as_bytes()).as_deref(), Ok(name));
        }
    }

    #[test]
    fn a_name_that_misleads_is_changed_and_stays_different_from_others() {
        let long = "n".repeat(300) + ".txt";
        let names: [&[u8]; 7] = [
            b"\x1b]0;title\x07.txt",
            b"\x1b]0;title\x08.txt",
            b"caf\xe9.txt",
            "gnp\u{202e}exe.png".as_bytes(),
            b"..\\..\\x",
            long.as_bytes(),
            b"a\nb",
        ];
        let local: Vec<String> = names.iter().map(|name| local_name(name).unwrap()).collect();
        for (name, local) in names.iter().zip(&local) {
            assert!(local.len() <= 255 && local.as_bytes() != *name, "{local}");
            assert!(!local.chars().any(is_misleading), "{local:?}");
        }
        assert!(local[2].starts_with("caf%E9~") && local[2].ends_with(".txt"), "{}", local[2]);
        let different: std::collections::HashSet<_> = local.iter().collect();
        assert_eq!(different.len(), local.len());
    }

    #[test]
    fn a_further_file_has_a_number_before_the_extension() {
        assert_eq!(numbered("photo.jpg", 2), "photo (2).jpg");
        assert_eq!(numbered("folder", 3), "folder (3)");
        assert_eq!(numbered(".profile", 2), ".profile (2)");
        assert!(numbered(&"ä".repeat(127), 12).len() <= 255);
    }

    #[test]
    fn the_names_of_a_partial_file_fit_and_belong_to_one_transfer() {
        let long = "ä".repeat(127);
        let (part, journal) = part_names(&long, &[0xab; 16]);
        assert!(part.ends_with(".abababab.part") && journal.len() <= 255, "{journal}");
        assert_ne!(part_names("a", &[1; 16]), part_names("a", &[2; 16]));
    }

    #[test]
    fn only_links_into_the_folder_are_inside() {
        for (target, depth) in [("b", 0), ("./b/c", 0), ("../b", 1), ("../../b/c", 2), ("..", 1), (".", 0)] {
            assert!(is_inside(target.as_bytes(), depth), "{target} {depth}");
        }
        for (target, depth) in
            [("", 1), ("/etc", 3), ("..", 0), ("../b", 0), ("../../b", 1), ("a/../b", 2), ("a/..", 1)]
        {
            assert!(!is_inside(target.as_bytes(), depth), "{target} {depth}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_become_one_harmless_component_or_are_refused(name: Vec<u8>) {
            if let Ok(local) = local_name(&name) {
                prop_assert!(!local.is_empty() && local.len() <= 255);
                prop_assert!(!local.contains('/') && local != "." && local != ".." && !local.chars().any(char::is_control));
            }
        }
    }
}
