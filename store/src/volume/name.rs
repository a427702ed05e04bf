//! Names of volumes (reference: "Volume folder").
//!
//! A name is a folder, an NBD export, a field of the superblock and the last part of a device path:
//! only what is harmless in all of them is allowed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes that the superblock has for a name.
const MAX_BYTES: usize = 31;

/// The name of a volume: 1 to 31 of `A-Z a-z 0-9 _ . -`, not beginning with `.` or `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

impl VolumeName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VolumeName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        let is_name = (1..=MAX_BYTES).contains(&text.len())
            && text.bytes().all(is_legal)
            && !text.starts_with(['.', '-']);
        if is_name {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "volume name: expected 1 to {MAX_BYTES} of A-Z a-z 0-9 _ . -, not beginning with . \
             or -, found {text:?}"
        ))
    }
}

impl TryFrom<String> for VolumeName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> Self {
        name.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_names() {
        let longest = "a".repeat(31);
        for good in ["a", "0", "_", "db-1.log", "A_b", &longest] {
            assert_eq!(good.parse::<VolumeName>().unwrap().as_str(), good);
        }
        let too_long = "a".repeat(32);
        for bad in [
            "", ".", "..", ".a", "-a", "a/b", "a b", "a\n", "ä", "a\0", &too_long,
        ] {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad:?}");
        }
    }
}
