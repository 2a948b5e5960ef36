//! Identities: everything that must be equal before stored bytes may be used.

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
};

use kvtile::identity::{Identity, Real, Rope, RopeParam};
use kvtile::layout::LayoutError;
use pyo3::{
    prelude::*,
    types::{PyBool, PyDict, PyList, PyString, PyTuple, PyType},
};

use crate::{
    arguments::{
        number, object,
        text::{self, TextArgument},
        time::real,
    },
    ending,
    error::{python::IdentityError, raise},
    pickle::{self, ReducedObject},
    shape::PyShape,
};

/// The identity of a cache's blocks: everything that must be equal before stored bytes may be used.
///
/// The number of blocks and the layout are not part of it: caches of the same identity may have
/// different layouts. ``Identity.from_hf_config`` derives it from a model's config.
///
/// Args:
///     model: the model's name.
///     revision: identifies the weights: a commit, or a digest of the file.
///     shape: layers, page size, planes and the shard of this rank.
///     rope: the rotary embedding as Hugging Face writes ``rope_parameters``: ``rope_type``,
///         ``rope_theta``, and the other parameters of the angles; None for models without.
///     extra: everything else that the values depend on: a digest of static scales, the adapter,
///         the attention backend of an opaque layout.
///
/// Raises:
///     LayoutError: names that are empty or longer than 4096 bytes, numbers that are not finite.
#[pyclass(name = "Identity", module = "kvtile", frozen, eq)]
#[derive(Clone, PartialEq)]
pub(crate) struct PyIdentity(pub(crate) Identity);

#[pymethods]
impl PyIdentity {
    #[new]
    #[pyo3(signature = (model, revision, shape, *, rope=None, extra=None))]
    fn new(
        py: Python<'_>,
        #[pyo3(from_py_with = text::model)] model: TextArgument,
        #[pyo3(from_py_with = text::revision)] revision: TextArgument,
        #[pyo3(from_py_with = object::shape)] shape: Bound<'_, PyShape>,
        #[pyo3(from_py_with = object::rope)] rope: Option<Bound<'_, PyDict>>,
        #[pyo3(from_py_with = object::extra)] extra: Option<Bound<'_, PyDict>>,
    ) -> PyResult<PyIdentity> {
        let rope = rope.as_ref().map(rope_of).transpose()?;
        let identity = Identity::new(&model, &revision, &shape.get().0)
            .map(|identity| identity.with_rope(rope));
        let extra = texts_of(extra)?;
        let identity = identity.and_then(|identity| {
            extra
                .into_iter()
                .try_fold(identity, |identity, (key, value)| {
                    identity.with_extra(&key, &value)
                })
        });
        identity.map(PyIdentity).map_err(|error| raise(py, error))
    }

    /// Derives the identity of a model's KV from its Hugging Face config. ``docs/models.md`` lists
    /// the supported model types.
    ///
    /// Each config field that affects KV becomes an entry of ``extra``, named ``config.`` and the
    /// field.
    ///
    /// Args:
    ///     config: a ``PretrainedConfig``, the ``config.json`` as a dict, or the path of that file
    ///         or of its folder; all give the same identity.
    ///     page_size: tokens per block.
    ///     dtype: dtype of the KV; default: the config's dtype.
    ///     model: the name; default: the config's ``_name_or_path``.
    ///     revision: identifies the weights; default: the commit that the config was loaded from.
    ///     tp_rank, tp_size: rank and size of tensor parallelism; they select the heads of this
    ///         rank.
    ///     layers: ``(start, stop)`` of this rank's layers under pipeline parallelism; default: all
    ///         layers.
    ///     extra: as for Identity.
    ///     max_model_len: the context length of an engine that selects its rotary embedding by it,
    ///         as vLLM does. Without it, embeddings that depend on the sequence length are refused.
    ///     text_only: accept models with image or sound input and use their text part; only KV of
    ///         text may be stored.
    ///
    /// Raises:
    ///     IdentityError: an unknown model type, a config without a required field, or a model
    ///         whose KV is not one group of full causal attention (latent, sliding-window,
    ///         recurrent, bidirectional).
    #[staticmethod]
    #[pyo3(signature = (config, *, page_size, **settings))]
    fn from_hf_config(
        config: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = number::page_size)] page_size: u64,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        let helper = ending::import(config.py(), "kvtile._hf")?.getattr("identity_of")?;
        let call = || helper.call((config, page_size), settings);
        Ok(ending::run_python(config.py(), call)?.unbind())
    }

    /// Parses the JSON that ``to_json`` wrote.
    ///
    /// Raises:
    ///     IdentityError: text that is not an identity.
    #[staticmethod]
    fn from_json(#[pyo3(from_py_with = text::text)] text: TextArgument) -> PyResult<PyIdentity> {
        let identity = serde_json::from_str(&text);
        identity
            .map(PyIdentity)
            .map_err(|error| IdentityError::new_err(format!("not an identity: {}", plain(&error))))
    }

    /// The whole identity as JSON.
    fn to_json(&self) -> PyResult<String> {
        serde_json::to_string(&self.0).map_err(|error| IdentityError::new_err(error.to_string()))
    }

    /// The model's name.
    #[getter]
    fn model(&self) -> &str {
        self.0.model()
    }

    /// Identifies the weights.
    #[getter]
    fn revision(&self) -> &str {
        self.0.revision()
    }

    /// Tokens per block.
    #[getter]
    fn page_size(&self) -> u64 {
        self.0.page_size()
    }

    /// The other facts that the values depend on.
    #[getter]
    fn extra(&self) -> BTreeMap<String, String> {
        self.0.extra().clone()
    }

    /// A 128-bit hash of the identity as hexadecimal text, the same in every process and on every
    /// machine.
    #[getter]
    fn fingerprint(&self) -> String {
        self.0.fingerprint().to_string()
    }

    /// The fingerprint of the whole model's identity, equal for all ranks of a model.
    #[getter]
    fn model_fingerprint(&self) -> String {
        self.0.model_fingerprint().to_string()
    }

    /// A readable text of the first field that differs and both values; None if the identities are
    /// equal.
    fn difference(
        &self,
        #[pyo3(from_py_with = object::other)] other: Bound<'_, PyIdentity>,
    ) -> Option<String> {
        let difference = self.0.first_difference(&other.get().0);
        difference.map(|difference| difference.to_string())
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<ReducedObject<'py>> {
        pickle::reduce(&slf.get_type(), &slf.get().0)
    }

    #[classmethod]
    fn _from_pickle(_class: &Bound<'_, PyType>, text: &str) -> PyResult<Self> {
        pickle::restore(text).map(Self)
    }

    fn __hash__(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.0.fingerprint().as_bytes().hash(&mut hasher);
        hasher.finish()
    }

    fn __repr__(&self) -> String {
        format!(
            "<kvtile.Identity {:?} at {:?}: {}>",
            self.model(),
            self.revision(),
            self.fingerprint()
        )
    }
}

