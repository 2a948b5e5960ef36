//! The known layouts of real engines and the shapes of well-known models.
