//! The serialisation of metadata files and queue records (reference: "Serialisation").
//!
//! Integers of 32 and 64 bits have a variable length; everything else is fixed or counted. The
//! writer gives the one canonical form, the reader takes every form that has a meaning.

use crate::error::{Flaw, demand};

/// First bytes that announce a wider integer: zero-extended from 1, 2, 4 and 8 bytes.
const ZERO_EXTENDED: [u8; 4] = [0x80, 0x81, 0x82, 0x83];
/// The same, sign-extended. Only 1, 2 and 4 bytes are ever written.
const SIGN_EXTENDED: [u8; 4] = [0x84, 0x85, 0x86, 0x87];

/// Collects serialised values.
#[derive(Debug, Default, Clone)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty writer.
    pub const fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// One byte, 0 or 1.
    pub fn put_bool(&mut self, value: bool) {
        self.put_u8(u8::from(value));
    }

    /// One byte.
    pub fn put_u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// Two bytes.
    pub fn put_u16(&mut self, value: u16) {
        self.put_raw(&value.to_le_bytes());
    }

    /// One to five bytes.
    pub fn put_u32(&mut self, value: u32) {
        if !self.put_short(i64::from(value.cast_signed()).cast_unsigned()) {
            self.put_coded(ZERO_EXTENDED[2], &value.to_le_bytes());
        }
    }

    /// One to nine bytes.
    pub fn put_u64(&mut self, value: u64) {
        if self.put_short(value) {
            return;
        }
        let low = value as u32;
        if u64::from(low) == value {
            self.put_coded(ZERO_EXTENDED[2], &low.to_le_bytes());
        } else if i64::from(low.cast_signed()).cast_unsigned() == value {
            self.put_coded(SIGN_EXTENDED[2], &low.to_le_bytes());
        } else {
            self.put_coded(ZERO_EXTENDED[3], &value.to_le_bytes());
        }
    }

    /// One to nine bytes, those of the unsigned value with the same bits.
    pub fn put_i64(&mut self, value: i64) {
        self.put_u64(value.cast_unsigned());
    }

    /// Length and bytes.
    pub fn put_string(&mut self, value: &str) {
        self.put_bytes(value.as_bytes());
    }

    /// Length and bytes.
    pub fn put_bytes(&mut self, value: &[u8]) {
        self.put_u64(value.len() as u64);
        self.put_raw(value);
    }

    /// The bytes alone, for arrays whose length is fixed by the format.
    pub fn put_raw(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
    }

    /// Length and elements.
    pub fn put_vec<T: Serial>(&mut self, values: &[T]) {
        self.put_u64(values.len() as u64);
        values.iter().for_each(|value| value.put(self));
    }

    /// Writes a value that one or two bytes hold, zero- or sign-extended; false if they do not.
    fn put_short(&mut self, value: u64) -> bool {
        let byte = value as u8;
        let half = value as u16;
        if i64::from(byte.cast_signed()).cast_unsigned() == value {
            if matches!(byte, 0x80..=0x87) {
                self.put_u8(SIGN_EXTENDED[0]);
            }
            self.put_u8(byte);
        } else if u64::from(byte) == value {
            self.put_coded(ZERO_EXTENDED[0], &[byte]);
        } else if u64::from(half) == value {
            self.put_coded(ZERO_EXTENDED[1], &half.to_le_bytes());
        } else if i64::from(half.cast_signed()).cast_unsigned() == value {
            self.put_coded(SIGN_EXTENDED[1], &half.to_le_bytes());
        } else {
            return false;
        }
        true
    }

    fn put_coded(&mut self, code: u8, bytes: &[u8]) {
        self.put_u8(code);
        self.put_raw(bytes);
    }
}

