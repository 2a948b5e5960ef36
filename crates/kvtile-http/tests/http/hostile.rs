//! Clients that misbehave cost the server a bounded number of connections, and other clients nothing.

use std::{
    io::{Read, Write},
    time::{Duration, Instant},
};

use kvtile_http::HttpServer;

use crate::client;

fn server() -> HttpServer {
    kvtile_http::serve("127.0.0.1:0", Vec::new).unwrap()
}

#[test]
fn many_silent_connections_do_not_keep_another_client_out() {
    let server = server();
    let silent: Vec<_> = (0..200)
        .map(|_| client::connect(server.address()))
        .collect();
    for _ in 0..3 {
        assert_eq!(client::get(server.address(), "/healthz").body, "ok\n");
    }
    drop(silent);
    // Connections that send a part of a request.
    let slow: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = client::connect(server.address());
            stream.write_all(b"GET / HTTP/1.1\r\nHost: 127").unwrap();
            stream
        })
        .collect();
    assert_eq!(client::get(server.address(), "/healthz").body, "ok\n");
    drop(slow);
}

#[test]
fn a_request_that_comes_byte_by_byte_is_answered_within_its_limit_only() {
    let server = server();
    let mut stream = client::connect(server.address());
    let start = Instant::now();
    let request = format!("GET /{} HTTP/1.1\r\n", "a".repeat(1000));
    let mut sent = 0;
    for byte in request.bytes() {
        // The server ends the connection; a later write then fails.
        if stream.write_all(&[byte]).is_err() || start.elapsed() > Duration::from_secs(20) {
            break;
        }
        sent += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(sent < request.len(), "all {sent} bytes were taken");
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    assert_eq!(String::from_utf8_lossy(&text), "");
}

#[test]
fn a_large_head_is_refused_and_a_body_is_not_read() {
    let server = server();
    let mut stream = client::connect(server.address());
    let line = format!("X-Large: {}\r\n", "a".repeat(1000));
    let mut large = format!("GET / HTTP/1.1\r\nHost: {}\r\n", server.address());
    large.push_str(&line.repeat(20));
    stream.write_all(large.as_bytes()).unwrap();
    let refused = client::response(stream);
    assert_eq!(refused.status, "431 Request Header Fields Too Large");
    let post = format!(
        "POST /stats.json HTTP/1.1\r\nHost: {}\r\nContent-Length: 5\r\n\r\nhello",
        server.address()
    );
    let refused = client::send(server.address(), post.as_bytes());
    assert_eq!(refused.status, "405 Method Not Allowed");
    assert!(
        refused.head.contains("Allow: GET, HEAD"),
        "{}",
        refused.head
    );
}

/// A page of another site whose name leads to the loopback interface.
#[test]
fn another_host_is_refused_on_the_loopback_interface() {
    // A server on all interfaces is reached over this one too.
    check_hosts(&server());
    check_hosts(&kvtile_http::serve("0.0.0.0:0", Vec::new).unwrap());
}

fn check_hosts(server: &HttpServer) {
    let port = server.address().port();
    let address = ([127, 0, 0, 1], port).into();
    for host in ["evil.example", "evil.example:80", "192.168.1.1"] {
        let request = format!("GET /stats.json HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let refused = client::send(address, request.as_bytes());
        assert_eq!(refused.status, "403 Forbidden", "{host}");
        assert!(refused.body.contains("127.0.0.1"), "{}", refused.body);
    }
    for host in [format!("localhost:{port}"), format!("127.0.0.1:{port}")] {
        let request = format!("GET /stats.json HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let answered = client::send(address, request.as_bytes());
        assert_eq!(answered.status, "200 OK", "{host}");
        assert!(!answered.head.contains("Access-Control-Allow-Origin"));
    }
}

#[test]
fn bytes_of_other_protocols_are_refused() {
    let server = server();
    for bytes in [
        &b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"\r\n\r\n\r\nGET\r\n\r\n",
    ] {
        let refused = client::send(server.address(), bytes);
        assert_eq!(refused.status, "400 Bad Request", "{bytes:?}");
    }
}

#[test]
fn a_closed_server_frees_its_port_while_clients_hang() {
    let server = server();
    let address = server.address();
    let hanging: Vec<_> = (0..20).map(|_| client::connect(address)).collect();
    let start = Instant::now();
    server.close();
    assert!(start.elapsed() < Duration::from_secs(5));
    for mut stream in hanging {
        assert_eq!(stream.read(&mut [0; 8]).unwrap_or(0), 0);
    }
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[test]
fn an_address_in_use_is_named() {
    let server = server();
    let address = server.address().to_string();
    let error = kvtile_http::serve(&address, Vec::new)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&address) && error.contains("in use"),
        "{error}"
    );
}
