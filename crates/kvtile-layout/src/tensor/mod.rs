//! Imported tensors: from the sizes and strides that an engine's framework reports to a layout.
//!
//! Strides say where bytes lie. What a dimension means (tokens, heads, K and V) only its owner can
//! say, in [`DimRole`]s; sizes stand in for them where they fit the shape in exactly one way, and
//! two readings are an error that names both. Even then an engine may keep something else inside a
//! tensor than its sizes suggest: bytes decide, and presets are tested on them.

mod error;
mod layout;
mod order;
mod place;
mod search;
mod shapes;
mod strides;
mod view;
mod word;

pub use error::TensorError;
pub use layout::layout_from_tensors;
pub use shapes::{TensorShape, validate_tensor_shapes};
pub use strides::validate_tensor_strides;
pub use view::{DimDigit, DimRole, TensorFormat, TensorView};
pub use word::word_over_tensors;
