//! The header, the kinds, and frames with one number.

use std::io::Read;

use crate::{
    FRAME_BYTES_MAX, FrameError, HEADER_BYTES, ReadFrameError,
    cursor::{FieldReader, put_text},
};

macro_rules! kinds {
    ($(#[$meta:meta])* $name:ident: $number:ty { $($(#[$doc:meta])* $kind:ident = $value:literal,)* }, $unknown:expr) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$doc])* $kind = $value,)*
        }

        impl $name {
            /// All values, in order.
            pub const ALL: &[$name] = &[$($name::$kind,)*];

            /// The value of a number.
            ///
            /// # Errors
            /// A number that this version does not have.
            pub fn of(number: $number) -> Result<$name, FrameError> {
                match number {
                    $($value => Ok($name::$kind),)*
                    other => Err($unknown(other)),
                }
            }

            /// The number in the frame.
            #[must_use]
            pub const fn number(self) -> $number {
                match self {
                    $($name::$kind => $value,)*
                }
            }
        }
    };
}

kinds! {
    /// The kind of a frame. Kinds from 100 on come from the daemon.
    FrameKind: u16 {
        /// The first frame of a client; JSON.
        Hello = 1,
        /// The client's staging memory, which follows as a hand-over; a [`NumberFrame`] with its blocks.
        Staging = 2,
        /// A lookup; a [`LookupFrame`](crate::LookupFrame).
        Lookup = 3,
        /// A lookup that queries the tiers which answer later; a [`LookupFrame`](crate::LookupFrame).
        Seek = 4,
        /// Keeps a part of a match; a [`NarrowFrame`](crate::NarrowFrame). It has no reply.
        Narrow = 5,
        /// Brings blocks of a match to host memory and pins them there; a
        /// [`HoldFrame`](crate::HoldFrame).
        Hold = 6,
        /// Renews a hold if it is still valid; a [`NumberFrame`].
        Check = 7,
        /// Releases a hold; a [`ReleaseFrame`](crate::ReleaseFrame). It has no reply.
        Release = 8,
        /// Stores blocks out of staging memory; a [`StoreFrame`](crate::StoreFrame).
        Store = 9,
        /// Brings blocks of tiers to host memory; a [`PrefetchFrame`](crate::PrefetchFrame).
        Prefetch = 10,
        /// Leading keys whose blocks are in host memory; a [`PrefetchFrame`](crate::PrefetchFrame).
        Peek = 11,
        /// Any other call; JSON.
        Call = 12,
        /// In place of a hello: the status of the daemon, after which it closes the socket; empty.
        Status = 13,
        /// Sends the blocks of all tiers, and their changes from now on; empty. It has no reply.
        Subscribe = 14,
        /// Makes the tail of a match a match of its own; a [`SplitFrame`](crate::SplitFrame). It has no
        /// reply, and its number is that of the tail.
        Split = 15,
        /// Sends the changes of the tiers up to now, then the reply; empty.
        Settle = 16,
        /// A lookup of a stop over all groups; a [`StopLookupFrame`](crate::StopLookupFrame).
        FindStop = 17,
        /// As `FindStop`, querying the tiers which answer later; a
        /// [`StopLookupFrame`](crate::StopLookupFrame).
        SeekStop = 18,
        /// All usable stops of a chain; a [`StopLookupFrame`](crate::StopLookupFrame).
        ListStops = 19,
        /// Stops of a chain whose store begins or has ended; a
        /// [`StopNoteFrame`](crate::StopNoteFrame). It has no reply.
        NoteStops = 20,
        /// The reply to `Hello`, followed by the hand-over of host memory; JSON.
        Welcome = 101,
        /// The reply to `Staging`, `Peek`, `Check` and `Settle`; a [`NumberFrame`].
        Number = 102,
        /// Any request was refused; a [`RefusalFrame`].
        Refused = 103,
        /// The reply to `Lookup` and `Seek`; a [`FoundFrame`](crate::FoundFrame). Its number is that
        /// of the match.
        Found = 104,
        /// The reply to `Hold` and `Prefetch`; a [`LoadFrame`](crate::LoadFrame). Its number is that
        /// of the hold.
        Loaded = 105,
        /// The reply to `Store`; a [`StoredFrame`](crate::StoredFrame).
        Stored = 106,
        /// The reply to `Call` and to `Status`; JSON.
        Answer = 107,
        /// Changes of the tiers; an [`EventsFrame`](crate::EventsFrame).
        Events = 108,
        /// The reply to `FindStop` and `SeekStop`; a [`FoundStopFrame`](crate::FoundStopFrame). Its
        /// number is that of the match of each group.
        FoundStop = 109,
        /// The reply to `ListStops`; a [`StopListFrame`](crate::StopListFrame).
        StopList = 110,
    },
    |kind| FrameError::UnknownKind { kind }
}

kinds! {
    /// Why a request was refused.
    RefusalCode: u16 {
        /// The queue is full: `first` of `second` jobs wait.
        Busy = 1,
        /// The cache or the daemon is closed.
        Closed = 2,
        /// The cache has no tier of this name.
        NoSuchTier = 3,
        /// The match or hold was released, or its lease has ended.
        Revoked = 4,
        /// Another version of the protocol: `first` is the daemon's.
        Version = 5,
        /// An identity, layout or setting that the daemon cannot serve.
        Settings = 6,
        /// A frame that does not follow the protocol. The daemon closes the socket after it.
        Protocol = 7,
        /// The request failed.
        Failed = 8,
    },
    |code| FrameError::UnknownValue { what: "a refusal", value: u64::from(code) }
}

