//! Why a command failed.

use std::io;

use kvtile_shared::store::{SharedStoreError, StoreErrorKind, StoreOperation};

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum RedisFailure {
    /// The deadline was over.
    Late,
    /// The connection could not be made.
    Connect(io::Error),
    /// The connection ended or failed, before any byte of a value was passed on.
    Broken(io::Error),
    /// The connection ended or failed in the middle of a value.
    Partway(io::Error),
    /// The bytes are not those of the protocol.
    Protocol(&'static str),
    /// The sink took no more bytes of a value, and the rest is still to come.
    Cut,
    /// The server replied with an error, in full: the connection is usable.
    Server(String),
}

impl RedisFailure {
    /// From an error of the socket.
    pub(crate) fn of_socket(error: io::Error) -> RedisFailure {
        match error.kind() {
            // Both are a time limit of the socket that has passed.
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => RedisFailure::Late,
            _ => RedisFailure::Broken(error),
        }
    }

    /// The same, after bytes of a value were passed on.
    pub(crate) fn partway(self) -> RedisFailure {
        match self {
            RedisFailure::Broken(error) => RedisFailure::Partway(error),
            other => other,
        }
    }

    /// Whether the connection can carry the next command.
    pub(crate) fn keeps_connection(&self) -> bool {
        matches!(self, RedisFailure::Server(_))
    }

    /// The error of a call. The server's message is shown as it is: it never repeats a password.
    pub(crate) fn into_error(self, operation: StoreOperation, store: &str) -> SharedStoreError {
        let transient = |what: String| SharedStoreError::transient(operation, what);
        match self {
            RedisFailure::Late => SharedStoreError::late(operation),
            RedisFailure::Connect(error) => {
                transient(format!("cannot connect to {store}: {error}")).caused_by(error)
            }
            RedisFailure::Broken(error) => {
                transient(format!("{store} ended the connection: {error}")).caused_by(error)
            }
            RedisFailure::Partway(error) => {
                let what = format!("{store} ended the connection within a value: {error}");
                transient(what).caused_by(error)
            }
            RedisFailure::Protocol(problem) => transient(format!(
                "{store} sent bytes that are no reply of Redis ({problem})"
            )),
            RedisFailure::Cut => transient(format!("the rest of a value of {store} was not read")),
            RedisFailure::Server(text) => {
                let kind = kind(&text);
                SharedStoreError::new(kind, operation, format!("{store} replied: {text}"))
            }
        }
    }
}

/// What an error of the server means, by its first word.
fn kind(text: &str) -> StoreErrorKind {
    match text.split(' ').next().unwrap_or_default() {
        "NOAUTH" | "WRONGPASS" | "NOPERM" | "READONLY" | "MOVED" | "ASK" | "CROSSSLOT"
        | "NOPROTO" => StoreErrorKind::Configuration,
        "LOADING" | "BUSY" | "TRYAGAIN" | "MASTERDOWN" | "CLUSTERDOWN" | "UNKILLABLE" => {
            StoreErrorKind::Transient
        }
        // A full server is `OOM`, one that cannot write its disk `MISCONF`: reads still succeed.
        _ => StoreErrorKind::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_of_the_server_decides_what_the_caller_can_do() {
        let kind = |text: &str| {
            let failure = RedisFailure::Server(text.to_owned());
            failure
                .into_error(StoreOperation::Write, "redis://x")
                .kind()
        };
        assert_eq!(kind("OOM command not allowed"), StoreErrorKind::Refused);
        assert_eq!(kind("WRONGPASS invalid"), StoreErrorKind::Configuration);
        assert_eq!(kind("LOADING Redis is loading"), StoreErrorKind::Transient);
    }
}
