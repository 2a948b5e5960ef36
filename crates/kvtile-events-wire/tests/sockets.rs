//! Publishers and subscribers over loopback.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use kvtile_events_wire::{
    PublisherSettings, ReceivedBatch, RecordedBatch, SubscriberSettings, WireBatch, WireError,
    WireEvent, WirePublisher, WireSubscriber, WireValue,
};

const LONG: Duration = Duration::from_secs(20);

fn batch(number: u64) -> WireBatch {
    let hashes = WireValue::List(vec![
        WireValue::Bytes(vec![7; 32]),
        WireValue::Number(number),
    ]);
    let fields = vec![("block_hashes".to_owned(), hashes)];
    WireBatch {
        time: 1.5,
        events: vec![WireEvent::new("BlockRemoved".to_owned(), fields).unwrap()],
        data_parallel_rank: Some(number),
    }
}

fn publisher(adjust: impl FnOnce(&mut PublisherSettings)) -> WirePublisher {
    let mut settings = PublisherSettings::new("tcp://127.0.0.1:0");
    settings.replay_endpoint = Some("tcp://127.0.0.1:0".to_owned());
    settings.topic = "kv@pod".to_owned();
    adjust(&mut settings);
    WirePublisher::bind(&settings).unwrap()
}

fn settings_for(publisher: &WirePublisher, replays: bool) -> SubscriberSettings {
    let mut settings = SubscriberSettings::new(&format!("tcp://{}", publisher.address()));
    let replay = publisher.replay_address().filter(|_| replays);
    settings.replay_endpoint = replay.map(|address| format!("tcp://{address}"));
    settings.topic = "kv".to_owned();
    settings
}

fn subscribed(publisher: &WirePublisher, replays: bool) -> WireSubscriber {
    let before = publisher.subscribers();
    let subscriber = WireSubscriber::connect(&settings_for(publisher, replays)).unwrap();
    let end = Instant::now() + LONG;
    while publisher.subscribers() == before {
        assert!(Instant::now() < end);
        thread::sleep(Duration::from_millis(5));
    }
    subscriber
}

fn next(subscriber: &mut WireSubscriber) -> ReceivedBatch {
    subscriber.next(LONG).unwrap()
}

#[test]
fn batches_come_in_order_with_topic_and_number() {
    let publisher = publisher(|_| {});
    let mut both = [subscribed(&publisher, false), subscribed(&publisher, false)];
    for number in 0..500 {
        assert_eq!(publisher.publish(&batch(number)), number);
    }
    for subscriber in &mut both {
        for number in 0..500 {
            let received = next(subscriber);
            assert_eq!((received.sequence, received.missed), (number, 0));
            assert_eq!(received.topic, "kv@pod");
            assert_eq!(received.batch, batch(number));
        }
        assert_eq!(subscriber.next(Duration::from_millis(50)), None);
    }
    assert_eq!(publisher.dropped(), 0);
    assert!(publisher.close(LONG));
}

#[test]
fn a_late_subscriber_gets_what_the_publisher_still_has() {
    let publisher = publisher(|settings| settings.past_batches = 10);
    for number in 0..30 {
        publisher.publish(&batch(number));
    }
    let mut without = subscribed(&publisher, false);
    let mut with = subscribed(&publisher, true);
    publisher.publish(&batch(30));
    assert_eq!(next(&mut without).sequence, 30);
    // The past holds the live batch too.
    for number in 21..=30 {
        let received = next(&mut with);
        assert_eq!((received.sequence, received.missed), (number, 0));
    }
    assert_eq!(with.next(Duration::from_millis(50)), None);
}

#[test]
fn gaps_are_filled_or_counted_and_a_new_beginning_is_seen() {
    let publisher = publisher(|_| {});
    let mut without = subscribed(&publisher, false);
    publisher.publish_as("kv", 4, &batch(4));
    publisher.publish_as("other", 5, &batch(5));
    publisher.publish_as("kv", 9, &batch(9));
    publisher.publish_as("kv", 1, &batch(1));
    let summary =
        |received: ReceivedBatch| (received.sequence, received.missed, received.is_restart);
    assert_eq!(summary(next(&mut without)), (4, 0, false));
    assert_eq!(summary(next(&mut without)), (9, 4, false));
    assert_eq!(summary(next(&mut without)), (1, 1, true));
}

