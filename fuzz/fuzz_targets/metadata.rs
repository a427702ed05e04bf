//! Metadata records and volume files: type, then bytes. What is read and written again is the same
//! value; it can be printed; and the algebra on what was read does not panic.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use walkeep_fuzz::split;
use walkeep_wire::Uuid;
use walkeep_wire::meta::files::{ArchiveState, ColdTime, DevicePath, StorageState, VolumeSize};
use walkeep_wire::meta::{
    CompressOpt, FullReplState, HostInfo, MetaDiff, MetaLsidGid, MetaSnap, MetaState, name,
};
use walkeep_wire::serial::{Reader, Serial};

fuzz_target!(|input: &[u8]| {
    let Some((choice, bytes)) = split(input) else {
        return;
    };
    match choice % 14 {
        0 => drop(same::<MetaSnap>(&bytes)),
        1 => drop(same::<MetaDiff>(&bytes).map(|diff| (diff.verbose(), name::format_name(&diff)))),
        2 => drop(same::<MetaState>(&bytes).map(|state| (state.to_string(), state.with_time()))),
        3 => drop(same::<MetaLsidGid>(&bytes)),
        4 => drop(same::<CompressOpt>(&bytes)),
        5 => drop(same::<HostInfo>(&bytes)),
        6 => drop(same::<FullReplState>(&bytes)),
        7 => drop(same::<StorageState>(&bytes)),
        8 => drop(same::<ArchiveState>(&bytes)),
        9 => drop(same::<DevicePath>(&bytes)),
        10 => drop(same::<VolumeSize>(&bytes)),
        11 => drop(same::<ColdTime>(&bytes)),
        12 => drop(same::<Uuid>(&bytes)),
        _ => algebra(&bytes),
    }
});

fn same<T: Serial + Debug>(bytes: &[u8]) -> Option<T> {
    let value = T::from_bytes(bytes).ok()?;
    let canonical = value.to_bytes();
    let back = T::from_bytes(&canonical).expect("what is written can be read");
    // By the text: equality of diffs and states leaves out fields that must come back, too.
    assert_eq!(format!("{back:?}"), format!("{value:?}"));
    assert_eq!(back.to_bytes(), canonical);
    Some(value)
}

/// A state and the diffs behind it.
fn algebra(bytes: &[u8]) {
    let mut reader = Reader::new(bytes);
    let Ok(state) = MetaState::get(&mut reader) else {
        return;
    };
    let mut diffs = Vec::new();
    while let Ok(diff) = MetaDiff::get(&mut reader) {
        diffs.push(diff);
    }
    let (mut snap, mut merged) = (state.snap_b(), diffs.first().cloned());
    for diff in &diffs {
        let _ = (snap.relation(diff), state.can_apply(diff));
        if let Ok(after) = snap.apply(diff) {
            assert!(after.gid_b() > snap.gid_b());
            snap = after;
        }
        merged = merged.and_then(|older| older.merge(diff).ok().or(Some(older)));
    }
    let _ = (state.begin_applying(&diffs), state.end_applying(&diffs));
}
