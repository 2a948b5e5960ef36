//! The two layouts of the block-manager tradition, as configurations and words.
