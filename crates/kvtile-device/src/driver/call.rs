//! What every call of the driver has in common: the check of the process, and results that become errors.

use super::cuda::{self, CudaResult};
use super::error::DeviceError;
use super::table::DriverTable;
use super::version::DriverVersion;
use kvtile_memory::ProcessMark;
use std::ffi::{CStr, c_char};
use std::fmt::Arguments;

/// The table of an initialised driver, and the process that initialised it.
#[derive(Debug)]
pub(crate) struct DriverCalls {
    pub(crate) table: DriverTable,
    pub(crate) version: DriverVersion,
    process: ProcessMark,
}

impl DriverCalls {
    pub(super) fn new(table: DriverTable, version: DriverVersion) -> DriverCalls {
        DriverCalls {
            table,
            version,
            process: ProcessMark::now(),
        }
    }

    /// Whether the driver may be called in this process.
    pub(crate) fn is_here(&self) -> bool {
        self.process.is_current()
    }

    /// Refuses a forked child.
    pub(crate) fn check_process(&self) -> Result<(), DeviceError> {
        if self.is_here() {
            return Ok(());
        }
        Err(DeviceError::Forked {
            opened_by: self.process.id(),
            here: std::process::id(),
        })
    }

    /// Success, or the error of `call` with the arguments that matter.
    pub(crate) fn check(
        &self,
        result: CudaResult,
        call: &'static str,
        facts: Arguments<'_>,
    ) -> Result<(), DeviceError> {
        match result {
            cuda::SUCCESS => Ok(()),
            cuda::OUT_OF_MEMORY => Err(DeviceError::OutOfMemory {
                call,
                facts: facts.to_string(),
            }),
            code => Err(DeviceError::Call {
                call,
                code,
                name: self.name(code),
                text: self.text(code),
                facts: facts.to_string(),
            }),
        }
    }

    /// The driver's name for an error.
    pub(crate) fn name(&self, code: CudaResult) -> String {
        let mut name = std::ptr::null();
        // SAFETY: `name` is a place for one pointer; any number may be passed as an error.
        let result = unsafe { (self.table.error_name)(code, &raw mut name) };
        text_of(result, name).unwrap_or_else(|| "an error without a name".to_owned())
    }

    fn text(&self, code: CudaResult) -> String {
        let mut text = std::ptr::null();
        // SAFETY: as in `name`.
        let result = unsafe { (self.table.error_text)(code, &raw mut text) };
        text_of(result, text).unwrap_or_else(|| "no description".to_owned())
    }
}

/// The text at a pointer that the driver returned for an error.
fn text_of(result: CudaResult, text: *const c_char) -> Option<String> {
    if result != cuda::SUCCESS || text.is_null() {
        return None;
    }
    // SAFETY: on success the driver returns a text that ends with zero and is never freed.
    let text = unsafe { CStr::from_ptr(text) };
    Some(text.to_string_lossy().into_owned())
}
