//! Names of diff files (reference: "wdiff names").
//!
//! `<YYYYMMDDhhmmss>-<M|-><C|->-<gids>.wdiff`, with two gids for a clean diff and four for a dirty
//! one. The size of the diff is not in its name.

use super::{MetaDiff, MetaSnap, Refusal, time};
use crate::error::{Flaw, demand};

const SUFFIX: &str = ".wdiff";
const TIME_LEN: usize = 14;
/// Where the gids begin: after the time, the two flags and the dashes around them.
const GIDS_AT: usize = TIME_LEN + 4;

/// The name of a diff's file. Refuses a timestamp after the year 9999, which has no name.
pub fn format_name(diff: &MetaDiff) -> Result<String, Refusal> {
    let time = time::compact(diff.timestamp).ok_or_else(|| {
        Refusal::new(
            "diff file name",
            "a timestamp up to the year 9999",
            diff.timestamp,
        )
    })?;
    let (merge, comp, b, e) = (
        diff.merge_mark(),
        diff.comp_mark(),
        diff.snap_b(),
        diff.snap_e(),
    );
    let gids = if diff.is_clean() {
        format!("{}-{}", b.gid_b(), e.gid_b())
    } else {
        format!("{}-{}-{}-{}", b.gid_b(), b.gid_e(), e.gid_b(), e.gid_e())
    };
    Ok(format!("{time}-{merge}{comp}-{gids}{SUFFIX}"))
}

/// Reads a name. Everything that [`format_name`] would write differently is refused, except a clean
/// diff with four gids. Leap seconds are refused too: their timestamp has another name.
pub fn parse_name(name: &str) -> Result<MetaDiff, Flaw> {
    let bytes = name.as_bytes();
    // An ASCII name can be cut anywhere.
    demand!(
        name.is_ascii(),
        0,
        "diff file name",
        "ASCII",
        "other characters"
    );
    let len = bytes.len();
    let is_long = len > GIDS_AT + SUFFIX.len();
    demand!(
        is_long,
        0,
        "diff file name",
        "time, flags, gids and .wdiff",
        format!("{len} bytes")
    );
    let timestamp = parse_time(&name[..TIME_LEN])?;
    for at in [TIME_LEN, GIDS_AT - 1] {
        demand!(
            bytes[at] == b'-',
            at,
            "diff file name",
            "-",
            bytes[at].escape_ascii()
        );
    }
    let is_mergeable = parse_flag(bytes, TIME_LEN + 1, b'M')?;
    let is_comp = parse_flag(bytes, TIME_LEN + 2, b'C')?;
    let gids = name[GIDS_AT..].strip_suffix(SUFFIX);
    let gids = gids.ok_or_else(|| Flaw::new(0, "diff file name", SUFFIX, name))?;
    let mut diff = parse_ends(gids)?;
    (diff.is_mergeable, diff.is_comp, diff.timestamp) = (is_mergeable, is_comp, timestamp);
    Ok(diff)
}

fn parse_time(text: &str) -> Result<u64, Flaw> {
    let flaw = || {
        Flaw::new(
            0,
            "time in a diff file name",
            "YYYYMMDDhhmmss from 1970 on",
            text,
        )
    };
    if !text.bytes().all(|c| c.is_ascii_digit()) {
        return Err(flaw());
    }
    let field = |from: usize, to: usize| text[from..to].parse::<u16>().map_err(|_| flaw());
    let date = [field(0, 4)?, field(4, 6)?, field(6, 8)?];
    let clock = [field(8, 10)?, field(10, 12)?, field(12, 14)?];
    let [year, month, day] = date;
    let [hour, minute, second] = clock;
    time::timestamp([year, month, day, hour, minute, second]).ok_or_else(flaw)
}

fn parse_flag(name: &[u8], at: usize, mark: u8) -> Result<bool, Flaw> {
    let found = name[at];
    let rule = format_args!("{} or -", mark.escape_ascii());
    demand!(
        found == mark || found == b'-',
        at,
        "flag in a diff file name",
        rule,
        found.escape_ascii()
    );
    Ok(found == mark)
}

