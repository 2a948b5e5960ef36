//! A store that Python implements, as a `kvtile.SharedTier`.

use std::{fmt, time::Duration};

use kvtile::shared::store::{
    Deadline, ListPage, ListedValue, SharedStore, SharedStoreAbilities, SharedStoreError,
    StoreExpiry, StoreOperation, ValueName, ValueSink, ValueWritten,
};
use pyo3::{
    exceptions::PyNotImplementedError,
    prelude::*,
    types::{PyBytes, PyList, PyMemoryView},
};

use crate::{
    ending,
    error::python::{ArgumentError, SettingsError},
};

/// The name, the bytes and the age of a listed value.
type ListedTuple = (String, u64, Option<f64>);

/// The largest value of a store, if it does not say so.
const VALUE_BYTES_MAX: u64 = 1 << 30;

/// A store that Python implements. Its calls run on threads of the tier, with the GIL.
pub(crate) struct PythonStore {
    object: Py<PyAny>,
    name: String,
    abilities: SharedStoreAbilities,
}

impl fmt::Debug for PythonStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PythonStore").field(&self.name).finish()
    }
}

impl PythonStore {
    /// The store of an object; `None` if the object is no `kvtile.SharedTier`.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Option<PythonStore>> {
        let class = ending::import(object.py(), "kvtile._shared")?.getattr("SharedTier")?;
        if !object.is_instance(&class)? {
            return Ok(None);
        }
        let defaults = SharedStoreAbilities::default();
        let value_bytes: u64 = number(object, "value_bytes", (1, VALUE_BYTES_MAX))?;
        let batch = number(object, "batch", (1, 1 << 16))?;
        let in_flight = number(object, "in_flight", (1, 256))?;
        let expires = object.getattr("expires")?.extract::<bool>()?;
        let abilities = SharedStoreAbilities {
            is_durable: object.getattr("durable")?.extract()?,
            best_bytes: value_bytes.min(64 << 10)..=value_bytes,
            batch_max: usize::try_from(batch).unwrap_or(defaults.batch_max),
            in_flight_max: usize::try_from(in_flight).unwrap_or(defaults.in_flight_max),
            expires: match expires {
                true => StoreExpiry::PerValue,
                false => StoreExpiry::Never,
            },
            ..defaults
        };
        Ok(Some(PythonStore {
            name: object.getattr("name")?.extract()?,
            object: object.clone().unbind(),
            abilities,
        }))
    }

    /// Calls Python. What it raises becomes an error of the store, and a call after the end of the
    /// interpreter too.
    fn call<T>(
        &self,
        operation: StoreOperation,
        call: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<T>,
    ) -> Result<T, SharedStoreError> {
        let outcome = ending::attach(|py| {
            call(self.object.bind(py)).map_err(|error| {
                let is_missing = error.is_instance_of::<PyNotImplementedError>(py);
                let text = format!("{}: {error}", self.name);
                match is_missing {
                    true => SharedStoreError::refused(operation, text),
                    false => SharedStoreError::transient(operation, text),
                }
            })
        });
        outcome.unwrap_or_else(|| {
            let text = format!("{}: Python is ending", self.name);
            Err(SharedStoreError::transient(operation, text))
        })
    }
}

/// A number that the class states.
fn number(object: &Bound<'_, PyAny>, name: &str, limits: (u64, u64)) -> PyResult<u64> {
    let (least, most) = limits;
    let number = object.getattr(name)?.extract::<u64>().ok();
    let number = number.filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| {
        SettingsError::new_err(format!(
            "{name} of a SharedTier is a number from {least} to {most}"
        ))
    })
}

fn names_of<'py>(py: Python<'py>, names: &[ValueName]) -> PyResult<Bound<'py, PyList>> {
    PyList::new(py, names.iter().map(ValueName::as_str))
}

fn seconds(lifetime: Option<Duration>) -> Option<f64> {
    lifetime.map(|lifetime| lifetime.as_secs_f64())
}

impl SharedStore for PythonStore {
    fn name(&self) -> &str {
        &self.name
    }

    fn abilities(&self) -> SharedStoreAbilities {
        self.abilities.clone()
    }

    fn has(&self, names: &[ValueName], _by: Deadline) -> Result<Vec<bool>, SharedStoreError> {
        self.call(StoreOperation::Has, |store| {
            let asked = names_of(store.py(), names)?;
            let has: Vec<bool> = store.call_method1("has", (asked,))?.extract()?;
            match has.len() == names.len() {
                true => Ok(has),
                false => Err(ArgumentError::new_err(format!(
                    "has answered {} times for {} names",
                    has.len(),
                    names.len()
                ))),
            }
        })
    }

    fn read(
        &self,
        name: &ValueName,
        sink: &mut dyn ValueSink,
        _by: Deadline,
    ) -> Result<bool, SharedStoreError> {
        self.call(StoreOperation::Read, |store| {
            let value = store.call_method1("read", (name.as_str(),))?;
            if value.is_none() {
                return Ok(false);
            }
            let bytes = match value.cast_into::<PyBytes>() {
                Ok(bytes) => bytes,
                // A memoryview, a bytearray, an array.
                Err(other) => {
                    let view = PyMemoryView::from(&other.into_inner())?;
                    view.call_method0("tobytes")?.cast_into::<PyBytes>()?
                }
            };
            sink.put(bytes.as_bytes());
            Ok(true)
        })
    }

    fn write(
        &self,
        name: &ValueName,
        parts: &[&[u8]],
        lifetime: Option<Duration>,
        _by: Deadline,
    ) -> Result<ValueWritten, SharedStoreError> {
        self.call(StoreOperation::Write, |store| {
            let py = store.py();
            let parts = PyList::new(py, parts.iter().map(|part| PyBytes::new(py, part)))?;
            let arguments = (name.as_str(), parts, seconds(lifetime));
            match store.call_method1("write", arguments)?.is_truthy()? {
                true => Ok(ValueWritten::New),
                false => Ok(ValueWritten::Present),
            }
        })
    }

    fn remove(&self, names: &[ValueName], _by: Deadline) -> Result<usize, SharedStoreError> {
        self.call(StoreOperation::Remove, |store| {
            let names = names_of(store.py(), names)?;
            store.call_method1("remove", (names,))?.extract()
        })
    }

    fn touch(
        &self,
        names: &[ValueName],
        lifetime: Option<Duration>,
        _by: Deadline,
    ) -> Result<(), SharedStoreError> {
        self.call(StoreOperation::Touch, |store| {
            let names = names_of(store.py(), names)?;
            store.call_method1("touch", (names, seconds(lifetime)))?;
            Ok(())
        })
    }

    fn list(
        &self,
        under: &str,
        after: Option<&str>,
        _by: Deadline,
    ) -> Result<ListPage, SharedStoreError> {
        self.call(StoreOperation::List, |store| {
            let page = store.call_method1("list", (under, after))?;
            let (values, next): (Vec<ListedTuple>, Option<String>) = page.extract()?;
            let mut page = ListPage {
                values: Vec::with_capacity(values.len()),
                next,
            };
            for (name, bytes, age) in values {
                // A name that no tier makes is not kvtile's.
                if let Ok(name) = ValueName::new(name) {
                    let age = age.filter(|age| *age >= 0.0 && *age < 1e10);
                    let age = age.map(Duration::from_secs_f64);
                    page.values.push(ListedValue { name, bytes, age });
                }
            }
            Ok(page)
        })
    }
}
