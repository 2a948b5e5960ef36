//! What a program that loads the stand-in by its file needs besides the driver's functions.
//!
//! Such a program cannot hold a [`Standin`](crate::Standin). It chooses the driver before it initialises one, and reads what the
//! checker found.

use super::{replace, with_world};
use crate::options::StandinOptions;
use crate::ptx::PtxEngine;
use crate::world::World;
use std::ffi::c_char;
use std::sync::Arc;

/// Replaces the driver of the process by one with `devices` devices of `bytes` bytes, `bytes` bytes of pinned memory, and
/// an interpreter of kernels. A program calls it before it initialises the driver.
#[unsafe(export_name = "kvtile_standin_start")]
pub(super) extern "C" fn standin_start(seed: u64, devices: u32, bytes: usize) {
    let options = StandinOptions {
        devices,
        device_bytes: bytes,
        pinned_bytes: bytes,
        kernels: Some(Arc::new(PtxEngine::new())),
        ..StandinOptions::seeded(seed)
    };
    replace(Some(World::new(0, options)));
}

/// Writes what the checker found so far to `text`, a line for each complaint, cut to `room` bytes. Returns the bytes of the
/// whole text.
#[unsafe(export_name = "kvtile_standin_complaints")]
pub(super) unsafe extern "C" fn standin_complaints(text: *mut c_char, room: usize) -> usize {
    let found = with_world(|world| {
        let lines = world.order.complaints.iter().map(ToString::to_string);
        lines.collect::<Vec<String>>().join("\n")
    });
    let found = found.unwrap_or_default();
    if !text.is_null() {
        // SAFETY: the caller passes a place for `room` bytes, and no more are written.
        unsafe {
            std::ptr::copy_nonoverlapping(found.as_ptr(), text.cast(), found.len().min(room));
        };
    }
    found.len()
}

/// How much host memory is registered with the driver, in pieces.
#[unsafe(export_name = "kvtile_standin_registrations")]
pub(super) extern "C" fn standin_registrations() -> usize {
    with_world(|world| world.leaks().registrations).unwrap_or_default()
}
