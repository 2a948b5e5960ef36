//! The requests of a connected cache that are jobs: their checks, before they are queued.

use std::time::Instant;

use kvtile_blocks::BlockKey;
use kvtile_daemon_wire::KEYS_MAX;
use kvtile_transfer::completion::{Completer, Completion};

use super::{
    ConnectedParts, found::ConnectedMatch, load::ConnectedLoad, prefetch::ConnectedPrefetch,
    session, store::ConnectedStore,
};
use crate::{
    cache::{LoadOptions, LoadReport, Priority, StoreOptions, StoreReport, requests},
    error::{RequestError, TierError},
    metrics::MissReason,
};

impl ConnectedParts {
    /// Whether loads and stores without a layout have one.
    pub(in crate::cache) fn has_engine(&self) -> bool {
        self.engine.is_some()
    }

    pub(in crate::cache) fn load(
        &self,
        mut found: ConnectedMatch,
        destinations: &[usize],
        options: &LoadOptions,
    ) -> Result<Completion<LoadReport>, TierError> {
        if found.cache != self.id {
            return Err(TierError::Request(RequestError::OtherCache));
        }
        // Blocks that the end of the connection took are no mistake of the caller: the load ends with
        // `Closed`.
        let blocks = found.found_blocks();
        if destinations.len() > blocks {
            return Err(TierError::Request(RequestError::TooManyDestinations {
                destinations: destinations.len(),
                blocks,
            }));
        }
        let layout = self.check_blocks(options.layout, destinations)?;
        requests::check_after(&self.manager, layout, &options.after)?;
        if let Some(marks) = &options.marks {
            // Each layer counts only once the daemon has confirmed that it held the blocks.
            marks.close();
        }
        found.narrow(0, destinations.len());
        if destinations.is_empty() {
            return Ok(self.load_nothing());
        }
        let completer = Completer::new(self.layers, destinations.len());
        let completion = completer.completion();
        let job = ConnectedLoad::new(completer, found, (layout, destinations), options);
        let pushed = self.push(options.priority, Box::new(job));
        pushed.inspect_err(|_| {
            let wanted = destinations.len() as u64;
            self.metrics.lost(MissReason::QueueFull, wanted);
        })?;
        Ok(completion)
    }

    /// A load of no blocks.
    pub(in crate::cache) fn load_nothing(&self) -> Completion<LoadReport> {
        Completion::ended(self.layers, LoadReport::nothing())
    }

    pub(in crate::cache) fn store(
        &self,
        keys: &[BlockKey],
        blocks: &[usize],
        options: &StoreOptions,
    ) -> Result<Completion<StoreReport>, TierError> {
        let end = options.first.checked_add(blocks.len());
        let Some(chain) = end.and_then(|end| keys.get(..end)) else {
            return Err(TierError::Request(RequestError::TooFewKeys {
                keys: keys.len(),
                first: options.first,
                blocks: blocks.len(),
            }));
        };
        if chain.len() > KEYS_MAX {
            return Err(session::refused(format!(
                "a chain of {} blocks; a daemon stores chains of at most {KEYS_MAX}",
                chain.len()
            )));
        }
        let layout = self.check_blocks(options.layout, blocks)?;
        requests::check_after(&self.manager, layout, &options.after)?;
        let completer = Completer::new(0, 0);
        let completion = completer.completion();
        let mut job = ConnectedStore::new(completer, chain, (layout, blocks), options);
        match blocks.is_empty() {
            true => job.finish(),
            false => job.enter(self)?,
        }
        Ok(completion)
    }

    /// Starts bringing the blocks of a match with these keys to host memory, and keeps their pins until
    /// then.
    pub(in crate::cache) fn prefetch_found(
        &self,
        found: ConnectedMatch,
        keys: &[BlockKey],
    ) -> Result<Completion<LoadReport>, TierError> {
        if found.cache != self.id {
            return Err(TierError::Request(RequestError::OtherCache));
        }
        self.bring(keys, Some(found))
    }

    pub(in crate::cache) fn prefetch(
        &self,
        keys: &[BlockKey],
    ) -> Result<Completion<LoadReport>, TierError> {
        self.bring(keys, None)
    }

    fn bring(
        &self,
        keys: &[BlockKey],
        pins: Option<ConnectedMatch>,
    ) -> Result<Completion<LoadReport>, TierError> {
        let (leading, _) = keys.split_at(keys.len().min(KEYS_MAX));
        let completer = Completer::new(0, 0);
        let completion = completer.completion();
        let job = ConnectedPrefetch {
            completer,
            keys: leading.to_vec(),
            pins,
            start: Instant::now(),
        };
        self.push(Priority::Background, Box::new(job))?;
        Ok(completion)
    }
}
