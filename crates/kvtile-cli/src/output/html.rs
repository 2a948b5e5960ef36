//! What all pages have in common: they stand alone, follow light and dark, and take no text for
//! markup.

/// The style of all pages; each adds what is its own.
pub const PAGE_STYLE: &str = include_str!("page.css");

/// Text that is no markup; whoever wrote it may say anything.
pub fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_says_is_no_markup() {
        assert_eq!(escaped("<b> & \"x\""), "&lt;b&gt; &amp; &quot;x&quot;");
    }
}