/// Reads serialised values one after the other. Flaws have the offset of the offending value.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub const fn offset(&self) -> u64 {
        self.at as u64
    }

    /// Bytes not yet read.
    pub const fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Refuses bytes after the last value.
    pub fn finish(self) -> Result<(), Flaw> {
        demand!(
            self.remaining() == 0,
            self.at,
            "end of data",
            "no more bytes",
            self.remaining()
        );
        Ok(())
    }

    /// One byte, which must be 0 or 1.
    pub fn bool(&mut self, what: &'static str) -> Result<bool, Flaw> {
        let at = self.at;
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            byte => Err(Flaw::new(at as u64, what, "0 or 1", byte)),
        }
    }

    /// One byte.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, Flaw> {
        let [byte] = self.array(what)?;
        Ok(byte)
    }

    /// Two bytes.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, Flaw> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    /// An integer of at most 32 bits. The codes of eight bytes are refused.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, Flaw> {
        let code = self.bytes.get(self.at).copied();
        let is_wide = matches!(code, Some(0x83 | 0x87));
        demand!(
            !is_wide,
            self.at,
            what,
            "an integer of 32 bits",
            "one of 64 bits"
        );
        // Sign-extended values are cut to their own 32 bits.
        Ok(self.u64(what)? as u32)
    }

    /// An integer of at most 64 bits.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, Flaw> {
        let value = match self.u8(what)? {
            0x80 => u64::from(self.u8(what)?),
            0x81 => u64::from(self.u16(what)?),
            0x82 => u64::from(u32::from_le_bytes(self.array(what)?)),
            0x83 | 0x87 => u64::from_le_bytes(self.array(what)?),
            0x84 => i64::from(i8::from_le_bytes(self.array(what)?)).cast_unsigned(),
            0x85 => i64::from(i16::from_le_bytes(self.array(what)?)).cast_unsigned(),
            0x86 => i64::from(i32::from_le_bytes(self.array(what)?)).cast_unsigned(),
            byte => i64::from(byte.cast_signed()).cast_unsigned(),
        };
        Ok(value)
    }

    /// A signed integer of at most 64 bits.
    pub fn i64(&mut self, what: &'static str) -> Result<i64, Flaw> {
        Ok(self.u64(what)?.cast_signed())
    }

    /// Length and bytes of UTF-8 text.
    pub fn string(&mut self, what: &'static str) -> Result<&'a str, Flaw> {
        let at = self.offset();
        let bytes = self.bytes(what)?;
        std::str::from_utf8(bytes).map_err(|error| Flaw::new(at, what, "UTF-8 text", error))
    }

    /// Length and bytes. The length is checked against what is left.
    pub fn bytes(&mut self, what: &'static str) -> Result<&'a [u8], Flaw> {
        let len = self.length(what)?;
        self.take(len, what)
    }

    /// As many bytes as the format fixes.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Flaw> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    /// Length and elements. Memory follows the elements that are really there.
    pub fn vec<T: Serial>(&mut self, what: &'static str) -> Result<Vec<T>, Flaw> {
        let len = self.length(what)?;
        let mut values = Vec::new();
        for _ in 0..len {
            values.push(T::get(self)?);
        }
        Ok(values)
    }

    /// The two bytes in front of a composite value.
    pub fn preamble(&mut self, expected: u16, what: &'static str) -> Result<(), Flaw> {
        let at = self.at;
        let found = self.u16(what)?;
        demand!(
            found == expected,
            at,
            what,
            format!("{expected:#06x}"),
            format!("{found:#06x}")
        );
        Ok(())
    }

    /// A count of bytes or elements. Every element has at least one byte.
    fn length(&mut self, what: &'static str) -> Result<usize, Flaw> {
        let at = self.at;
        let len = self.u64(what)?;
        let left = self.remaining();
        demand!(
            len <= left as u64,
            at,
            what,
            format!("a length of at most {left}"),
            len
        );
        Ok(len as usize)
    }

    fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], Flaw> {
        let left = self.remaining();
        demand!(
            len <= left,
            self.at,
            what,
            format!("{len} bytes"),
            format!("{left} (truncated)")
        );
        let bytes = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(bytes)
    }
}

/// A value with a serialised form.
pub trait Serial: Sized {
    /// Appends the canonical form.
    fn put(&self, writer: &mut Writer);

    /// Reads one value and leaves the reader after it.
    fn get(reader: &mut Reader<'_>) -> Result<Self, Flaw>;

    /// The canonical form alone.
    fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        self.put(&mut writer);
        writer.into_bytes()
    }

    /// Reads a value that fills `bytes`.
    fn from_bytes(bytes: &[u8]) -> Result<Self, Flaw> {
        let mut reader = Reader::new(bytes);
        let value = Self::get(&mut reader)?;
        reader.finish()?;
        Ok(value)
    }
}

