//! Serialised values: type, then bytes. What is read and written again is the same value, in a form
//! that does not change any more.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use walkeep_fuzz::split;
use walkeep_wire::Flaw;
use walkeep_wire::serial::{Reader, Serial};

fuzz_target!(|input: &[u8]| {
    let Some((choice, bytes)) = split(input) else {
        return;
    };
    match choice % 8 {
        0 => same::<u32>(&bytes),
        1 => same::<u64>(&bytes),
        2 => same::<i64>(&bytes),
        3 => same::<String>(&bytes),
        4 => same::<Vec<u32>>(&bytes),
        5 => same::<Vec<String>>(&bytes),
        6 => same::<Vec<Vec<u64>>>(&bytes),
        _ => drop(fields(&bytes)),
    }
});

fn same<T: Serial + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(value) = T::from_bytes(bytes) {
        let canonical = value.to_bytes();
        let back = T::from_bytes(&canonical);
        assert_eq!(back.as_ref(), Ok(&value));
        // Lengths may be written in a longer form than needed, never in a shorter one.
        assert!(canonical.len() <= bytes.len());
    }
}

/// The readers of single fields, in the order that the bytes ask for.
fn fields(bytes: &[u8]) -> Result<(), Flaw> {
    let mut reader = Reader::new(bytes);
    loop {
        let before = reader.remaining();
        match reader.u8("choice")? % 6 {
            0 => drop(reader.bool("bool")?),
            1 => drop(reader.u16("u16")?),
            2 => drop(reader.bytes("bytes")?),
            3 => drop(reader.string("string")?),
            4 => drop(reader.array::<5>("array")?),
            _ => drop(reader.clone().finish()),
        }
        assert!(reader.remaining() < before);
        assert_eq!(
            reader.offset() + reader.remaining() as u64,
            bytes.len() as u64
        );
    }
}