/// Where a frame has the number of its group.
const GROUP_AT: usize = 6;

/// The first 16 bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The kind.
    pub kind: FrameKind,
    /// The number of the group that the request is about, in the order of the hello; 0 for a cache without
    /// groups, and in replies.
    pub group: u16,
    /// The number of the request.
    pub request: u64,
    /// Length of the payload in bytes.
    pub payload_bytes: usize,
}

impl FrameHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// An unknown kind; a payload above [`FRAME_BYTES_MAX`].
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<FrameHeader, FrameError> {
        let mut reader = FieldReader::new(bytes);
        let length = reader.u32()?;
        let kind = FrameKind::of(reader.u16()?)?;
        let group = reader.u16()?;
        let request = reader.u64()?;
        let payload_bytes = usize::try_from(length).unwrap_or(usize::MAX);
        if payload_bytes > FRAME_BYTES_MAX {
            return Err(FrameError::TooMany {
                what: "bytes of a frame",
                value: length.into(),
                most: FRAME_BYTES_MAX as u64,
            });
        }
        Ok(FrameHeader {
            kind,
            group,
            request,
            payload_bytes,
        })
    }

    /// Addresses a whole frame to a group.
    #[must_use]
    pub fn to_group(mut frame: Vec<u8>, group: u16) -> Vec<u8> {
        let place = frame.iter_mut().skip(GROUP_AT);
        for (at, byte) in place.zip(group.to_le_bytes()) {
            *at = byte;
        }
        frame
    }

    /// A whole frame to group 0: the header and the payload that `fill` appends.
    #[must_use]
    pub fn frame(kind: FrameKind, request: u64, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = vec![0; HEADER_BYTES];
        fill(&mut out);
        let length = u32::try_from(out.len() - HEADER_BYTES).unwrap_or(u32::MAX);
        let header = length
            .to_le_bytes()
            .into_iter()
            .chain(kind.number().to_le_bytes())
            .chain([0, 0])
            .chain(request.to_le_bytes());
        for (at, byte) in out.iter_mut().zip(header) {
            *at = byte;
        }
        out
    }
}

/// Reads one frame. No byte after it is read.
///
/// # Errors
/// A socket that ends or fails; bytes that are no frame.
pub fn read_frame(from: &mut impl Read) -> Result<(FrameHeader, Vec<u8>), ReadFrameError> {
    let mut header = [0; HEADER_BYTES];
    let (first, rest) = header.split_at_mut(1);
    loop {
        match from.read(first) {
            Ok(0) => return Err(ReadFrameError::Closed),
            Ok(_) => break,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    from.read_exact(rest)?;
    let header = FrameHeader::decode(&header)?;
    let mut payload = Vec::new();
    // Memory grows with the bytes that come, not with the length that the peer claims.
    from.take(header.payload_bytes as u64)
        .read_to_end(&mut payload)?;
    if payload.len() < header.payload_bytes {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
    }
    Ok((header, payload))
}

/// A payload of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumberFrame {
    /// The number.
    pub number: u64,
}

impl NumberFrame {
    /// Reads a payload.
    ///
    /// # Errors
    /// Bytes that are no number.
    pub fn decode(payload: &[u8]) -> Result<NumberFrame, FrameError> {
        let mut reader = FieldReader::new(payload);
        let number = reader.u64()?;
        reader.end()?;
        Ok(NumberFrame { number })
    }

    /// A whole frame.
    #[must_use]
    pub fn encode(&self, kind: FrameKind, request: u64) -> Vec<u8> {
        FrameHeader::frame(kind, request, |out| {
            out.extend_from_slice(&self.number.to_le_bytes());
        })
    }
}

/// A refused request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusalFrame {
    /// Why.
    pub code: RefusalCode,
    /// A number whose meaning depends on the code.
    pub first: u64,
    /// Another one.
    pub second: u64,
    /// The message.
    pub text: String,
}

impl RefusalFrame {
    /// A refusal without numbers.
    #[must_use]
    pub fn new(code: RefusalCode, text: impl Into<String>) -> RefusalFrame {
        RefusalFrame {
            code,
            first: 0,
            second: 0,
            text: text.into(),
        }
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// Bytes that are no refusal.
    pub fn decode(payload: &[u8]) -> Result<RefusalFrame, FrameError> {
        let mut reader = FieldReader::new(payload);
        let refusal = RefusalFrame {
            code: RefusalCode::of(reader.u16()?)?,
            first: reader.u64()?,
            second: reader.u64()?,
            text: reader.text()?,
        };
        reader.end()?;
        Ok(refusal)
    }

    /// A whole frame.
    #[must_use]
    pub fn encode(&self, request: u64) -> Vec<u8> {
        FrameHeader::frame(FrameKind::Refused, request, |out| {
            out.extend_from_slice(&self.code.number().to_le_bytes());
            out.extend_from_slice(&self.first.to_le_bytes());
            out.extend_from_slice(&self.second.to_le_bytes());
            put_text(out, &self.text);
        })
    }
}
