//! Who owns the bytes: system, shared, file and borrowed memory regions.
