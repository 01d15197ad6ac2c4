//! QR codes on the terminal.

/// Returns a text as a QR code with the ending of its last line, if standard error is a terminal that is wide enough.
#[cfg(feature = "qr")]
pub(super) fn image(text: &str) -> Option<String> {
    use std::io::{self, IsTerminal};
    let width = super::terminal::width().filter(|_| io::stderr().is_terminal())?;
    draw(text, width)
}

/// Without the feature `qr` there is none.
#[cfg(not(feature = "qr"))]
pub(super) fn image(_text: &str) -> Option<String> {
    None
}

/// Draws a text in the colours of the terminal, two modules a character; `None` if that is wider than `width`.
#[cfg(feature = "qr")]
fn draw(text: &str, width: usize) -> Option<String> {
    let code = fast_qr::QRBuilder::new(text).ecl(fast_qr::ECL::L).build().ok()?;
    // With the margin on both sides.
    (code.size + 2 * MARGIN <= width).then(|| code.to_str() + "\n")
}

/// Modules of the margin that the library draws on each side.
#[cfg(feature = "qr")]
const MARGIN: usize = 1;

#[cfg(all(test, feature = "qr"))]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_drawn_only_if_the_terminal_is_wide_enough() {
        let text = "agent connect --server turn.example:3478 7-crater-violin";
        let image = draw(text, 80).unwrap();
        let widths: Vec<usize> = image.lines().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width <= 80 && *width == widths[0]), "{widths:?}");
        assert!(image.chars().all(|c| "█▀▄ \n".contains(c)), "{image}");
        assert_eq!(draw(text, widths[0] - 1), None);
        assert!(draw(text, widths[0]).is_some());
    }
}
