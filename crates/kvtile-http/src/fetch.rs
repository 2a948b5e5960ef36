//! A client for the JSON of a server: one request, within a time and a size.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::report::Observation;

/// The largest response, in bytes.
const RESPONSE_BYTES_MAX: usize = 16 << 20;

/// The most headers of a response.
const HEADERS_MAX: usize = 64;

/// The path of the numbers.
const STATS: &str = "stats.json";

/// Why the numbers of a server are not here.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// A text that is not the URL of a server.
    #[error(
        "{text:?} is not the URL of a server: {problem}; write http://HOST:PORT/, HOST:PORT or PORT"
    )]
    Url {
        /// The text.
        text: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A server that cannot be reached, or that does not answer in time.
    #[error("{host} does not answer: {source}")]
    Unreachable {
        /// Its host and port.
        host: String,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// A response that is not the numbers of caches.
    #[error("{host} answers, and not with the numbers of caches: {problem}")]
    Other {
        /// The host and port.
        host: String,
        /// What it answers.
        problem: String,
    },
}

/// A URL, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct ServerUrl {
    /// Host and port, as in the `Host` header.
    host: String,
    path: String,
}

/// Reads the numbers of the server at `url` within a time: `http://HOST:PORT/`, `HOST:PORT`, or `PORT`
/// on the loopback interface. Below a path the numbers are at its end, `http://proxy/kv/` has them at
/// `http://proxy/kv/stats.json`.
///
/// # Errors
/// A text that is not such a URL; a server that does not answer in time, or that answers with more
/// than 16 MiB or with something else.
pub fn fetch(url: &str, within: Duration) -> Result<Observation, FetchError> {
    let server = parse(url)?;
    let now = Instant::now();
    let end = now.checked_add(within).unwrap_or(now);
    let bytes = exchange(&server, end).map_err(|source| FetchError::Unreachable {
        host: server.host.clone(),
        source: Arc::new(source),
    })?;
    let other = |problem: String| FetchError::Other {
        host: server.host.clone(),
        problem,
    };
    if bytes.len() > RESPONSE_BYTES_MAX {
        return Err(other("more than 16 MiB".to_owned()));
    }
    let body = body_of(&bytes).map_err(other)?;
    serde_json::from_slice(body)
        .map_err(|error| other(format!("{error}; is it another version of kvtile?")))
}

fn parse(text: &str) -> Result<ServerUrl, FetchError> {
    let refused = |problem| FetchError::Url {
        text: text.chars().take(200).collect(),
        problem,
    };
    let is_port = |text: &str| text.parse::<u16>().is_ok_and(|port| port > 0);
    if is_port(text) {
        return Ok(ServerUrl {
            host: format!("127.0.0.1:{text}"),
            path: format!("/{STATS}"),
        });
    }
    let rest = match text.split_once("://") {
        Some(("http", rest)) => rest,
        Some(("https", _)) => return Err(refused("there is no encryption")),
        Some(_) => return Err(refused("it is not of http")),
        None => text,
    };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let is_printable = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if host.is_empty() || !is_printable(rest) || host.contains(['@', '?', '#']) {
        return Err(refused("it has no host"));
    }
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let above = path.strip_suffix(STATS).unwrap_or(path);
    let above = above.trim_end_matches('/');
    let path = match above {
        "" => format!("/{STATS}"),
        above => format!("/{above}/{STATS}"),
    };
    // The part after the last colon of `[::1]` is no port.
    let port = host.rsplit_once(':').map(|(_, port)| port);
    let host = match port.filter(|port| !port.ends_with(']')) {
        Some(port) if is_port(port) => host.to_owned(),
        Some(_) => return Err(refused("its port is not a number from 1 to 65535")),
        None => format!("{host}:80"),
    };
    Ok(ServerUrl { host, path })
}

fn exchange(server: &ServerUrl, end: Instant) -> io::Result<Vec<u8>> {
    let mut stream = connect(&server.host, end)?;
    // A response of HTTP/1.0 ends with its connection.
    let request = format!(
        "GET {} HTTP/1.0\r\nHost: {}\r\nAccept: application/json\r\nConnection: close\r\n\r\n",
        server.path, server.host
    );
    stream.set_write_timeout(Some(left(end)?))?;
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    let mut some = [0; 16 << 10];
    while bytes.len() <= RESPONSE_BYTES_MAX {
        stream.set_read_timeout(Some(left(end)?))?;
        match stream.read(&mut some) {
            Ok(0) => break,
            Ok(read) => bytes.extend_from_slice(some.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// Connects to the first address of a host that answers.
fn connect(host: &str, end: Instant) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = host.to_socket_addrs()?.collect();
    let mut failed = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses {
        match TcpStream::connect_timeout(&address, left(end)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn left(end: Instant) -> io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    match left.is_zero() {
        true => Err(io::ErrorKind::TimedOut.into()),
        false => Ok(left.max(Duration::from_millis(1))),
    }
}

/// The body of a response with status 200.
fn body_of(response: &[u8]) -> Result<&[u8], String> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut headers);
    let end = match head.parse(response) {
        Ok(httparse::Status::Complete(end)) => end,
        Ok(httparse::Status::Partial) => return Err("a response without an end".to_owned()),
        Err(error) => return Err(format!("not HTTP ({error})")),
    };
    let body = response.get(end..).unwrap_or_default();
    if head.code != Some(200) {
        let line: String = String::from_utf8_lossy(body).chars().take(200).collect();
        let code = head.code.unwrap_or_default();
        return Err(format!("status {code}, {:?}", line.trim_end()));
    }
    let length = head
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.map(|length| std::str::from_utf8(length.value).unwrap_or_default().trim());
    match length.map(str::parse::<usize>) {
        None => Ok(body),
        Some(Ok(length)) => body
            .get(..length)
            .ok_or_else(|| format!("{} bytes of {length}", body.len())),
        Some(Err(_)) => Err("a length that is not a number".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        for (text, host, path) in [
            ("9090", "127.0.0.1:9090", "/stats.json"),
            ("host:9090", "host:9090", "/stats.json"),
            ("http://host", "host:80", "/stats.json"),
            ("http://host:1/", "host:1", "/stats.json"),
            ("http://[::1]:9090/", "[::1]:9090", "/stats.json"),
            ("http://[::1]/", "[::1]:80", "/stats.json"),
            ("http://proxy/kv/", "proxy:80", "/kv/stats.json"),
            ("http://proxy/kv/stats.json?x", "proxy:80", "/kv/stats.json"),
        ] {
            let server = parse(text).unwrap();
            assert_eq!((server.host.as_str(), server.path.as_str()), (host, path));
        }
        for text in [
            "",
            "http://",
            "https://host",
            "ftp://host",
            "host:0",
            "host:x",
            "http://user@host/",
            "a b",
            "host:80\r\nX: y",
        ] {
            let error = parse(text).unwrap_err();
            assert!(matches!(error, FetchError::Url { .. }), "{text}: {error}");
        }
    }

    #[test]
    fn other_responses_are_named() {
        for (response, problem) in [
            (&b"HTTP/1.1 200 OK\r\n"[..], "without an end"),
            (b"SSH-2.0-OpenSSH\r\n\r\n", "not HTTP"),
            (
                b"HTTP/1.1 404 Not Found\r\n\r\nnothing\n",
                "status 404, \"nothing\"",
            ),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n12",
                "2 bytes of 9",
            ),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n12",
                "not a number",
            ),
        ] {
            let error = body_of(response).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(body_of(whole), Ok(&b"{}"[..]));
    }
}
