//! A socket on which every operation ends by a deadline.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    os::unix::net::UnixStream,
    sync::mpsc,
    thread,
};

use kvtile_shared::store::Deadline;

use crate::url::RedisAddress;

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connected socket. Each read and write waits until the deadline at most.
#[derive(Debug)]
pub(crate) struct RedisSocket {
    stream: Stream,
    by: Deadline,
}

impl RedisSocket {
    /// Connects by the deadline.
    pub(crate) fn connect(address: &RedisAddress, by: Deadline) -> io::Result<RedisSocket> {
        let stream = match address {
            RedisAddress::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
            RedisAddress::Tcp { host, port } => Stream::Tcp(connect_tcp(host, *port, by)?),
        };
        Ok(RedisSocket { stream, by })
    }

    /// The deadline of the next operations.
    pub(crate) fn set_deadline(&mut self, by: Deadline) {
        self.by = by;
    }
}

impl Read for RedisSocket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.by.left();
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match &mut self.stream {
            Stream::Tcp(tcp) => {
                tcp.set_read_timeout(Some(left))?;
                tcp.read(into)
            }
            Stream::Unix(unix) => {
                unix.set_read_timeout(Some(left))?;
                unix.read(into)
            }
        }
    }
}

impl Write for RedisSocket {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let left = self.by.left();
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match &mut self.stream {
            Stream::Tcp(tcp) => {
                tcp.set_write_timeout(Some(left))?;
                tcp.write(from)
            }
            Stream::Unix(unix) => {
                unix.set_write_timeout(Some(left))?;
                unix.write(from)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tcp(tcp) => tcp.flush(),
            Stream::Unix(unix) => unix.flush(),
        }
    }
}

fn connect_tcp(host: &str, port: u16, by: Deadline) -> io::Result<TcpStream> {
    let mut problem = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    for address in addresses(host, port, by)? {
        let left = by.left();
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(tcp) => {
                // A command is written in a few pieces. Without this option the second one waits for the
                // acknowledgement of the first.
                tcp.set_nodelay(true)?;
                return Ok(tcp);
            }
            Err(error) => problem = error,
        }
    }
    Err(problem)
}

/// The addresses of a host. A name lookup has no time limit, so a thread of its own does it.
fn addresses(host: &str, port: u16, by: Deadline) -> io::Result<Vec<SocketAddr>> {
    let target = format!("{host}:{port}");
    if let Ok(address) = target.parse::<SocketAddr>() {
        return Ok(vec![address]);
    }
    let (found, answer) = mpsc::sync_channel(1);
    let lookup = move || {
        let addresses = target.to_socket_addrs().map(Iterator::collect);
        // The caller may have stopped waiting.
        let _ = found.send(addresses);
    };
    thread::Builder::new()
        .name("kvtile-lookup".to_owned())
        .spawn(lookup)?;
    match answer.recv_timeout(by.left()) {
        Ok(addresses) => addresses,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
