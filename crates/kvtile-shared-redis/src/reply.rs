//! Replies of a server in RESP2, and commands.
//!
//! ```text
//! reply   = "+" text CRLF | "-" text CRLF | ":" number CRLF
//!         | "$" length CRLF bytes CRLF | "$-1" CRLF
//!         | "*" count CRLF reply… | "*-1" CRLF
//! command = "*" count CRLF ("$" length CRLF bytes CRLF)…
//! ```
//!
//! Servers are not trusted: every length has a limit, and memory is taken for bytes that have come.

use std::io::{self, Read};

use kvtile_shared::store::{SinkState, ValueSink};

use crate::failure::RedisFailure;

/// The longest line of a reply.
const LINE_BYTES_MAX: usize = 64 << 10;

/// The longest text in a reply that is not a value.
const TEXT_BYTES_MAX: usize = 4 << 20;

/// The most parts of a reply.
const PARTS_MAX: usize = 100_000;

/// How deep replies may contain replies.
const DEPTH_MAX: usize = 4;

/// Bytes that are read ahead.
const AHEAD_BYTES: usize = 16 << 10;

/// The rest of a value that is read and dropped to keep the connection.
const REST_BYTES_MAX: u64 = 64 << 10;

/// A reply that is not a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RedisReply {
    Status(String),
    Number(i64),
    Text(Vec<u8>),
    Nothing,
    Parts(Vec<RedisReply>),
}

/// The outcome of reading a value into a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ValueRead {
    /// The server does not have it.
    Absent,
    /// It was read to its end.
    Whole,
    /// The sink took no more bytes; the rest is still to come, so the connection is unusable.
    Cut,
}

/// Reads replies; it reads ahead.
#[derive(Debug)]
pub(crate) struct ReplyReader {
    ahead: Box<[u8]>,
    begin: usize,
    end: usize,
}

impl ReplyReader {
    pub(crate) fn new() -> ReplyReader {
        ReplyReader {
            ahead: vec![0; AHEAD_BYTES].into(),
            begin: 0,
            end: 0,
        }
    }

    /// The next reply. An error of the server is [`RedisFailure::Server`].
    pub(crate) fn reply(&mut self, from: &mut impl Read) -> Result<RedisReply, RedisFailure> {
        self.part(from, 0)
    }

    fn part(&mut self, from: &mut impl Read, depth: usize) -> Result<RedisReply, RedisFailure> {
        let (kind, text) = self.head(from)?;
        match kind {
            b'+' => Ok(RedisReply::Status(text)),
            b'-' if depth == 0 => Err(RedisFailure::Server(text)),
            b'-' => Err(RedisFailure::Protocol("an error within parts")),
            b':' => Ok(RedisReply::Number(number(&text)?)),
            b'$' => match length(&text, TEXT_BYTES_MAX)? {
                None => Ok(RedisReply::Nothing),
                Some(length) => Ok(RedisReply::Text(self.text(from, length)?)),
            },
            b'*' if depth < DEPTH_MAX => match length(&text, PARTS_MAX)? {
                None => Ok(RedisReply::Nothing),
                Some(count) => {
                    let parts = (0..count).map(|_| self.part(from, depth + 1));
                    Ok(RedisReply::Parts(parts.collect::<Result<_, _>>()?))
                }
            },
            b'*' => Err(RedisFailure::Protocol("parts within parts")),
            _ => Err(RedisFailure::Protocol("unknown kind of reply")),
        }
    }

