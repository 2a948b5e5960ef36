//! Blocks in a folder.