fn parse_ends(text: &str) -> Result<MetaDiff, Flaw> {
    let at = GIDS_AT as u64;
    let mut gids = [0; 4];
    let mut count = 0;
    for part in text.split('-') {
        demand!(
            count < gids.len(),
            at,
            "gids in a diff file name",
            "two or four",
            text
        );
        gids[count] = parse_gid(part)?;
        count += 1;
    }
    let [a, b, c, d] = gids;
    let ends = match count {
        2 => Ok((MetaSnap::clean(a), MetaSnap::clean(b))),
        4 => MetaSnap::new(a, b).and_then(|begin| Ok((begin, MetaSnap::new(c, d)?))),
        _ => {
            return Err(Flaw::new(
                at,
                "gids in a diff file name",
                "two or four",
                text,
            ));
        }
    };
    ends.and_then(|(begin, end)| MetaDiff::new(begin, end))
        .map_err(|refusal| refusal.at(at))
}

/// A decimal number as it is printed: no sign, no leading zeros.
pub(super) fn parse_gid(text: &str) -> Result<u64, Flaw> {
    let is_plain =
        text.bytes().all(|c| c.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    let gid = if is_plain { text.parse().ok() } else { None };
    gid.ok_or_else(|| {
        Flaw::new(
            GIDS_AT as u64,
            "gid in a file name",
            "a decimal number",
            text,
        )
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::any_diff;
    use super::*;

    #[test]
    fn foreign_forms_are_refused() {
        assert!(parse_name("20231114221320-M--0-1.wdiff").is_ok());
        for name in [
            "20231114221320-X--0-1.wdiff",
            "20231114221320-Mc-0-1.wdiff",
            "20231114221320-M--00-1.wdiff",
            "20231114221320-M--0-+1.wdiff",
            "20231114221320-M--0.wdiff",
            "20231114221320-M--0-1-2.wdiff",
            "20231114221320-M--0-0-1-5-6.wdiff",
            "20231114221320-M--0-0-1-1-.wdiff",
            "20231114221320-M--0-1.wdiff2",
            "20231114221320-M--0-1.wdiff.wdiff",
            "20231114221320-M--0-18446744073709551616.wdiff",
            "20231114221320-M--.wdiff",
            "20230229000000-M--0-1.wdiff",
            "20161231235960-M--0-1.wdiff",
            "19691231235959-M--0-1.wdiff",
            "+0231114221320-M--0-1.wdiff",
            "20231114221320-M--0-é.wdiff",
        ] {
            assert!(parse_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_fifth_gid_is_refused_for_its_number() {
        assert!(parse_name("20231114221320-M--0-0-1-5.wdiff").is_ok());
        let flaw = parse_name("20231114221320-M--0-0-1-5-6.wdiff").unwrap_err();
        let expected = "offset 18: gids in a diff file name: expected two or four, found 0-0-1-5-6";
        assert_eq!(flaw.to_string(), expected);
    }

    #[test]
    fn four_gids_of_a_clean_diff_become_two() {
        let diff = parse_name("20231114221320-M--0-0-1-1.wdiff").unwrap();
        assert_eq!(format_name(&diff).unwrap(), "20231114221320-M--0-1.wdiff");
    }

    #[test]
    fn the_year_10000_has_no_name() {
        let mut diff = parse_name("99991231235959-M--0-1.wdiff").unwrap();
        diff.timestamp += 1;
        assert!(format_name(&diff).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn names_round_trip(mut diff in any_diff(), time in 0u64..253_402_300_800) {
            (diff.timestamp, diff.data_size) = (time, 0);
            let back = parse_name(&format_name(&diff).unwrap()).unwrap();
            prop_assert_eq!(format!("{back:?}"), format!("{diff:?}"));
        }

        #[test]
        fn arbitrary_names_do_not_panic(name in "[0-9MC.wdifé-]{0,40}") {
            if let Ok(diff) = parse_name(&name) {
                prop_assert_eq!(parse_name(&format_name(&diff).unwrap()), Ok(diff));
            }
        }
    }
}
