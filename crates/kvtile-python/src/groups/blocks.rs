//! The blocks of each group in a load or a store, as dicts.

use kvtile::tiers::groups::{LoadBlocks, StoreBlocks};
use pyo3::{prelude::*, types::PyTuple};

use crate::{
    arguments::{ArgumentRefusal, list, number::whole, object, text, wrong_type},
    error::python::RequestError,
};

/// The largest number of tokens, or of a page.
const COUNT_MAX: i128 = i64::MAX as i128;

/// The destinations of each group.
pub(super) type LoadIds = Vec<(String, Vec<usize>)>;

/// The sources of each group, and the number of the first page.
pub(super) type StoreIds = Vec<(String, Vec<usize>, u64)>;

/// Tokens that the engine has itself, by group.
pub(super) type HaveTokens = Vec<(String, u64)>;

/// The items of a dict by group.
fn by_group<'py>(
    name: &str,
    value: &Bound<'py, PyAny>,
) -> PyResult<Vec<(String, Bound<'py, PyAny>)>> {
    let dict = object::mapping(name, value)?;
    let dict = dict.ok_or_else(|| wrong_type(name, "a dict", value))?;
    let item = |(group, value): (Bound<'py, PyAny>, Bound<'py, PyAny>)| {
        let group = text::read("the name of a group", &group)?;
        Ok((group.into_owned(), value))
    };
    dict.into_iter().map(item).collect()
}

/// A number of tokens or of a page.
fn count(name: &str, value: &Bound<'_, PyAny>) -> PyResult<u64> {
    whole(name, value, (0, COUNT_MAX), ArgumentRefusal::Request)
}

/// The blocks of a load.
pub(super) fn load(value: &Bound<'_, PyAny>) -> PyResult<LoadIds> {
    let groups = by_group("blocks", value)?.into_iter();
    groups
        .map(|(group, ids)| Ok((group, list::blocks(&ids)?)))
        .collect()
}

/// The tokens that the engine has.
pub(super) fn have(value: &Bound<'_, PyAny>) -> PyResult<Option<HaveTokens>> {
    if value.is_none() {
        return Ok(None);
    }
    let groups = by_group("have", value)?.into_iter();
    let tokens = |(group, tokens): (String, Bound<'_, PyAny>)| {
        let tokens = count(&format!("have[{group:?}]"), &tokens)?;
        Ok((group, tokens))
    };
    groups.map(tokens).collect::<PyResult<_>>().map(Some)
}

/// Refuses tokens of a group without blocks.
pub(super) fn check_have(blocks: &LoadIds, have: &HaveTokens) -> PyResult<()> {
    let is_given = |name: &str| blocks.iter().any(|(group, _)| group == name);
    match have.iter().find(|(group, _)| !is_given(group)) {
        None => Ok(()),
        Some((group, _)) => Err(RequestError::new_err(format!(
            "have has the group {group:?}, and blocks has not; give its blocks, or an empty list"
        ))),
    }
}

/// The blocks of a store: ids, or a pair of ids and the number of the first page.
pub(super) fn store(value: &Bound<'_, PyAny>) -> PyResult<StoreIds> {
    let groups = by_group("blocks", value)?.into_iter();
    let group = |(group, value): (String, Bound<'_, PyAny>)| {
        let pair = value.cast::<PyTuple>().ok().filter(|pair| pair.len() == 2);
        let pair =
            pair.and_then(|pair| pair.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>().ok());
        // Two ids in a tuple are ids.
        match pair.filter(|(ids, _)| ids.len().is_ok()) {
            Some((ids, first)) => {
                let first = count(&format!("the first page of {group:?}"), &first)?;
                Ok((group, list::blocks(&ids)?, first))
            }
            None => Ok((group, list::blocks(&value)?, 0)),
        }
    };
    groups.map(group).collect()
}

/// A stop, several stops, or None.
pub(super) fn stops(value: &Bound<'_, PyAny>) -> PyResult<Option<Vec<u64>>> {
    if value.is_none() {
        return Ok(None);
    }
    let wanted = "a number of tokens, a list of such numbers, or None";
    if let Ok(items) = list::items("stop", wanted, value) {
        let items = items.iter().enumerate();
        return items
            .map(|(at, stop)| count(&format!("stop[{at}]"), stop))
            .collect::<PyResult<_>>()
            .map(Some);
    }
    count("stop", value).map(|stop| Some(vec![stop]))
}

/// The blocks of a load, for the library.
pub(super) fn of_load<'a>(blocks: &'a LoadIds, have: &HaveTokens) -> Vec<LoadBlocks<'a>> {
    let group = |(group, ids): &'a (String, Vec<usize>)| {
        let mut haves = have.iter();
        let have = haves.find(|(name, _)| name == group);
        LoadBlocks::new(group, ids).have(have.map_or(0, |(_, tokens)| *tokens))
    };
    blocks.iter().map(group).collect()
}

/// The blocks of a store, for the library.
pub(super) fn of_store(blocks: &StoreIds) -> Vec<StoreBlocks<'_>> {
    let blocks = blocks.iter();
    blocks
        .map(|(group, ids, first)| StoreBlocks::new(group, *first, ids))
        .collect()
}
