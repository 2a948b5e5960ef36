//! The bytes of every frame, and what is refused.

use kvtile_daemon_wire::{
    EventChange, EventRecord, EventsFrame, FRAME_BYTES_MAX, FoundFrame, FoundGroup, FoundStopFrame,
    FrameError, FrameHeader, FrameKind, GROUPS_MAX, HEADER_BYTES, HoldFrame, KEYS_MAX, LoadFrame,
    LookupFrame, NO_TIME, NarrowFrame, NumberFrame, PrefetchFrame, ReadFrameError, RefusalCode,
    RefusalFrame, ReleaseFrame, STOPS_MAX, SplitFrame, StopFrame, StopListFrame, StopLookupFrame,
    StopNoteFrame, StoreFrame, StoredFrame, TierRun, read_frame,
};

fn lookup() -> LookupFrame {
    LookupFrame {
        owner: 1,
        hold_ms: 2,
        lifetime_ms: NO_TIME,
        expires: 3,
        within_ms: 4,
        tokens_per_second: 1.5,
        output_tokens: 5,
        priority: -1,
        partial_tail: true,
        keys: vec![[6; 16], [7; 16]],
    }
}

fn store() -> StoreFrame {
    StoreFrame {
        first: 1,
        tenant: 2,
        within_ms: 3,
        lifetime_ms: 4,
        expires: NO_TIME,
        output_tokens: 5,
        priority: 3,
        hint: 1,
        partial_tail: false,
        slots: vec![8],
        keys: vec![[9; 16], [10; 16]],
    }
}

fn loaded() -> LoadFrame {
    LoadFrame {
        wanted: 3,
        blocks: 2,
        from_host: 1,
        from_below: vec![TierRun { tier: 1, blocks: 1 }],
        stop: StopFrame {
            code: 4,
            text: "é".to_owned(),
        },
        ids: vec![5, 6],
    }
}

fn found_stop() -> FoundStopFrame {
    let runs = vec![TierRun { tier: 1, blocks: 2 }];
    let (first, end) = (3, 5);
    let none = FoundGroup {
        first: 5,
        end: 5,
        runs: Vec::new(),
    };
    FoundStopFrame {
        stop: 80,
        spine: 96,
        groups: vec![FoundGroup { first, end, runs }, none],
    }
}

fn events() -> Vec<EventRecord> {
    let (key, parent) = ([1; 16], Some([2; 16]));
    [
        EventChange::Stored { key, parent: None },
        EventChange::Stored { key, parent },
        EventChange::Removed { key },
        EventChange::Cleared,
    ]
    .map(|change| EventRecord {
        tier: 1,
        group: 2,
        change,
    })
    .to_vec()
}

/// One frame of each form.
fn frames() -> Vec<Vec<u8>> {
    vec![
        lookup().encode(FrameKind::Seek, 11),
        store().encode(12),
        loaded().encode(13),
        FoundFrame {
            runs: vec![TierRun { tier: 0, blocks: 9 }],
        }
        .encode(14),
        NarrowFrame {
            found: 1,
            first: 2,
            blocks: 3,
        }
        .encode(15),
        HoldFrame {
            found: 1,
            first: 2,
            blocks: 3,
            priority: 2,
            within_ms: NO_TIME,
        }
        .encode(16),
        StoredFrame {
            stored: 1,
            present: 2,
            dropped: 3,
            bytes: 4,
            stop: StopFrame::default(),
        }
        .encode(17),
        NumberFrame { number: 5 }.encode(FrameKind::Check, 18),
        RefusalFrame {
            code: RefusalCode::Busy,
            first: 1,
            second: 2,
            text: "no".to_owned(),
        }
        .encode(19),
        PrefetchFrame {
            keys: vec![[1; 16]],
        }
        .encode(FrameKind::Peek, 20),
        ReleaseFrame {
            hold: 1,
            blocks: 2,
            bytes: 3,
            nanoseconds: 4,
        }
        .encode(21),
        EventsFrame {
            is_reset: true,
            events: events(),
        }
        .encode(),
        SplitFrame { found: 1, first: 2 }.encode(22),
    ]
}

