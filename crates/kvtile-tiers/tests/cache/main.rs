//! The cache through its public surface, over real memory and a real folder.

mod bounds;
mod common;
mod flow;
mod refusals;
mod simulation;
mod threads;
