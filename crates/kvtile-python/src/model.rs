//! Models with groups of layers: what a hit needs of each group, and the identity of all of them together.

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    num::NonZeroU64,
};

use kvtile::{
    identity::{GroupRole, ModelGroup, ModelIdentity},
    layout::{GroupRule, LayerSet},
};
use pyo3::{
    prelude::*,
    types::{PyDict, PyRange, PyType},
};

use crate::{
    arguments::{
        flag, list, number, object, optional,
        text::{self, TextArgument},
    },
    ending,
    error::{
        python::{IdentityError, RequestError},
        raise,
    },
    identity::{PyIdentity, plain, rope_of, texts_of},
    pickle::{self, ReducedObject},
    shape::PyShape,
};

/// The most layers that `ModelGroup.layers` lists.
const LAYERS_MAX: u64 = 1 << 16;

/// Layers of a model with one rule, one set of planes and one page size.
///
/// Args:
///     name: the group's name: 1 to 64 characters of a-z 0-9 _ -, the first one a letter. Blocks of another name are
///         other blocks, so use a name that does not change, and no index of an engine.
///     shape: planes, page size, and the layers and heads of this rank. Its layers are the group's own:
///         ``total_layers`` is the number of the group's layers in all ranks, ``first_layer`` counts among them.
///     rule: what a hit that ends at a token needs: ``"full"``, all tokens before it; ``"window"``, the last ones;
///         ``"chunk"``, those of the chunk that the token is in; ``"stop"``, one record of the state there.
///     tokens: for a window, the tokens that a token attends to, itself included; for a chunk, its tokens.
///     layers: the layers of the model that the group has in all ranks, in ascending order; default: the first ones.
///     rope: as for Identity; the layers of a group share it.
///     draft: whether the layers are those of a draft model. They never decide whether a prefix is a hit.
///     extra: what the values of this group alone depend on, as for Identity; for a draft model, the revision of its
///         weights.
///
/// Raises:
///     IdentityError: an invalid name, a rule without its tokens, another number of layers than the shape's.
#[pyclass(name = "ModelGroup", module = "kvtile", frozen, eq)]
#[derive(Clone, PartialEq)]
pub(crate) struct PyModelGroup(pub(crate) ModelGroup);

#[pymethods]
impl PyModelGroup {
    #[new]
    #[pyo3(signature = (name, shape, *, rule=text::full(), tokens=None, layers=None, rope=None, draft=false, extra=None),
           text_signature = "(name, shape, *, rule='full', tokens=None, layers=None, rope=None, draft=False, extra=None)")]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn new(
        py: Python<'_>,
        #[pyo3(from_py_with = text::name)] name: TextArgument,
        #[pyo3(from_py_with = object::shape)] shape: Bound<'_, PyShape>,
        #[pyo3(from_py_with = text::rule)] rule: TextArgument,
        #[pyo3(from_py_with = optional::tokens)] tokens: Option<u64>,
        #[pyo3(from_py_with = list::optional_layers)] layers: Option<Vec<u64>>,
        #[pyo3(from_py_with = object::rope)] rope: Option<Bound<'_, PyDict>>,
        #[pyo3(from_py_with = flag::draft)] draft: bool,
        #[pyo3(from_py_with = object::extra)] extra: Option<Bound<'_, PyDict>>,
    ) -> PyResult<PyModelGroup> {
        let rule = rule_of(&rule, tokens)?;
        let rope = rope.as_ref().map(rope_of).transpose()?;
        let role = match draft {
            true => GroupRole::Draft,
            false => GroupRole::Target,
        };
        let extra = texts_of(extra)?;
        let group = ModelGroup::new(&name, rule, &shape.get().0)
            .map(|group| group.with_rope(rope).with_role(role));
        let group = group.and_then(|group| match layers {
            Some(layers) => group.with_layers(LayerSet::new(layers)?),
            None => Ok(group),
        });
        let group = group.and_then(|group| {
            let mut extra = extra.into_iter();
            extra.try_fold(group, |group, (key, value)| group.with_extra(&key, &value))
        });
        group.map(PyModelGroup).map_err(|error| raise(py, error))
    }

    /// The name.
    #[getter]
    fn name(&self) -> &str {
        self.0.name().as_str()
    }

    /// ``"full"``, ``"window"``, ``"chunk"`` or ``"stop"``.
    #[getter]
    fn rule(&self) -> &'static str {
        match self.0.rule() {
            GroupRule::Full => "full",
            GroupRule::Window { .. } => "window",
            GroupRule::Chunk { .. } => "chunk",
            GroupRule::Stop => "stop",
        }
    }

    /// The tokens of the window or of a chunk; None for other rules.
    #[getter]
    fn tokens(&self) -> Option<u64> {
        match self.0.rule() {
            GroupRule::Window { tokens } | GroupRule::Chunk { tokens } => Some(tokens.get()),
            GroupRule::Full | GroupRule::Stop => None,
        }
    }

    /// The layers of the model that the group has in all ranks.
    #[getter]
    fn layers(&self) -> PyResult<Vec<u64>> {
        let layers = self.0.layers();
        match layers.count() {
            0..=LAYERS_MAX => Ok(layers.iter().collect()),
            count => Err(IdentityError::new_err(format!(
                "group {} has {count} layers; a list has at most {LAYERS_MAX}",
                self.name()
            ))),
        }
    }

    /// The shape of one block, with the planes by name.
    #[getter]
    fn shape(&self) -> PyShape {
        PyShape(self.0.shape().clone())
    }

    /// Whether the layers are those of a draft model.
    #[getter]
    fn draft(&self) -> bool {
        self.0.role() == GroupRole::Draft
    }

    /// The other facts that the values of this group depend on.
    #[getter]
    fn extra(&self) -> BTreeMap<String, String> {
        self.0.extra().clone()
    }

    /// The pages that a hit of ``stop`` tokens needs, as a range. ``stop`` is a multiple of the page size.
    ///
    /// Raises:
    ///     RequestError: another number of tokens.
    fn needs<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = number::stop)] stop: usize,
    ) -> PyResult<Bound<'py, PyRange>> {
        let page = self.0.shape().page_size();
        let stop = stop as u64;
        let Some(page) = NonZeroU64::new(page).filter(|page| stop % *page == 0) else {
            return Err(RequestError::new_err(format!(
                "stop is {stop}, and the pages of group {} have {page} tokens; give a multiple",
                self.name()
            )));
        };
        let needs = self.0.rule().needs(stop, page);
        let end = |page: u64| isize::try_from(page).unwrap_or(isize::MAX);
        PyRange::new(py, end(needs.start), end(needs.end))
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<ReducedObject<'py>> {
        pickle::reduce(&slf.get_type(), &slf.get().0)
    }

    #[classmethod]
    fn _from_pickle(_class: &Bound<'_, PyType>, text: &str) -> PyResult<Self> {
        pickle::restore(text).map(Self)
    }

    fn __repr__(&self) -> String {
        let draft = if self.draft() { ", draft" } else { "" };
        format!(
            "<kvtile.ModelGroup {:?}: {}, layers {}{draft}>",
            self.name(),
            self.0.rule(),
            self.0.layers()
        )
    }
}

