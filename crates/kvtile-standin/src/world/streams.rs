//! Streams and events: what is enqueued behind what, and what each knows.

use super::World;
use super::clock::{ActorNumber, HOST, VectorClock};
use super::order::Moment;
use super::work::{WorkKind, WorkNumber};
use kvtile_device::cuda;
use std::sync::Arc;

/// Handles of legacy default streams: this and the ordinal of the device.
const LEGACY: u64 = 0x1_0000_0000;

/// Handles of the default streams of threads: this and the ordinal of the device. All threads share one, as far as the
/// order is concerned.
const PER_THREAD: u64 = 0x2_0000_0000;

/// A stream.
pub(crate) struct StandinStream {
    pub(crate) ordinal: u32,
    /// Whether it has an order with the legacy default stream.
    is_blocking: bool,
    /// The last work that was enqueued.
    last: WorkNumber,
    /// What happens before the next work.
    clock: VectorClock,
    actor: ActorNumber,
    /// The actor that reads sources ahead of the order.
    reader: ActorNumber,
}

/// An event.
#[derive(Clone, Default)]
pub(crate) struct StandinEvent {
    /// What was recorded last: the work, and what happened before.
    recorded: Option<(WorkNumber, VectorClock)>,
}

impl World {
    /// The stream of a handle of the caller, in the current context.
    pub(crate) fn stream_of(&mut self, handle: usize) -> Result<u64, u32> {
        let ordinal = self.current()?;
        let default = match handle {
            0 | cuda::STREAM_LEGACY => LEGACY + u64::from(ordinal),
            cuda::STREAM_PER_THREAD => PER_THREAD + u64::from(ordinal),
            other => {
                let stream = other as u64;
                let is_known = self.streams.contains_key(&stream) && stream < LEGACY;
                return is_known.then_some(stream).ok_or(cuda::INVALID_HANDLE);
            }
        };
        if !self.streams.contains_key(&default) {
            self.add_stream(default, ordinal, true);
        }
        Ok(default)
    }

    /// Creates a stream.
    pub(crate) fn add_stream(&mut self, handle: u64, ordinal: u32, is_blocking: bool) {
        let actor = self.actors;
        self.actors += 2;
        let stream = StandinStream {
            ordinal,
            is_blocking,
            last: 0,
            clock: VectorClock::default(),
            actor,
            reader: actor + 1,
        };
        self.streams.insert(handle, stream);
    }

    /// Streams that callers created.
    pub(crate) fn created_streams(&self) -> usize {
        self.streams
            .keys()
            .filter(|handle| **handle < LEGACY)
            .count()
    }

    /// What the next work of a stream comes after, and the clock before it: all that the host knows, and the legacy
    /// default stream's rules.
    fn before_next(&self, handle: u64) -> (Vec<WorkNumber>, VectorClock) {
        let Some(stream) = self.streams.get(&handle) else {
            return (Vec::new(), self.host.clone());
        };
        let mut clock = stream.clock.clone();
        clock.join(&self.host);
        let mut after = vec![stream.last];
        for (other, others) in &self.streams {
            let is_ordered = others.ordinal == stream.ordinal
                && others.is_blocking
                && stream.is_blocking
                && *other != handle
                && (is_legacy(handle) || is_legacy(*other));
            if is_ordered {
                after.push(others.last);
                clock.join(&others.clock);
            }
        }
        (after, clock)
    }

    /// The moment of the next work of a stream; its clock moves on.
    pub(crate) fn next_moment(
        &mut self,
        handle: u64,
        name: &Arc<str>,
    ) -> (Vec<WorkNumber>, Moment) {
        let (after, mut clock) = self.before_next(handle);
        let mut actor = HOST;
        let mut epoch = 0;
        if let Some(stream) = self.streams.get_mut(&handle) {
            actor = stream.actor;
            epoch = clock.step(actor);
            stream.clock = clock.clone();
        }
        let moment = Moment {
            actor,
            epoch,
            clock: Arc::new(clock),
            name: Arc::clone(name),
        };
        (after, moment)
    }

