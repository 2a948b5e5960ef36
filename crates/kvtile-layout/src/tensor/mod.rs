//! Imported tensors: their shapes, strides and the roles of their dimensions.
