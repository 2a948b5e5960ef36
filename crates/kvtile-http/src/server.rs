//! The server: a socket and the thread that takes its connections.

use std::{
    fmt,
    io::{self, Write},
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixStream,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, poll};

use crate::{
    HttpError, address, connections::OpenConnections, report::CacheReport, respond::Observer,
};

/// The pause after a connection could not be taken: the process may have no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A server that runs until it is closed or dropped.
pub struct HttpServer {
    address: SocketAddr,
    connections: Arc<OpenConnections>,
    /// Ends the thread when it is dropped.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

/// Serves what `caches` returns on `address`: `HOST:PORT`, or `PORT` alone for the loopback interface;
/// port 0 is a free port. Over the loopback interface the server only answers requests for its names.
///
/// `caches` is called at most ten times a second, on threads of the server, by one at a time. It must
/// not wait for I/O. Where it panics, the request fails.
///
/// # Errors
/// A text that is not an address; an address that is in use; a thread that cannot be started.
pub fn serve(
    address: &str,
    caches: impl Fn() -> Vec<CacheReport> + Send + Sync + 'static,
) -> Result<HttpServer, HttpError> {
    let wanted = address::parse(address)?;
    let listen = |source: io::Error| HttpError::Listen {
        address: wanted,
        source: Arc::new(source),
    };
    let listener = TcpListener::bind(wanted).map_err(listen)?;
    listener.set_nonblocking(true).map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let (stop, stopped) = UnixStream::pair().map_err(listen)?;
    if !address.ip().is_loopback() {
        log::warn!(
            "{address} is not on the loopback interface: every machine that reaches it can read the names \
             of the models and the numbers of the caches"
        );
    }
    let observer = Arc::new(Observer::new(Box::new(caches)));
    let connections = Arc::<OpenConnections>::default();
    let taken = Arc::clone(&connections);
    let thread = std::thread::Builder::new().name("kvtile-http".to_owned());
    let thread = thread.spawn(move || {
        while let Some(came) = next(&listener, &stopped) {
            match came {
                Ok(stream) => taken.take(stream, &observer),
                Err(error) => {
                    log::warn!("the HTTP server cannot take a connection: {error}");
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    });
    let thread = thread.map_err(|source| HttpError::Thread {
        source: Arc::new(source),
    })?;
    Ok(HttpServer {
        address,
        connections,
        stop: Some(stop),
        thread: Some(thread),
    })
}

/// The next connection; `None` once the server is closed.
fn next(listener: &TcpListener, stopped: &UnixStream) -> Option<io::Result<std::net::TcpStream>> {
    loop {
        let mut ready = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(stopped, PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Some(Err(error.into())),
        }
        let [_, stop] = &ready;
        if !stop.revents().is_empty() {
            return None;
        }
        match listener.accept() {
            Ok((stream, _)) => {
                let blocking = stream.set_nonblocking(false);
                return Some(blocking.map(|()| stream));
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::Interrupted
                        | io::ErrorKind::ConnectionAborted
                ) => {}
            Err(error) => return Some(Err(error)),
        }
    }
}

impl HttpServer {
    /// The address that it listens on, with its port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of the page. For a server on all interfaces it is that of the loopback interface.
    #[must_use]
    pub fn url(&self) -> String {
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(match address.is_ipv4() {
                true => std::net::Ipv4Addr::LOCALHOST.into(),
                false => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        format!("http://{address}/")
    }

    /// Ends the server: it takes no further connections, and the open ones end.
    pub fn close(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(mut stop) = self.stop.take() {
            // The thread also sees the end of the stream, so a failure is none.
            let _ = stop.write_all(&[0]);
        }
        if let Some(thread) = self.thread.take() {
            // Its panics are in the log.
            let _ = thread.join();
        }
        self.connections.close();
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for HttpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpServer")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
