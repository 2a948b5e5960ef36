//! The name of the folder of a part: the layers and heads of the model that one rank writes.
//!
//! ```text
//! cache/                              the whole model: manifest.json, records, slots, lock
//! cache/layers-0-32.heads-0-4/        half of the heads: the same files
//! cache/layers-0-32.heads-4-8/
//! cache/layers-0-32.heads-0-1.replica-1/   the second of several ranks with the same heads
//! ```

use std::fmt;

use kvtile_layout::{AxisRange, Shard};

/// The layers and heads of a part, and the number of the copy among equal parts. As text it is the
/// name of the folder of the part, below the folder of the model. Ends are exclusive.
///
/// ```
/// use kvtile_layout::Shard;
/// use kvtile_tiers::disk::PartFolderName;
///
/// let part = PartFolderName::of(&Shard::tensor_parallel(32, 8, 1, 2)?);
/// assert_eq!(part.to_string(), "layers-0-32.heads-4-8");
/// assert_eq!(PartFolderName::parse("layers-0-32.heads-4-8"), Some(part));
/// # Ok::<(), kvtile_layout::LayoutError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PartFolderName {
    /// The layers, counted in the whole model.
    pub layers: AxisRange,
    /// The heads, counted in the whole model.
    pub heads: AxisRange,
    /// The number of the copy.
    pub replica: u32,
}

impl PartFolderName {
    /// The part that is this shard.
    #[must_use]
    pub fn of(shard: &Shard) -> PartFolderName {
        PartFolderName {
            layers: shard.layers,
            heads: shard.heads,
            replica: shard.replica,
        }
    }

    /// The part with this folder name; `None` for any other name.
    #[must_use]
    pub fn parse(name: &str) -> Option<PartFolderName> {
        let mut fields = name.split('.');
        let layers = range_of(fields.next()?, "layers-")?;
        let heads = range_of(fields.next()?, "heads-")?;
        let replica = match fields.next() {
            None => 0,
            Some(field) => field.strip_prefix("replica-")?.parse().ok()?,
        };
        let part = PartFolderName {
            layers,
            heads,
            replica,
        };
        // Also refuses other spellings of the same numbers.
        (part.to_string() == name).then_some(part)
    }

    /// The shard, in a model of these sizes; `None` if the part is not inside the model.
    #[must_use]
    pub fn shard(&self, total_layers: u64, total_heads: u64) -> Option<Shard> {
        let is_inside = self.layers.end()? <= total_layers && self.heads.end()? <= total_heads;
        is_inside.then_some(Shard {
            layers: self.layers,
            total_layers,
            heads: self.heads,
            total_heads,
            replica: self.replica,
        })
    }
}

impl fmt::Display for PartFolderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |range: AxisRange| range.start.saturating_add(range.count);
        write!(
            f,
            "layers-{}-{}.heads-{}-{}",
            self.layers.start,
            end(self.layers),
            self.heads.start,
            end(self.heads)
        )?;
        match self.replica {
            0 => Ok(()),
            replica => write!(f, ".replica-{replica}"),
        }
    }
}

/// The range in a field such as `layers-0-32`; `None` for an empty range and any other text.
fn range_of(field: &str, axis: &str) -> Option<AxisRange> {
    let (start, end) = field.strip_prefix(axis)?.split_once('-')?;
    let (start, end): (u64, u64) = (start.parse().ok()?, end.parse().ok()?);
    let count = end.checked_sub(start).filter(|&count| count > 0)?;
    Some(AxisRange::new(start, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_parts_are_one_to_one() {
        for shard in [
            Shard::whole(1, 1),
            Shard::tensor_parallel(80, 8, 3, 4).unwrap(),
            Shard::tensor_parallel(80, 8, 9, 16).unwrap(),
        ] {
            let part = PartFolderName::of(&shard);
            assert_eq!(PartFolderName::parse(&part.to_string()), Some(part));
            assert_eq!(
                part.shard(shard.total_layers, shard.total_heads),
                Some(shard)
            );
        }
    }

    #[test]
    fn other_names_are_no_parts() {
        for name in [
            "",
            "layers-0-2",
            "layers-0-2.heads-0-0",
            "layers-0-2.heads-3-2",
            "layers-00-2.heads-0-1",
            "layers-0-2.heads-+0-1",
            "layers-0-2.heads-0-1.",
            "layers-0-2.heads-0-1.replica-0",
            "layers-0-2.heads-0-1.replica-1.replica-2",
            "layers-0-99999999999999999999.heads-0-1",
            "heads-0-1.layers-0-2",
            "rank-0-of-2",
            "../layers-0-2.heads-0-1",
        ] {
            assert_eq!(PartFolderName::parse(name), None, "{name}");
        }
        let huge = PartFolderName::parse("layers-0-2.heads-0-18446744073709551615").unwrap();
        assert_eq!(huge.shard(2, 8), None);
    }
}
