//! Block keys, computed from tokens.

use kvtile::{
    BlockKey, HasherOptions, TokenHasher, TokenSequence,
    blocks::key::{ExtraKeys, KeyProfile},
    identity::{Identity, ModelIdentity},
};
use parking_lot::{Mutex, MutexGuard};
use pyo3::{
    prelude::*,
    pybacked::PyBackedBytes,
    types::{PyBytes, PyList, PyType},
};
use serde::{Deserialize, Serialize};

use crate::{
    arguments::{
        list, number, object, optional,
        text::{self, TextArgument},
    },
    error::{CallFailure, python::RequestError},
    guard,
    pickle::{self, ReducedObject},
};

/// Makes the keys of full blocks: chained hashes of their tokens, keyed by the identity and the salt.
///
/// Keys are 16 bytes, the same in every process and on every machine. Two blocks have the same key
/// only if they and all blocks before them have the same tokens, extra keys, identity and salt.
///
/// Args:
///     identity: the identity of the blocks; or that of a model with groups, for one key for each ``unit`` of
///         its tokens, as ``GroupCache.hasher`` makes them.
///     salt: isolates tenants: a lookup finds only blocks of the same salt.
///     profile: ``"blake3"``; ``"xxh3"`` is faster, for one tenant whose prompts are trusted;
///         ``"router"`` is for routers that use XXH3-64: the first 8 bytes of a key are the
///         sequence hash and the last 8 the block hash, little-endian, and neither depends on the
///         identity.
///     seed: the seed of the router's hashes, for ``"router"`` only.
///     page_size: tokens per block; default: the identity's. With ``"router"``, the router's page
///         size.
///
/// Raises:
///     RequestError: an unknown profile, a profile without its seed, or a page size out of range.
#[pyclass(name = "TokenHasher", module = "kvtile", frozen)]
#[derive(Debug)]
pub(crate) struct PyTokenHasher {
    hasher: TokenHasher,
    made_of: HasherSettings,
}

/// The arguments of a hasher, for pickling.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct HasherSettings {
    /// None for the chain of a cache over groups.
    identity: Option<Identity>,
    /// The identity of a chain, and tokens of a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chain: Option<(Vec<u8>, u64)>,
    salt: String,
    profile: String,
    seed: Option<u64>,
    page_size: Option<usize>,
}

/// What the keys of a hasher are of.
pub(crate) enum HashedIdentity {
    Blocks(Box<Identity>),
    Model(Box<ModelIdentity>),
}

/// The identity of a model's chain, and the tokens of a key.
fn chain_of(model: &ModelIdentity) -> (Vec<u8>, u64) {
    (model.chain().as_bytes().to_vec(), model.unit())
}

impl HasherSettings {
    fn hasher(self) -> PyResult<PyTokenHasher> {
        let profile = match (self.profile.as_str(), self.seed) {
            ("blake3", None) => KeyProfile::Blake3,
            ("xxh3", None) => KeyProfile::Xxh3,
            ("router", Some(seed)) => KeyProfile::Router { seed },
            ("router", None) => {
                let text = "the profile \"router\" needs the seed that the router uses; give seed=";
                return Err(RequestError::new_err(text));
            }
            (profile @ ("blake3" | "xxh3"), Some(seed)) => {
                return Err(RequestError::new_err(format!(
                    "the profile {profile:?} takes no seed, and {seed} was given; \"router\" has one"
                )));
            }
            (other, _) => {
                return Err(RequestError::new_err(format!(
                    "there is no profile {other:?}; there are blake3, xxh3 and router"
                )));
            }
        };
        let options = HasherOptions::new()
            .profile(profile)
            .page_size(self.page_size)
            .salt(&self.salt);
        let hasher = match (&self.identity, &self.chain) {
            (Some(identity), _) => TokenHasher::with_options(identity, &options),
            (None, Some((chain, unit))) => TokenHasher::of_chain(chain, *unit, &options),
            (None, None) => {
                let text = "the pickle of a hasher has neither an identity nor a chain";
                return Err(RequestError::new_err(text));
            }
        };
        match hasher {
            Ok(hasher) => Ok(PyTokenHasher {
                hasher,
                made_of: self,
            }),
            Err(error) => Err(Python::attach(|py| {
                CallFailure::from(error).into_exception(py)
            })),
        }
    }
}

impl PyTokenHasher {
    /// The hasher for the chains of a cache over groups.
    pub(crate) fn of_chain(chain: &[u8], unit: u64, salt: &str) -> PyResult<PyTokenHasher> {
        let made_of = HasherSettings {
            identity: None,
            chain: Some((chain.to_vec(), unit)),
            salt: salt.to_owned(),
            profile: "blake3".to_owned(),
            seed: None,
            page_size: None,
        };
        made_of.hasher()
    }
}

