//! Payloads: algorithm, plain size, then the stored bytes. The same bytes are compressed, too, and
//! have to come back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walkeep_fuzz::{number, split};
use walkeep_wire::wdiff::{Codec, Compression};

fuzz_target!(|input: &[u8]| {
    let Some((choice, rest)) = split(input) else {
        return;
    };
    if rest.len() < 2 {
        return;
    }
    let algorithm = Compression::ALL[usize::from(choice >> 4) % 6];
    let (size, bytes) = (number::<2>(&rest, 0), &rest[2..]);
    let mut codec = Codec::default();
    // A failure must not spoil the contexts for the payload after it.
    let _ = codec.decompress(algorithm, bytes, &mut vec![0; size]);

    let mut stored = Vec::new();
    let used = codec.compress(algorithm, choice & 3, bytes, &mut stored);
    assert!(used == Compression::None || stored.len() < bytes.len());
    let mut plain = vec![0; bytes.len()];
    codec
        .decompress(used, &stored, &mut plain)
        .expect("what was compressed");
    assert_eq!(plain, bytes);
    if used != Compression::None {
        stored.pop();
        assert!(
            codec.decompress(used, &stored, &mut plain).is_err(),
            "a truncated payload"
        );
    }
});
