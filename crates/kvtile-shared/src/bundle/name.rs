//! The names of bundles. One function makes them all.

use std::fmt::Write as _;

use kvtile_blocks::BlockKey;
use kvtile_layout::{broken, identity::Fingerprint};
use kvtile_tiers::parts::PartFolderName;

use super::{BundleForm, PartName};
use crate::store::{InvalidValueName, ValueName};

/// The first directory of all bundles, with the version of the names.
pub(crate) const ROOT: &str = "kvt1";

/// Names the bundles of one form:
/// `{prefix}/kvt1/{identity}/{layout}/{part}/{first 2 digits of the key}/{key}.{blocks}`, where the
/// key is that of the last block.
#[derive(Clone, Debug)]
pub struct BundleName {
    /// The part in front of the key, with a `/` at its end.
    directory: Box<str>,
    blocks: u32,
}

/// What follows the directory: 2 digits, `/`, 32 digits, `.` and up to 2 digits.
const KEY_CHARACTERS: usize = 3 + 32 + 1 + 2;

impl BundleName {
    /// The names of bundles of this form below a prefix, which may be empty.
    ///
    /// # Errors
    /// A prefix that cannot begin the name of a value, or that is too long.
    pub fn new(prefix: &str, form: &BundleForm) -> Result<BundleName, InvalidValueName> {
        let BundleForm {
            identity,
            layout,
            part,
            blocks,
            ..
        } = form;
        let root = root_of(prefix);
        let directory = format!("{root}{identity}/{layout}/{}/", part.as_str());
        let longest = format!("{directory}{}", "0".repeat(KEY_CHARACTERS));
        ValueName::new(longest)?;
        Ok(BundleName {
            directory: directory.into(),
            blocks: *blocks,
        })
    }

    /// The name of the bundle whose last block has this key.
    #[must_use]
    pub fn of(&self, last: &BlockKey) -> ValueName {
        let mut name = String::with_capacity(self.directory.len() + KEY_CHARACTERS);
        let mut key = String::with_capacity(32);
        for byte in last.as_bytes() {
            // Writing to a string does not fail.
            let _ = write!(key, "{byte:02x}");
        }
        let shard = key.get(..2).unwrap_or_default();
        let _ = write!(name, "{}{shard}/{key}.{}", self.directory, self.blocks);
        match ValueName::new(name) {
            Ok(name) => name,
            Err(error) => broken(format_args!("the name of a bundle: {error}")),
        }
    }
}

/// The beginning of the names of all bundles below a prefix.
pub(crate) fn root_of(prefix: &str) -> String {
    match prefix.is_empty() {
        true => format!("{ROOT}/"),
        false => format!("{prefix}/{ROOT}/"),
    }
}

/// The last part of the name of a manifest.
const MANIFEST: &str = "manifest.json";

/// The name of the manifest of an identity below a prefix.
pub(crate) fn manifest_name(
    prefix: &str,
    identity: Fingerprint,
) -> Result<ValueName, InvalidValueName> {
    ValueName::new(format!("{}{identity}/{MANIFEST}", root_of(prefix)))
}

/// The identity whose manifest has this name; `None` for any other name.
pub(crate) fn parse_manifest_name(prefix: &str, name: &ValueName) -> Option<Fingerprint> {
    let rest = name.as_str().strip_prefix(&root_of(prefix))?;
    let identity = rest.strip_suffix(MANIFEST)?.strip_suffix('/')?;
    is_hex(identity, 32).then(|| identity.parse().ok())?
}

/// The directory of the announcements of all parts of a model, with a `/` at its end. `model` is
/// [`Identity::model_fingerprint`](kvtile_layout::identity::Identity::model_fingerprint).
pub(crate) fn announcements_of(prefix: &str, model: Fingerprint) -> String {
    format!("{}{model}/parts/", root_of(prefix))
}

/// The name of the announcement of the bundles of one form, which hold a part of a model: all that their names have, and
/// which layers and heads these are.
pub(crate) fn announcement_name(
    prefix: &str,
    model: Fingerprint,
    (form, part): (&BundleForm, &PartFolderName),
) -> Result<ValueName, InvalidValueName> {
    let directory = announcements_of(prefix, model);
    let (identity, layout, blocks) = (form.identity, form.layout, form.blocks);
    ValueName::new(format!("{directory}{identity}.{layout}.{blocks}.{part}"))
}

/// The part that a name announces, and the identity of its blocks; `None` for any other name. A reader compares the whole
/// name with that of the part that it would read.
pub(crate) fn parse_announcement_name(
    prefix: &str,
    name: &ValueName,
) -> Option<(Fingerprint, PartFolderName)> {
    let rest = name.as_str().strip_prefix(&root_of(prefix))?;
    let (model, rest) = rest.split_once('/')?;
    let rest = rest.strip_prefix("parts/")?;
    let mut fields = rest.splitn(4, '.');
    let (identity, layout) = (fields.next()?, fields.next()?);
    let blocks: u32 = fields.next()?.parse().ok()?;
    let part = PartFolderName::parse(fields.next()?)?;
    let is_ours = [model, identity, layout].iter().all(|one| is_hex(one, 32))
        && (1..=super::BUNDLE_BLOCKS_MAX).contains(&blocks);
    is_ours.then(|| Some((identity.parse().ok()?, part)))?
}

