//! The blocks and the layouts of each group in a load or a store, as dicts.

use std::sync::Arc;

use kvtile::{
    tiers::groups::{LoadBlocks, StoreBlocks},
    transfer::LayoutHandle,
};
use pyo3::{prelude::*, types::PyTuple};

use crate::{
    arguments::{ArgumentRefusal, list, number::whole, object, text, wrong_type},
    error::{CallFailure, python::RequestError},
    layout::{PyLayout, PyLayoutShared},
};

/// The largest number of tokens, or of a page.
const COUNT_MAX: i128 = i64::MAX as i128;

/// The destinations of each group.
pub(super) type LoadIds = Vec<(String, Vec<usize>)>;

/// The sources of each group, and the number of the first page.
pub(super) type StoreIds = Vec<(String, (Vec<usize>, u64))>;

/// Layouts by group.
pub(super) type GroupLayouts = Vec<(String, Arc<PyLayoutShared>)>;

/// The registered layouts of a call, by group.
pub(super) type GroupHandles = Vec<(String, LayoutHandle)>;

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

/// The layouts of groups, or none.
pub(super) fn layouts(value: &Bound<'_, PyAny>) -> PyResult<GroupLayouts> {
    if value.is_none() {
        return Ok(Vec::new());
    }
    let groups = by_group("layouts", value)?.into_iter();
    let layout = |(group, layout): (String, Bound<'_, PyAny>)| {
        let name = format!("layouts[{group:?}]");
        let given = layout.cast::<PyLayout>();
        let given = given.map_err(|_| wrong_type(&name, "a Layout", &layout))?;
        Ok((group, given.get().shared()?))
    };
    groups.map(layout).collect()
}

/// The handles of layouts.
pub(super) fn handles(layouts: &GroupLayouts) -> Result<GroupHandles, CallFailure> {
    let layouts = layouts.iter();
    layouts
        .map(|(group, layout)| Ok((group.clone(), layout.handle()?)))
        .collect()
}

/// Refuses values of a group that has no blocks in the call.
pub(super) fn check_groups<'a>(
    argument: &str,
    groups: impl IntoIterator<Item = &'a String>,
    blocks: &[&str],
) -> PyResult<()> {
    let mut groups = groups.into_iter();
    match groups.find(|group| !blocks.contains(&group.as_str())) {
        None => Ok(()),
        Some(group) => Err(RequestError::new_err(format!(
            "{argument} has the group {group:?}, and blocks has not; give its blocks, or an empty list"
        ))),
    }
}

/// The names of the groups of a call.
pub(super) fn names<T>(groups: &[(String, T)]) -> Vec<&str> {
    groups.iter().map(|(group, _)| group.as_str()).collect()
}

fn handle_of(handles: &GroupHandles, group: &str) -> Option<LayoutHandle> {
    let mut handles = handles.iter();
    handles
        .find(|(name, _)| name == group)
        .map(|(_, handle)| *handle)
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
                Ok((group, (list::blocks(&ids)?, first)))
            }
            None => Ok((group, (list::blocks(&value)?, 0))),
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
pub(super) fn of_load<'a>(
    blocks: &'a LoadIds,
    have: &HaveTokens,
    layouts: &GroupHandles,
) -> Vec<LoadBlocks<'a>> {
    let group = |(group, ids): &'a (String, Vec<usize>)| {
        let mut haves = have.iter();
        let have = haves.find(|(name, _)| name == group);
        LoadBlocks::new(group, ids)
            .have(have.map_or(0, |(_, tokens)| *tokens))
            .layout(handle_of(layouts, group))
    };
    blocks.iter().map(group).collect()
}

/// The blocks of a store, for the library.
pub(super) fn of_store<'a>(blocks: &'a StoreIds, layouts: &GroupHandles) -> Vec<StoreBlocks<'a>> {
    let blocks = blocks.iter();
    blocks
        .map(|(group, (ids, first))| {
            StoreBlocks::new(group, *first, ids).layout(handle_of(layouts, group))
        })
        .collect()
}
