//! Common alternatives, in the same memory or in a separate process.

pub(crate) mod arrays;
pub(crate) mod torch;
