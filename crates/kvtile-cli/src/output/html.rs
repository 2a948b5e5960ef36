//! The common parts of all HTML pages: they are self-contained, support light and dark mode, and
//! escape text.

/// The style of all pages; each page adds its own rules.
pub const PAGE_STYLE: &str = include_str!("page.css");

/// Escapes untrusted text for HTML.
pub fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_text_is_escaped() {
        assert_eq!(escaped("<b> & \"x\""), "&lt;b&gt; &amp; &quot;x&quot;");
    }
}
