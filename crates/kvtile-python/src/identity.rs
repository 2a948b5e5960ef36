//! Identities: what stored blocks mean.

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
};

use kvtile::identity::{LogicalIdentity, Real, Rope, RopeParam};
use kvtile::layout::LayoutError;
use pyo3::{
    prelude::*,
    types::{PyBool, PyDict},
};

use crate::{
    error::{python::IdentityError, raise},
    shape::PyShape,
};

/// What the blocks of a cache mean: everything that must be equal before stored bytes may be used.
///
/// The number of blocks and where the bytes lie are no part of it: caches of the same identity may have
/// different layouts. ``Identity.from_hf_config`` makes it from a model's config.
///
/// Args:
///     model: the model's name.
///     revision: which weights: a commit, or a digest of the file.
///     shape: layers, page size, planes and the shard held here.
///     rope: the rotary embedding as Hugging Face writes ``rope_parameters``: ``rope_type``,
///         ``rope_theta``, and what else decides the angles; None for models without.
///     extra: whatever else the values depend on: a digest of static scales, the adapter, the attention
///         backend of an opaque layout.
///
/// Raises:
///     LayoutError: names that are empty or longer than 4096 bytes, numbers that are not finite.
#[pyclass(name = "Identity", module = "kvtile", frozen, eq)]
#[derive(Clone, PartialEq)]
pub(crate) struct PyIdentity(pub(crate) LogicalIdentity);

#[pymethods]
impl PyIdentity {
    #[new]
    #[pyo3(signature = (model, revision, shape, *, rope=None, extra=None))]
    fn new(
        py: Python<'_>,
        model: &str,
        revision: &str,
        shape: &Bound<'_, PyShape>,
        rope: Option<&Bound<'_, PyDict>>,
        extra: Option<BTreeMap<String, String>>,
    ) -> PyResult<PyIdentity> {
        let rope = rope.map(rope_of).transpose()?;
        let identity = LogicalIdentity::new(model, revision, &shape.get().0, rope);
        let identity = identity.and_then(|identity| {
            let mut extra = extra.unwrap_or_default().into_iter();
            extra.try_fold(identity, |identity, (key, value)| {
                identity.with_extra(&key, &value)
            })
        });
        identity.map(PyIdentity).map_err(|error| raise(py, error))
    }

    /// The identity of a model's KV from its Hugging Face config, for the model types that ``docs/models.md`` lists.
    ///
    /// What of the config changes KV is in ``extra``, one entry a field, named ``config.`` and the field.
    ///
    /// Args:
    ///     config: a ``PretrainedConfig``, or the ``config.json`` as a dict; both give the same identity.
    ///     page_size: tokens a block.
    ///     dtype: of the KV; the config's dtype unless said.
    ///     model: the name; the config's ``_name_or_path`` unless said.
    ///     revision: which weights; the commit that the config was loaded from unless said.
    ///     tp_rank, tp_size: which heads are held here, under tensor parallelism.
    ///     layers: ``(start, stop)`` of the layers held here, under pipeline parallelism; all unless said.
    ///     extra: as for Identity.
    ///     max_model_len: the context length of an engine that chooses its rotary embedding by it, as vLLM
    ///         does; without it, embeddings that depend on the length of a sequence are refused.
    ///     text_only: read the text part of a model that takes images or sound too, of which only text is kept.
    ///
    /// Raises:
    ///     IdentityError: a model type that is not known, a config that lacks something, or a model whose KV
    ///         is not one group of full causal attention (latent, sliding-window, recurrent, in both directions).
    #[staticmethod]
    #[pyo3(signature = (config, *, page_size, **settings))]
    fn from_hf_config(
        config: &Bound<'_, PyAny>,
        page_size: u64,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        let helper = config.py().import("kvtile._hf")?.getattr("identity_of")?;
        Ok(helper.call((config, page_size), settings)?.unbind())
    }

    /// The identity that ``to_json`` wrote.
    ///
    /// Raises:
    ///     IdentityError: text that is none.
    #[staticmethod]
    fn from_json(text: &str) -> PyResult<PyIdentity> {
        let identity = serde_json::from_str(text);
        identity
            .map(PyIdentity)
            .map_err(|error| IdentityError::new_err(format!("no identity: {error}")))
    }

    /// All of it as JSON.
    fn to_json(&self) -> PyResult<String> {
        serde_json::to_string(&self.0).map_err(|error| IdentityError::new_err(error.to_string()))
    }

    /// The model's name.
    #[getter]
    fn model(&self) -> &str {
        self.0.model()
    }

    /// Which weights.
    #[getter]
    fn revision(&self) -> &str {
        self.0.revision()
    }

    /// Tokens a block.
    #[getter]
    fn page_size(&self) -> u64 {
        self.0.page_size()
    }

    /// What else the values depend on.
    #[getter]
    fn extra(&self) -> BTreeMap<String, String> {
        self.0.extra().clone()
    }

    /// 128 bits of all of it, as hexadecimal text; the same in every process and on every machine.
    #[getter]
    fn fingerprint(&self) -> String {
        self.0.fingerprint().to_string()
    }

    /// The first field that differs and both values, as a person reads it; None where both are equal.
    fn difference(&self, other: &Bound<'_, PyIdentity>) -> Option<String> {
        let difference = self.0.first_difference(&other.get().0);
        difference.map(|difference| difference.to_string())
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

/// A rotary embedding from the words of Hugging Face.
fn rope_of(rope: &Bound<'_, PyDict>) -> PyResult<Rope> {
    let py = rope.py();
    let mut kind = "default".to_owned();
    let mut base = None;
    let mut params = Vec::new();
    for (name, value) in rope {
        let name: String = name.extract()?;
        match name.as_str() {
            "rope_type" | "type" | "kind" => kind = value.extract()?,
            "rope_theta" | "base" => base = Some(value.extract::<f64>()?),
            _ if value.is_none() => {}
            _ => params.push((name, param(&value)?)),
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

fn param(value: &Bound<'_, PyAny>) -> PyResult<RopeParam> {
    let real =
        |number: f64| Real::new(number).map_err(|error: LayoutError| raise(value.py(), error));
    if value.is_instance_of::<PyBool>() {
        return Ok(RopeParam::Text(value.str()?.to_string()));
    }
    if let Ok(text) = value.extract::<String>() {
        return Ok(RopeParam::Text(text));
    }
    if let Ok(number) = value.extract::<f64>() {
        return Ok(RopeParam::Number(real(number)?));
    }
    let numbers: Vec<f64> = value.extract()?;
    let numbers: PyResult<Vec<Real>> = numbers.into_iter().map(real).collect();
    Ok(RopeParam::Numbers(numbers?))
}
