//! Suggestions for a mistyped name.

/// Most names to suggest.
const NAMES_MAX: usize = 3;

/// Longest name to compare, in characters.
const CHARACTERS_MAX: usize = 96;

/// Up to three names that are nearest to `name` by edit distance, where the distance is a third of
/// its letters or less. Case does not count.
#[must_use]
pub fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let wanted: Vec<char> = name.to_lowercase().chars().collect();
    if wanted.is_empty() || wanted.len() > CHARACTERS_MAX {
        return Vec::new();
    }
    let allowed = wanted.len().div_ceil(3).min(3);
    let distances = names.into_iter().map(|known| {
        let letters: Vec<char> = known.to_lowercase().chars().collect();
        (distance(&wanted, &letters), known)
    });
    let mut close: Vec<(usize, &str)> = distances.filter(|(far, _)| *far <= allowed).collect();
    close.sort_by_key(|(far, _)| *far);
    let least = close.first().map(|(far, _)| *far);
    let close = close.into_iter().filter(|(far, _)| Some(*far) == least);
    close.map(|(_, known)| known).take(NAMES_MAX).collect()
}

/// The edit distance: letters to add, remove, replace or swap with a neighbour.
fn distance(from: &[char], to: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    let mut above: Option<char> = None;
    for (done, &letter) in from.iter().enumerate() {
        let mut next = vec![done + 1];
        let mut left: Option<char> = None;
        for (column, &other) in to.iter().enumerate() {
            let at =
                |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX / 2);
            let changed = at(&row, column) + usize::from(letter != other);
            let dropped = at(&row, column + 1) + 1;
            let added = at(&next, column) + 1;
            let mut least = changed.min(dropped).min(added);
            if above == Some(other) && left == Some(letter) && column > 0 {
                least = least.min(at(&before, column - 1) + 1);
            }
            next.push(least);
            left = Some(other);
        }
        above = Some(letter);
        before = row;
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn far(from: &str, to: &str) -> usize {
        let letters = |text: &str| text.chars().collect::<Vec<_>>();
        distance(&letters(from), &letters(to))
    }

    #[test]
    fn distances_count_single_mistakes() {
        for (from, to, expected) in [
            ("", "", 0),
            ("abc", "abc", 0),
            ("abc", "", 3),
            ("", "abc", 3),
            ("abc", "abd", 1),
            ("abc", "acb", 1),
            ("abc", "ab", 1),
            ("abc", "abcd", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(far(from, to), expected, "{from} {to}");
        }
    }

    #[test]
    fn only_the_nearest_names_are_suggested() {
        let names = ["vllm", "sglang", "llama.cpp", "mlx"];
        assert_eq!(nearest("vlm", names), ["vllm"]);
        assert_eq!(nearest("VLLM", names), ["vllm"]);
        assert_eq!(nearest("sglagn", names), ["sglang"]);
        assert_eq!(nearest("tensorrt", names), [""; 0]);
        assert_eq!(nearest("", names), [""; 0]);
    }
}