fn is_hex(text: &str, digits: usize) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == digits && text.bytes().all(is_digit)
}

/// Whether a name below `prefix` is exactly the name of a bundle. Values with other names are not
/// ours: nothing reads or removes them.
#[must_use]
pub fn parse_bundle_name(prefix: &str, name: &ValueName) -> Option<ParsedBundleName> {
    let rest = name.as_str().strip_prefix(&root_of(prefix))?;
    let mut parts = rest.split('/');
    let mut next = || parts.next();
    let (identity, layout, part) = (next()?, next()?, next()?);
    let (shard, file) = (next()?, next()?);
    let (key, blocks) = file.split_once('.')?;
    let is_count = blocks.bytes().all(|byte| byte.is_ascii_digit()) && !blocks.starts_with('0');
    let blocks: u32 = blocks.parse().ok()?;
    let is_ours = next().is_none()
        && is_hex(identity, 32)
        && is_hex(layout, 32)
        && PartName::is_part(part)
        && is_hex(key, 32)
        && key.get(..2) == Some(shard)
        && is_count
        && blocks <= super::BUNDLE_BLOCKS_MAX;
    let last = u128::from_str_radix(key, 16).ok()?;
    is_ours.then(|| ParsedBundleName {
        identity: identity.to_owned(),
        layout: layout.to_owned(),
        part: part.to_owned(),
        last: BlockKey::from_bytes(last.to_be_bytes()),
        blocks,
    })
}

/// The facts in the name of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedBundleName {
    /// The fingerprint of the identity, in hexadecimal digits.
    pub identity: String,
    /// The fingerprint of the block layout, in hexadecimal digits.
    pub layout: String,
    /// The part of the blocks.
    pub part: String,
    /// The key of the last block.
    pub last: BlockKey,
    /// The number of blocks.
    pub blocks: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_all_that_must_be_equal_and_is_recognised() {
        let form = BundleForm {
            identity: Fingerprint::from_bytes([0xab; 16]),
            layout: Fingerprint::from_bytes([0xcd; 16]),
            part: PartName::default(),
            block_bytes: 100,
            blocks: 16,
        };
        let (identity, layout) = ("ab".repeat(16), "cd".repeat(16));
        let key = BlockKey::from_bytes([0x5e; 16]);
        for (prefix, root) in [("", "kvt1"), ("team/a", "team/a/kvt1")] {
            let name = BundleName::new(prefix, &form).unwrap().of(&key);
            let hex = "5e".repeat(16);
            assert_eq!(
                name.as_str(),
                format!("{root}/{identity}/{layout}/all/5e/{hex}.16")
            );
            let parsed = parse_bundle_name(prefix, &name).unwrap();
            assert_eq!(parsed.blocks, 16);
            assert_eq!(parsed.identity, identity);
            assert_eq!(
                (parsed.layout, parsed.part.as_str()),
                (layout.clone(), "all")
            );
            assert_eq!(parsed.last, key);
            for other in [
                format!("{name}0"),
                format!("{name}/a"),
                name.as_str().replace("/5e/", "/5f/"),
                name.as_str().replace(".16", ".016"),
                name.as_str().replace(".16", ".65"),
                name.as_str().replace(".16", ""),
                name.as_str().replace("/all/", "/"),
                name.as_str().replace("kvt1", "kvt2"),
                format!("{root}/{identity}/manifest.json"),
            ] {
                let other = ValueName::new(other).unwrap();
                assert_eq!(parse_bundle_name(prefix, &other), None, "{other}");
            }
            let manifest = manifest_name(prefix, form.identity).unwrap();
            assert_eq!(
                manifest.as_str(),
                format!("{root}/{identity}/manifest.json")
            );
            assert_eq!(parse_manifest_name(prefix, &manifest), Some(form.identity));
            for other in [
                format!("{root}/{identity}/manifest.json.1"),
                format!("{root}/{identity}manifest.json"),
                format!("{root}/a{identity}/manifest.json"),
                format!("{root}/{identity}/{layout}/manifest.json"),
                format!("{root}/manifest.json"),
                name.to_string(),
            ] {
                let other = ValueName::new(other).unwrap();
                assert_eq!(parse_manifest_name(prefix, &other), None, "{other}");
            }
            assert_eq!(parse_bundle_name("other", &name), None);
        }
        assert!(BundleName::new("/a", &form).is_err());
        assert!(BundleName::new("A", &form).is_err());
        assert!(BundleName::new(&"a".repeat(300), &form).is_err());
    }
}