/// The message of a JSON error, without Rust's type names.
pub(crate) fn plain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let mut words: Vec<&str> = Vec::new();
    let mut rest = text.split(' ');
    while let Some(word) = rest.next() {
        words.push(match word.trim_end_matches(',') {
            "struct" | "enum" => {
                rest.next();
                "an object"
            }
            "u8" | "u16" | "u32" | "u64" | "usize" | "i64" => "a whole number",
            "f64" => "a number",
            _ => word,
        });
    }
    words.join(" ")
}

/// The entries of `extra`; every value is text.
pub(crate) fn texts_of(extra: Option<Bound<'_, PyDict>>) -> PyResult<BTreeMap<String, String>> {
    let mut texts = BTreeMap::new();
    for (name, value) in extra.iter().flatten() {
        let name = text::read("a name in extra", &name)?;
        let value = text::read(&format!("extra[{:?}]", &*name), &value)?;
        texts.insert(name.to_string(), value.to_string());
    }
    Ok(texts)
}

/// A rotary embedding from Hugging Face's field names.
pub(crate) fn rope_of(rope: &Bound<'_, PyDict>) -> PyResult<Rope> {
    let py = rope.py();
    let mut kind = "default".to_owned();
    let mut base = None;
    let mut params = Vec::new();
    for (name, value) in rope {
        let name = text::read("a name in rope", &name)?;
        let field = format!("rope[{:?}]", &*name);
        match &*name {
            "rope_type" | "type" | "kind" => kind = text::read(&field, &value)?.to_string(),
            "rope_theta" | "base" => base = Some(number_of(&field, &value)?),
            _ if value.is_none() => {}
            _ => params.push((name, param(&field, &value)?)),
        }
    }
    let Some(base) = base else {
        return Err(IdentityError::new_err(
            "rope has no rope_theta; give its base",
        ));
    };
    let made = Rope::new(&kind, base).and_then(|made| {
        let mut params = params.into_iter();
        params.try_fold(made, |made, (name, value)| made.with_param(&name, value))
    });
    made.map_err(|error| raise(py, error))
}

fn number_of(field: &str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
    let number = real(field, "a number", value)?;
    number.ok_or_else(|| IdentityError::new_err(format!("{field} is larger than any number")))
}

fn param(field: &str, value: &Bound<'_, PyAny>) -> PyResult<RopeParam> {
    let real_of = |value: &Bound<'_, PyAny>| {
        let number = Real::new(number_of(field, value)?);
        number.map_err(|error: LayoutError| raise(value.py(), error))
    };
    if value.is_instance_of::<PyBool>() {
        return Ok(RopeParam::Text(value.str()?.to_string()));
    }
    if value.is_instance_of::<PyString>() {
        return Ok(RopeParam::Text(text::read(field, value)?.to_string()));
    }
    if let Ok(list) = value.cast::<PyList>() {
        let numbers: PyResult<Vec<Real>> = list.iter().map(|number| real_of(&number)).collect();
        return Ok(RopeParam::Numbers(numbers?));
    }
    if let Ok(tuple) = value.cast::<PyTuple>() {
        let numbers: PyResult<Vec<Real>> = tuple.iter().map(|number| real_of(&number)).collect();
        return Ok(RopeParam::Numbers(numbers?));
    }
    real_of(value).map(RopeParam::Number)
}