/// One frame of each form about stops and groups.
fn stop_frames() -> Vec<Vec<u8>> {
    vec![
        StopLookupFrame {
            at_most: 4096,
            lookup: lookup(),
        }
        .encode(FrameKind::SeekStop, 23),
        found_stop().encode(24),
        StopListFrame {
            stops: vec![4096, 16],
        }
        .encode(25),
        StopNoteFrame {
            is_stored: true,
            stops: vec![16],
            keys: vec![[11; 16]],
        }
        .encode(26),
        FrameHeader::to_group(
            NumberFrame { number: 5 }.encode(FrameKind::Check, 27),
            0x0201,
        ),
    ]
}

/// Whether the payload decodes as its kind.
fn decodes(kind: FrameKind, payload: &[u8]) -> Result<(), FrameError> {
    match kind {
        FrameKind::Lookup | FrameKind::Seek => LookupFrame::decode(payload).map(drop),
        FrameKind::FindStop | FrameKind::SeekStop | FrameKind::ListStops => {
            StopLookupFrame::decode(payload).map(drop)
        }
        FrameKind::FoundStop => FoundStopFrame::decode(payload).map(drop),
        FrameKind::StopList => StopListFrame::decode(payload).map(drop),
        FrameKind::NoteStops => StopNoteFrame::decode(payload).map(drop),
        FrameKind::Store => StoreFrame::decode(payload).map(drop),
        FrameKind::Loaded => LoadFrame::decode(payload).map(drop),
        FrameKind::Found => FoundFrame::decode(payload).map(drop),
        FrameKind::Narrow => NarrowFrame::decode(payload).map(drop),
        FrameKind::Split => SplitFrame::decode(payload).map(drop),
        FrameKind::Hold => HoldFrame::decode(payload).map(drop),
        FrameKind::Stored => StoredFrame::decode(payload).map(drop),
        FrameKind::Refused => RefusalFrame::decode(payload).map(drop),
        FrameKind::Release => ReleaseFrame::decode(payload).map(drop),
        FrameKind::Events => EventsFrame::decode(payload).map(drop),
        FrameKind::Prefetch | FrameKind::Peek => PrefetchFrame::decode(payload).map(drop),
        _ => NumberFrame::decode(payload).map(drop),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_bytes_of_the_frames_never_change() {
    let frames = frames().into_iter().chain(stop_frames());
    let frames: Vec<String> = frames.map(|frame| hex(&frame)).collect();
    let golden: Vec<&str> = include_str!("frames.hex").lines().collect();
    assert_eq!(frames, golden);
}

#[test]
fn every_frame_comes_back_and_none_is_read_short_or_long() {
    for frame in frames().into_iter().chain(stop_frames()) {
        let mut bytes = frame.as_slice();
        let (header, payload) = read_frame(&mut bytes).unwrap();
        assert!(bytes.is_empty());
        decodes(header.kind, &payload).unwrap();
        for cut in 0..payload.len() {
            assert!(decodes(header.kind, &payload[..cut]).is_err(), "{cut}");
        }
        let longer = [payload.as_slice(), &[0]].concat();
        assert_eq!(
            decodes(header.kind, &longer),
            Err(FrameError::Extra { extra: 1 })
        );
    }
    let (_, payload) = read_frame(&mut lookup().encode(FrameKind::Lookup, 1).as_slice()).unwrap();
    assert_eq!(LookupFrame::decode(&payload), Ok(lookup()));
    let (_, payload) = read_frame(&mut store().encode(1).as_slice()).unwrap();
    assert_eq!(StoreFrame::decode(&payload), Ok(store()));
    let (_, payload) = read_frame(&mut loaded().encode(1).as_slice()).unwrap();
    assert_eq!(LoadFrame::decode(&payload), Ok(loaded()));
}

#[test]
fn lengths_that_the_payload_does_not_have_cost_no_memory() {
    let mut frame = lookup();
    frame.keys.clear();
    let mut bytes = frame.encode(FrameKind::Lookup, 1).split_off(HEADER_BYTES);
    let at = bytes.len() - 4;
    for (count, is_limit) in [
        (u32::try_from(KEYS_MAX).unwrap() + 1, true),
        (u32::MAX, true),
        (1000, false),
    ] {
        bytes[at..].copy_from_slice(&count.to_le_bytes());
        let refused = LookupFrame::decode(&bytes).unwrap_err();
        assert_eq!(
            matches!(refused, FrameError::TooMany { .. }),
            is_limit,
            "{refused}"
        );
    }
}

#[test]
fn rates_that_are_none_are_refused() {
    let mut frame = lookup();
    for rate in [f64::NAN, f64::INFINITY, -1.0, -0.0] {
        frame.tokens_per_second = rate;
        let bytes = frame.encode(FrameKind::Lookup, 1).split_off(HEADER_BYTES);
        let refused = LookupFrame::decode(&bytes).unwrap_err();
        assert!(
            matches!(refused, FrameError::UnknownValue { .. }),
            "{refused}"
        );
    }
}

#[test]
fn headers_of_no_frame_are_refused() {
    let good = NumberFrame { number: 1 }.encode(FrameKind::Check, 1);
    let refused = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        read_frame(&mut frame.as_slice()).unwrap_err()
    };
    let too_long = (u32::try_from(FRAME_BYTES_MAX).unwrap() + 1).to_le_bytes();
    assert!(matches!(
        refused(0, &too_long),
        ReadFrameError::Wire(FrameError::TooMany { .. })
    ));
    for kind in [0_u16, 99, 100, 200, u16::MAX] {
        assert!(matches!(
            refused(4, &kind.to_le_bytes()),
            ReadFrameError::Wire(FrameError::UnknownKind { .. })
        ));
    }
    assert!(matches!(
        read_frame(&mut [].as_slice()),
        Err(ReadFrameError::Closed)
    ));
    for cut in 1..good.len() {
        assert!(matches!(
            read_frame(&mut &good[..cut]),
            Err(ReadFrameError::Io(_))
        ));
    }
}

#[test]
fn kinds_and_codes_are_read_back() {
    for &kind in FrameKind::ALL {
        assert_eq!(FrameKind::of(kind.number()), Ok(kind));
        let frame = FrameHeader::frame(kind, 7, |_| {});
        let (header, payload) = read_frame(&mut frame.as_slice()).unwrap();
        assert_eq!((header.kind, header.request, payload.len()), (kind, 7, 0));
    }
    for &code in RefusalCode::ALL {
        assert_eq!(RefusalCode::of(code.number()), Ok(code));
    }
}

#[test]
fn long_texts_are_cut_at_a_character() {
    let refusal = RefusalFrame::new(RefusalCode::Failed, "é".repeat(4000));
    let (_, payload) = read_frame(&mut refusal.encode(1).as_slice()).unwrap();
    let read = RefusalFrame::decode(&payload).unwrap();
    assert_eq!(read.text, "é".repeat(2048));
}

#[test]
fn a_stop_comes_back_and_its_group_with_it() {
    let (_, payload) = read_frame(&mut found_stop().encode(1).as_slice()).unwrap();
    assert_eq!(FoundStopFrame::decode(&payload), Ok(found_stop()));
    for group in [0, 1, 63, u16::MAX] {
        let frame = FrameHeader::to_group(found_stop().encode(7), group);
        let (header, payload) = read_frame(&mut frame.as_slice()).unwrap();
        assert_eq!((header.group, header.request), (group, 7));
        assert_eq!(FoundStopFrame::decode(&payload), Ok(found_stop()));
    }
}

#[test]
fn stops_that_are_none_are_refused() {
    let mut backwards = found_stop();
    backwards.groups[0].end = 2;
    let bytes = backwards.encode(1).split_off(HEADER_BYTES);
    let refused = FoundStopFrame::decode(&bytes).unwrap_err();
    assert!(
        matches!(refused, FrameError::UnknownValue { value: 2, .. }),
        "{refused}"
    );
    let group = backwards.groups[1].clone();
    backwards.groups = vec![group; GROUPS_MAX + 1];
    let bytes = backwards.encode(1).split_off(HEADER_BYTES);
    let refused = FoundStopFrame::decode(&bytes).unwrap_err();
    assert!(matches!(refused, FrameError::TooMany { .. }), "{refused}");
    let mut bytes = StopListFrame { stops: Vec::new() }
        .encode(1)
        .split_off(HEADER_BYTES);
    for count in [u32::try_from(STOPS_MAX).unwrap(), 1] {
        bytes[..4].copy_from_slice(&count.to_le_bytes());
        let refused = StopListFrame::decode(&bytes).unwrap_err();
        assert!(matches!(refused, FrameError::Short { .. }), "{refused}");
    }
    bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let refused = StopListFrame::decode(&bytes).unwrap_err();
    assert!(matches!(refused, FrameError::TooMany { .. }), "{refused}");
}
