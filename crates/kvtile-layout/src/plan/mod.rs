//! Copy plans: which bytes go where, worked out by arithmetic before a byte moves.