fn rule_of(name: &str, tokens: Option<u64>) -> PyResult<GroupRule> {
    let several = tokens.and_then(NonZeroU64::new);
    match (name, tokens, several) {
        ("full", None, _) => Ok(GroupRule::Full),
        ("stop", None, _) => Ok(GroupRule::Stop),
        ("window", _, Some(tokens)) => Ok(GroupRule::Window { tokens }),
        ("chunk", _, Some(tokens)) => Ok(GroupRule::Chunk { tokens }),
        ("window" | "chunk", ..) => Err(IdentityError::new_err(format!(
            "the rule {name} needs tokens, at least 1"
        ))),
        ("full" | "stop", ..) => Err(IdentityError::new_err(format!(
            "the rule {name} has no tokens; they are of \"window\" and \"chunk\""
        ))),
        _ => {
            let name: String = name.chars().take(64).collect();
            Err(IdentityError::new_err(format!(
                "rule is {name:?}; give \"full\", \"window\", \"chunk\" or \"stop\""
            )))
        }
    }
}

/// The identity of a model with groups of layers: everything that must be equal before stored bytes may be used.
///
/// A model with one group, of all layers, with the rule full and the name ``full``, is what it is as an Identity:
/// fingerprints, keys and folders are the same.
///
/// Args:
///     model: the model's name.
///     revision: identifies the weights: a commit, or a digest of the file.
///     groups: the groups, in any order; at least one is not of a draft model.
///     extra: what the values of all groups depend on, as for Identity. Names do not begin with ``group.``.
///
/// Raises:
///     IdentityError: two groups of one name, no group of the model itself, invalid names or numbers.
#[pyclass(name = "ModelIdentity", module = "kvtile", frozen, eq)]
#[derive(Clone, PartialEq)]
pub(crate) struct PyModelIdentity(pub(crate) ModelIdentity);

