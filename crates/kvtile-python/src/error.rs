//! Converts the library's errors to exceptions of `kvtile`.
//!
//! The exceptions are defined in Python (`kvtile/_errors.py`), because most of them have two bases.

use std::error::Error;

use kvtile::{
    blocks::BlocksError,
    device::DeviceError,
    identity::Difference,
    layout::LayoutError,
    tiers::{FolderError, MismatchError, RequestError, SettingsError, TierError},
    transfer::{BindError, CopyError, TransferError},
};
use pyo3::prelude::*;

/// The exception classes.
pub(crate) mod python {
    use pyo3::{import_exception, prelude::*};

    /// Imports all exceptions now, because imports fail during interpreter shutdown.
    pub(crate) fn load(py: Python<'_>) {
        let _ = [
            py.get_type::<ArgumentError>(),
            py.get_type::<BusyError>(),
            py.get_type::<ClosedError>(),
            py.get_type::<DeviceError>(),
            py.get_type::<DiskError>(),
            py.get_type::<FolderInUseError>(),
            py.get_type::<ForkError>(),
            py.get_type::<HttpServerError>(),
            py.get_type::<IdentityError>(),
            py.get_type::<InternalError>(),
            py.get_type::<LaggedError>(),
            py.get_type::<LayoutError>(),
            py.get_type::<PublishError>(),
            py.get_type::<RequestError>(),
            py.get_type::<SettingsError>(),
            py.get_type::<SharedTierError>(),
            py.get_type::<DaemonError>(),
            py.get_type::<TensorError>(),
            py.get_type::<TransferError>(),
            py.get_type::<WaitTimeoutError>(),
        ];
    }

    import_exception!(kvtile._errors, ArgumentError);
    import_exception!(kvtile._errors, BusyError);
    import_exception!(kvtile._errors, ClosedError);
    import_exception!(kvtile._errors, DeviceError);
    import_exception!(kvtile._errors, DiskError);
    import_exception!(kvtile._errors, FolderInUseError);
    import_exception!(kvtile._errors, ForkError);
    import_exception!(kvtile._errors, HttpServerError);
    import_exception!(kvtile._errors, IdentityError);
    import_exception!(kvtile._errors, InternalError);
    import_exception!(kvtile._errors, LaggedError);
    import_exception!(kvtile._errors, LayoutError);
    import_exception!(kvtile._errors, PublishError);
    import_exception!(kvtile._errors, RequestError);
    import_exception!(kvtile._errors, SettingsError);
    import_exception!(kvtile._errors, SharedTierError);
    import_exception!(kvtile._errors, DaemonError);
    import_exception!(kvtile._errors, TensorError);
    import_exception!(kvtile._errors, TransferError);
    import_exception!(kvtile._errors, WaitTimeoutError);
}

/// Why a call failed.
#[derive(Debug)]
pub(crate) enum CallFailure {
    /// An error of the library.
    Refused(Box<TierError>),
    /// A tensor that the binding refuses.
    Tensor(String),
    /// A request that the binding refuses.
    Request(String),
    /// A panic in the library: a defect of kvtile.
    Panic(String),
    /// A call in a forked child.
    Forked {
        /// The id of the process that used the library first.
        home: u32,
    },
}

impl From<TierError> for CallFailure {
    fn from(error: TierError) -> CallFailure {
        CallFailure::Refused(Box::new(error))
    }
}

impl From<TransferError> for CallFailure {
    fn from(error: TransferError) -> CallFailure {
        TierError::from(error).into()
    }
}

impl From<DeviceError> for CallFailure {
    fn from(error: DeviceError) -> CallFailure {
        TransferError::from(error).into()
    }
}

impl From<LayoutError> for CallFailure {
    fn from(error: LayoutError) -> CallFailure {
        TierError::from(error).into()
    }
}

impl From<BlocksError> for CallFailure {
    fn from(error: BlocksError) -> CallFailure {
        TierError::from(error).into()
    }
}

impl CallFailure {
    /// The exception that Python sees.
    pub(crate) fn into_exception(self, py: Python<'_>) -> PyErr {
        match self {
            CallFailure::Refused(error) => exception(py, &error),
            CallFailure::Tensor(text) => python::TensorError::new_err(text),
            CallFailure::Request(text) => python::RequestError::new_err(text),
            CallFailure::Panic(text) => python::InternalError::new_err(format!(
                "this is a defect of kvtile, please report it: {text}"
            )),
            CallFailure::Forked { home } => python::ForkError::new_err(format!(
                "kvtile was used by process {home} and this is a fork of it, without its threads; \
                 start children with the method \"spawn\", or use kvtile in the children only"
            )),
        }
    }
}

