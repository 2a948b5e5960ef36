//! The events of the caches of `kvtile serve`: each has sockets of its own, with consecutive ports.

use std::{collections::VecDeque, time::Duration};

use clap::Args;
use kvtile::TierError;
use kvtile_daemon::ServedCache;
use kvtile_events_publish::{EventPublisher, EventPublisherSettings, EventSockets};
use parking_lot::Mutex;

use crate::{error::CliError, output};

/// How long the end of the daemon waits until subscribers have the last events.
const LAST_WITHIN: Duration = Duration::from_secs(2);

/// The place of the model's name in a topic.
const MODEL: &str = "{model}";

/// The options of events.
#[derive(Args, Debug)]
pub(super) struct EventArgs {
    /// Publish which blocks the tiers have, in the format of vLLM's events, for routers; the second
    /// identity has the next port, and so on
    #[arg(long, value_name = "tcp://HOST:PORT")]
    events: Option<String>,
    /// Send past events again on this endpoint
    #[arg(long, value_name = "tcp://HOST:PORT", requires = "events")]
    events_replay: Option<String>,
    /// The topic of events; {model} in it is the model's name
    #[arg(long, value_name = "TEXT", requires = "events", default_value = "")]
    events_topic: String,
}

/// The publishers of the open caches, and the sockets for further ones.
#[derive(Debug)]
pub(super) struct ServedEvents {
    topic: String,
    sockets: Mutex<VecDeque<EventSockets>>,
    publishers: Mutex<Vec<EventPublisher>>,
}

impl ServedEvents {
    /// Binds sockets for so many caches.
    pub(super) fn bind(args: &EventArgs, caches: usize) -> Result<Option<ServedEvents>, CliError> {
        let Some(endpoint) = &args.events else {
            return Ok(None);
        };
        let mut settings = EventPublisherSettings::new(endpoint);
        settings
            .sockets
            .replay_endpoint
            .clone_from(&args.events_replay);
        let bind = |number: u16| {
            let mut settings = settings.clone();
            settings.sockets = settings.sockets.numbered(number)?;
            Ok(EventSockets::bind(&settings)?)
        };
        let sockets = (0..).take(caches).map(bind);
        Ok(Some(ServedEvents {
            topic: args.events_topic.clone(),
            sockets: Mutex::new(sockets.collect::<Result<_, CliError>>()?),
            publishers: Mutex::default(),
        }))
    }

    /// Publishes the events of a cache that has opened.
    pub(super) fn publish(&self, name: &str, cache: &ServedCache) -> Result<(), TierError> {
        let Some(sockets) = self.sockets.lock().pop_front() else {
            let problem = format!("no socket is left for the events of {name}");
            return Err(TierError::outside(std::io::Error::other(problem)));
        };
        let topic = self.topic.replace(MODEL, cache.identity().model());
        let publisher = EventPublisher::start_on(sockets.topic(&topic), cache.event_source());
        let publisher = publisher.map_err(TierError::outside)?;
        let mut text = format!("events of {name} at tcp://{}", publisher.address());
        if let Some(address) = publisher.replay_address() {
            text.push_str(&format!(", past ones at tcp://{address}"));
        }
        self.publishers.lock().push(publisher);
        // A daemon whose output is closed goes on.
        let _ = output::print(&format!("{text}\n"));
        Ok(())
    }

    /// Waits until subscribers have the last events of the closed caches.
    pub(super) fn close(&self) {
        for publisher in std::mem::take(&mut *self.publishers.lock()) {
            // A subscriber that does not read loses them.
            let _ = publisher.close(LAST_WITHIN);
        }
    }
}
