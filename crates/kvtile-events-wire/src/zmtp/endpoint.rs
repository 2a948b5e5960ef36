//! Addresses of sockets.

use std::{
    fmt,
    net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    time::Duration,
};

use crate::error::WireError;

/// Time for a connection to be made.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// `tcp://HOST:PORT`. The host `*` binds all addresses of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    host: String,
    port: u16,
}

impl Endpoint {
    /// # Errors
    /// [`WireError::Endpoint`].
    pub(crate) fn parse(text: &str) -> Result<Endpoint, WireError> {
        let wrong = || WireError::Endpoint {
            endpoint: text.to_owned(),
        };
        let address = text.strip_prefix("tcp://").ok_or_else(wrong)?;
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = port.parse().map_err(|_| wrong())?;
        match host.is_empty() || host.contains('/') {
            true => Err(wrong()),
            false => Ok(Endpoint {
                host: host.to_owned(),
                port,
            }),
        }
    }

    /// The endpoint whose port is so much higher; any free port stays one. `None` above 65,535.
    pub(crate) fn higher(&self, number: u16) -> Option<Endpoint> {
        let port = match self.port {
            0 => 0,
            port => port.checked_add(number)?,
        };
        let host = self.host.clone();
        Some(Endpoint { host, port })
    }

    fn failed(&self, operation: &'static str, source: std::io::Error) -> WireError {
        WireError::Socket {
            operation,
            endpoint: self.to_string(),
            source,
        }
    }

    /// Listens.
    ///
    /// # Errors
    /// [`WireError::Socket`].
    pub(crate) fn bind(&self) -> Result<(TcpListener, SocketAddr), WireError> {
        let host = if self.host == "*" {
            "0.0.0.0"
        } else {
            &self.host
        };
        let listener = TcpListener::bind((host, self.port));
        let listener = listener.map_err(|source| self.failed("bind", source))?;
        let address = listener.local_addr();
        let address = address.map_err(|source| self.failed("bind", source))?;
        Ok((listener, address))
    }

    /// Connects.
    ///
    /// # Errors
    /// [`WireError::Socket`] with the error of the last address of the host.
    pub(crate) fn connect(&self) -> Result<TcpStream, WireError> {
        let failed = |source| self.failed("connect to", source);
        let addresses = (self.host.as_str(), self.port).to_socket_addrs();
        let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
        for address in addresses.map_err(failed)? {
            match TcpStream::connect_timeout(&address, CONNECT_WITHIN) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(failed(last))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "tcp://[{}]:{}", self.host, self.port),
            false => write!(f, "tcp://{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_printed() {
        for text in [
            "tcp://127.0.0.1:5557",
            "tcp://*:0",
            "tcp://[::1]:80",
            "tcp://host:1",
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "",
            "127.0.0.1:1",
            "ipc:///tmp/x",
            "tcp://host",
            "tcp://:1",
            "tcp://h:65536",
        ] {
            let error = Endpoint::parse(text).unwrap_err();
            assert!(matches!(error, WireError::Endpoint { .. }), "{text}");
        }
    }

    #[test]
    fn a_higher_port_is_a_port_or_none() {
        let higher = |text: &str, number| {
            let endpoint = Endpoint::parse(text).unwrap().higher(number);
            endpoint.map(|endpoint| endpoint.to_string())
        };
        assert_eq!(higher("tcp://*:5557", 3).as_deref(), Some("tcp://*:5560"));
        assert_eq!(
            higher("tcp://[::1]:80", 0).as_deref(),
            Some("tcp://[::1]:80")
        );
        assert_eq!(higher("tcp://*:0", 7).as_deref(), Some("tcp://*:0"));
        assert_eq!(higher("tcp://*:65535", 1), None);
    }
}
