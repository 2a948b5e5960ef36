//! Layouts as a user gives them: a word, or the name of a known layout.

use super::{Preset, PresetError, all, find};
use crate::{
    error::{LayoutError, ResolveError},
    near::nearest,
    shape::Shape,
    strided::StridedLayout,
    word::Word,
};

/// Most layouts of an engine that an error lists.
const LISTED_MAX: usize = 12;

/// A layout that a user gave.
#[derive(Clone, Debug)]
pub enum RequestedLayout {
    /// By a word.
    Word(Word),
    /// By the name of a known layout, `engine:…`.
    Known(&'static Preset),
}

impl RequestedLayout {
    /// Parses a word or a name: names of known layouts contain a colon, words never do.
    ///
    /// ```
    /// use kvtile_layout::presets::RequestedLayout;
    ///
    /// assert!(matches!(RequestedLayout::parse("L|KBNHC")?, RequestedLayout::Word(_)));
    /// let known = RequestedLayout::parse("vllm:LBHNC/cpu/float32/vec")?;
    /// assert!(matches!(known, RequestedLayout::Known(preset) if preset.name == "vllm:LBHNC/cpu/f32/vec"));
    /// # Ok::<(), kvtile_layout::LayoutError>(())
    /// ```
    ///
    /// # Errors
    /// A text that is neither a word nor the name of a known layout. For the name of an engine, the
    /// error lists the engine's layouts.
    pub fn parse(text: &str) -> Result<RequestedLayout, LayoutError> {
        let text = text.trim();
        if text.contains(':') {
            return Ok(RequestedLayout::Known(find(text)?));
        }
        match Word::parse(text) {
            Ok(word) => Ok(RequestedLayout::Word(word)),
            Err(error) => Err(named_instead(text, true)?.unwrap_or_else(|| error.into())),
        }
    }

    /// The layout for `shape`.
    ///
    /// # Errors
    /// As [`StridedLayout::resolve`] and [`Preset::resolve`]. For a word that is also the name of
    /// an engine, the error lists the engine's layouts.
    pub fn resolve(&self, shape: &Shape, alignment: u64) -> Result<StridedLayout, LayoutError> {
        let word = match self {
            RequestedLayout::Word(word) => word,
            RequestedLayout::Known(preset) => return preset.resolve(shape, alignment),
        };
        let resolved = StridedLayout::resolve(word, shape, alignment);
        match resolved {
            Ok(layout) => Ok(layout),
            Err(error) => {
                let foreign = matches!(
                    error,
                    LayoutError::Resolve(ResolveError::UnknownPlane { .. })
                        | LayoutError::Resolve(ResolveError::UnknownAxis { .. })
                );
                Err(named_instead(&word.to_string(), foreign)?.unwrap_or(error))
            }
        }
    }

