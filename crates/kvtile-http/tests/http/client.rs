//! A client that sends any bytes.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// The status line, the headers and the body of a response.
#[derive(Debug)]
pub(crate) struct RawResponse {
    pub(crate) status: String,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// Sends `request` and reads until the server ends the connection.
pub(crate) fn send(address: SocketAddr, request: &[u8]) -> RawResponse {
    let mut stream = connect(address);
    stream.write_all(request).unwrap();
    response(stream)
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    stream
}

pub(crate) fn response(mut stream: TcpStream) -> RawResponse {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.lines().next().unwrap_or_default();
    RawResponse {
        status: status
            .strip_prefix("HTTP/1.1 ")
            .unwrap_or(status)
            .to_owned(),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

pub(crate) fn get(address: SocketAddr, path: &str) -> RawResponse {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    send(address, request.as_bytes())
}