impl Serial for u32 {
    fn put(&self, writer: &mut Writer) {
        writer.put_u32(*self);
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Flaw> {
        reader.u32("u32")
    }
}

impl Serial for u64 {
    fn put(&self, writer: &mut Writer) {
        writer.put_u64(*self);
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Flaw> {
        reader.u64("u64")
    }
}

impl Serial for i64 {
    fn put(&self, writer: &mut Writer) {
        writer.put_i64(*self);
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Flaw> {
        reader.i64("i64")
    }
}

impl Serial for String {
    fn put(&self, writer: &mut Writer) {
        writer.put_string(self);
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Flaw> {
        reader.string("string").map(str::to_owned)
    }
}

impl<T: Serial> Serial for Vec<T> {
    fn put(&self, writer: &mut Writer) {
        writer.put_vec(self);
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Flaw> {
        reader.vec("vector")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Integers of every magnitude and of both signs.
    fn any_magnitude() -> impl Strategy<Value = u64> {
        (any::<u64>(), 0u32..64, any::<bool>())
            .prop_map(|(x, shift, negate)| if negate { !(x >> shift) } else { x >> shift })
    }

    #[test]
    fn worked_integers() {
        let table: &[(u64, &[u8])] = &[
            (127, &[0x7f]),
            (128, &[0x80, 0x80]),
            (65536, &[0x82, 0, 0, 1, 0]),
            (1 << 32, &[0x83, 0, 0, 0, 0, 1, 0, 0, 0]),
            (u64::MAX, &[0xff]),
            (u64::MAX - 127, &[0x84, 0x80]),
            (u64::MAX - 128, &[0x85, 0x7f, 0xff]),
            (u64::MAX - (1 << 31) + 1, &[0x86, 0, 0, 0, 0x80]),
        ];
        for (value, bytes) in table {
            assert_eq!(value.to_bytes(), *bytes);
            assert_eq!(u64::from_bytes(bytes), Ok(*value));
        }
        assert_eq!((1u32 << 31).to_bytes(), [0x82, 0, 0, 0, 0x80]);
        assert_eq!((u32::MAX - 127).to_bytes(), [0x84, 0x80]);
    }

    #[test]
    fn other_forms_are_read() {
        assert_eq!(u64::from_bytes(&[0x83, 5, 0, 0, 0, 0, 0, 0, 0]), Ok(5));
        assert_eq!(u64::from_bytes(&[0x87, 5, 0, 0, 0, 0, 0, 0, 0]), Ok(5));
        assert_eq!(
            u32::from_bytes(&[0x86, 0xff, 0xff, 0xff, 0xff]),
            Ok(u32::MAX)
        );
    }

    #[test]
    fn wide_truncated_and_trailing_bytes_are_refused() {
        for code in [0x83, 0x87] {
            // Whatever the value: it is the width that is refused.
            for low in [0, 5, 0xff] {
                let bytes = [code, low, 0, 0, 0, 0, 0, 0, 0];
                let flaw = u32::from_bytes(&bytes).unwrap_err();
                let expected =
                    "offset 0: u32: expected an integer of 32 bits, found one of 64 bits";
                assert_eq!(flaw.to_string(), expected);
                assert_eq!(u64::from_bytes(&bytes), Ok(low.into()));
            }
        }
        assert_eq!(u64::from_bytes(&[0x82, 1, 2]).unwrap_err().offset, 1);
        assert_eq!(u64::from_bytes(&[1, 2]).unwrap_err().offset, 1);
        assert!(Reader::new(&[2]).bool("flag").is_err());
    }

    #[test]
    fn a_length_is_checked_before_use() {
        let mut huge = u64::MAX.to_bytes();
        huge.push(0);
        assert!(String::from_bytes(&huge).is_err());
        assert!(Vec::<u64>::from_bytes(&huge).is_err());
    }

    proptest! {
        #[test]
        fn u64_round_trips(value in any_magnitude()) {
            prop_assert_eq!(u64::from_bytes(&value.to_bytes()), Ok(value));
            prop_assert_eq!(i64::from_bytes(&value.to_bytes()), Ok(value as i64));
        }

        #[test]
        fn u32_round_trips(value in any_magnitude()) {
            let value = value as u32;
            prop_assert_eq!(u32::from_bytes(&value.to_bytes()), Ok(value));
        }

        #[test]
        fn vectors_of_strings_round_trip(value in proptest::collection::vec(".{0,9}", 0..5)) {
            prop_assert_eq!(Vec::<String>::from_bytes(&value.to_bytes()), Ok(value));
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = Vec::<String>::from_bytes(&bytes);
            let _ = u32::from_bytes(&bytes);
        }
    }
}
