//! A bounded number of connections, each with one request and a time limit.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{
    request::{self, HEAD_BYTES_MAX},
    respond::{Observer, refuse},
};

/// The most connections at a time. A further one ends the oldest one that has not sent its request.
pub(crate) const CONNECTIONS_MAX: usize = 32;

/// The time limit of a request.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);

/// The time limit of a response.
const RESPONSE_WITHIN: Duration = Duration::from_secs(10);

/// After a response, what the client still sends is read for this long and up to this many bytes, so
/// that the system does not drop the response with the connection.
const LINGER: (Duration, usize) = (Duration::from_millis(500), 64 << 10);

/// Stack of a connection's thread.
const STACK_BYTES: usize = 512 << 10;

/// A connection that has a thread.
struct OpenConnection {
    number: u64,
    stream: Arc<TcpStream>,
    /// Whether its request has not arrived yet.
    is_reading: bool,
}

/// The connections of a server.
#[derive(Default)]
pub(crate) struct OpenConnections {
    state: Mutex<ConnectionList>,
}

#[derive(Default)]
struct ConnectionList {
    is_closed: bool,
    next: u64,
    /// In the order of their numbers.
    open: Vec<OpenConnection>,
}

impl OpenConnections {
    /// Serves a connection on a thread of its own; drops it if there are too many.
    pub(crate) fn take(self: &Arc<Self>, stream: TcpStream, observer: &Arc<Observer>) {
        // Also where the server listens on all interfaces.
        let on_loopback = stream
            .local_addr()
            .is_ok_and(|address| address.ip().to_canonical().is_loopback());
        let stream = Arc::new(stream);
        let Some(number) = self.add(&stream) else {
            return;
        };
        let connections = Arc::clone(self);
        let observer = Arc::clone(observer);
        let work = move || {
            // A client that ends the connection early is no event.
            let _ = connections.serve(number, &stream, &observer, on_loopback);
            connections.remove(number);
        };
        let thread = std::thread::Builder::new()
            .name("kvtile-http-page".to_owned())
            .stack_size(STACK_BYTES);
        if let Err(error) = thread.spawn(work) {
            log::warn!("a connection of the HTTP server has no thread: {error}");
            self.remove(number);
        }
    }

    fn add(&self, stream: &Arc<TcpStream>) -> Option<u64> {
        let mut state = self.state.lock();
        if state.is_closed {
            return None;
        }
        if state.open.len() >= CONNECTIONS_MAX {
            let oldest = state.open.iter().position(|one| one.is_reading)?;
            let oldest = state.open.remove(oldest);
            let _ = oldest.stream.shutdown(Shutdown::Both);
        }
        let number = state.next;
        state.next += 1;
        state.open.push(OpenConnection {
            number,
            stream: Arc::clone(stream),
            is_reading: true,
        });
        Some(number)
    }

    fn remove(&self, number: u64) {
        self.state.lock().open.retain(|one| one.number != number);
    }

    /// Ends all connections, and refuses further ones.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        for one in state.open.drain(..) {
            let _ = one.stream.shutdown(Shutdown::Both);
        }
    }

    fn serve(
        &self,
        number: u64,
        stream: &TcpStream,
        observer: &Observer,
        on_loopback: bool,
    ) -> io::Result<()> {
        let end = Instant::now() + REQUEST_WITHIN;
        let mut head = Vec::new();
        let request = loop {
            if let Some(request) = request::parse(&head, on_loopback) {
                break request;
            }
            let mut some = [0; 2048];
            let room = HEAD_BYTES_MAX.saturating_sub(head.len()).min(some.len());
            let (some, _) = some.split_at_mut(room);
            match read_by(stream, some, end)? {
                0 => return Ok(()),
                bytes => head.extend_from_slice(some.get(..bytes).unwrap_or_default()),
            }
        };
        let mut state = self.state.lock();
        let one = state.open.iter_mut().find(|one| one.number == number);
        let Some(one) = one else {
            // It gave way to another connection.
            return Ok(());
        };
        one.is_reading = false;
        drop(state);
        let response = match request {
            Ok(request) => observer.respond(&request),
            Err(refusal) => refuse(refusal),
        };
        write_by(stream, &response, Instant::now() + RESPONSE_WITHIN)?;
        linger(stream)
    }
}

/// Time until `end`, at least the shortest timeout that a socket takes.
fn left(end: Instant) -> io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    match left.is_zero() {
        true => Err(io::ErrorKind::TimedOut.into()),
        false => Ok(left.max(Duration::from_millis(1))),
    }
}

fn read_by(mut stream: &TcpStream, to: &mut [u8], end: Instant) -> io::Result<usize> {
    loop {
        stream.set_read_timeout(Some(left(end)?))?;
        match stream.read(to) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn write_by(mut stream: &TcpStream, mut bytes: &[u8], end: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(left(end)?))?;
        match stream.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn linger(stream: &TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    let (time, mut bytes) = LINGER;
    let end = Instant::now() + time;
    let mut some = [0; 4096];
    while bytes > 0 {
        match read_by(stream, &mut some, end)? {
            0 => break,
            read => bytes = bytes.saturating_sub(read),
        }
    }
    Ok(())
}
