//! Lists: block ids, tokens, keys, tensors. Integer arrays and tensors are read as a whole; other
//! arrays are refused by their type. No array is iterated element by element.

use kvtile::blocks::BlockKey;
use pyo3::{
    prelude::*,
    pybacked::PyBackedBytes,
    types::{PyBool, PyByteArray, PyBytes, PyList, PyRange, PySequence, PyString, PyTuple},
};

use super::{ArgumentRefusal, number::whole, text, wrong_type};
use crate::{
    error::python::ArgumentError,
    tensor::{self, IntegerElements},
};

const COUNT_MAX: u64 = (1 << 63) - 1;

/// Block ids.
pub(crate) fn blocks(value: &Bound<'_, PyAny>) -> PyResult<Vec<usize>> {
    numbers(
        "blocks",
        "block ids",
        value,
        COUNT_MAX,
        ArgumentRefusal::Request,
    )
}

/// Block ids of a source.
pub(crate) fn src_blocks(value: &Bound<'_, PyAny>) -> PyResult<Vec<usize>> {
    numbers(
        "src_blocks",
        "block ids",
        value,
        COUNT_MAX,
        ArgumentRefusal::Layout,
    )
}

/// Block ids of a source, or None.
pub(crate) fn optional_src_blocks(value: &Bound<'_, PyAny>) -> PyResult<Option<Vec<usize>>> {
    match value.is_none() {
        true => Ok(None),
        false => src_blocks(value).map(Some),
    }
}

/// Block ids of a destination, or None.
pub(crate) fn dst_blocks(value: &Bound<'_, PyAny>) -> PyResult<Option<Vec<usize>>> {
    match value.is_none() {
        true => Ok(None),
        false => numbers(
            "dst_blocks",
            "block ids",
            value,
            COUNT_MAX,
            ArgumentRefusal::Layout,
        )
        .map(Some),
    }
}

/// Numbers of rows.
pub(crate) fn ids(value: &Bound<'_, PyAny>) -> PyResult<Vec<usize>> {
    numbers(
        "ids",
        "row numbers",
        value,
        COUNT_MAX,
        ArgumentRefusal::Request,
    )
}

/// Positions in a chain, or None.
pub(crate) fn positions(value: &Bound<'_, PyAny>) -> PyResult<Option<Vec<u32>>> {
    match value.is_none() {
        true => Ok(None),
        false => numbers(
            "positions",
            "positions",
            value,
            u64::from(u32::MAX),
            ArgumentRefusal::Request,
        )
        .map(Some),
    }
}

/// Layers, or None.
pub(crate) fn optional_layers(value: &Bound<'_, PyAny>) -> PyResult<Option<Vec<u64>>> {
    match value.is_none() {
        true => Ok(None),
        false => numbers(
            "layers",
            "layers",
            value,
            COUNT_MAX,
            ArgumentRefusal::Layout,
        )
        .map(Some),
    }
}

/// Keys of a block store: bytes or text of any length.
pub(crate) fn names(value: &Bound<'_, PyAny>) -> PyResult<Vec<BlockKey>> {
    let items = items("keys", "a list of bytes or text", value)?;
    let key = |(index, item): (usize, &Bound<'_, PyAny>)| name(&format!("keys[{index}]"), item);
    items.iter().enumerate().map(key).collect()
}

/// Keys of blocks, or None.
pub(crate) fn optional_names(value: &Bound<'_, PyAny>) -> PyResult<Option<Vec<BlockKey>>> {
    match value.is_none() {
        true => Ok(None),
        false => names(value).map(Some),
    }
}

/// The key of one block.
pub(crate) fn one_name(value: &Bound<'_, PyAny>) -> PyResult<BlockKey> {
    name("key", value)
}

/// The key of a parent, or None.
pub(crate) fn optional_name(value: &Bound<'_, PyAny>) -> PyResult<Option<BlockKey>> {
    match value.is_none() {
        true => Ok(None),
        false => name("parent", value).map(Some),
    }
}

/// The keys of parents, each of which may be None; or None.
pub(crate) fn parents(value: &Bound<'_, PyAny>) -> PyResult<Option<Vec<Option<BlockKey>>>> {
    if value.is_none() {
        return Ok(None);
    }
    let items = items("parents", "a list of bytes, text or None", value)?;
    let key = |(index, item): (usize, &Bound<'_, PyAny>)| match item.is_none() {
        true => Ok(None),
        false => name(&format!("parents[{index}]"), item).map(Some),
    };
    items
        .iter()
        .enumerate()
        .map(key)
        .collect::<PyResult<Vec<_>>>()
        .map(Some)
}

/// A key of bytes or text.
pub(crate) fn name(what: &str, item: &Bound<'_, PyAny>) -> PyResult<BlockKey> {
    if item.is_instance_of::<PyString>() {
        return Ok(BlockKey::from_opaque(text::read(what, item)?.as_bytes()));
    }
    let bytes = item.extract::<PyBackedBytes>();
    let bytes = bytes.map_err(|_| wrong_type(what, "bytes or text", item))?;
    Ok(BlockKey::from_opaque(&bytes))
}

/// Token ids.
pub(crate) fn tokens(value: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    numbers(
        "tokens",
        "token ids",
        value,
        u64::from(u32::MAX),
        ArgumentRefusal::Request,
    )
}

/// Token ids, or None.
pub(crate) fn optional_tokens(value: &Bound<'_, PyAny>) -> PyResult<Option<Vec<u32>>> {
    match value.is_none() {
        true => Ok(None),
        false => tokens(value).map(Some),
    }
}

/// Keys. A key of 16 bytes stays as it is; others are hashed, so an engine's own block hashes are
/// accepted.
pub(crate) fn keys(value: &Bound<'_, PyAny>) -> PyResult<Vec<BlockKey>> {
    // A chain may have a million keys while its caller waits, so this loop allocates only the keys.
    let key = |(index, item): (usize, Bound<'_, PyAny>)| match item.cast::<PyBytes>() {
        Ok(bytes) => Ok(BlockKey::from_opaque(bytes.as_bytes())),
        Err(_) => {
            let bytes = item.extract::<PyBackedBytes>();
            let bytes = bytes.map_err(|_| wrong_type(&format!("keys[{index}]"), "bytes", &item))?;
            Ok(BlockKey::from_opaque(&bytes))
        }
    };
    if let Ok(list) = value.cast::<PyList>() {
        let mut keys = Vec::with_capacity(list.len());
        for item in list.iter().enumerate() {
            keys.push(key(item)?);
        }
        return Ok(keys);
    }
    let items = items("keys", "a list of bytes", value)?;
    items.into_iter().enumerate().map(key).collect()
}

/// The extra keys on which every block depends.
pub(crate) fn extra(value: &Bound<'_, PyAny>) -> PyResult<Vec<PyBackedBytes>> {
    bytes_of("extra", value)
}

/// The key of the parent block, or None.
pub(crate) fn parent(value: &Bound<'_, PyAny>) -> PyResult<Option<BlockKey>> {
    match value.is_none() {
        true => Ok(None),
        false => bytes("parent", value).map(|key| Some(BlockKey::from_opaque(&key))),
    }
}

/// The hash of content.
pub(crate) fn content(value: &Bound<'_, PyAny>) -> PyResult<PyBackedBytes> {
    bytes("content", value)
}

/// The elements of a list or another sequence of objects. Arrays, text and bytes are refused.
pub(crate) fn items<'py>(
    name: &str,
    wanted: &str,
    value: &Bound<'py, PyAny>,
) -> PyResult<Vec<Bound<'py, PyAny>>> {
    if let Ok(list) = value.cast::<PyList>() {
        return Ok(list.iter().collect());
    }
    if let Ok(tuple) = value.cast::<PyTuple>() {
        return Ok(tuple.iter().collect());
    }
    let refused = || wrong_type(name, wanted, value);
    if is_text(value) || tensor::is_tensor(value)? {
        return Err(refused());
    }
    let sequence = value.cast::<PySequence>().map_err(|_| refused())?;
    sequence.try_iter()?.collect()
}

