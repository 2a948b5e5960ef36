//! What people use otherwise, on the same memory or beside it.

pub(crate) mod arrays;
pub(crate) mod torch;