#[pymethods]
impl PyTokenHasher {
    #[new]
    #[pyo3(
        signature = (
            identity, *, salt=TextArgument::Borrowed(""), profile=TextArgument::Borrowed("blake3"), seed=None,
            page_size=None
        ),
        text_signature = "(identity, *, salt='', profile='blake3', seed=None, page_size=None)"
    )]
    fn new(
        #[pyo3(from_py_with = object::hashed)] identity: HashedIdentity,
        #[pyo3(from_py_with = text::salt)] salt: TextArgument,
        #[pyo3(from_py_with = text::profile)] profile: TextArgument,
        #[pyo3(from_py_with = optional::seed)] seed: Option<u64>,
        #[pyo3(from_py_with = optional::page_size)] page_size: Option<usize>,
    ) -> PyResult<PyTokenHasher> {
        let (identity, chain) = match identity {
            HashedIdentity::Blocks(identity) => (Some(*identity), None),
            HashedIdentity::Model(model) => (None, Some(chain_of(&model))),
        };
        let made_of = HasherSettings {
            identity,
            chain,
            salt: salt.to_string(),
            profile: profile.to_string(),
            seed,
            page_size,
        };
        made_of.hasher()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<ReducedObject<'py>> {
        pickle::reduce(&slf.get_type(), &slf.get().made_of)
    }

    #[classmethod]
    fn _from_pickle(_class: &Bound<'_, PyType>, text: &str) -> PyResult<PyTokenHasher> {
        pickle::restore::<HasherSettings>(text)?.hasher()
    }

    /// Tokens per block.
    #[getter]
    fn page_size(&self) -> usize {
        self.hasher.page_size()
    }

    /// The keys of all full blocks of ``tokens``. Tokens after the last full block have no key.
    ///
    /// Args:
    ///     tokens: token ids, 0 to 2**32 - 1: a list, or a flat array or tensor of integers. Text
    ///         and bytes are refused; ``memoryview(data)`` of bytes has one token per byte.
    ///     parent: the key of the block before the first one; None at the start of a prompt.
    ///     extra: what every block depends on besides its tokens, such as the name of an adapter.
    ///
    /// Returns:
    ///     One key of 16 bytes per block.
    #[pyo3(signature = (tokens, *, parent=None, extra=Vec::new()))]
    fn keys<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = list::tokens)] tokens: Vec<u32>,
        #[pyo3(from_py_with = list::parent)] parent: Option<BlockKey>,
        #[pyo3(from_py_with = list::extra)] extra: Vec<PyBackedBytes>,
    ) -> PyResult<Bound<'py, PyList>> {
        let extra: Vec<&[u8]> = extra.iter().map(|bytes| &**bytes).collect();
        let extra = ExtraKeys::new(&extra);
        let keys = guard::run(py, || self.hasher.keys_after(parent, &tokens, extra))?;
        list_of(py, &keys)
    }

    fn __repr__(&self) -> String {
        format!(
            "<kvtile.TokenHasher {}, {} tokens a block>",
            self.hasher.profile().name(),
            self.page_size()
        )
    }
}

/// The growing token sequence of one request, and the keys of its full blocks.
///
/// Args:
///     hasher: makes the keys.
///     tokens: the first tokens.
///     extra: what every block depends on besides its tokens, such as the name of an adapter.
#[pyclass(name = "TokenSequence", module = "kvtile", frozen)]
#[derive(Debug)]
pub(crate) struct PyTokenSequence(Mutex<TokenSequence>);

impl PyTokenSequence {
    fn lock(&self) -> MutexGuard<'_, TokenSequence> {
        self.0.lock()
    }
}

#[pymethods]
impl PyTokenSequence {
    #[new]
    #[pyo3(signature = (hasher, tokens=None, *, extra=Vec::new()))]
    fn new(
        py: Python<'_>,
        #[pyo3(from_py_with = object::hasher)] hasher: Bound<'_, PyTokenHasher>,
        #[pyo3(from_py_with = list::optional_tokens)] tokens: Option<Vec<u32>>,
        #[pyo3(from_py_with = list::extra)] extra: Vec<PyBackedBytes>,
    ) -> PyResult<PyTokenSequence> {
        let extra: Vec<&[u8]> = extra.iter().map(|bytes| &**bytes).collect();
        let sequence = hasher.get().hasher.sequence(ExtraKeys::new(&extra));
        let mut sequence = sequence.map_err(|error| CallFailure::from(error).into_exception(py))?;
        if let Some(tokens) = tokens {
            sequence.extend(&tokens);
        }
        Ok(PyTokenSequence(Mutex::new(sequence)))
    }

    /// Appends tokens.
    ///
    /// Returns:
    ///     The keys of the blocks that they complete.
    fn extend<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = list::tokens)] tokens: Vec<u32>,
    ) -> PyResult<Bound<'py, PyList>> {
        let keys = guard::call(py, || self.lock().extend(&tokens).to_vec())?;
        list_of(py, &keys)
    }

    /// Marks the tokens ``start`` to ``stop`` as placeholders for content such as an image, given
    /// by its hash. The tokens may be appended later.
    ///
    /// Raises:
    ///     RequestError: the range starts in a block whose key is computed already.
    fn mark(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = number::start)] start: usize,
        #[pyo3(from_py_with = number::stop)] stop: usize,
        #[pyo3(from_py_with = list::content)] content: PyBackedBytes,
    ) -> PyResult<()> {
        guard::run(py, || self.lock().mark(start..stop, &content))
    }

    /// Keeps the first ``length`` tokens.
    fn truncate(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = number::length)] length: usize,
    ) -> PyResult<()> {
        guard::call(py, || self.lock().truncate(length))
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(pickle::refused(
            "TokenSequence",
            "it grows, and cannot restore its marks; pickle its hasher and its tokens",
        ))
    }

    /// The keys of the full blocks.
    #[getter]
    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let keys = self.lock().keys().to_vec();
        list_of(py, &keys)
    }

    /// All tokens.
    #[getter]
    fn tokens(&self) -> Vec<u32> {
        self.lock().tokens().to_vec()
    }

    fn __len__(&self) -> usize {
        self.lock().len()
    }

    fn __repr__(&self) -> String {
        let sequence = self.lock();
        format!(
            "<kvtile.TokenSequence of {} tokens, {} full blocks>",
            sequence.len(),
            sequence.keys().len()
        )
    }
}

/// Keys as a Python list of bytes.
pub(crate) fn list_of<'py>(py: Python<'py>, keys: &[BlockKey]) -> PyResult<Bound<'py, PyList>> {
    PyList::new(py, keys.iter().map(|key| PyBytes::new(py, key.as_bytes())))
}