/// Converts an error of the library to an exception.
pub(crate) fn raise(py: Python<'_>, error: impl Into<CallFailure>) -> PyErr {
    error.into().into_exception(py)
}

fn exception(py: Python<'_>, error: &TierError) -> PyErr {
    let text = text_of(error);
    match error {
        TierError::Transfer(error) => of_transfer(error, text),
        TierError::Blocks(BlocksError::Lagged(lagged)) => {
            let exception = python::LaggedError::new_err(text);
            let (missed, resume_at) = (lagged.missed, lagged.resume_at);
            with_attributes(
                py,
                exception,
                [("missed", missed), ("resume_at", resume_at)],
            )
        }
        TierError::Mismatch(
            MismatchError::IdentityDiffers { difference }
            | MismatchError::FolderDiffers { difference, .. },
        ) => of_difference(py, text, difference),
        TierError::Mismatch(_) => python::IdentityError::new_err(text),
        TierError::Request(RequestError::Busy { .. }) => python::BusyError::new_err(text),
        TierError::Request(RequestError::Closed) => python::ClosedError::new_err(text),
        TierError::Request(
            RequestError::NoDaemon { .. }
            | RequestError::Disconnected
            | RequestError::NoAnswer { .. }
            | RequestError::Refused { .. },
        ) => python::DaemonError::new_err(text),
        TierError::Folder(FolderError::Forked { .. }) => python::ForkError::new_err(text),
        TierError::Folder(FolderError::InUse { .. }) => python::FolderInUseError::new_err(text),
        TierError::Blocks(
            BlocksError::PoolSize { .. }
            | BlocksError::QuotaOfNothing { .. }
            | BlocksError::TwoQuotas { .. },
        ) => python::SettingsError::new_err(text),
        TierError::Blocks(_)
        | TierError::Settings(SettingsError::KeyPageSize { .. })
        | TierError::Request(
            RequestError::TooManyDestinations { .. }
            | RequestError::OtherCache
            | RequestError::TooFewKeys { .. }
            | RequestError::EngineBlockOutOfRange { .. }
            | RequestError::EngineBlockTwice { .. }
            | RequestError::NoSuchTier { .. }
            | RequestError::NoSuchCacheGroup { .. }
            | RequestError::GroupTwiceInRequest { .. }
            | RequestError::StopPages { .. }
            | RequestError::NoStop { .. }
            | RequestError::NoStopGiven { .. }
            | RequestError::NoDeviceToWait
            | RequestError::Connected { .. },
        ) => python::RequestError::new_err(text),
        TierError::Settings(_) => python::SettingsError::new_err(text),
        TierError::Outside(_) => python::SharedTierError::new_err(text),
        _ => python::DiskError::new_err(text),
    }
}

fn of_transfer(error: &TransferError, text: String) -> PyErr {
    match error {
        TransferError::Layout(LayoutError::Tensor(_)) => python::TensorError::new_err(text),
        TransferError::Layout(LayoutError::Identity(_))
        | TransferError::Copy(CopyError::LogicalDiffers { .. }) => {
            python::IdentityError::new_err(text)
        }
        TransferError::Layout(_)
        | TransferError::Copy(CopyError::PageSizesDiffer { .. })
        | TransferError::Copy(CopyError::TokensOfSelection)
        | TransferError::Copy(CopyError::NoSuchLayer { .. }) => python::LayoutError::new_err(text),
        TransferError::Bind(BindError::RegionsOverlap { .. })
        | TransferError::Bind(BindError::RegionTooSmall { .. })
        | TransferError::Bind(BindError::RegionMisaligned { .. }) => {
            python::TensorError::new_err(text)
        }
        TransferError::Device(_) => python::DeviceError::new_err(text),
        TransferError::Copy(CopyError::File { .. }) => python::DiskError::new_err(text),
        _ => python::TransferError::new_err(text),
    }
}

fn of_difference(py: Python<'_>, text: String, difference: &Difference) -> PyErr {
    let facts = [
        ("field", &difference.field),
        ("ours", &difference.ours),
        ("theirs", &difference.theirs),
    ];
    with_attributes(py, python::IdentityError::new_err(text), facts)
}

fn with_attributes<'a, 'py, V, const COUNT: usize>(
    py: Python<'py>,
    exception: PyErr,
    facts: [(&'a str, V); COUNT],
) -> PyErr
where
    V: IntoPyObject<'py>,
{
    for (name, value) in facts {
        if let Err(error) = exception.value(py).setattr(name, value) {
            return error;
        }
    }
    exception
}

/// The message with its causes, without repetition.
fn text_of(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
