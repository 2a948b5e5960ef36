//! The program kvtile.

fn main() {}
