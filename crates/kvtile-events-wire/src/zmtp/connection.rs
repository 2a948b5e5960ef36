//! A connection after its handshake: messages of frames.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use crate::error::WireError;

/// Time for a handshake, and for a peer to take what is written to it.
const PEER_WITHIN: Duration = Duration::from_secs(5);

/// Bytes of the largest message.
const MESSAGE_BYTES_MAX: u64 = 64 << 20;

/// Frames of the largest message.
const FRAMES_MAX: usize = 16;

/// Bytes of the largest command.
const COMMAND_BYTES_MAX: u64 = 64 << 10;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// The types of sockets that this crate is or meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketType {
    Pub,
    Sub,
    Router,
    Dealer,
}

impl SocketType {
    fn name(self) -> &'static str {
        match self {
            SocketType::Pub => "PUB",
            SocketType::Sub => "SUB",
            SocketType::Router => "ROUTER",
            SocketType::Dealer => "DEALER",
        }
    }

    /// The types that the socket talks to, by name.
    fn peers(self) -> (&'static str, &'static [&'static str]) {
        match self {
            SocketType::Pub => ("SUB", &["SUB", "XSUB"]),
            SocketType::Sub => ("PUB", &["PUB", "XPUB"]),
            SocketType::Router => ("REQ or DEALER", &["REQ", "DEALER", "ROUTER"]),
            SocketType::Dealer => ("ROUTER", &["ROUTER", "REP", "DEALER"]),
        }
    }
}

/// A frame, or a command.
enum ZmtpFrame {
    Part { body: Vec<u8>, is_last: bool },
    Command(Vec<u8>),
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
}

impl Connection {
    /// Shakes hands as a socket of this type.
    ///
    /// # Errors
    /// [`WireError::Peer`] where the other side is none that the socket talks to, [`WireError::Socket`].
    pub(crate) fn open(stream: TcpStream, own: SocketType) -> Result<Connection, WireError> {
        let mut connection = Connection { stream };
        let peer = connection.shake(own);
        let (expected, known) = own.peers();
        let problem = match peer {
            Ok(peer) if known.contains(&peer.as_str()) => return Ok(connection),
            Ok(peer) => format!("it is {peer:?}"),
            Err(error) => error.to_string(),
        };
        Err(WireError::Peer { expected, problem })
    }

    fn shake(&mut self, own: SocketType) -> io::Result<String> {
        self.stream.set_nodelay(true)?;
        self.stream.set_read_timeout(Some(PEER_WITHIN))?;
        self.stream.set_write_timeout(Some(PEER_WITHIN))?;
        let mut greeting = [0; 64];
        let fields: [(usize, &[u8]); 4] =
            [(0, &[0xff]), (9, &[0x7f]), (10, &[3, 0]), (12, b"NULL")];
        for (at, bytes) in fields {
            if let Some(place) = greeting.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        }
        self.stream.write_all(&greeting)?;
        let mut theirs = [0; 64];
        self.stream.read_exact(&mut theirs)?;
        let version = theirs.get(10).copied().unwrap_or_default();
        let is_signed = theirs.first() == Some(&0xff) && theirs.get(9).is_some_and(|b| b & 1 == 1);
        if !is_signed || version < 3 {
            return Err(io::Error::other("it does not greet as ZMTP 3"));
        }
        if theirs.get(12..32) != greeting.get(12..32) {
            return Err(io::Error::other("it does not use the mechanism NULL"));
        }
        let mut ready = b"\x05READY".to_vec();
        property(&mut ready, "Socket-Type", own.name().as_bytes());
        if matches!(own, SocketType::Router | SocketType::Dealer) {
            property(&mut ready, "Identity", b"");
        }
        self.write_frame(COMMAND, &ready)?;
        match self.frame(0)? {
            ZmtpFrame::Command(body) => socket_type(&body),
            ZmtpFrame::Part { .. } => Err(io::Error::other("it is not ready")),
        }
    }

