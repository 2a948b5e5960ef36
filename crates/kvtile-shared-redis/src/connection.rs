//! A connection: one command, or one group of short ones, at a time.

use std::{io::Write, ops::Range};

use kvtile_shared::store::{Deadline, ValueSink};

use crate::{
    failure::RedisFailure,
    reply::{RedisReply, ReplyReader, ValueRead, append_command, append_count, append_part},
    socket::RedisSocket,
    url::RedisUrl,
};

/// Parts of a value shorter than this are sent together.
const TOGETHER_BYTES: usize = 16 << 10;

/// The last byte of a range; servers take signed numbers, and values are shorter.
const RANGE_MAX: u64 = u64::MAX >> 1;

/// A connection that is logged in and uses the database of the URL.
#[derive(Debug)]
pub(crate) struct RedisConnection {
    socket: RedisSocket,
    reader: ReplyReader,
}

impl RedisConnection {
    /// Connects and logs in by the deadline.
    pub(crate) fn open(url: &RedisUrl, by: Deadline) -> Result<RedisConnection, RedisFailure> {
        let socket = RedisSocket::connect(&url.address, by);
        let socket = socket.map_err(|error| match RedisFailure::of_socket(error) {
            RedisFailure::Broken(error) => RedisFailure::Connect(error),
            other => other,
        })?;
        let mut connection = RedisConnection {
            socket,
            reader: ReplyReader::new(),
        };
        match (&url.user, &url.password) {
            (Some(user), password) => {
                let password = password.as_deref().unwrap_or_default().as_bytes();
                connection.call(&[b"AUTH", user.as_bytes(), password], by)?;
            }
            (None, Some(password)) => {
                connection.call(&[b"AUTH", password.as_bytes()], by)?;
            }
            (None, None) => {}
        }
        if url.database != 0 {
            let database = url.database.to_string();
            connection.call(&[b"SELECT", database.as_bytes()], by)?;
        }
        Ok(connection)
    }

    /// One command with short parts.
    pub(crate) fn call(
        &mut self,
        command: &[&[u8]],
        by: Deadline,
    ) -> Result<RedisReply, RedisFailure> {
        let mut bytes = Vec::new();
        append_command(&mut bytes, command);
        self.send(&bytes, by)?;
        self.reader.reply(&mut self.socket)
    }

    /// Short commands at once, and their replies. If the server refuses any of them, this is the
    /// first refusal, after all replies were read.
    pub(crate) fn pipeline(
        &mut self,
        commands: &[Vec<&[u8]>],
        by: Deadline,
    ) -> Result<Vec<RedisReply>, RedisFailure> {
        self.pipeline_each(commands, by)?.into_iter().collect()
    }

    /// Short commands at once, and for each its reply or the refusal of the server.
    pub(crate) fn pipeline_each(
        &mut self,
        commands: &[Vec<&[u8]>],
        by: Deadline,
    ) -> Result<Vec<Result<RedisReply, RedisFailure>>, RedisFailure> {
        let mut bytes = Vec::new();
        for command in commands {
            append_command(&mut bytes, command);
        }
        self.send(&bytes, by)?;
        let mut replies = Vec::with_capacity(commands.len());
        for _ in commands {
            match self.reader.reply(&mut self.socket) {
                Err(failure) if !failure.keeps_connection() => return Err(failure),
                reply => replies.push(reply),
            }
        }
        Ok(replies)
    }

    /// Reads a value into a sink, or some bytes of it. The server passes the bytes of a range that the value has, and none
    /// of an absent value.
    pub(crate) fn get(
        &mut self,
        key: &str,
        range: Option<&Range<u64>>,
        sink: &mut dyn ValueSink,
        by: Deadline,
    ) -> Result<ValueRead, RedisFailure> {
        let mut bytes = Vec::new();
        match range {
            None => append_command(&mut bytes, &[b"GET", key.as_bytes()]),
            Some(range) => {
                // The last byte is part of the server's range.
                let (first, last) = (range.start, range.end.saturating_sub(1));
                let (first, last) = (first.to_string(), last.min(RANGE_MAX).to_string());
                let (first, last) = (first.as_bytes(), last.as_bytes());
                append_command(&mut bytes, &[b"GETRANGE", key.as_bytes(), first, last]);
            }
        }
        self.send(&bytes, by)?;
        self.reader.value(&mut self.socket, sink)
    }

    /// Writes a value if it is absent. `milliseconds` is its lifetime. Returns whether it was absent.
    pub(crate) fn set(
        &mut self,
        key: &str,
        value: &[&[u8]],
        milliseconds: Option<u64>,
        by: Deadline,
    ) -> Result<bool, RedisFailure> {
        let mut bytes = Vec::new();
        append_count(&mut bytes, b'*', if milliseconds.is_some() { 6 } else { 4 });
        append_part(&mut bytes, b"SET");
        append_part(&mut bytes, key.as_bytes());
        append_count(&mut bytes, b'$', value.iter().map(|part| part.len()).sum());
        for part in value {
            match part.len() + bytes.len() < TOGETHER_BYTES {
                true => bytes.extend_from_slice(part),
                false => {
                    self.send(&bytes, by)?;
                    bytes.clear();
                    self.send(part, by)?;
                }
            }
        }
        bytes.extend_from_slice(b"\r\n");
        append_part(&mut bytes, b"NX");
        if let Some(milliseconds) = milliseconds {
            append_part(&mut bytes, b"PX");
            append_part(&mut bytes, milliseconds.to_string().as_bytes());
        }
        self.send(&bytes, by)?;
        match self.reader.reply(&mut self.socket)? {
            RedisReply::Status(_) => Ok(true),
            RedisReply::Nothing => Ok(false),
            _ => Err(RedisFailure::Protocol("a reply to SET of another kind")),
        }
    }

    fn send(&mut self, bytes: &[u8], by: Deadline) -> Result<(), RedisFailure> {
        self.socket.set_deadline(by);
        self.socket
            .write_all(bytes)
            .map_err(RedisFailure::of_socket)
    }
}
