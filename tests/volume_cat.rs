//! Wlogs cut from a volume that is written to meanwhile lead from one mark to the next.

#![allow(clippy::unwrap_used)] // a test ends where it cannot go on

mod support;

use std::sync::mpsc::channel;

use support::client::wait_until;
use support::live::{BLOCKS, Live, Load, Style};

const MARKS: u64 = 6;
/// Between two marks at least \[bytes\].
const STEP: u64 = 3 << 20;

#[test]
fn wlogs_cut_under_load_lead_from_mark_to_mark() {
    let live = Live::create(0x0ca7, 256, 4096);
    let walkeep = &live.walkeep;
    let (_server, _) = live.serve();
    live.zeros("image");
    let style = Style {
        seed: 1,
        life: 1,
        depth: 2,
        largest: 64,
    };
    let (crossed, _reached) = channel();
    let load = Load::start(&live, style, u64::MAX, &crossed);
    let empty = vec![0; BLOCKS];
    let mut lsid = 0;
    for round in 1..=MARKS {
        wait_until("more writes", || load.bytes() > round * STEP);
        let before = load.so_far();
        let mark: u64 = walkeep.ok("volume mark v").trim().parse().unwrap();
        let after = load.so_far();
        let bytes = load.bytes();
        walkeep.ok(&format!("wlog cat v cut.wlog --begin {lsid} --end {mark}"));
        assert!(load.bytes() > bytes, "nobody wrote meanwhile");
        walkeep.ok("wlog verify cut.wlog");
        let (range, changes) = live.wlog("cut.wlog");
        assert_eq!(range, lsid..mark);
        assert!(!changes.is_empty());
        // A copy of the older image becomes the newer one.
        std::fs::copy(walkeep.path("image"), walkeep.path("newer")).unwrap();
        walkeep.ok("wlog redo cut.wlog newer");
        let found = live.blocks_of("newer");
        for (connection, (before, mut sent)) in before.iter().zip(after).enumerate() {
            // What was answered before the mark is in it, what was asked for after it is not.
            sent.least = before.least;
            let counts = sent.prefixes(connection, &empty, &found);
            counts.unwrap_or_else(|why| panic!("mark {round}: {why}"));
        }
        std::fs::rename(walkeep.path("newer"), walkeep.path("image")).unwrap();
        walkeep.ok("volume checkpoint v");
        walkeep.ok(&format!("volume set-oldest v {mark}"));
        lsid = mark;
    }
    load.end();
}
