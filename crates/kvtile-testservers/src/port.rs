//! Free ports of the loopback interface.

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
};

/// `N` ports that are free now, all different.
///
/// # Errors
/// No free port.
pub fn free<const N: usize>() -> io::Result<[u16; N]> {
    // All listeners exist at once, so the ports differ.
    let mut listeners = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}
