//! The bytes of a request, checked. Every limit of what a client may send is here.

use std::net::IpAddr;

/// The longest head of a request, in bytes.
pub(crate) const HEAD_BYTES_MAX: usize = 8 << 10;

/// The most headers of a request.
const HEADERS_MAX: usize = 64;

/// A request that the server answers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PageRequest {
    /// The path, without the query.
    pub(crate) path: String,
    /// Whether the response has no body.
    pub(crate) is_head: bool,
}

/// Why a request is refused: the status and a text for a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HttpRefusal {
    /// The status line's code and reason.
    pub(crate) status: &'static str,
    /// What to do instead.
    pub(crate) text: &'static str,
}

pub(crate) const BAD_REQUEST: HttpRefusal = HttpRefusal {
    status: "400 Bad Request",
    text: "not a request of HTTP/1.0 or HTTP/1.1",
};

pub(crate) const TOO_LARGE: HttpRefusal = HttpRefusal {
    status: "431 Request Header Fields Too Large",
    text: "the head of a request has at most 8 KiB and 64 headers",
};

const OTHER_METHOD: HttpRefusal = HttpRefusal {
    status: "405 Method Not Allowed",
    text: "this server only answers GET and HEAD",
};

const OTHER_HOST: HttpRefusal = HttpRefusal {
    status: "403 Forbidden",
    text: "on the loopback interface this server is called 127.0.0.1, localhost or [::1]",
};

/// Parses the head of a request; `None` while it is incomplete. `on_loopback` states that it came over
/// the loopback interface: then only the names of that interface are answered, so that a page of
/// another site cannot read the numbers by letting its own name lead here.
pub(crate) fn parse(head: &[u8], on_loopback: bool) -> Option<Result<PageRequest, HttpRefusal>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) if head.len() < HEAD_BYTES_MAX => return None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Some(Err(TOO_LARGE));
        }
        Err(_) => return Some(Err(BAD_REQUEST)),
    }
    Some(check(&request, on_loopback))
}

fn check(
    request: &httparse::Request<'_, '_>,
    on_loopback: bool,
) -> Result<PageRequest, HttpRefusal> {
    let (Some(method), Some(target)) = (request.method, request.path) else {
        return Err(BAD_REQUEST);
    };
    let mut hosts = request
        .headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("host"));
    match (hosts.next(), hosts.next(), request.version) {
        (Some(host), None, _) => {
            let host = std::str::from_utf8(host.value).map_err(|_| BAD_REQUEST)?;
            if on_loopback && !is_loopback(host) {
                return Err(OTHER_HOST);
            }
        }
        // Only HTTP/1.0 has requests without a host; no browser sends them.
        (None, _, Some(0)) => {}
        _ => return Err(BAD_REQUEST),
    }
    let is_head = match method {
        "GET" => false,
        "HEAD" => true,
        _ => return Err(OTHER_METHOD),
    };
    if !target.starts_with('/') {
        return Err(BAD_REQUEST);
    }
    let path = target.split(['?', '#']).next().unwrap_or_default();
    Ok(PageRequest {
        path: path.to_owned(),
        is_head,
    })
}

/// Whether the value of a `Host` header names the loopback interface.
fn is_loopback(host: &str) -> bool {
    let host = host.trim();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    let is_loopback = |address: IpAddr| address.is_loopback();
    name.eq_ignore_ascii_case("localhost") || address.parse().is_ok_and(is_loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(head: &str) -> Result<PageRequest, HttpRefusal> {
        parse(head.as_bytes(), true).unwrap()
    }

    #[test]
    fn a_request_is_its_path_and_its_method() {
        let get = parsed("GET /metrics?x=1 HTTP/1.1\r\nhost: localhost:9090\r\n\r\n");
        let request = PageRequest {
            path: "/metrics".to_owned(),
            is_head: false,
        };
        assert_eq!(get, Ok(request));
        let head = parsed("HEAD / HTTP/1.0\r\n\r\n").unwrap();
        assert!(head.is_head && head.path == "/");
        for end in 0.."GET / HTTP/1.1\r\nHost: localhost\r\n\r".len() {
            let head = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
            assert_eq!(parse(&head.as_bytes()[..end], true), None, "{end}");
        }
    }

    #[test]
    fn only_names_of_the_loopback_interface_are_answered_there() {
        for host in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1",
            "127.8.9.1:65535",
            "[::1]",
            "[::1]:9090",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            ":",
            "evil.example",
            "evil.example:80",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "192.168.0.1",
            "0.0.0.0",
            "127.0.0.1:80:80",
            "localhost:80@evil.example",
        ] {
            assert!(!is_loopback(host), "{host}");
            let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert_eq!(parsed(&head), Err(OTHER_HOST), "{host}");
            let elsewhere = parse(head.as_bytes(), false).unwrap();
            assert!(elsewhere.is_ok(), "{host}");
        }
    }

    #[test]
    fn other_requests_are_refused_with_a_status() {
        let host = "Host: localhost\r\n";
        for (head, refusal) in [
            ("POST / HTTP/1.1\r\nHost: localhost\r\n\r\n", OTHER_METHOD),
            (
                "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
                OTHER_METHOD,
            ),
            ("GET / HTTP/1.1\r\n\r\n", BAD_REQUEST),
            ("GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", BAD_REQUEST),
            (
                "GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
                BAD_REQUEST,
            ),
            (
                "GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
                BAD_REQUEST,
            ),
            ("\0\0\0\0", BAD_REQUEST),
            ("\x16\x03\x01\x02\x00", BAD_REQUEST),
        ] {
            assert_eq!(parsed(head), Err(refusal), "{head:?}");
        }
        let many = format!(
            "GET / HTTP/1.1\r\n{host}{}\r\n",
            "a: b\r\n".repeat(HEADERS_MAX)
        );
        assert_eq!(parsed(&many), Err(TOO_LARGE));
        let long = format!("GET / HTTP/1.1\r\na: {}", "b".repeat(HEAD_BYTES_MAX));
        assert_eq!(parsed(&long), Err(TOO_LARGE));
    }

    /// Random bytes, and requests with random bytes in them, are refused or parsed.
    #[test]
    fn no_bytes_make_it_panic() {
        let mut state = 7_u64;
        let mut next = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) as u8
        };
        let whole = b"GET /stats.json HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n";
        for round in 0..20_000_usize {
            let mut bytes = whole.to_vec();
            for _ in 0..=round % 4 {
                let at = usize::from(next()) % bytes.len();
                bytes[at] = next();
            }
            bytes.truncate(usize::from(next()) + 1);
            let _ = parse(&bytes, round % 2 == 0);
        }
    }
}
