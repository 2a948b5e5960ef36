//! What a program that loads the stand-in by its file needs besides the driver's functions.
//!
//! Such a program cannot hold a [`Standin`](crate::Standin). It chooses the driver before it initialises one, and reads what the
//! checker found.

use super::{replace, with_world};
use crate::options::StandinOptions;
use crate::ptx::PtxEngine;
use crate::world::World;
use std::ffi::{CStr, c_char};
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
    // SAFETY: passed on to the caller.
    unsafe { write_text(&found.unwrap_or_default(), text, room) }
}

/// Plans that the `nth` call of a function from now on does nothing and returns `code`; without a function, drops the plans
/// that no call has met. Returns 0 for a function that was never called, of which nothing is planned.
#[unsafe(export_name = "kvtile_standin_fail")]
pub(super) unsafe extern "C" fn standin_fail(function: *const c_char, nth: u64, code: u32) -> u32 {
    let planned = with_world(|world| {
        if function.is_null() {
            world.drop_faults();
            return true;
        }
        // SAFETY: the caller passes a text that ends with a zero.
        let name = unsafe { CStr::from_ptr(function) };
        let mut known = world.calls.keys();
        let known = known.find(|known| known.as_bytes() == name.to_bytes());
        let Some(&function) = known else {
            return false;
        };
        world.plan_fault(function, nth, code);
        true
    });
    (planned == Some(true)).into()
}

/// Writes how often each function was called to `text`, a line with its name and number each, as
/// [`standin_complaints`].
#[unsafe(export_name = "kvtile_standin_calls")]
pub(super) unsafe extern "C" fn standin_calls(text: *mut c_char, room: usize) -> usize {
    let calls = with_world(|world| {
        let lines = world.calls.iter();
        let lines = lines.map(|(function, count)| format!("{function} {count}"));
        lines.collect::<Vec<String>>().join("\n")
    });
    // SAFETY: passed on to the caller.
    unsafe { write_text(&calls.unwrap_or_default(), text, room) }
}

/// Writes what is left of what was made to `text`, a line with its name and number each, as [`standin_complaints`].
#[unsafe(export_name = "kvtile_standin_leaks")]
pub(super) unsafe extern "C" fn standin_leaks(text: *mut c_char, room: usize) -> usize {
    let leaks = with_world(|world| {
        let leaks = world.leaks();
        format!(
            "contexts {}\nstreams {}\nevents {}\nmodules {}\ndevice_memory {}\npinned_memory {}\nregistrations {}",
            leaks.contexts,
            leaks.streams,
            leaks.events,
            leaks.modules,
            leaks.device_memory,
            leaks.pinned_memory,
            leaks.registrations
        )
    });
    // SAFETY: passed on to the caller.
    unsafe { write_text(&leaks.unwrap_or_default(), text, room) }
}

/// Writes a text, cut to `room` bytes. Returns the bytes of the whole text.
///
/// # Safety
///
/// `text` is null or a place for `room` bytes.
unsafe fn write_text(found: &str, text: *mut c_char, room: usize) -> usize {
    if !text.is_null() {
        // SAFETY: the caller passes a place for `room` bytes, and no more are written.
        unsafe {
            std::ptr::copy_nonoverlapping(found.as_ptr(), text.cast(), found.len().min(room));
        };
    }
    found.len()
}
