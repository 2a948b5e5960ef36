//! Finds and loads the library of the driver at run time.

use super::error::{DeviceError, TriedLibrary};
use super::table::DriverTable;
use libloading::Library;
use std::ffi::{OsStr, OsString, c_void};
use std::path::PathBuf;
use std::ptr::NonNull;

/// Names that are tried in this order, where no library is named. The first is that of every installed driver; the
/// second is that of a driver under WSL, whose folder is not in the search path of every distribution.
const NAMES: [&str; 2] = ["libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1"];

/// How to find the driver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceOptions {
    /// The library of the driver; `None` tries the usual names.
    pub library: Option<PathBuf>,
}

/// Loads the library and fills the table.
///
/// The library stays loaded until the process ends: a driver starts threads and registers handlers, and code of it
/// may run at any time.
pub(super) fn load(options: &DeviceOptions) -> Result<DriverTable, DeviceError> {
    let names: Vec<OsString> = match &options.library {
        Some(path) => vec![path.clone().into_os_string()],
        None => NAMES.iter().map(OsString::from).collect(),
    };
    let mut tried = Vec::new();
    for name in names {
        match open(&name) {
            Ok(library) => return fill(library, &name),
            Err(reason) => tried.push(TriedLibrary {
                library: name.to_string_lossy().into_owned(),
                reason,
            }),
        }
    }
    Err(DeviceError::NoDriver { tried })
}

fn open(name: &OsStr) -> Result<Library, String> {
    // SAFETY: loading a library runs its initialisers. The name is that of the driver, or the caller chose the file;
    // the initialisers of drivers have no demands on their callers.
    unsafe { Library::new(name) }.map_err(|error| error.to_string())
}

fn fill(library: Library, name: &OsStr) -> Result<DriverTable, DeviceError> {
    let symbol = |symbol: &'static str| {
        // SAFETY: the symbol is used as an address alone.
        let found = unsafe { library.get::<*mut c_void>(symbol) };
        found.ok().and_then(|found| NonNull::new(*found))
    };
    // SAFETY: the library is a driver (see `open`), whose functions have these signatures under these names, which
    // never change their meaning: a changed function gets a new name. It is never unloaded (see below).
    let table = unsafe { DriverTable::from_symbols(symbol) };
    let table = table.map_err(|symbol| DeviceError::MissingSymbol {
        library: name.to_string_lossy().into_owned(),
        symbol,
    });
    std::mem::forget(library);
    table
}
