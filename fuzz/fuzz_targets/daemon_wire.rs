//! Frames of the node daemon: no bytes panic, take more memory than they have, or come back changed.
#![no_main]

use kvtile_daemon_wire::{
    EventsFrame, FoundFrame, FoundStopFrame, FrameHeader, FrameKind, HoldFrame, LoadFrame, LookupFrame,
    NarrowFrame, NumberFrame, PrefetchFrame, RefusalFrame, ReleaseFrame, SplitFrame, StopListFrame,
    StopLookupFrame, StopNoteFrame, StoreFrame, StoredFrame, read_frame,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Ok((header, payload)) = read_frame(&mut rest) {
        let (kind, number) = (header.kind, header.request);
        let again = match kind {
            FrameKind::Lookup | FrameKind::Seek => {
                LookupFrame::decode(&payload).map(|frame| frame.encode(kind, number))
            }
            FrameKind::FindStop | FrameKind::SeekStop | FrameKind::ListStops => {
                StopLookupFrame::decode(&payload).map(|frame| frame.encode(kind, number))
            }
            FrameKind::NoteStops => StopNoteFrame::decode(&payload).map(|frame| frame.encode(number)),
            FrameKind::FoundStop => FoundStopFrame::decode(&payload).map(|frame| frame.encode(number)),
            FrameKind::StopList => StopListFrame::decode(&payload).map(|frame| frame.encode(number)),
            FrameKind::Store => StoreFrame::decode(&payload).map(|frame| frame.encode(number)),
            FrameKind::Loaded => LoadFrame::decode(&payload).map(|frame| frame.encode(number)),
            FrameKind::Found => FoundFrame::decode(&payload).map(|frame| frame.encode(number)),
            FrameKind::Narrow => NarrowFrame::decode(&payload).map(|frame| frame.encode(number)),
            FrameKind::Split => SplitFrame::decode(&payload).map(|frame| frame.encode(number)),
            FrameKind::Hold => HoldFrame::decode(&payload).map(|frame| frame.encode(number)),
            FrameKind::Release => ReleaseFrame::decode(&payload).map(|frame| frame.encode(number)),
            FrameKind::Events => EventsFrame::decode(&payload).map(|frame| frame.encode()),
            FrameKind::Stored => StoredFrame::decode(&payload).map(|frame| frame.encode(number)),
            FrameKind::Refused => RefusalFrame::decode(&payload).map(|frame| frame.encode(number)),
            FrameKind::Prefetch | FrameKind::Peek => {
                PrefetchFrame::decode(&payload).map(|frame| frame.encode(kind, number))
            }
            _ => NumberFrame::decode(&payload).map(|frame| frame.encode(kind, number)),
        };
        if let Ok(again) = again {
            let again = FrameHeader::to_group(again, header.group);
            let (read, again) = read_frame(&mut again.as_slice()).unwrap();
            // Events are no reply: their number is not read.
            assert_eq!((read.kind, read.group, again), (kind, header.group, payload));
        }
    }
});