    /// Reads the reply of a `GET` into a sink.
    pub(crate) fn value(
        &mut self,
        from: &mut impl Read,
        sink: &mut dyn ValueSink,
    ) -> Result<ValueRead, RedisFailure> {
        let (kind, text) = self.head(from)?;
        let length = match kind {
            b'$' => length(&text, usize::MAX)?,
            b'-' => return Err(RedisFailure::Server(text)),
            _ => return Err(RedisFailure::Protocol("a value of another kind")),
        };
        let Some(length) = length else {
            return Ok(ValueRead::Absent);
        };
        let mut left = length as u64;
        let mut state = SinkState::Open;
        let mut has_begun = false;
        let failed = |has_begun: bool| {
            move |error: io::Error| {
                let failure = RedisFailure::of_socket(error);
                match has_begun {
                    true => failure.partway(),
                    false => failure,
                }
            }
        };
        while left > 0 && state == SinkState::Open {
            let bytes = match self.begin < self.end {
                true => self.pass_ahead(left, sink, &mut state),
                false => pass(from, left, sink, &mut state).map_err(failed(has_begun))?,
            };
            has_begun |= bytes > 0;
            left -= bytes;
        }
        if left > REST_BYTES_MAX {
            return Ok(ValueRead::Cut);
        }
        self.skip(from, left).map_err(RedisFailure::partway)?;
        self.line_end(from).map_err(RedisFailure::partway)?;
        Ok(ValueRead::Whole)
    }

    /// Passes bytes that were read ahead.
    fn pass_ahead(&mut self, left: u64, sink: &mut dyn ValueSink, state: &mut SinkState) -> u64 {
        let bytes = self.end.saturating_sub(self.begin);
        let bytes = usize::try_from(left).map_or(bytes, |left| left.min(bytes));
        let next = self.ahead.get(self.begin..self.begin + bytes);
        *state = sink.put(next.unwrap_or_default());
        self.begin += bytes;
        bytes as u64
    }

    /// First byte and rest of the next line.
    fn head(&mut self, from: &mut impl Read) -> Result<(u8, String), RedisFailure> {
        let mut line = Vec::new();
        loop {
            match self.byte(from)? {
                b'\r' => break,
                byte if line.len() < LINE_BYTES_MAX => line.push(byte),
                _ => return Err(RedisFailure::Protocol("a line without end")),
            }
        }
        if self.byte(from)? != b'\n' {
            return Err(RedisFailure::Protocol("a line without end"));
        }
        let Some((kind, text)) = line.split_first() else {
            return Err(RedisFailure::Protocol("an empty line"));
        };
        Ok((*kind, String::from_utf8_lossy(text).into_owned()))
    }

    fn text(&mut self, from: &mut impl Read, length: usize) -> Result<Vec<u8>, RedisFailure> {
        let mut text = Vec::new();
        while text.len() < length {
            self.fill(from)?;
            let next = self.ahead.get(self.begin..self.end).unwrap_or_default();
            let bytes = next.len().min(length - text.len());
            text.extend(next.iter().take(bytes));
            self.begin += bytes;
        }
        self.line_end(from)?;
        Ok(text)
    }

    fn skip(&mut self, from: &mut impl Read, bytes: u64) -> Result<(), RedisFailure> {
        for _ in 0..bytes {
            self.byte(from)?;
        }
        Ok(())
    }

    fn line_end(&mut self, from: &mut impl Read) -> Result<(), RedisFailure> {
        match [self.byte(from)?, self.byte(from)?] {
            [b'\r', b'\n'] => Ok(()),
            _ => Err(RedisFailure::Protocol(
                "a text that is longer than its length",
            )),
        }
    }

    fn byte(&mut self, from: &mut impl Read) -> Result<u8, RedisFailure> {
        self.fill(from)?;
        let byte = self.ahead.get(self.begin).copied();
        self.begin += 1;
        byte.ok_or(RedisFailure::Protocol("no byte"))
    }

    /// Reads ahead if nothing is left.
    fn fill(&mut self, from: &mut impl Read) -> Result<(), RedisFailure> {
        if self.begin < self.end {
            return Ok(());
        }
        let bytes = read_some(from, &mut self.ahead).map_err(RedisFailure::of_socket)?;
        (self.begin, self.end) = (0, bytes);
        Ok(())
    }
}

