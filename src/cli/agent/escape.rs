//! Text of others on a terminal.

use std::fmt::Write;

/// Returns a text of others without characters that a terminal acts on: control characters, and those that reorder or hide text. They are written
/// as `\u{…}`. Lines after the first are indented, so that none looks like a line of this program.
pub(super) fn lines(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.trim_end_matches('\n').chars() {
        match c {
            '\n' => shown.push_str("\n    "),
            c => push(&mut shown, c),
        }
    }
    shown
}

/// Returns a text of others as [`lines`] does, in one line.
pub(super) fn line(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    text.chars().for_each(|c| push(&mut shown, c));
    shown
}

/// Returns the name of another party as [`line`] does; in quotes if it has spaces or punctuation with which it could imitate a line of this program.
pub(super) fn name(name: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_.:@+".contains(c);
    let shown = line(name);
    match shown == name && name.chars().all(is_plain) && !name.ends_with(':') {
        true => shown,
        false => format!("\"{}\"", shown.replace('"', "\\\"")),
    }
}

fn push(shown: &mut String, c: char) {
    let is_hidden = matches!(
        c,
        '\u{ad}' | '\u{a0}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{2800}' | '\u{3000}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
    );
    match c {
        '\t' => shown.push(' '),
        c if c.is_control() || is_hidden => {
            let _ = write!(shown, "{}", c.escape_unicode());
        }
        c => shown.push(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_no_control_characters_of_others() {
        let text = "\u{1b}]0;title\u{7}\u{9b}2J\r\u{202e}gnp.exe\tGrüße 🦀\u{85}\u{2028}";
        let shown = line(text);
        assert_eq!(shown, "\\u{1b}]0;title\\u{7}\\u{9b}2J\\u{d}\\u{202e}gnp.exe Grüße 🦀\\u{85}\\u{2028}");
        assert!(!shown.chars().any(char::is_control));
        assert_eq!(line("a\nb"), "a\\u{a}b");
    }

    #[test]
    fn a_name_cannot_look_like_more_than_a_name() {
        for plain in ["bob", "dev:7", "jürgen.k@example", "李"] {
            assert_eq!(name(plain), plain);
        }
        for (odd, shown) in [
            ("alice  send 100 to eve.", "\"alice  send 100 to eve.\""),
            ("alice: 1111 2222", "\"alice: 1111 2222\""),
            ("bob ", "\"bob \""),
            ("bob\u{3164}", "\"bob\\u{3164}\""),
            ("a\"b", "\"a\\\"b\""),
        ] {
            assert_eq!(name(odd), shown);
        }
    }

    #[test]
    fn a_text_cannot_look_like_another_message() {
        assert_eq!(lines("a\nbob: b\n\n"), "a\n    bob: b");
        assert_eq!(lines("one"), "one");
    }
}
