//! DLPack, the protocol of torch, jax and others.
//!
//! The capsule is not consumed: it owns the tensor as long as it lives and releases it itself.

use kvtile::layout::Unit;
use pyo3::{
    exceptions::PyTypeError,
    prelude::*,
    types::{PyCapsule, PyDict},
};

use super::{
    ForeignTensor, TensorPlace, dense_strides,
    foreign::{DlTensor, read_capsule},
};
use crate::error::python::TensorError;

/// `kDLCPU`, `kDLCUDAHost` and `kDLROCMHost`: memory of this process. Pinned memory is treated as any other, so
/// that a wrong claim changes nothing.
const ADDRESSABLE: [i32; 3] = [1, 3, 11];

/// `kDLCUDA`.
const CUDA: i32 = 2;

/// `kDLCUDAManaged`.
const CUDA_MANAGED: i32 = 13;

/// The `stream` with which the producer orders nothing: the caller of each copy names the stream to wait for.
const NO_STREAM: i32 = -1;

/// The tensor, the reason why it is unusable, or `None` for an object without DLPack.
pub(super) fn describe(
    object: &Bound<'_, PyAny>,
) -> PyResult<Option<Result<ForeignTensor, String>>> {
    let Some(device) = object.getattr_opt("__dlpack_device__")? else {
        return Ok(None);
    };
    // Frameworks have devices that DLPack lacks, and raise their own exceptions for them.
    let device = device
        .call0()
        .and_then(|device| device.extract::<(i32, i32)>());
    let (kind, ordinal) = device.unwrap_or((0, 0));
    let place = match place_of((kind, ordinal)) {
        Some(place) => place,
        None => {
            let name = device_name(object, kind, ordinal)?;
            let why = match kind {
                CUDA_MANAGED => "which moves between host and device while kvtile copies",
                _ => "and kvtile uses CPU memory and memory of CUDA devices",
            };
            return Ok(Some(Err(format!("it is on {name}, {why}"))));
        }
    };
    let capsule = match export(object, kind) {
        Ok(capsule) => capsule,
        Err(error) => {
            return Ok(Some(Err(format!(
                "it cannot be exported without a copy: {}",
                error.value(object.py())
            ))));
        }
    };
    let capsule = capsule.cast_into::<PyCapsule>()?;
    let exported = read_capsule(&capsule)?;
    let tensor = exported.tensor;
    if place_of(tensor.device) != Some(place) {
        let (kind_inside, ordinal_inside) = tensor.device;
        return Ok(Some(Err(format!(
            "__dlpack_device__ is ({kind}, {ordinal}), and the capsule is on ({kind_inside}, {ordinal_inside})"
        ))));
    }
    let unit = match unit_of(&tensor) {
        Ok(unit) => unit,
        Err(what) => return Ok(Some(Err(what))),
    };
    let Some(sizes) = all(&tensor.sizes) else {
        return Ok(Some(Err(format!("its sizes are {:?}", tensor.sizes))));
    };
    let strides = match &tensor.strides {
        None => dense_strides(&sizes),
        Some(strides) => match all(strides) {
            Some(strides) => strides,
            None => return Ok(Some(Err(format!("its strides are {strides:?}")))),
        },
    };
    Ok(Some(Ok(ForeignTensor {
        address: tensor.address,
        sizes,
        strides,
        unit,
        place,
        read_only: exported.read_only || is_immutable(object)?,
        storage: None,
        owners: vec![object.clone().unbind(), capsule.into_any().unbind()],
    })))
}

fn all<To: TryFrom<i64>>(numbers: &[i64]) -> Option<Vec<To>> {
    numbers.iter().map(|&n| To::try_from(n).ok()).collect()
}

/// The place of a tensor on a device of DLPack that kvtile uses.
fn place_of((kind, ordinal): (i32, i32)) -> Option<TensorPlace> {
    match kind {
        kind if ADDRESSABLE.contains(&kind) => Some(TensorPlace::Host),
        CUDA => Some(TensorPlace::Device {
            ordinal: Some(u32::try_from(ordinal).ok()?),
            stream: None,
        }),
        _ => None,
    }
}

/// Exports the capsule, with the version that marks read-only tensors if the framework supports it.
fn export<'py>(object: &Bound<'py, PyAny>, kind: i32) -> PyResult<Bound<'py, PyAny>> {
    let py = object.py();
    let options = PyDict::new(py);
    if kind == CUDA {
        options.set_item("stream", NO_STREAM)?;
    }
    let versioned = options.copy()?;
    versioned.set_item("max_version", (1, 1))?;
    match object.call_method("__dlpack__", (), Some(&versioned)) {
        Err(error) if error.is_instance_of::<PyTypeError>(py) => {
            object.call_method("__dlpack__", (), Some(&options))
        }
        result => result,
    }
}

/// Whether the framework's tensors are immutable without a mark in the capsule.
fn is_immutable(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let module: String = object.get_type().getattr("__module__")?.extract()?;
    Ok(module.starts_with("jax"))
}

/// A readable name of the device.
fn device_name(object: &Bound<'_, PyAny>, kind: i32, ordinal: i32) -> PyResult<String> {
    if let Some(device) = object.getattr_opt("device")? {
        return Ok(device.str()?.to_string());
    }
    let name = match kind {
        2 => "cuda",
        10 => "rocm",
        13 => "managed memory of cuda",
        14 => "oneapi",
        8 => "metal",
        7 => "vulkan",
        _ => return Ok(format!("device {kind}:{ordinal} of DLPack")),
    };
    Ok(format!("{name}:{ordinal}"))
}

/// The unit of an element.
fn unit_of(tensor: &DlTensor) -> Result<Unit, String> {
    let (code, bits, lanes) = (tensor.code, tensor.bits, tensor.lanes);
    let name = match code {
        0 => format!("int{bits}"),
        1 => format!("uint{bits}"),
        2 => format!("float{bits}"),
        4 => format!("bfloat{bits}"),
        5 => format!("complex{bits}"),
        6 if bits == 8 => "bool".to_owned(),
        8 => "float8_e4m3".to_owned(),
        10 => "float8_e4m3fn".to_owned(),
        11 => "float8_e4m3fnuz".to_owned(),
        12 => "float8_e5m2".to_owned(),
        13 => "float8_e5m2fnuz".to_owned(),
        _ => String::new(),
    };
    if lanes != 1 {
        return Err(format!(
            "its elements are {lanes} values each; give a tensor of single values"
        ));
    }
    Unit::named(&name)
        .ok_or_else(|| format!("DLPack type {code} of {bits} bits is not one that kvtile knows"))
}

/// The error for an invalid capsule.
pub(super) fn broken(what: &str) -> PyErr {
    TensorError::new_err(format!("the DLPack capsule {what}"))
}
