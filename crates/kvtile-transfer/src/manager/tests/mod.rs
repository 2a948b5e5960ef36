//! Managers from inside.
//!
//! | file | what it tests |
//! | --- | --- |
//! | `leases` | the ledger against a set of bytes |
//! | `lanes` | lanes that stop, panic and land late |

mod lanes;
mod leases;
