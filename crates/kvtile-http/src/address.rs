//! The address of a server, from text.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};

use crate::HttpError;

/// The longest text of an address: the name of a host has at most 253 characters.
const TEXT_BYTES_MAX: usize = 300;

/// Parses `HOST:PORT`, or `PORT` alone for the loopback interface.
pub(crate) fn parse(text: &str) -> Result<SocketAddr, HttpError> {
    let refused = |problem: String| HttpError::Address {
        text: text.chars().take(TEXT_BYTES_MAX).collect(),
        problem,
    };
    if text.len() > TEXT_BYTES_MAX {
        return Err(refused("it is too long".to_owned()));
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let port = text.parse::<u16>();
        let port = port.map_err(|_| refused("a port is at most 65535".to_owned()))?;
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    let Some((host, _)) = text.rsplit_once(':') else {
        return Err(refused("it has no port".to_owned()));
    };
    if host.is_empty() {
        return Err(refused("it has no host".to_owned()));
    }
    let mut found = text
        .to_socket_addrs()
        .map_err(|error| refused(error.to_string()))?;
    let first = found.next();
    first.ok_or_else(|| refused("the host has no address".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_on_the_loopback_interface() {
        for (text, meant) in [
            ("9090", "127.0.0.1:9090"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("0.0.0.0:80", "0.0.0.0:80"),
            ("[::1]:9090", "[::1]:9090"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), meant);
        }
    }

    #[test]
    fn other_texts_are_refused_with_what_to_write() {
        let long = "a".repeat(1000);
        for (text, problem) in [
            ("", "no port"),
            ("localhost", "no port"),
            (":9090", "no host"),
            ("65536", "at most 65535"),
            ("127.0.0.1:65536", "invalid port"),
            ("http://127.0.0.1:80", ""),
            ("::1:x", "invalid port"),
            (long.as_str(), "too long"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
            assert!(
                error.contains("127.0.0.1:PORT") && error.len() < 700,
                "{error}"
            );
        }
    }
}
