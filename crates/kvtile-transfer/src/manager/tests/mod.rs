//! Managers from inside.
//!
//! | file | what it tests |
//! | --- | --- |
//! | `leases` | the ledger against a set of bytes |
//! | `lanes` | lanes that stop, panic and land late |
//! | `layers` | transfers and leases of different layers of a block |
//! | `world` | what both have |
//! | `flights_loom` | flights in every order in which their threads can meet |

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