fn is_text(value: &Bound<'_, PyAny>) -> bool {
    value.is_instance_of::<PyString>()
        || value.is_instance_of::<PyBytes>()
        || value.is_instance_of::<PyByteArray>()
}

fn bytes(name: &str, value: &Bound<'_, PyAny>) -> PyResult<PyBackedBytes> {
    let bytes = value.extract::<PyBackedBytes>();
    bytes.map_err(|_| wrong_type(name, "bytes", value))
}

fn bytes_of(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Vec<PyBackedBytes>> {
    let items = items(name, "a list of bytes", value)?;
    let item = |(index, item): (usize, &Bound<'_, PyAny>)| {
        let bytes = item.extract::<PyBackedBytes>();
        bytes.map_err(|_| wrong_type(&format!("{name}[{index}]"), "bytes", item))
    };
    items.iter().enumerate().map(item).collect()
}

/// Reads the integers of a list, a range, or an array or tensor of one dimension.
fn numbers<T: TryFrom<u64> + TryFrom<i128>>(
    name: &str,
    what: &str,
    value: &Bound<'_, PyAny>,
    most: u64,
    refusal: ArgumentRefusal,
) -> PyResult<Vec<T>> {
    let wanted = format!("a list or a flat array of {what}");
    let plain = value.is_instance_of::<PyList>()
        || value.is_instance_of::<PyTuple>()
        || value.is_instance_of::<PyRange>();
    if !plain && is_text(value) {
        return Err(wrong_type(name, &wanted, value));
    }
    let outside = |index: usize, number: i128| {
        refusal.error(format!(
            "{name}[{index}] is {number}; {what} are 0 to {most}"
        ))
    };
    if !plain && let Some(found) = tensor::numbers(value)? {
        let found = match found {
            Ok(found) => found,
            Err(problem) => {
                let text = format!("{name} is {wanted} and this is not: {problem}");
                return Err(ArgumentError::new_err(text));
            }
        };
        return within(&found, most).map_err(|(index, number)| outside(index, number));
    }
    let items = match value.cast::<PyRange>() {
        Ok(range) => range.try_iter()?.collect::<PyResult<Vec<_>>>()?,
        Err(_) => items(name, &wanted, value)?,
    };
    let mut numbers = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        // The fast path: most items are plain integers within the limits.
        let simple = item.extract::<u64>().ok().filter(|number| *number <= most);
        let simple = simple.filter(|_| !item.is_instance_of::<PyBool>());
        match simple.and_then(|number| T::try_from(number).ok()) {
            Some(number) => numbers.push(number),
            None => {
                let limits = (0, i128::from(most));
                numbers.push(whole(&format!("{name}[{index}]"), item, limits, refusal)?);
            }
        }
    }
    Ok(numbers)
}

/// The numbers of an array, or the index and value of the first one outside the limits.
fn within<T: TryFrom<u64>>(found: &IntegerElements, most: u64) -> Result<Vec<T>, (usize, i128)> {
    let mut numbers = Vec::with_capacity(found.len());
    for (index, number) in found.iter().enumerate() {
        let small = u64::try_from(number).ok().filter(|number| *number <= most);
        let small = small.and_then(|number| T::try_from(number).ok());
        numbers.push(small.ok_or((index, number))?);
    }
    Ok(numbers)
}