    /// The example shape of a known layout.
    #[must_use]
    pub fn example(&self) -> Option<&Shape> {
        match self {
            RequestedLayout::Word(_) => None,
            RequestedLayout::Known(preset) => preset.shape.as_ref(),
        }
    }
}

/// The error for a text that is no word but names an engine, or a layout without its engine.
/// `mistyped` allows near names of engines.
fn named_instead(text: &str, mistyped: bool) -> Result<Option<LayoutError>, LayoutError> {
    let all = all()?;
    let whole: Vec<&str> = all
        .iter()
        .map(|preset| preset.name.as_str())
        .filter(|name| {
            name.split_once(':')
                .is_some_and(|(_, rest)| resembles(rest, text))
        })
        .collect();
    if text.contains('/') && !whole.is_empty() {
        return Ok(Some(of_engine(text, "without its engine", &whole)));
    }
    let mut engines: Vec<&str> = Vec::new();
    for preset in all {
        let engine = preset.name.split(':').next().unwrap_or_default();
        for name in [engine, preset.engine.as_str()] {
            if !engines.contains(&name) {
                engines.push(name);
            }
        }
    }
    let exact = engines.iter().find(|name| letters(name) == letters(text));
    let engine = match exact {
        Some(engine) => *engine,
        // Short words resemble too many names.
        None if !mistyped || text.len() < 4 => return Ok(None),
        None => match nearest(text, engines).first() {
            Some(engine) => engine,
            None => return Ok(None),
        },
    };
    let of_it = all.iter().filter(|preset| {
        let name = preset.name.split(':').next().unwrap_or_default();
        name == engine || preset.engine == engine
    });
    let names: Vec<&str> = of_it.map(|preset| preset.name.as_str()).collect();
    let what = format!("the engine {engine}");
    Ok(Some(of_engine(text, &what, &names)))
}

fn of_engine(text: &str, what: &str, names: &[&str]) -> LayoutError {
    let mut layouts: Vec<String> = Vec::new();
    for name in names {
        if !layouts.iter().any(|listed| listed == name) {
            layouts.push((*name).to_owned());
        }
    }
    let left_out = layouts.len().saturating_sub(LISTED_MAX);
    layouts.truncate(LISTED_MAX);
    let error = PresetError::NameForWord {
        text: text.to_owned(),
        what: what.to_owned(),
        layouts,
        left_out,
    };
    error.into()
}

/// Whether a layout name without its engine has the parts of `text`, which may be a prefix.
fn resembles(rest: &str, text: &str) -> bool {
    let (rest, text) = (super::spelled(rest), super::spelled(text));
    rest.to_ascii_lowercase()
        .starts_with(&text.to_ascii_lowercase())
}

fn letters(text: &str) -> String {
    let letters = text.chars().filter(|c| c.is_alphanumeric());
    letters.flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit::Unit;

    fn said(text: &str) -> String {
        let unit = Unit::named("bf16").unwrap();
        let shape = Shape::key_value(8, 4, 16, 2, 64, &unit).unwrap();
        let asked = RequestedLayout::parse(text).and_then(|asked| asked.resolve(&shape, 1));
        asked.unwrap_err().to_string()
    }

    #[test]
    fn an_engine_name_lists_its_layouts() {
        for (text, engine, layout) in [
            ("vllm", "vllm", "vllm:LBHNC/gpu/bf16"),
            ("VLLM", "vllm", "vllm:LBHNC/gpu/bf16"),
            ("vLLM", "vllm", "vllm:LBHNC/gpu/bf16"),
            ("vlmm", "vllm", "vllm:LBHNC/gpu/bf16"),
            ("sglang", "sglang", "sglang:token-major/device/bf16"),
            ("tensorrt-llm", "TensorRT-LLM", "tensorrt-llm:"),
            ("llama.cpp", "llama.cpp", "llama.cpp:"),
        ] {
            let said = said(text);
            let begins = format!("{text:?} is no layout word; it names the engine ");
            assert!(said.starts_with(&begins), "{said}");
            let lower = said.to_lowercase();
            assert!(lower.contains(&engine.to_lowercase()), "{said}");
            assert!(said.contains(layout) || lower.contains(layout), "{said}");
        }
    }

    #[test]
    fn a_name_without_its_engine_gets_the_whole_name() {
        assert_eq!(
            said("LBHNC/cpu/float32/vec"),
            "\"LBHNC/cpu/float32/vec\" is no layout word; it names without its engine:\n  \
             vllm:LBHNC/cpu/f32/vec\n  vllm:LBHNC/cpu/f32/vec16"
        );
    }

    #[test]
    fn small_letters_get_the_word_in_capitals() {
        for (text, meant) in [
            ("blknhc", "BLKNHC"),
            ("Blknhc", "BLKNHC"),
            ("l|kbnhc", "L|KBNHC"),
            ("l|bh(kcn,vnc)", "L|BH(kCN,vNC)"),
            ("l|bhncn", ""),
        ] {
            let said = said(text);
            match meant {
                "" => assert!(said.starts_with("no plane"), "{said}"),
                meant => assert_eq!(
                    said,
                    format!(
                        "{text:?} has its axes in small letters; axes are capital letters, planes \
                         small ones: {meant}"
                    )
                ),
            }
        }
    }

    #[test]
    fn a_missing_axis_gets_words_that_contain_it() {
        assert_eq!(
            said("BLKNH"),
            "BLKNH lacks axis C (the content: the elements of one head of one token), of which plane \
             k has 64; put C where it lies, for instance BLKNHC or BLKNCH or BLKCNH"
        );
        assert_eq!(
            said("KBNHC"),
            "KBNHC lacks axis L (the layers), of which plane k has 4; put L where it lies, for \
             instance LKBNHC or KBLNHC or KLBNHC"
        );
        assert_eq!(
            said("BLNHC"),
            "BLNHC does not separate the planes k, v; use K, or name them: (k…,v…), for instance \
             BLKNHC or BKLNHC or BLNKHC"
        );
        let two = said("KBHC");
        assert!(two.contains("BLKNHC") || two.contains("LKBNHC"), "{two}");
        assert_eq!(
            said("NHD"),
            "axis D of NHD is neither one of B L K N H C nor declared by a plane; what others call D \
             (head size) is C here"
        );
    }
}