#[pymethods]
impl PyModelIdentity {
    #[new]
    #[pyo3(signature = (model, revision, groups, *, extra=None))]
    fn new(
        py: Python<'_>,
        #[pyo3(from_py_with = text::model)] model: TextArgument,
        #[pyo3(from_py_with = text::revision)] revision: TextArgument,
        #[pyo3(from_py_with = object::groups)] groups: Vec<Bound<'_, PyModelGroup>>,
        #[pyo3(from_py_with = object::extra)] extra: Option<Bound<'_, PyDict>>,
    ) -> PyResult<PyModelIdentity> {
        let groups = groups.iter().map(|group| group.get().0.clone()).collect();
        let extra = texts_of(extra)?;
        let identity = ModelIdentity::new(&model, &revision, groups).and_then(|identity| {
            let mut extra = extra.into_iter();
            extra.try_fold(identity, |identity, (key, value)| {
                identity.with_extra(&key, &value)
            })
        });
        let identity = identity.map(PyModelIdentity);
        identity.map_err(|error| raise(py, error))
    }

    /// The identity of a model with one full group.
    #[staticmethod]
    fn of(#[pyo3(from_py_with = object::identity)] identity: Bound<'_, PyIdentity>) -> Self {
        PyModelIdentity(ModelIdentity::from(identity.get().0.clone()))
    }

    /// Derives the groups of a model from its Hugging Face config: rules, layers, planes and rotary embeddings.
    /// ``docs/models.md`` lists the supported model types.
    ///
    /// Args:
    ///     config: a ``PretrainedConfig``, the ``config.json`` as a dict, or the path of that file or of its folder.
    ///     page_size: tokens per block: a number for all groups, or a dict by the groups' names.
    ///     dtype: dtype of keys and values; default: the config's dtype.
    ///     state_dtype: dtype of recurrent states; default: the one that the config names, else that of the model.
    ///     model: the name; default: the config's ``_name_or_path``.
    ///     revision: identifies the weights; default: the commit that the config was loaded from.
    ///     extra: as for ModelIdentity.
    ///     max_model_len: as for Identity.from_hf_config.
    ///     text_only: as for Identity.from_hf_config.
    ///
    /// Raises:
    ///     IdentityError: a model type that is not in the list, with what is missing; a config without a required field.
    #[staticmethod]
    #[pyo3(signature = (config, *, page_size, **settings))]
    fn from_hf_config(
        config: &Bound<'_, PyAny>,
        page_size: &Bound<'_, PyAny>,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        let helper = ending::import(config.py(), "kvtile._hf")?.getattr("model_of")?;
        let call = || helper.call((config, page_size), settings);
        Ok(ending::run_python(config.py(), call)?.unbind())
    }

    /// Parses the JSON that ``to_json`` wrote, or that of an Identity.
    ///
    /// Raises:
    ///     IdentityError: text that is not an identity.
    #[staticmethod]
    fn from_json(#[pyo3(from_py_with = text::text)] text: TextArgument) -> PyResult<Self> {
        let identity = serde_json::from_str(&text);
        identity
            .map(PyModelIdentity)
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

    /// The other facts that the values of all groups depend on.
    #[getter]
    fn extra(&self) -> BTreeMap<String, String> {
        self.0.extra().clone()
    }

    /// The groups by name.
    #[getter]
    fn groups(&self) -> BTreeMap<String, PyModelGroup> {
        let groups = self.0.groups().iter();
        groups
            .map(|group| (group.name().to_string(), PyModelGroup(group.clone())))
            .collect()
    }

    /// The tokens of one key: the greatest common divisor of the page sizes.
    #[getter]
    fn unit(&self) -> u64 {
        self.0.unit()
    }

    /// A 128-bit hash of the groups that are not of a draft model, equal for all ranks: what keys are made with.
    #[getter]
    fn chain(&self) -> String {
        self.0.chain().to_string()
    }

    /// A 128-bit hash of the identity as hexadecimal text, the same in every process and on every machine.
    #[getter]
    fn fingerprint(&self) -> String {
        self.0.fingerprint().to_string()
    }

    /// The identity of the blocks of one group.
    ///
    /// Raises:
    ///     IdentityError: a name of no group.
    fn group_identity(
        &self,
        #[pyo3(from_py_with = text::name)] name: TextArgument,
    ) -> PyResult<PyIdentity> {
        self.0.group_identity(&name).map(PyIdentity).ok_or_else(|| {
            let name: String = name.chars().take(64).collect();
            let groups = self.0.groups().iter();
            let names: Vec<&str> = groups.map(|group| group.name().as_str()).collect();
            IdentityError::new_err(format!(
                "no group is called {name:?}; the groups are {}",
                names.join(", ")
            ))
        })
    }

    /// A readable text of the first field that differs and both values; None if the identities are equal.
    fn difference(
        &self,
        #[pyo3(from_py_with = object::other_model)] other: Bound<'_, PyModelIdentity>,
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
        let groups = self.0.groups().iter();
        let groups: Vec<String> = groups
            .map(|group| format!("{} ({})", group.name(), group.rule()))
            .collect();
        format!(
            "<kvtile.ModelIdentity {:?} at {:?}: {}>",
            self.model(),
            self.revision(),
            groups.join(", ")
        )
    }
}
