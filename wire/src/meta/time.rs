//! Unix timestamps as UTC calendar text, for file names and text forms (reference: "wdiff
//! names").
//!
//! Civil arithmetic reaches the last second of the year 9999, which an instant with a time zone
//! cannot name.

use jiff::SignedDuration;
use jiff::civil::{Date, DateTime, Time, date};

const EPOCH: DateTime = date(1970, 1, 1).at(0, 0, 0, 0);

/// The calendar time of a timestamp, unless it lies after the year 9999.
pub(crate) fn civil(timestamp: u64) -> Option<DateTime> {
    let seconds = SignedDuration::from_secs(i64::try_from(timestamp).ok()?);
    EPOCH.checked_add(seconds).ok()
}

/// The timestamp of year, month, day, hour, minute, second; none if there is no such second from
/// 1970 on. Leap seconds have no timestamp of their own.
pub(crate) fn timestamp(fields: [u16; 6]) -> Option<u64> {
    let [year, month, day, hour, minute, second] = fields.map(i16::try_from);
    let small = |field: Result<i16, _>| i8::try_from(field.ok()?).ok();
    let date = Date::new(year.ok()?, small(month)?, small(day)?).ok()?;
    let time = Time::new(small(hour)?, small(minute)?, small(second)?, 0).ok()?;
    u64::try_from(
        DateTime::from_parts(date, time)
            .duration_since(EPOCH)
            .as_secs(),
    )
    .ok()
}

/// `YYYYMMDDhhmmss`, or none after the year 9999.
pub(crate) fn compact(timestamp: u64) -> Option<String> {
    let t = civil(timestamp)?;
    Some(format!(
        "{:04}{:02}{:02}{:02}{:02}{:02}",
        t.year(),
        t.month(),
        t.day(),
        t.hour(),
        t.minute(),
        t.second()
    ))
}

/// `YYYY-MM-DDThh:mm:ss`, or none after the year 9999.
pub(crate) fn readable(timestamp: u64) -> Option<String> {
    let t = civil(timestamp)?;
    Some(format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        t.year(),
        t.month(),
        t.day(),
        t.hour(),
        t.minute(),
        t.second()
    ))
}

/// How text forms show a timestamp that no calendar holds.
pub(crate) fn raw(timestamp: u64) -> String {
    format!("@{timestamp}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calendar_ends_with_the_year_9999() {
        assert_eq!(compact(0).as_deref(), Some("19700101000000"));
        assert_eq!(
            readable(1_700_000_000).as_deref(),
            Some("2023-11-14T22:13:20")
        );
        assert_eq!(compact(253_402_300_799).as_deref(), Some("99991231235959"));
        assert_eq!(compact(253_402_300_800), None);
        assert_eq!(compact(u64::MAX), None);
        assert_eq!(readable(i64::MAX as u64), None);
    }

    #[test]
    fn impossible_moments_have_no_timestamp() {
        assert_eq!(timestamp([2023, 11, 14, 22, 13, 20]), Some(1_700_000_000));
        assert_eq!(timestamp([9999, 12, 31, 23, 59, 59]), Some(253_402_300_799));
        assert_eq!(timestamp([2023, 2, 29, 0, 0, 0]), None);
        assert_eq!(timestamp([2016, 12, 31, 23, 59, 60]), None);
        assert_eq!(timestamp([1969, 12, 31, 23, 59, 59]), None);
        assert_eq!(timestamp([2023, 300, 1, 0, 0, 0]), None);
    }
}
