//! The array interface of CUDA, versions 2 and 3, of numba, cupy, torch and further libraries.

use kvtile::layout::Unit;
use pyo3::{prelude::*, types::PyDict};

use super::{ForeignTensor, TensorPlace, array, dense_strides, in_elements};

/// The versions whose fields this module knows. Version 3 added `stream`.
const VERSIONS: [u32; 2] = [2, 3];

/// The maximum number of dimensions, as of other tensors.
const DIMENSIONS_MAX: usize = 16;

/// The fields of the interface. Absent ones are `None`, as in Python.
struct CudaInterface<'py> {
    fields: Bound<'py, PyDict>,
}

impl<'py> CudaInterface<'py> {
    fn get(&self, name: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
        Ok(self.fields.get_item(name)?.filter(|value| !value.is_none()))
    }
}

/// The tensor, the reason why it is unusable, or `None` for an object without the interface.
pub(super) fn describe(
    object: &Bound<'_, PyAny>,
) -> PyResult<Option<Result<ForeignTensor, String>>> {
    let Some(fields) = object.getattr_opt("__cuda_array_interface__")? else {
        return Ok(None);
    };
    let interface = CudaInterface {
        fields: fields.cast_into::<PyDict>()?,
    };
    read(object, &interface).map(Some)
}

fn read(
    object: &Bound<'_, PyAny>,
    interface: &CudaInterface<'_>,
) -> PyResult<Result<ForeignTensor, String>> {
    let version: u32 = match interface.get("version")? {
        Some(version) => version.extract()?,
        None => 0,
    };
    if !VERSIONS.contains(&version) {
        return Ok(Err(format!(
            "its __cuda_array_interface__ is of version {version}; kvtile reads versions 2 and 3"
        )));
    }
    if interface.get("mask")?.is_some() {
        let what = "its __cuda_array_interface__ has a mask, and kvtile copies all elements";
        return Ok(Err(what.to_owned()));
    }
    let (Some(sizes), Some(typestr), Some(data)) = (
        interface.get("shape")?,
        interface.get("typestr")?,
        interface.get("data")?,
    ) else {
        let what = "its __cuda_array_interface__ has no shape, typestr or data";
        return Ok(Err(what.to_owned()));
    };
    let sizes: Vec<usize> = sizes.extract()?;
    if sizes.len() > DIMENSIONS_MAX {
        return Ok(Err(format!("it has {} dimensions", sizes.len())));
    }
    let unit = match array::unit(object, &typestr.extract::<String>()?)? {
        Ok(unit) => unit,
        Err(what) => return Ok(Err(what)),
    };
    let (address, read_only): (usize, bool) = data.extract()?;
    let strides = match strides_of(interface, &sizes, &unit)? {
        Ok(strides) => strides,
        Err(what) => return Ok(Err(what)),
    };
    let stream = match interface.get("stream")? {
        None => None,
        Some(stream) => match stream.extract::<usize>()? {
            0 => {
                let what = "its stream is 0, which the interface forbids: 1 is the legacy default stream and 2 that \
                            of the thread";
                return Ok(Err(what.to_owned()));
            }
            stream => Some(stream),
        },
    };
    Ok(Ok(ForeignTensor {
        address,
        sizes,
        strides,
        unit,
        place: TensorPlace::Device {
            ordinal: None,
            stream,
        },
        read_only,
        storage: None,
        owners: vec![object.clone().unbind()],
    }))
}

/// The strides in elements, one for each size.
fn strides_of(
    interface: &CudaInterface<'_>,
    sizes: &[usize],
    unit: &Unit,
) -> PyResult<Result<Vec<isize>, String>> {
    let Some(strides) = interface.get("strides")? else {
        return Ok(Ok(dense_strides(sizes)));
    };
    let strides: Vec<isize> = strides.extract()?;
    if strides.len() != sizes.len() {
        return Ok(Err(format!(
            "it has {} sizes and {} strides",
            sizes.len(),
            strides.len()
        )));
    }
    let whole = in_elements(&strides, unit.bytes());
    Ok(whole.ok_or_else(|| {
        let bytes = unit.bytes();
        format!("its strides {strides:?} are not multiples of {bytes} bytes")
    }))
}