    /// A second handle to the connection, to read and write on two threads.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn split(&self) -> io::Result<Connection> {
        let stream = self.stream.try_clone()?;
        Ok(Connection { stream })
    }

    /// Ends both directions, also for other handles.
    pub(crate) fn shut(&self) {
        // It may be closed already.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// Writes a message.
    ///
    /// # Errors
    /// The system's error, or that the peer does not take it in time.
    pub(crate) fn write(&mut self, frames: &[&[u8]]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for (at, body) in frames.iter().enumerate() {
            let flags = if at + 1 < frames.len() { MORE } else { 0 };
            append_frame(&mut bytes, flags, body);
        }
        self.stream.write_all(&bytes)
    }

    fn write_frame(&mut self, flags: u8, body: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::new();
        append_frame(&mut bytes, flags, body);
        self.stream.write_all(&bytes)
    }

    /// The next message; `None` where none begins within the time. A message that begins has
    /// [`PEER_WITHIN`] for each of its reads.
    ///
    /// # Errors
    /// The system's error, [`io::ErrorKind::UnexpectedEof`] where the peer has closed, a message that is too
    /// large, or a frame that is none.
    pub(crate) fn next(&mut self, within: Duration) -> io::Result<Option<Vec<Vec<u8>>>> {
        self.stream
            .set_read_timeout(Some(within.max(Duration::from_millis(1))))?;
        match self.stream.peek(&mut [0]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if is_timeout(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
        self.stream.set_read_timeout(Some(PEER_WITHIN))?;
        let mut frames = Vec::new();
        let mut bytes = 0;
        loop {
            match self.frame(bytes)? {
                ZmtpFrame::Command(body) => {
                    self.answer(&body)?;
                    if frames.is_empty() {
                        return Ok(None);
                    }
                }
                ZmtpFrame::Part { body, is_last } => {
                    bytes += body.len() as u64;
                    frames.push(body);
                    if is_last {
                        return Ok(Some(frames));
                    }
                    if frames.len() == FRAMES_MAX {
                        return Err(io::Error::other("a message with too many frames"));
                    }
                }
            }
        }
    }

    /// Answers a PING: 4 "PING", a time to live of 2 bytes, a context that the PONG repeats.
    fn answer(&mut self, command: &[u8]) -> io::Result<()> {
        let Some(context) = command
            .strip_prefix(b"\x04PING")
            .and_then(|rest| rest.get(2..))
        else {
            return Ok(());
        };
        let pong = [b"\x04PONG", context].concat();
        self.write_frame(COMMAND, &pong)
    }

    fn frame(&mut self, before: u64) -> io::Result<ZmtpFrame> {
        let mut flags = [0; 1];
        self.stream.read_exact(&mut flags)?;
        let [flags] = flags;
        if flags & !(MORE | LONG | COMMAND) != 0 {
            return Err(io::Error::other(
                "a frame with flags that ZMTP 3 does not have",
            ));
        }
        let length = if flags & LONG == 0 {
            let mut length = [0; 1];
            self.stream.read_exact(&mut length)?;
            u64::from(u8::from_be_bytes(length))
        } else {
            let mut length = [0; 8];
            self.stream.read_exact(&mut length)?;
            u64::from_be_bytes(length)
        };
        let is_command = flags & COMMAND != 0;
        let most = match is_command {
            true => COMMAND_BYTES_MAX,
            false => MESSAGE_BYTES_MAX.saturating_sub(before),
        };
        if length > most {
            return Err(io::Error::other(format!(
                "a frame of {length} bytes is too long"
            )));
        }
        // The body grows with the bytes that come: the length may be a lie.
        let mut body = Vec::new();
        (&mut self.stream).take(length).read_to_end(&mut body)?;
        if body.len() as u64 != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(match is_command {
            true => ZmtpFrame::Command(body),
            false => ZmtpFrame::Part {
                body,
                is_last: flags & MORE == 0,
            },
        })
    }
}

/// Whether a read ended because nothing came in time.
fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

fn append_frame(bytes: &mut Vec<u8>, flags: u8, body: &[u8]) {
    match u8::try_from(body.len()) {
        Ok(length) => bytes.extend([flags, length]),
        Err(_) => {
            bytes.push(flags | LONG);
            bytes.extend((body.len() as u64).to_be_bytes());
        }
    }
    bytes.extend(body);
}

/// Appends a property to a READY command.
fn property(command: &mut Vec<u8>, name: &str, value: &[u8]) {
    command.extend(
        u8::try_from(name.len())
            .map(u8::to_be_bytes)
            .unwrap_or_default(),
    );
    command.extend(name.as_bytes());
    command.extend(u32::try_from(value.len()).unwrap_or_default().to_be_bytes());
    command.extend(value);
}

/// The socket type of a READY command.
fn socket_type(command: &[u8]) -> io::Result<String> {
    let Some(mut rest) = command.strip_prefix(b"\x05READY") else {
        let text = String::from_utf8_lossy(command).into_owned();
        return Err(io::Error::other(format!(
            "it answers {text:?} instead of READY"
        )));
    };
    while let Some((name, value, behind)) = split_property(rest) {
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            return Ok(String::from_utf8_lossy(value).into_owned());
        }
        rest = behind;
    }
    Err(io::Error::other("it does not name its socket type"))
}

/// The name and the value of the first property, and what is behind it.
fn split_property(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(*length))?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (value, rest) = rest.split_at_checked(length)?;
    Some((name, value, rest))
}