#[test]
fn a_subscriber_connects_again_and_fills_the_gap() {
    let first = publisher(|_| {});
    let (address, replay) = (first.address(), first.replay_address().unwrap());
    let mut subscriber = subscribed(&first, true);
    first.publish(&batch(0));
    assert_eq!(next(&mut subscriber).sequence, 0);
    drop(first);
    // The ports are free once the threads of the first publisher have ended.
    let end = Instant::now() + LONG;
    let second = loop {
        let mut settings = PublisherSettings::new(&format!("tcp://{address}"));
        settings.replay_endpoint = Some(format!("tcp://{replay}"));
        settings.topic = "kv".to_owned();
        match WirePublisher::bind(&settings) {
            Ok(publisher) => break publisher,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        thread::sleep(Duration::from_millis(50));
    };
    for number in 1..5 {
        second.publish_as("kv", number, &batch(number));
    }
    while second.subscribers() == 0 {
        assert_eq!(subscriber.next(Duration::from_millis(20)), None);
        assert!(Instant::now() < end);
    }
    second.publish_as("kv", 5, &batch(5));
    for number in 1..=5 {
        let received = next(&mut subscriber);
        assert_eq!((received.sequence, received.missed), (number, 0));
    }
}

#[test]
fn a_subscriber_that_does_not_read_loses_messages_and_delays_no_other() {
    let publisher = publisher(|settings| settings.queue_messages = 3);
    let mut reads = subscribed(&publisher, true);
    let stuck = subscribed(&publisher, false);
    let mut big = batch(0);
    let text = WireValue::Text("x".repeat(1 << 20));
    big.events = vec![WireEvent::new("Other".to_owned(), vec![("text".to_owned(), text)]).unwrap()];
    for number in 0..60 {
        assert_eq!(publisher.publish(&big), number);
        assert_eq!(next(&mut reads).sequence, number);
    }
    assert!(publisher.dropped() > 0);
    drop(stuck);
}

#[test]
fn strangers_are_refused_and_harm_nothing() {
    let publisher = publisher(|_| {});
    let addresses = [publisher.address(), publisher.replay_address().unwrap()];
    for (at, text) in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 400], &[0; 64]]
        .iter()
        .enumerate()
    {
        for address in addresses {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(text).unwrap();
            if at > 0 {
                stream.set_read_timeout(Some(LONG)).unwrap();
                let mut answer = Vec::new();
                // Its greeting, then the end, or a reset for what it did not read.
                let _ = stream.read_to_end(&mut answer);
                assert!(answer.len() <= 64);
            }
        }
    }
    // A ROUTER socket is no PUB socket.
    let replay = format!("tcp://{}", publisher.replay_address().unwrap());
    let refused = WireSubscriber::connect(&SubscriberSettings::new(&replay)).unwrap_err();
    assert!(matches!(refused, WireError::Peer { .. }), "{refused}");
    let refused = WireSubscriber::connect(&SubscriberSettings::new("tcp://127.0.0.1:1"));
    assert!(matches!(refused.unwrap_err(), WireError::Socket { .. }));
    let mut subscriber = subscribed(&publisher, false);
    publisher.publish(&batch(3));
    assert_eq!(next(&mut subscriber).batch, batch(3));
}

#[test]
fn a_recorded_line_comes_back() {
    for (missed, is_restart) in [(0, false), (7, true)] {
        let recorded = RecordedBatch {
            received_ms: 5,
            received: ReceivedBatch {
                topic: "kv".to_owned(),
                sequence: u64::MAX,
                batch: batch(u64::MAX),
                missed,
                is_restart,
            },
        };
        let line = recorded.to_line().unwrap();
        assert_eq!(RecordedBatch::read(1, &line).unwrap(), recorded);
        assert_eq!(line.contains("missed"), missed > 0);
        let error = RecordedBatch::read(3, &line[..line.len() - 1]).unwrap_err();
        assert!(error.to_string().starts_with("line 3"), "{error}");
    }
    assert!(RecordedBatch::read(1, "{}").is_err());
}
