use proptest::prelude::*;

use super::{proto::frame::Body, *};
use token::calls::{FunctionCalls, FunctionErrors};

fn requests() -> Vec<Request<'static>> {
    let sign = |kind| {
        Request::Sign(Sign { kind, key: [7; 32], request_id: "req-1", deadline_ms: 250, message: b"to be signed" })
    };
    vec![
        Request::Cancel { correlation: 77 },
        Request::Discard { session: 9 },
        Request::Hello { version: VERSION, settings: b"{}" },
        Request::Open { key: [3; 32], known: b"known" },
        Request::Ping,
        sign(Kind::Canary),
        sign(Kind::Checkpoint),
        sign(Kind::Intermediate),
        sign(Kind::Leaf),
        sign(Kind::Crl),
    ]
}

fn replies() -> Vec<Reply> {
    let mut replies = vec![
        Reply::Expired,
        Reply::Opened { known: b"known".to_vec(), found: "by a trial signature".to_owned() },
        Reply::Refused { reason: "CA:TRUE".into(), limit: false },
        Reply::Refused { reason: "too many".into(), limit: true },
        Reply::Signed { session: 4, signature: vec![1, 2, 3] },
        Reply::Status(Box::new(Status {
            token: "istio-ca".into(),
            sessions: 2,
            signed: vec![KeyCount { key: "aa".into(), kind: Kind::Leaf, count: 3 }],
            calls: vec![FunctionCalls { function: "C_Sign".into(), buckets: vec![1, 2], nanoseconds: 9 }],
            call_errors: vec![FunctionErrors { function: "C_Sign".into(), code: 5, count: 1 }],
            ..Status::default()
        })),
    ];
    let recoveries = [
        Recovery::FixConfiguration,
        Recovery::FixKey,
        Recovery::FixPin,
        Recovery::NewProcess,
        Recovery::NewSession,
        Recovery::RejectRequest,
        Recovery::Relogin,
        Recovery::Retry,
    ];
    replies.extend(recoveries.map(|recovery| {
        Reply::Fault(Fault { recovery, code: 0xA0, function: "C_Login".into(), text: "the PIN is wrong".into() })
    }));
    replies
}

#[test]
fn requests_survive_the_wire_back_to_back() {
    let mut buffer = Vec::new();
    for (i, request) in (0..).zip(requests()) {
        request.encode(i, &mut buffer).unwrap();
    }
    let mut rest = &buffer[..];
    for (i, request) in (0..).zip(requests()) {
        let (frame, used) = Frame::split(rest).unwrap().unwrap();
        assert_eq!(frame.correlation, i);
        assert_eq!(Request::decode(&frame).unwrap(), request);
        rest = &rest[used..];
    }
    assert!(rest.is_empty());
}

#[test]
fn replies_survive_the_wire() {
    for reply in replies() {
        let mut buffer = Vec::new();
        reply.encode(u64::MAX, &mut buffer).unwrap();
        let (frame, used) = Frame::split(&buffer).unwrap().unwrap();
        assert_eq!(used, buffer.len());
        assert_eq!(Reply::decode(frame).unwrap(), reply);
    }
}

#[test]
fn every_cut_of_a_frame_is_incomplete_or_an_error() {
    for request in requests() {
        let mut buffer = Vec::new();
        request.encode(1, &mut buffer).unwrap();
        for cut in 0..buffer.len() {
            assert_eq!(Frame::split(&buffer[..cut]), Ok(None), "{request:?} cut at {cut}");
        }
    }
}

#[test]
fn sizes_out_of_bounds_are_known_from_the_length() {
    for length in [0u32, 768 * 1024 + 1, u32::MAX] {
        assert!(matches!(Frame::split(&length.to_be_bytes()), Err(ProtocolError::Size(_))), "{length}");
        assert!(matches!(Frame::length(&length.to_be_bytes()), Err(ProtocolError::Size(_))), "{length}");
    }
    let largest = (60 * 1024_u32).to_be_bytes();
    assert_eq!(Frame::split_reply(&largest), Ok(None));
    let larger = (60 * 1024_u32 + 1).to_be_bytes();
    assert!(matches!(Frame::split_reply(&larger), Err(ProtocolError::Size(_))));
    assert_eq!((Frame::split(&larger), Frame::length(&larger)), (Ok(None), Ok(Some(60 * 1024 + 5))));
}

#[test]
fn too_large_a_message_leaves_the_buffer_as_it_was() {
    let message = vec![0; MAX_FRAME];
    let sign =
        Request::Sign(Sign { kind: Kind::Leaf, key: [0; 32], request_id: "", deadline_ms: 1, message: &message });
    let mut buffer = b"before".to_vec();
    assert!(matches!(sign.encode(1, &mut buffer), Err(ProtocolError::Size(_))));
    assert_eq!(buffer, b"before");
}

#[test]
fn long_texts_are_cut_at_a_character() {
    let mut buffer = Vec::new();
    Reply::Refused { reason: "é".repeat(MAX_TEXT), limit: false }.encode(1, &mut buffer).unwrap();
    let (frame, _) = Frame::split(&buffer).unwrap().unwrap();
    assert!(matches!(Reply::decode(frame), Ok(Reply::Refused { reason, .. }) if reason.len() == MAX_TEXT));
}

/// A frame with this payload.
fn framed(payload: &[u8]) -> Vec<u8> {
    [&u32::try_from(payload.len()).unwrap().to_be_bytes(), payload].concat()
}

#[test]
fn frame_without_a_known_body_is_refused() {
    // Correlation 1; then with an unknown field number 15.
    for payload in [&[0x08, 1][..], &[0x08, 1, 0x7a, 0]] {
        assert_eq!(Frame::split(&framed(payload)), Err(ProtocolError::Malformed("body")));
    }
}

#[test]
fn fields_out_of_range_are_refused() {
    let sign = proto::Sign { kind: 4, key: vec![7; 32], ..proto::Sign::default() };
    let frame = |body| Frame { correlation: 1, body };
    assert!(Request::decode(&frame(Body::Sign(sign.clone()))).is_ok());
    for wrong in [
        Body::Open(proto::Open { key: vec![0; 33], ..proto::Open::default() }),
        Body::Sign(proto::Sign { kind: 0, ..sign.clone() }),
        Body::Sign(proto::Sign { kind: 6, ..sign.clone() }),
        Body::Sign(proto::Sign { key: vec![7; 31], ..sign.clone() }),
        Body::Sign(proto::Sign { request_id: "r".repeat(129), ..sign }),
        Body::Opened(proto::Opened::default()),
    ] {
        assert!(Request::decode(&frame(wrong.clone())).is_err(), "{wrong:?}");
    }
    for wrong in [Body::Fault(proto::Fault::default()), Body::Ping(proto::Ping {})] {
        assert!(Reply::decode(frame(wrong.clone())).is_err(), "{wrong:?}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = Frame::split(&bytes);
        if let Ok(Some((frame, _))) = Frame::split(&framed(&bytes)) {
            let _ = Request::decode(&frame);
            let _ = Reply::decode(frame);
        }
    }

    #[test]
    fn a_damaged_frame_does_not_panic(at in 0usize..200, to in any::<u8>(), which in 0usize..9) {
        let mut buffer = Vec::new();
        requests()[which].encode(1, &mut buffer).unwrap();
        let at = at % buffer.len();
        buffer[at] = to;
        if let Ok(Some((frame, used))) = Frame::split(&buffer) {
            prop_assert!(used <= buffer.len());
            let _ = Request::decode(&frame);
        }
    }
}
