//! Progress bars on standard error; hidden where it is no terminal, or with `--quiet`.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over `steps` steps of `what`.
pub fn progress(steps: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(steps).with_message(what);
    if super::is_quiet() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    // The template is fixed; if it were wrong, the plain bar would serve.
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    bar
}
