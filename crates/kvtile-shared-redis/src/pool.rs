//! The connections of a store: at most a number of them, each used by one call at a time.

use kvtile_shared::store::Deadline;
use parking_lot::{Condvar, Mutex};

use crate::{connection::RedisConnection, failure::RedisFailure, url::RedisUrl};

#[derive(Debug, Default)]
struct Connections {
    idle: Vec<RedisConnection>,
    /// Number of connections in use.
    used: usize,
}

/// The connections of a store.
#[derive(Debug)]
pub(crate) struct ConnectionPool {
    url: RedisUrl,
    connections: Mutex<Connections>,
    /// A connection became idle, or ended.
    freed: Condvar,
}

impl ConnectionPool {
    /// A pool with one connection.
    pub(crate) fn open(url: &RedisUrl, by: Deadline) -> Result<ConnectionPool, RedisFailure> {
        let idle = vec![RedisConnection::open(url, by)?];
        Ok(ConnectionPool {
            url: url.clone(),
            connections: Mutex::new(Connections { idle, used: 0 }),
            freed: Condvar::new(),
        })
    }

    /// Runs commands on a connection. A server that has restarted, or closes idle connections, ends
    /// these without notice; then the commands run once more on a new one. They may: each of them has
    /// the same effect when it is repeated, and a value of which bytes were passed on is
    /// [`RedisFailure::Partway`].
    pub(crate) fn run<T>(
        &self,
        by: Deadline,
        mut commands: impl FnMut(&mut RedisConnection) -> Result<T, RedisFailure>,
    ) -> Result<T, RedisFailure> {
        loop {
            let mut leased = self.lease(by)?;
            let ended = match &mut leased.connection {
                Some(connection) => commands(connection),
                None => Err(RedisFailure::Protocol("no connection")),
            };
            match ended {
                Err(RedisFailure::Broken(_)) if leased.was_idle => self.forget_idle(),
                Err(failure) if !failure.keeps_connection() => return Err(failure),
                ended => {
                    leased.give_back();
                    return ended;
                }
            }
        }
    }

    fn lease(&self, by: Deadline) -> Result<LeasedConnection<'_>, RedisFailure> {
        let mut connections = self.connections.lock();
        loop {
            if by.is_over() {
                return Err(RedisFailure::Late);
            }
            if let Some(connection) = connections.idle.pop() {
                connections.used += 1;
                return Ok(LeasedConnection {
                    pool: self,
                    connection: Some(connection),
                    was_idle: true,
                });
            }
            if connections.used < self.url.connections {
                connections.used += 1;
                break;
            }
            self.freed.wait_until(&mut connections, by.instant());
        }
        drop(connections);
        let mut leased = LeasedConnection {
            pool: self,
            connection: None,
            was_idle: false,
        };
        leased.connection = Some(RedisConnection::open(&self.url, by)?);
        Ok(leased)
    }

    fn forget_idle(&self) {
        let idle = std::mem::take(&mut self.connections.lock().idle);
        drop(idle);
    }
}

/// A connection in use. Dropped, it ends.
#[derive(Debug)]
struct LeasedConnection<'a> {
    pool: &'a ConnectionPool,
    connection: Option<RedisConnection>,
    was_idle: bool,
}

impl LeasedConnection<'_> {
    fn give_back(mut self) {
        let connection = self.connection.take();
        self.pool.connections.lock().idle.extend(connection);
    }
}

impl Drop for LeasedConnection<'_> {
    fn drop(&mut self) {
        self.pool.connections.lock().used -= 1;
        self.pool.freed.notify_one();
    }
}
