//! Versions of CUDA.

use std::fmt;

/// The newest version of CUDA that a driver knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DriverVersion {
    /// Major version.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
}

impl DriverVersion {
    /// The oldest driver that kvtile uses: the first that takes PTX 7.4, in which its kernels are written.
    pub const OLDEST: DriverVersion = DriverVersion {
        major: 11,
        minor: 4,
    };

    /// From the driver's number, 1000 * major + 10 * minor; a negative one is version 0.0.
    #[must_use]
    pub fn of_number(number: i32) -> DriverVersion {
        let number = u32::try_from(number).unwrap_or(0);
        DriverVersion {
            major: number / 1000,
            minor: number % 1000 / 10,
        }
    }
}

impl fmt::Display for DriverVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_versions_in_their_order() {
        let version = DriverVersion::of_number;
        assert_eq!(version(12_080).to_string(), "12.8");
        assert_eq!(version(13_000).to_string(), "13.0");
        assert_eq!(version(-5).to_string(), "0.0");
        assert_eq!(version(11_040), DriverVersion::OLDEST);
        assert!(version(11_030) < DriverVersion::OLDEST && version(13_000) > version(12_990));
    }
}
