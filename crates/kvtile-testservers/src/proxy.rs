//! A TCP proxy that delays bytes, or loses those of one direction.
//!
//! ```text
//! client ──► reader ──[bytes, due time]──► writer ──► server
//! client ◄── writer ◄─[bytes, due time]─── reader ◄── server
//! ```
//!
//! The delay is that of a longer line: bytes leave in order, each some time after it came, and the
//! rate stays.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Pieces of one direction that are on their way.
const PIECES: usize = 256;

/// The most bytes of a piece.
const PIECE_BYTES: usize = 64 << 10;

/// A direction, seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyDirection {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

#[derive(Debug, Default)]
struct ProxyState {
    delay_micros: AtomicU64,
    loses_up: AtomicBool,
    loses_down: AtomicBool,
    is_closed: AtomicBool,
    connections: AtomicU64,
    streams: Mutex<Vec<TcpStream>>,
}

impl ProxyState {
    fn loses(&self, direction: ProxyDirection) -> &AtomicBool {
        match direction {
            ProxyDirection::Up => &self.loses_up,
            ProxyDirection::Down => &self.loses_down,
        }
    }
}

/// A proxy before one port of the loopback interface. Dropped, it ends all connections.
#[derive(Debug)]
pub struct DelayProxy {
    port: u16,
    state: Arc<ProxyState>,
}

impl DelayProxy {
    /// A proxy before `server`, without a delay.
    ///
    /// # Errors
    /// No port.
    pub fn before(server: u16) -> io::Result<DelayProxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(ProxyState::default());
        let shared = Arc::clone(&state);
        thread::Builder::new()
            .name("proxy".to_owned())
            .spawn(move || accept(&listener, server, &shared))?;
        Ok(DelayProxy { port, state })
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Delays all bytes of both directions by half of this each.
    pub fn set_round_trip(&self, round_trip: Duration) {
        let half = u64::try_from(round_trip.as_micros() / 2).unwrap_or(u64::MAX);
        self.state.delay_micros.store(half, Ordering::SeqCst);
    }

    /// Loses the bytes of a direction from now on, or no more. Connections stay.
    pub fn set_loses(&self, direction: ProxyDirection, loses: bool) {
        self.state.loses(direction).store(loses, Ordering::SeqCst);
    }

    /// Number of connections that were made.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Ends all connections; new ones are accepted.
    pub fn cut(&self) {
        for stream in self.state.streams.lock().drain(..) {
            // It may have ended.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for DelayProxy {
    fn drop(&mut self) {
        self.state.is_closed.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

fn accept(listener: &TcpListener, server: u16, state: &Arc<ProxyState>) {
    for client in listener.incoming() {
        if state.is_closed.load(Ordering::SeqCst) {
            return;
        }
        state.connections.fetch_add(1, Ordering::SeqCst);
        let joined = client.and_then(|client| join(client, server, state));
        if let Err(error) = joined {
            log::debug!("proxy before {server}: {error}");
        }
    }
}

/// Connects a client with the server. If the server is down, the client's connection ends.
fn join(client: TcpStream, server: u16, state: &Arc<ProxyState>) -> io::Result<()> {
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, server));
    let server = TcpStream::connect_timeout(&server, Duration::from_secs(2))?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        state.streams.lock().push(stream.try_clone()?);
    }
    let back = (server.try_clone()?, client.try_clone()?);
    carry((client, server), ProxyDirection::Up, state)?;
    carry(back, ProxyDirection::Down, state)
}

fn carry(
    (mut from, mut to): (TcpStream, TcpStream),
    direction: ProxyDirection,
    state: &Arc<ProxyState>,
) -> io::Result<()> {
    let (pieces, due) = mpsc::sync_channel::<(Instant, Vec<u8>)>(PIECES);
    let reads = Arc::clone(state);
    let read = move || {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(bytes) = from.read(&mut buffer) {
            let delay = Duration::from_micros(reads.delay_micros.load(Ordering::SeqCst));
            let piece = buffer.get(..bytes).unwrap_or_default().to_vec();
            // An empty piece is the end.
            if pieces.send((Instant::now() + delay, piece)).is_err() || bytes == 0 {
                return;
            }
        }
    };
    let writes = Arc::clone(state);
    let write = move || {
        for (due, piece) in due {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if writes.loses(direction).load(Ordering::SeqCst) {
                continue;
            }
            if piece.is_empty() || to.write_all(&piece).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    };
    thread::Builder::new()
        .name("proxy-read".to_owned())
        .spawn(read)?;
    thread::Builder::new()
        .name("proxy-write".to_owned())
        .spawn(write)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets.
    fn echo() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming().take(3) {
                let mut stream = stream.unwrap();
                thread::spawn(move || io::copy(&mut stream.try_clone().unwrap(), &mut stream));
            }
        });
        port
    }

    fn ping(stream: &mut TcpStream) -> io::Result<Duration> {
        let began = Instant::now();
        stream.write_all(b"ping")?;
        let mut back = [0; 4];
        stream.read_exact(&mut back)?;
        assert_eq!(&back, b"ping");
        Ok(began.elapsed())
    }

    #[test]
    fn bytes_are_delayed_lost_and_cut() {
        let proxy = DelayProxy::before(echo()).unwrap();
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
        ping(&mut stream).unwrap();
        proxy.set_round_trip(Duration::from_millis(80));
        assert!(ping(&mut stream).unwrap() >= Duration::from_millis(80));
        proxy.set_round_trip(Duration::ZERO);
        for direction in [ProxyDirection::Up, ProxyDirection::Down] {
            proxy.set_loses(direction, true);
            stream
                .set_read_timeout(Some(Duration::from_millis(100)))
                .unwrap();
            assert!(ping(&mut stream).is_err());
            proxy.set_loses(direction, false);
        }
        stream.set_read_timeout(None).unwrap();
        ping(&mut stream).unwrap();
        proxy.cut();
        assert!(ping(&mut stream).is_err());
        assert_eq!(proxy.connections(), 1);
    }
}
