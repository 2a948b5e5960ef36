//! The stand-in as a library with the names of the driver's functions, for programs that load a driver by its file. It
//! plays the default driver of [`kvtile_standin::StandinOptions`], and interprets kernels.
//!
//! `cargo build -p kvtile-standin --example driver_library` builds `libdriver_library.so`.

// The library exports the functions of this crate.
use kvtile_standin as _;
