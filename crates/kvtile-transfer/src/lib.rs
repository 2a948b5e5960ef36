//! Layouts bound to memory, their descriptors, and the execution of copy plans.