    /// The moment of reads ahead of a stream's order: they know what the host knows. The stream's next work comes
    /// after them.
    pub(crate) fn early_moment(&mut self, handle: u64, name: &Arc<str>) -> Moment {
        let mut clock = self.host.clone();
        let (mut actor, mut epoch) = (HOST, 0);
        if let Some(stream) = self.streams.get_mut(&handle) {
            actor = stream.reader;
            epoch = stream.clock.step(actor);
            clock.learn(actor, epoch);
        }
        Moment {
            actor,
            epoch,
            clock: Arc::new(clock),
            name: Arc::clone(name),
        }
    }

    /// Enqueues parts that have no order among each other.
    pub(crate) fn enqueue(
        &mut self,
        handle: u64,
        parts: Vec<WorkKind>,
        after: &[WorkNumber],
        moment: &Moment,
    ) {
        let mut numbers = Vec::with_capacity(parts.len());
        for part in parts {
            let number = self.work.add(part, moment.clone(), after.iter().copied());
            numbers.push(number);
        }
        // One point that has passed when all parts have ended, behind all that came before.
        let all = numbers.into_iter().chain(after.iter().copied());
        let end = self.work.add(WorkKind::Point, moment.clone(), all);
        if let Some(stream) = self.streams.get_mut(&handle) {
            stream.last = end;
        }
    }

    /// Records an event behind a stream.
    pub(crate) fn record(&mut self, event: usize, handle: u64) -> Result<(), u32> {
        if !self.events.contains_key(&event) {
            return Err(cuda::INVALID_HANDLE);
        }
        let name: Arc<str> = format!("the record of event {event:#x}").into();
        let (after, moment) = self.next_moment(handle, &name);
        self.enqueue(handle, Vec::new(), &after, &moment);
        let last = self.streams.get(&handle).map_or(0, |stream| stream.last);
        let recorded = Some((last, VectorClock::clone(&moment.clock)));
        self.events.insert(event, StandinEvent { recorded });
        Ok(())
    }

    /// Lets later work of a stream wait for what an event has recorded by now.
    pub(crate) fn wait(&mut self, handle: u64, event: usize) -> Result<(), u32> {
        let event = self.events.get(&event).ok_or(cuda::INVALID_HANDLE)?;
        let Some((work, known)) = event.recorded.clone() else {
            // An event that was never recorded has passed.
            return Ok(());
        };
        if let Some(stream) = self.streams.get_mut(&handle) {
            stream.clock.join(&known);
        }
        let (mut after, moment) = self.next_moment(handle, &Arc::from("a wait"));
        after.push(work);
        self.enqueue(handle, Vec::new(), &after, &moment);
        Ok(())
    }

    /// Whether an event has passed; the host then knows what came before it.
    pub(crate) fn has_passed(&mut self, event: usize) -> Result<bool, u32> {
        let event = self.events.get(&event).ok_or(cuda::INVALID_HANDLE)?;
        let Some((work, known)) = event.recorded.clone() else {
            return Ok(true);
        };
        if self.work.is_pending(work) {
            self.run_any();
        }
        self.check_lost()?;
        let is_passed = !self.work.is_pending(work);
        if is_passed {
            self.host.join(&known);
        }
        Ok(is_passed)
    }

    /// Whether the work of a stream has ended; the host then knows it.
    pub(crate) fn is_idle(&mut self, handle: u64) -> Result<bool, u32> {
        let last = self.streams.get(&handle).map_or(0, |stream| stream.last);
        if self.work.is_pending(last) {
            self.run_any();
        }
        self.check_lost()?;
        let is_idle = !self.work.is_pending(last);
        if let Some(stream) = self.streams.get(&handle).filter(|_| is_idle) {
            self.host.join(&stream.clock);
        }
        Ok(is_idle)
    }

    /// The device of a stream; `None` if there is no such stream.
    pub(crate) fn device_of_stream(&self, handle: u64) -> Option<u32> {
        self.streams.get(&handle).map(|stream| stream.ordinal)
    }

    /// The clock of the host after a step of its own.
    pub(crate) fn host_moment(&mut self, name: &str) -> Moment {
        let epoch = self.host.step(HOST);
        Moment {
            actor: HOST,
            epoch,
            clock: Arc::new(self.host.clone()),
            name: name.into(),
        }
    }
}

/// Whether a stream is a legacy default stream.
pub(crate) fn is_legacy(handle: u64) -> bool {
    (LEGACY..PER_THREAD).contains(&handle)
}
