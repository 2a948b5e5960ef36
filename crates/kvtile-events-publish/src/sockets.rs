//! Sockets that are bound before there is anything to publish.

use std::net::SocketAddr;

use kvtile_events_wire::WirePublisher;

use crate::{error::PublishError, settings::EventPublisherSettings};

/// The sockets of a publisher that has not begun ([`EventPublisher::start_on`](crate::EventPublisher::start_on)). Subscribers can connect, and receive nothing yet.
///
/// A program that opens caches later binds their sockets when it starts: an address that is in use is its
/// error then, not that of the first client of a cache.
#[derive(Debug)]
pub struct EventSockets {
    wire: WirePublisher,
    settings: EventPublisherSettings,
}

impl EventSockets {
    /// Binds the sockets.
    ///
    /// # Errors
    /// [`PublishError::Wire`] for an address of another form, or one that cannot be bound.
    pub fn bind(settings: &EventPublisherSettings) -> Result<EventSockets, PublishError> {
        Ok(EventSockets {
            wire: WirePublisher::bind(&settings.sockets)?,
            settings: settings.clone(),
        })
    }

    /// Sets the topic of messages.
    #[must_use]
    pub fn topic(mut self, topic: &str) -> EventSockets {
        topic.clone_into(&mut self.settings.sockets.topic);
        self
    }

    /// The address of the PUB socket.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.wire.address()
    }

    /// The address of the ROUTER socket.
    #[must_use]
    pub fn replay_address(&self) -> Option<SocketAddr> {
        self.wire.replay_address()
    }

    /// The sockets, and the settings of their publisher.
    pub(crate) fn into_parts(self) -> (WirePublisher, EventPublisherSettings) {
        (self.wire, self.settings)
    }
}
