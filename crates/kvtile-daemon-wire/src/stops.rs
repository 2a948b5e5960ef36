//! Stops over the groups of a model.

use crate::{
    FrameError, FrameHeader, FrameKind, GROUPS_MAX, KeyBytes, LookupFrame, TierRun,
    cursor::{FieldReader, put_count, put_keys, put_stops},
};

/// Bytes of a group without runs in a [`FoundStopFrame`].
const FOUND_GROUP_BYTES: usize = 20;

/// A lookup or a seek of a stop, or the request for all stops.
///
/// ```text
/// at most u64, then the fields of a LookupFrame
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct StopLookupFrame {
    /// The most tokens of the stop, or [`NO_TIME`](crate::NO_TIME) for those of the chain.
    pub at_most: u64,
    /// The chain and the options.
    pub lookup: LookupFrame,
}

impl StopLookupFrame {
    /// Reads a payload.
    ///
    /// # Errors
    /// Those of [`LookupFrame::decode`].
    pub fn decode(payload: &[u8]) -> Result<StopLookupFrame, FrameError> {
        let mut reader = FieldReader::new(payload);
        let frame = StopLookupFrame {
            at_most: reader.u64()?,
            lookup: LookupFrame::read(&mut reader)?,
        };
        reader.end()?;
        Ok(frame)
    }

    /// A whole frame of the kind [`FrameKind::FindStop`], [`FrameKind::SeekStop`] or
    /// [`FrameKind::ListStops`].
    #[must_use]
    pub fn encode(&self, kind: FrameKind, request: u64) -> Vec<u8> {
        FrameHeader::frame(kind, request, |out| {
            out.extend_from_slice(&self.at_most.to_le_bytes());
            self.lookup.put(out);
        })
    }
}

/// What a stop needs of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundGroup {
    /// The first page.
    pub first: u64,
    /// The page after the last one; `first` if the stop needs nothing of the group.
    pub end: u64,
    /// Consecutive pages of one tier each. They are a match of the group.
    pub runs: Vec<TierRun>,
}

/// The longest usable stop.
///
/// ```text
/// stop u64, spine u64, groups: first u64, end u64, runs
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundStopFrame {
    /// Tokens of the stop; 0 if there is none.
    pub stop: u64,
    /// Tokens up to which the groups that need all pages are stored.
    pub spine: u64,
    /// The groups in the order of the hello; empty without a stop.
    pub groups: Vec<FoundGroup>,
}

impl FoundStopFrame {
    /// Reads a payload.
    ///
    /// # Errors
    /// Bytes that are no stop; more than [`GROUPS_MAX`] groups; a group that ends before it begins.
    pub fn decode(payload: &[u8]) -> Result<FoundStopFrame, FrameError> {
        let mut reader = FieldReader::new(payload);
        let (stop, spine) = (reader.u64()?, reader.u64()?);
        let count = reader.count("groups of a frame", GROUPS_MAX, FOUND_GROUP_BYTES)?;
        let group = |_| {
            let (first, end) = (reader.u64()?, reader.u64()?);
            if end < first {
                return Err(FrameError::UnknownValue {
                    what: "the end of a group",
                    value: end,
                });
            }
            let runs = TierRun::read_all(&mut reader)?;
            Ok(FoundGroup { first, end, runs })
        };
        let groups: Result<Vec<FoundGroup>, FrameError> = (0..count).map(group).collect();
        let groups = groups?;
        reader.end()?;
        Ok(FoundStopFrame {
            stop,
            spine,
            groups,
        })
    }

    /// A whole frame.
    #[must_use]
    pub fn encode(&self, request: u64) -> Vec<u8> {
        FrameHeader::frame(FrameKind::FoundStop, request, |out| {
            out.extend_from_slice(&self.stop.to_le_bytes());
            out.extend_from_slice(&self.spine.to_le_bytes());
            put_count(out, self.groups.len());
            for group in &self.groups {
                out.extend_from_slice(&group.first.to_le_bytes());
                out.extend_from_slice(&group.end.to_le_bytes());
                TierRun::put_all(out, &group.runs);
            }
        })
    }
}

/// Stops in tokens, the longest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopListFrame {
    /// The stops.
    pub stops: Vec<u64>,
}

impl StopListFrame {
    /// Reads a payload.
    ///
    /// # Errors
    /// Bytes that are no stops; more than [`STOPS_MAX`](crate::STOPS_MAX).
    pub fn decode(payload: &[u8]) -> Result<StopListFrame, FrameError> {
        let mut reader = FieldReader::new(payload);
        let stops = reader.stops()?;
        reader.end()?;
        Ok(StopListFrame { stops })
    }

    /// A whole frame.
    #[must_use]
    pub fn encode(&self, request: u64) -> Vec<u8> {
        FrameHeader::frame(FrameKind::StopList, request, |out| {
            put_stops(out, &self.stops);
        })
    }
}

/// Stops of a chain that a client stores. The daemon keeps the pages of a stored stop together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopNoteFrame {
    /// Whether their store has ended; it begins otherwise.
    pub is_stored: bool,
    /// The stops in tokens.
    pub stops: Vec<u64>,
    /// The chain.
    pub keys: Vec<KeyBytes>,
}

impl StopNoteFrame {
    /// Reads a payload.
    ///
    /// # Errors
    /// Bytes that are no stops; more than [`STOPS_MAX`](crate::STOPS_MAX) stops or
    /// [`KEYS_MAX`](crate::KEYS_MAX) keys.
    pub fn decode(payload: &[u8]) -> Result<StopNoteFrame, FrameError> {
        let mut reader = FieldReader::new(payload);
        let frame = StopNoteFrame {
            is_stored: reader.flag("the end of a store of stops")?,
            stops: reader.stops()?,
            keys: reader.keys()?,
        };
        reader.end()?;
        Ok(frame)
    }

    /// A whole frame.
    #[must_use]
    pub fn encode(&self, request: u64) -> Vec<u8> {
        FrameHeader::frame(FrameKind::NoteStops, request, |out| {
            out.push(self.is_stored.into());
            put_stops(out, &self.stops);
            put_keys(out, &self.keys);
        })
    }
}
