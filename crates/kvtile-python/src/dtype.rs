//! Data types: their names in numpy, torch and DLPack, and the units that they are.

use kvtile::layout::{LayoutError, Unit};
use pyo3::prelude::*;

use crate::error::raise;

/// The codec of a data type that frameworks write `name`; itself where it is one already.
fn codec_of(name: &str) -> &str {
    match name {
        "float64" | "double" => "f64",
        "float32" | "float" => "f32",
        "float16" | "half" => "f16",
        "bfloat16" => "bf16",
        "float8_e4m3fn" | "fp8" => "fp8_e4m3",
        "float8_e5m2" => "fp8_e5m2",
        "float8_e4m3fnuz" => "fp8_e4m3fnuz",
        "float8_e5m2fnuz" => "fp8_e5m2fnuz",
        "float8_e4m3" => "fp8_e4m3_ieee",
        "float4_e2m1fn" => "fp4_e2m1",
        codec => codec,
    }
}

/// The unit of a data type, by the name that a framework gives it.
pub(crate) fn unit_named(name: &str) -> Result<Unit, LayoutError> {
    let codec = codec_of(name);
    let bytes = match codec {
        "uint64" | "complex64" => 8,
        "uint32" => 4,
        "uint16" => 2,
        "fp8_e4m3fnuz" | "fp8_e5m2fnuz" | "fp8_e4m3_ieee" | "bool" => 1,
        "complex128" => 16,
        _ => {
            let unknown = || LayoutError::CodecName {
                codec: name.to_owned(),
            };
            return Unit::named(codec).ok_or_else(unknown);
        }
    };
    Unit::new(codec, bytes, 1)
}

/// The unit that a user means: a name, or the dtype of numpy, torch, jax or ml_dtypes.
pub(crate) fn unit_of(dtype: &Bound<'_, PyAny>) -> PyResult<Unit> {
    let name = name_of(dtype)?;
    let unit = unit_named(&name);
    unit.map_err(|error| match error {
        LayoutError::CodecName { codec } => crate::error::python::LayoutError::new_err(format!(
            "{codec:?} is no dtype that kvtile knows; give float32, bfloat16, float8_e4m3fn or the like, \
             or a Plane with unit_bytes for anything else"
        )),
        error => raise(dtype.py(), error),
    })
}

/// What a dtype is called: `torch.bfloat16`, `dtype('bfloat16')` and `numpy.float32` by their last
/// names.
pub(crate) fn name_of(dtype: &Bound<'_, PyAny>) -> PyResult<String> {
    if let Ok(name) = dtype.extract::<String>() {
        return Ok(last(&name));
    }
    for attribute in ["name", "__name__"] {
        if let Some(name) = dtype.getattr_opt(attribute)?
            && let Ok(name) = name.extract::<String>()
        {
            return Ok(last(&name));
        }
    }
    Ok(last(&dtype.str()?.to_string()))
}

fn last(name: &str) -> String {
    name.rsplit('.').next().unwrap_or(name).to_owned()
}
