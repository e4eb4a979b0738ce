use super::*;
use std::collections::VecDeque;
use std::task::Waker;
use tokio::io::ReadBuf;

/// A socket that brings what it was given, in the pieces it was given.
struct Pieces(VecDeque<Vec<u8>>);

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(mut piece) = self.0.pop_front() else { return Poll::Pending };
        let rest = piece.split_off(piece.len().min(buffer.remaining()));
        buffer.put_slice(&piece);
        if !rest.is_empty() {
            self.0.push_front(rest);
        }
        Poll::Ready(Ok(()))
    }
}

/// Reads frames of the form `u16 length | bytes`, skipping those that start with `#` once their
/// first byte is there; returns what was taken.
fn frames(pieces: Vec<Vec<u8>>, scratch: &Scratch) -> (Vec<Vec<u8>>, Reader) {
    let mut socket = Pieces(pieces.into());
    let mut cx = Context::from_waker(Waker::noop());
    let (mut reader, mut taken) = (Reader::default(), Vec::new());
    while let Poll::Ready(filled) = reader.poll_fill(&mut cx, &mut socket, scratch) {
        let Some(mut filled) = filled.unwrap() else { break };
        let bytes = filled.front();
        let (mut at, mut skip) = (0, 0);
        let mut places = Vec::new();
        let wanted = loop {
            let rest = &bytes[at..];
            let Some([a, b]) = rest.first_chunk() else { break 2 };
            let end = 2 + usize::from(u16::from_be_bytes([*a, *b])) * 16;
            if rest.get(2) == Some(&b'#') {
                at += end.min(rest.len());
                skip = end - end.min(rest.len());
                if skip > 0 {
                    break 0;
                }
                continue;
            }
            if rest.len() < end {
                break end;
            }
            places.push(at + 2..at + end);
            at += end;
        };
        let chunk = filled.take(at, wanted, skip);
        assert_eq!(chunk.len(), at);
        taken.extend(places.into_iter().map(|place| chunk[place].to_vec()));
    }
    (taken, reader)
}

fn frame(byte: u8, sixteens: u16) -> Vec<u8> {
    let mut frame = sixteens.to_be_bytes().to_vec();
    frame.extend(vec![byte; usize::from(sixteens) * 16]);
    frame
}

/// Small, empty, long, skipped and longer than the shared buffer.
fn stream() -> (Vec<u8>, Vec<Vec<u8>>) {
    let sizes = [1, 0, 3, 5_000, 2, 40_000, 7, 20_000, 1];
    let mut all = Vec::new();
    let mut expected = Vec::new();
    for (byte, size) in (b'a'..).zip(sizes) {
        all.extend(frame(byte, size));
        expected.push(vec![byte; usize::from(size) * 16]);
        all.extend(frame(b'#', size.max(1)));
    }
    (all, expected)
}

#[test]
fn many_frames_in_one_read() {
    let (all, expected) = stream();
    let (taken, reader) = frames(vec![all], &Scratch::new());
    assert!(taken == expected, "{:?}", summary(&taken));
    assert!(reader.is_empty());
}

fn summary(frames: &[Vec<u8>]) -> Vec<(Option<u8>, usize)> {
    frames.iter().map(|frame| (frame.first().copied(), frame.len())).collect()
}

#[test]
fn pieces_of_any_size() {
    let (all, expected) = stream();
    let scratch = Scratch::new();
    for size in [1, 2, 3, 17, 1_000, 65_536, 100_000] {
        let pieces = all.chunks(size).map(<[u8]>::to_vec).collect();
        let (taken, reader) = frames(pieces, &scratch);
        assert!(taken == expected, "pieces of {size}: {:?}", summary(&taken));
        assert!(reader.is_empty());
    }
}

#[test]
fn an_idle_connection_holds_nothing() {
    let (_, mut reader) = frames(vec![frame(b'a', 100)], &Scratch::new());
    reader.shrink();
    assert_eq!(reader.own.capacity(), 0);
}

#[test]
fn the_rest_of_a_read_does_not_hold_on_to_it() {
    let mut piece = frame(b'a', 10_000);
    piece.extend(&frame(b'b', 10)[..5]);
    let (taken, reader) = frames(vec![piece], &Scratch::new());
    assert_eq!(taken.len(), 1);
    assert!(reader.own.capacity() < 64, "{}", reader.own.capacity());
}

#[test]
fn a_claim_of_a_length_costs_no_memory() {
    let (_, reader) = frames(vec![frame(b'a', u16::MAX)[..100].to_vec()], &Scratch::new());
    assert!(reader.own.capacity() < 256, "{}", reader.own.capacity());
}

#[test]
fn frames_that_are_kept_survive_the_next_read() {
    let scratch = Scratch::new();
    let mut cx = Context::from_waker(Waker::noop());
    let mut socket = Pieces((0..200).map(|byte| vec![byte; 4_000]).collect());
    let mut reader = Reader::default();
    let mut kept = Vec::new();
    while let Poll::Ready(filled) = reader.poll_fill(&mut cx, &mut socket, &scratch) {
        kept.push(filled.unwrap().unwrap().take(4_000, 5, 0));
    }
    for (byte, chunk) in (0..200).zip(kept) {
        assert!(chunk.iter().all(|found| *found == byte));
    }
}

#[test]
fn the_shared_buffer_is_used_again_once_nobody_keeps_it() {
    let scratch = Scratch::new();
    let mut cx = Context::from_waker(Waker::noop());
    let mut socket = Pieces((0..1_000).map(|_| vec![1; 60_000]).collect());
    let mut reader = Reader::default();
    let mut places = std::collections::BTreeSet::new();
    while let Poll::Ready(filled) = reader.poll_fill(&mut cx, &mut socket, &scratch) {
        let chunk = filled.unwrap().unwrap().take(60_000, 5, 0);
        places.insert(chunk.as_ptr() as usize);
    }
    assert!(places.len() <= SCRATCH_BYTES / 60_000 + 1, "{} places", places.len());
}
