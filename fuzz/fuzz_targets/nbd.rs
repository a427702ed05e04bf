//! What NBD clients send: options by their numbers, requests, and extents that devices report. Parsing
//! never panics, and what it lets pass keeps the terms.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walkeep_fuzz::{number, split};
use walkeep_store::block::{Extent, Geometry};
use walkeep_store::nbd::proto::{
    ClientOption, Command, MAX_STRING_BYTES, OptionHeader, RequestHeader, Terms, descriptors,
};

fuzz_target!(|input: &[u8]| {
    let Some((choice, bytes)) = split(input) else {
        return;
    };
    if let Some(header) = bytes.first_chunk() {
        let _ = OptionHeader::parse(header);
    }
    let option = ClientOption::parse(u32::from(choice & 15), &bytes);
    if let Some(ClientOption::Info { name, .. } | ClientOption::MetaContext { name, .. }) = option {
        assert!(name.len() <= MAX_STRING_BYTES && !name.contains('\0'));
    }
    request(choice, &bytes);
    extents(choice, &bytes);
});

fn request(choice: u8, bytes: &[u8]) {
    let Some(header) = bytes.first_chunk().and_then(RequestHeader::parse) else {
        return;
    };
    let geometry = Geometry {
        size: 1 << 30,
        min_block: 512,
        preferred_block: 4096,
        max_request: 32 << 20,
        read_only: choice & 16 != 0,
    };
    let terms = Terms {
        structured: choice & 32 != 0,
        allocation: choice & 64 != 0,
        geometry,
    };
    match terms.command(&header) {
        Ok(Command::Read { len, .. } | Command::Write { len, .. }) => {
            assert!(len > 0 && len <= geometry.max_request);
        }
        Ok(Command::Status { .. }) => assert!(terms.allocation),
        Ok(Command::Trim { .. } | Command::Zero { .. }) => assert!(!geometry.read_only),
        Ok(Command::Flush) | Err(_) => {}
    }
}

fn extents(choice: u8, bytes: &[u8]) {
    let len = (number::<4>(bytes, 0) as u32).max(1);
    let extents: Vec<Extent> = bytes
        .chunks_exact(9)
        .map(|chunk| Extent {
            len: number::<8>(chunk, 0) as u64,
            hole: chunk[8] & 1 != 0,
            zero: chunk[8] & 2 != 0,
        })
        .collect();
    let encoded = descriptors(&extents, len, choice & 128 != 0);
    let lengths = encoded
        .chunks_exact(8)
        .map(|d| number::<4>(&[d[3], d[2], d[1], d[0]], 0) as u64);
    let sum: u64 = lengths.sum();
    assert!(sum > 0 && sum <= u64::from(len));
}
