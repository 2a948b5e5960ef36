//! Unit tests of the manager.
//!
//! | file | what it tests |
//! | --- | --- |
//! | `leases` | the ledger against a set of bytes |
//! | `lanes` | lanes that stop, panic, or end flights late |
//! | `layers` | transfers and leases of different layers of a block |
//! | `device_waits` | each wait for work of a device, left out |
//! | `world` | a fixture that several of them share |
//! | `flights_loom` | flights in every thread interleaving |

#[cfg(not(loom))]
mod device_waits;
#[cfg(loom)]
mod flights_loom;
#[cfg(not(loom))]
mod lanes;
#[cfg(not(loom))]
mod layers;
#[cfg(not(loom))]
mod leases;
#[cfg(not(loom))]
mod world;
