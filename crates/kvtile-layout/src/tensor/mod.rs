//! Imported tensors: from the sizes and strides that an engine's framework reports to a layout.
//!
//! Strides give the positions of the bytes. The meaning of a dimension (tokens, heads, K and V)
//! must come from the caller, as [`DimRole`]s. Without roles, sizes decide where they fit the shape
//! in exactly one way; two readings are an error that names both. Even then an engine may store
//! something else than the sizes suggest: only bytes prove a reading, and tests compare them for
//! presets.

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