/// Reads the next bytes of a value into the sink's memory.
fn pass(
    from: &mut impl Read,
    left: u64,
    sink: &mut dyn ValueSink,
    state: &mut SinkState,
) -> io::Result<u64> {
    let space = sink.space();
    let bytes = usize::try_from(left).map_or(space.len(), |left| left.min(space.len()));
    let Some(space) = space.get_mut(..bytes).filter(|space| !space.is_empty()) else {
        *state = SinkState::Full;
        return Ok(0);
    };
    let bytes = read_some(from, space)?;
    *state = sink.filled(bytes);
    Ok(bytes as u64)
}

/// At least one byte.
fn read_some(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(into) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

fn number(text: &str) -> Result<i64, RedisFailure> {
    text.parse()
        .map_err(|_| RedisFailure::Protocol("no number"))
}

/// A length or a count; `None` for -1.
fn length(text: &str, max: usize) -> Result<Option<usize>, RedisFailure> {
    match number(text)? {
        -1 => Ok(None),
        length => match usize::try_from(length) {
            Ok(length) if length <= max => Ok(Some(length)),
            _ => Err(RedisFailure::Protocol("a length out of range")),
        },
    }
}

/// Appends a command with short parts.
pub(crate) fn append_command(bytes: &mut Vec<u8>, parts: &[&[u8]]) {
    append_count(bytes, b'*', parts.len());
    for part in parts {
        append_part(bytes, part);
    }
}

/// Appends one part of a command.
pub(crate) fn append_part(bytes: &mut Vec<u8>, part: &[u8]) {
    append_count(bytes, b'$', part.len());
    bytes.extend_from_slice(part);
    bytes.extend_from_slice(b"\r\n");
}

/// Appends a count or a length.
pub(crate) fn append_count(bytes: &mut Vec<u8>, kind: u8, count: usize) {
    bytes.push(kind);
    bytes.extend_from_slice(count.to_string().as_bytes());
    bytes.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sink with memory for `room` bytes, offered in pieces.
    struct PieceSink {
        bytes: Vec<u8>,
        got: usize,
        piece: usize,
    }

    impl PieceSink {
        fn new(room: usize, piece: usize) -> PieceSink {
            PieceSink {
                bytes: vec![0; room],
                got: 0,
                piece,
            }
        }
    }

    impl ValueSink for PieceSink {
        fn space(&mut self) -> &mut [u8] {
            let end = self.bytes.len().min(self.got + self.piece);
            &mut self.bytes[self.got..end]
        }

        fn filled(&mut self, bytes: usize) -> SinkState {
            self.got += bytes;
            assert!(self.got <= self.bytes.len());
            match self.got == self.bytes.len() {
                true => SinkState::Full,
                false => SinkState::Open,
            }
        }
    }

    /// Returns one byte for each read, or all.
    struct Slow<'a>(&'a [u8], bool);

    impl Read for Slow<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let bytes = if self.1 {
                into.len().min(1)
            } else {
                into.len()
            };
            (&mut self.0).take(bytes as u64).read(into)
        }
    }

    fn replies(bytes: &[u8], slow: bool) -> Vec<Result<RedisReply, RedisFailure>> {
        let (mut reader, mut from) = (ReplyReader::new(), Slow(bytes, slow));
        let mut replies = Vec::new();
        loop {
            let reply = reader.reply(&mut from);
            let ends = !matches!(reply, Ok(_) | Err(RedisFailure::Server(_)));
            replies.push(reply);
            if ends {
                return replies;
            }
        }
    }

    #[test]
    fn replies_are_read_in_any_pieces() {
        let bytes = b"+OK\r\n:-7\r\n$3\r\na\r\n\r\n$-1\r\n-ERR no\r\n*2\r\n$1\r\n0\r\n*1\r\n$1\r\nk\r\n*-1\r\n$0\r\n\r\n";
        for slow in [false, true] {
            let got = replies(bytes, slow);
            let shown: Vec<String> = got.iter().map(|reply| format!("{reply:?}")).collect();
            assert_eq!(
                shown[..8],
                [
                    "Ok(Status(\"OK\"))",
                    "Ok(Number(-7))",
                    "Ok(Text([97, 13, 10]))",
                    "Ok(Nothing)",
                    "Err(Server(\"ERR no\"))",
                    "Ok(Parts([Text([48]), Parts([Text([107])])]))",
                    "Ok(Nothing)",
                    "Ok(Text([]))",
                ]
            );
            assert!(shown[8].contains("UnexpectedEof"), "{}", shown[8]);
        }
    }

    #[test]
    fn hostile_replies_end_with_an_error_and_take_no_memory() {
        let deep = b"*1\r\n".repeat(10);
        let long = [b"+".as_slice(), &[b'a'; 70_000], b"\r\n"].concat();
        for bytes in [
            b"$99999999999\r\n".as_slice(),
            b"$-2\r\n",
            b"*100001\r\n",
            b"$1\r\nab\r\n",
            b"$x\r\n",
            b"!3\r\n",
            b"\r\n",
            b"+a\rb",
            b"*1\r\n-ERR no\r\n",
            b"HTTP/1.1 400 Bad Request\r\n",
            &deep,
            &long,
        ] {
            let last = replies(bytes, false).pop().unwrap();
            assert!(matches!(last, Err(RedisFailure::Protocol(_))), "{last:?}");
        }
        let begun = replies(b"$100\r\nabc", true).pop().unwrap();
        assert!(matches!(begun, Err(RedisFailure::Broken(_))), "{begun:?}");
    }

    #[test]
    fn a_value_goes_into_the_sink_whatever_its_pieces() {
        let body: Vec<u8> = (0..50_000_u32).map(|i| i.to_le_bytes()[0]).collect();
        for (length, piece) in [(0, 7), (1, 7), (5000, 7), (40_000, 1000), (50_000, 50_000)] {
            let value = &body[..length];
            let header = format!("${length}\r\n").into_bytes();
            let bytes = [header.as_slice(), value, b"\r\n:5\r\n"].concat();
            for slow in [false, true] {
                let (mut reader, mut from) = (ReplyReader::new(), Slow(&bytes, slow));
                let mut sink = PieceSink::new(length.max(1), piece);
                let read = reader.value(&mut from, &mut sink).unwrap();
                assert_eq!((read, sink.got), (ValueRead::Whole, length));
                assert_eq!(&sink.bytes[..length], value);
                assert_eq!(reader.reply(&mut from).unwrap(), RedisReply::Number(5));
            }
        }
    }

    #[test]
    fn a_full_sink_ends_a_value_and_long_rests_are_not_read() {
        let of = |length: usize, room: usize| {
            let header = format!("${length}\r\n").into_bytes();
            let bytes = [header, vec![3; length], b"\r\n".to_vec()].concat();
            let mut sink = PieceSink::new(room, 1000);
            let read = ReplyReader::new().value(&mut Slow(&bytes, false), &mut sink);
            (read.unwrap(), sink.got)
        };
        assert_eq!(of(5000, 10), (ValueRead::Whole, 10));
        assert_eq!(of(200_000, 10), (ValueRead::Cut, 10));
    }

    #[test]
    fn a_value_that_ends_early_is_partway() {
        let mut sink = PieceSink::new(100, 100);
        let read = ReplyReader::new().value(&mut Slow(b"$100\r\nabc", false), &mut sink);
        assert!(matches!(read, Err(RedisFailure::Partway(_))), "{read:?}");
        let mut sink = PieceSink::new(100, 100);
        let read = ReplyReader::new().value(&mut Slow(b"$100\r\n", false), &mut sink);
        assert!(matches!(read, Err(RedisFailure::Broken(_))), "{read:?}");
        let read = ReplyReader::new().value(&mut Slow(b"$-1\r\n", false), &mut sink);
        assert_eq!(read.unwrap(), ValueRead::Absent);
    }

    #[test]
    fn a_command_has_its_parts_with_their_lengths() {
        let mut bytes = Vec::new();
        append_command(&mut bytes, &[b"GET", b"a\r\nb"]);
        assert_eq!(bytes, b"*2\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\n");
    }
}
