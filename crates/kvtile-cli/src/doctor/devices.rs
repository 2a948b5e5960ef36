//! The CUDA driver and its devices, or what is missing.
//!
//! The driver is opened and initialised; no context is made, and no memory of a device is taken.

use std::path::Path;

use kvtile::device::{DeviceDescription, DeviceError, DeviceOptions, Driver, DriverVersion};

use super::{
    checks::{CheckStatus, DoctorCheck},
    libraries,
};
use crate::output::count;

/// The name of the line of the driver.
const NAME: &str = "CUDA driver";

/// The state of the code behind the line.
const STATE: &str = "kvtile's device code has not been run on hardware";

/// The driver, and a line for each device.
pub(super) fn cuda(library: Option<&Path>) -> Vec<DoctorCheck> {
    let options = DeviceOptions {
        library: library.map(Path::to_path_buf),
    };
    let mut opened = Driver::open(&options);
    if library.is_none()
        && matches!(opened, Err(DeviceError::NoDriver { .. }))
        && let Some(path) = libraries::find(|file| file == "libcuda.so.1")
    {
        // Outside of the folders in which the loader looks.
        opened = Driver::open(&DeviceOptions {
            library: Some(path),
        });
    }
    let has_device_file = Path::new("/dev/nvidiactl").exists() || Path::new("/dev/dxg").exists();
    lines(opened, has_device_file)
}

fn lines(opened: Result<Driver, DeviceError>, has_device_file: bool) -> Vec<DoctorCheck> {
    let driver = match opened {
        Ok(driver) => driver,
        Err(error) => return vec![absent(&error, has_device_file)],
    };
    let devices = driver.device_count().and_then(|count| {
        let devices = (0..count).map(|ordinal| driver.describe(ordinal));
        devices.collect::<Result<Vec<DeviceDescription>, DeviceError>>()
    });
    match devices {
        Ok(devices) => {
            let mut lines = vec![present(driver.version(), devices.len())];
            lines.extend(devices.iter().map(device));
            lines
        }
        Err(error) => vec![absent(&error, has_device_file)],
    }
}

fn present(version: DriverVersion, devices: usize) -> DoctorCheck {
    let noun = if devices == 1 { "device" } else { "devices" };
    let found = format!("CUDA {version}, {devices} {noun}; {STATE}");
    DoctorCheck::new(NAME, CheckStatus::Ok, found)
}

fn device(device: &DeviceDescription) -> DoctorCheck {
    let name = format!("CUDA device {}", device.ordinal);
    let (major, minor) = device.capability;
    let found = format!(
        "{}, {}, compute capability {major}.{minor}, {} multiprocessors, {} copy engines",
        device.name,
        count(device.bytes as u64),
        device.multiprocessors,
        device.copy_engines
    );
    if device.is_unified {
        return DoctorCheck::new(&name, CheckStatus::Ok, found);
    }
    DoctorCheck::new(&name, CheckStatus::Improvable, found)
        .advice("it has no address space in common with the host, which kvtile needs")
}

/// The error in its sentence, with advice where a device is near.
fn absent(error: &DeviceError, has_device_file: bool) -> DoctorCheck {
    let found = format!("{error}; {STATE}");
    let line = |status| DoctorCheck::new(NAME, status, found.clone());
    match error {
        DeviceError::NoDriver { .. } if !has_device_file => line(CheckStatus::Absent),
        DeviceError::NoDriver { .. } => line(CheckStatus::Improvable)
            .advice("a GPU device file exists: install the driver's libraries, or have the container mount them"),
        DeviceError::NoDevice { .. } => line(CheckStatus::Improvable).advice(
            "load the kernel driver, or give the container the device (--gpus all, or the NVIDIA container toolkit)",
        ),
        DeviceError::TooOld { .. } => {
            line(CheckStatus::Improvable).advice("update the driver of the machine")
        }
        _ => line(CheckStatus::Improvable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvtile_standin::{Standin, StandinOptions};

    fn found(options: StandinOptions) -> Vec<(String, CheckStatus, String)> {
        let standin = Standin::start(options);
        let lines = lines(standin.driver(), true);
        lines
            .into_iter()
            .map(|line| (line.name, line.status, line.found))
            .collect()
    }

    #[test]
    fn a_driver_and_its_devices_have_a_line_each() {
        let lines = found(StandinOptions {
            devices: 2,
            ..StandinOptions::default()
        });
        let state = "kvtile's device code has not been run on hardware";
        let facts = "kvtile stand-in, no hardware, 64 MiB, compute capability 8.0, 4 multiprocessors, 2 copy engines";
        let expected = [
            ("CUDA driver", format!("CUDA 13.0, 2 devices; {state}")),
            ("CUDA device 0", facts.to_owned()),
            ("CUDA device 1", facts.to_owned()),
        ];
        let expected = expected.map(|(name, text)| (name.to_owned(), CheckStatus::Ok, text));
        assert_eq!(lines, expected);
    }

    #[test]
    fn what_is_missing_is_one_sentence() {
        let none = found(StandinOptions {
            devices: 0,
            ..StandinOptions::default()
        });
        let old = found(StandinOptions {
            version: 11_020,
            ..StandinOptions::default()
        });
        for (lines, text) in [
            (none, "finds no device"),
            (old, "of version 11.2; kvtile needs 11.4"),
        ] {
            assert_eq!(lines.len(), 1);
            assert_eq!(lines[0].1, CheckStatus::Improvable);
            assert!(lines[0].2.contains(text), "{}", lines[0].2);
        }
        let lines = cuda(Some(Path::new("/nonexistent/libcuda.so")));
        assert_eq!(lines.len(), 1);
        let text = &lines[0].found;
        assert!(
            text.starts_with("no CUDA driver: tried /nonexistent/libcuda.so: "),
            "{text}"
        );
        assert!(text.ends_with("has not been run on hardware"), "{text}");
    }

    #[test]
    fn a_driver_that_fails_in_between_is_named() {
        let standin = Standin::start(StandinOptions::default());
        let driver = standin.driver();
        standin.fail("cuDeviceGetName", 1, 999);
        let lines = lines(driver, true);
        assert_eq!(lines.len(), 1);
        assert!(
            lines[0]
                .found
                .contains("cuDeviceGetName failed with CUDA_ERROR_UNKNOWN (999)")
        );
    }
}
