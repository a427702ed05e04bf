//! Payload codecs of wdiffs (reference: "Compression").
//!
//! A [`Codec`] keeps its contexts, so a worker makes one and uses it for all its records. The
//! plain size of a payload is always known from its record; a stream that declares or yields any
//! other size, or that ends before or after its last byte, is refused.

use std::fmt;
use std::str::FromStr;

use crate::error::Flaw;

/// Dictionaries of .xz payloads are capped here, so that readers with the customary limit of
/// 16 MiB can decode every level.
const XZ_DICTIONARY: u32 = 8 << 20;
/// Memory a foreign .xz payload may ask of the decoder: presets up to 9 declare 64 MiB.
const XZ_DECODER_MEMORY: u64 = 80 << 20;

/// How a payload is stored. The number is the `compression_type` of the record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum Compression {
    /// As it is.
    #[default]
    None = 0,
    /// A zlib stream (RFC 1950), called gzip for historical reasons.
    Gzip = 1,
    /// A raw snappy block.
    Snappy = 2,
    /// An .xz container with LZMA2 and CRC-64.
    Lzma = 3,
    /// A raw LZ4 block.
    Lz4 = 4,
    /// One zstd frame that declares its content size.
    Zstd = 5,
}

impl Compression {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::None,
        Self::Gzip,
        Self::Snappy,
        Self::Lzma,
        Self::Lz4,
        Self::Zstd,
    ];

    /// The one with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The name used in options and in listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lzma => "lzma",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// An algorithm with its level and number of workers: `ALGO[:LEVEL[:THREADS]]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CompressOption {
    /// The algorithm.
    pub algorithm: Compression,
    /// 0 (the algorithm's own default) to 9.
    pub level: u8,
    /// Workers, 1 to 255; `None` if it was left out.
    pub threads: Option<u8>,
}

impl Default for CompressOption {
    fn default() -> Self {
        Self {
            algorithm: Compression::Snappy,
            level: 0,
            threads: None,
        }
    }
}

impl FromStr for CompressOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut fields = text.split(':');
        let name = fields.next().unwrap_or_default();
        let algorithm = Compression::ALL
            .into_iter()
            .find(|c| c.name() == name || (name == "xz" && *c == Compression::Lzma))
            .ok_or_else(|| {
                format!("compression {name:?}: expected none, gzip, snappy, lzma, lz4 or zstd")
            })?;
        let level = match fields.next() {
            None => 0,
            Some(level) => level
                .parse()
                .ok()
                .filter(|l| *l <= 9)
                .ok_or_else(|| format!("compression level {level:?}: expected 0 to 9"))?,
        };
        let threads = match fields.next() {
            None => None,
            Some(n) => Some(
                n.parse()
                    .ok()
                    .filter(|n| *n >= 1)
                    .ok_or_else(|| format!("compression threads {n:?}: expected 1 to 255"))?,
            ),
        };
        match fields.next() {
            None => Ok(Self {
                algorithm,
                level,
                threads,
            }),
            Some(rest) => Err(format!(
                "compression option: unexpected {rest:?} after the threads"
            )),
        }
    }
}

/// Reusable contexts of all algorithms. One per worker.
pub struct Codec {
    /// What a compressor writes into. It only grows.
    packed: Vec<u8>,
    snappy_encoder: snap::raw::Encoder,
    snappy_decoder: snap::raw::Decoder,
    zlib_encoder: Option<(u8, flate2::Compress)>,
    zlib_decoder: Option<flate2::Decompress>,
    zstd_encoder: Option<(u8, zstd::bulk::Compressor<'static>)>,
    zstd_decoder: Option<zstd::bulk::Decompressor<'static>>,
}

impl Default for Codec {
    fn default() -> Self {
        Self {
            packed: Vec::new(),
            snappy_encoder: snap::raw::Encoder::new(),
            snappy_decoder: snap::raw::Decoder::new(),
            zlib_encoder: None,
            zlib_decoder: None,
            zstd_encoder: None,
            zstd_decoder: None,
        }
    }
}

impl Codec {
    /// Appends the stored form of `plain` to `out` and says how it is stored: by the algorithm
    /// asked for, or as it is when that does not make it smaller.
    pub fn compress(
        &mut self,
        algorithm: Compression,
        level: u8,
        plain: &[u8],
        out: &mut Vec<u8>,
    ) -> Compression {
        if algorithm == Compression::None {
            out.extend_from_slice(plain);
            return Compression::None;
        }
        let room = self.bound(algorithm, plain.len());
        // Copying what came out costs less than making the room for what might be zeros each time.
        let mut packed = std::mem::take(&mut self.packed);
        if packed.len() < room {
            packed.resize(room, 0);
        }
        let size = self.compress_into(algorithm, level, plain, &mut packed[..room]);
        let smaller = size.filter(|size| *size < plain.len());
        out.extend_from_slice(smaller.map_or(plain, |size| &packed[..size]));
        self.packed = packed;
        smaller.map_or(Compression::None, |_| algorithm)
    }

    /// Room the encoder needs. Those that stop cleanly at a full buffer get one byte less than the
    /// input: what does not fit would not be stored anyway.
    fn bound(&self, algorithm: Compression, plain: usize) -> usize {
        match algorithm {
            Compression::Snappy => snap::raw::max_compress_len(plain),
            Compression::Lz4 => lz4_flex::block::get_maximum_output_size(plain),
            _ => plain.saturating_sub(1),
        }
    }

    /// Size of the compressed bytes, or `None` if they did not fit or the encoder failed.
    fn compress_into(
        &mut self,
        algorithm: Compression,
        level: u8,
        plain: &[u8],
        out: &mut [u8],
    ) -> Option<usize> {
        match algorithm {
            Compression::None => None,
            Compression::Snappy => self.snappy_encoder.compress(plain, out).ok(),
            Compression::Lz4 => lz4_flex::block::compress_into(plain, out).ok(),
            Compression::Gzip => self.zlib_compress(level, plain, out),
            Compression::Zstd => self.zstd_compress(level, plain, out),
            Compression::Lzma => xz_compress(level, plain, out),
        }
    }

    fn zlib_compress(&mut self, level: u8, plain: &[u8], out: &mut [u8]) -> Option<usize> {
        let level = if level == 0 { 6 } else { level };
        if self.zlib_encoder.as_ref().is_none_or(|(l, _)| *l != level) {
            let fresh = flate2::Compress::new(flate2::Compression::new(u32::from(level)), true);
            self.zlib_encoder = Some((level, fresh));
        }
        let (_, encoder) = self.zlib_encoder.as_mut()?;
        encoder.reset();
        match encoder.compress(plain, out, flate2::FlushCompress::Finish) {
            Ok(flate2::Status::StreamEnd) => usize::try_from(encoder.total_out()).ok(),
            _ => None,
        }
    }

    fn zstd_compress(&mut self, level: u8, plain: &[u8], out: &mut [u8]) -> Option<usize> {
        let level = if level == 0 { 1 } else { level };
        if self.zstd_encoder.as_ref().is_none_or(|(l, _)| *l != level) {
            self.zstd_encoder = Some((level, zstd::bulk::Compressor::new(i32::from(level)).ok()?));
        }
        let (_, encoder) = self.zstd_encoder.as_mut()?;
        encoder.compress_to_buffer(plain, out).ok()
    }

    /// Fills `plain` with the payload's data.
    ///
    /// The flaw's offset is relative to the payload.
    pub fn decompress(
        &mut self,
        algorithm: Compression,
        stored: &[u8],
        plain: &mut [u8],
    ) -> Result<(), Flaw> {
        let sizes = match algorithm {
            Compression::None => {
                if stored.len() == plain.len() {
                    plain.copy_from_slice(stored);
                }
                Ok((stored.len(), stored.len()))
            }
            Compression::Snappy => self.snappy_decompress(stored, plain),
            Compression::Lz4 => lz4_flex::block::decompress_into(stored, plain)
                .map(|n| (stored.len(), n))
                .map_err(|e| e.to_string()),
            Compression::Gzip => self.zlib_decompress(stored, plain),
            Compression::Zstd => self.zstd_decompress(stored, plain),
            Compression::Lzma => xz_decompress(stored, plain),
        };
        let (used, made) = sizes
            .map_err(|why| Flaw::new(0, "payload", format!("a sound {algorithm} stream"), why))?;
        if made != plain.len() {
            return Err(Flaw::new(0, "decompressed size", plain.len(), made));
        }
        if used != stored.len() {
            return Err(Flaw::new(
                used as u64,
                "payload",
                format!("end of the {algorithm} stream at {} bytes", stored.len()),
                format!("its end at {used} bytes"),
            ));
        }
        Ok(())
    }

    fn snappy_decompress(
        &mut self,
        stored: &[u8],
        plain: &mut [u8],
    ) -> Result<(usize, usize), String> {
        let declared = snap::raw::decompress_len(stored).map_err(|e| e.to_string())?;
        if declared != plain.len() {
            return Ok((stored.len(), declared));
        }
        let made = self
            .snappy_decoder
            .decompress(stored, plain)
            .map_err(|e| e.to_string())?;
        Ok((stored.len(), made))
    }

    fn zlib_decompress(
        &mut self,
        stored: &[u8],
        plain: &mut [u8],
    ) -> Result<(usize, usize), String> {
        let decoder = self
            .zlib_decoder
            .get_or_insert_with(|| flate2::Decompress::new(true));
        decoder.reset(true);
        let status = decoder
            .decompress(stored, plain, flate2::FlushDecompress::Finish)
            .map_err(|e| e.to_string())?;
        if status != flate2::Status::StreamEnd {
            return Err("no end of the stream where it was due".to_owned());
        }
        Ok((to_usize(decoder.total_in()), to_usize(decoder.total_out())))
    }

    fn zstd_decompress(
        &mut self,
        stored: &[u8],
        plain: &mut [u8],
    ) -> Result<(usize, usize), String> {
        use zstd::zstd_safe;
        let frame = zstd_safe::find_frame_compressed_size(stored)
            .map_err(|code| zstd_safe::get_error_name(code).to_owned())?;
        if let Ok(Some(declared)) = zstd_safe::get_frame_content_size(stored)
            && declared != plain.len() as u64
        {
            return Ok((frame, to_usize(declared)));
        }
        if self.zstd_decoder.is_none() {
            self.zstd_decoder = Some(zstd::bulk::Decompressor::new().map_err(|e| e.to_string())?);
        }
        let Some(decoder) = self.zstd_decoder.as_mut() else {
            return Err("no decoder".to_owned());
        };
        let frame_bytes = stored.get(..frame).unwrap_or(stored);
        let made = decoder
            .decompress_to_buffer(frame_bytes, plain)
            .map_err(|e| e.to_string())?;
        Ok((frame, made))
    }
}

fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

fn xz_compress(level: u8, plain: &[u8], out: &mut [u8]) -> Option<usize> {
    use liblzma::stream::{Action, Check, Filters, LzmaOptions, Status, Stream};
    let level = if level == 0 { 6 } else { level };
    let mut options = LzmaOptions::new_preset(u32::from(level)).ok()?;
    if level > 6 {
        options.dict_size(XZ_DICTIONARY);
    }
    let mut filters = Filters::new();
    filters.lzma2(&options);
    let mut stream = Stream::new_stream_encoder(&filters, Check::Crc64).ok()?;
    match stream.process(plain, out, Action::Finish) {
        Ok(Status::StreamEnd) => Some(to_usize(stream.total_out())),
        _ => None,
    }
}

fn xz_decompress(stored: &[u8], plain: &mut [u8]) -> Result<(usize, usize), String> {
    use liblzma::stream::{Action, Status, Stream};
    let mut stream = Stream::new_stream_decoder(XZ_DECODER_MEMORY, 0).map_err(|e| e.to_string())?;
    let status = stream
        .process(stored, plain, Action::Finish)
        .map_err(|e| e.to_string())?;
    if status != Status::StreamEnd {
        return Err("no end of the stream where it was due".to_owned());
    }
    Ok((to_usize(stream.total_in()), to_usize(stream.total_out())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i / 7) as u8).collect()
    }

    #[test]
    fn every_algorithm_gives_its_data_back() {
        let mut codec = Codec::default();
        for algorithm in Compression::ALL {
            for level in [0, 1, 9] {
                let plain = sample(8192);
                let mut stored = vec![1, 2, 3];
                let used = codec.compress(algorithm, level, &plain, &mut stored);
                assert_eq!(used, algorithm);
                assert_eq!(stored[..3], [1, 2, 3]);
                let mut back = vec![0; plain.len()];
                codec.decompress(used, &stored[3..], &mut back).unwrap();
                assert_eq!(back, plain);
            }
        }
    }

    #[test]
    fn a_stream_must_end_exactly_and_give_the_exact_size() {
        let mut codec = Codec::default();
        for algorithm in Compression::ALL {
            let plain = sample(4096);
            let mut stored = Vec::new();
            codec.compress(algorithm, 0, &plain, &mut stored);
            for size in [0, 512, 4095, 4097, 8192] {
                assert!(
                    codec
                        .decompress(algorithm, &stored, &mut vec![0; size])
                        .is_err()
                );
            }
            let mut back = vec![0; 4096];
            for cut in [0, 1, stored.len() / 2, stored.len() - 1] {
                assert!(
                    codec
                        .decompress(algorithm, &stored[..cut], &mut back)
                        .is_err()
                );
            }
            let longer = [&stored[..], &[0]].concat();
            assert!(
                codec.decompress(algorithm, &longer, &mut back).is_err(),
                "{algorithm}"
            );
            let twice = [&stored[..], &stored[..]].concat();
            assert!(
                codec.decompress(algorithm, &twice, &mut back).is_err(),
                "{algorithm}"
            );
        }
    }

    #[test]
    fn what_does_not_shrink_is_stored_as_it_is() {
        let mut x = 88172645463325252u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 56) as u8
        })
        .take(4096)
        .collect();
        let mut codec = Codec::default();
        for algorithm in Compression::ALL {
            let mut stored = Vec::new();
            assert_eq!(
                codec.compress(algorithm, 0, &noise, &mut stored),
                Compression::None
            );
            assert_eq!(stored, noise);
        }
    }

    #[test]
    fn options_are_checked() {
        let option: CompressOption = "zstd:3:2".parse().unwrap();
        assert_eq!(
            (option.algorithm, option.level, option.threads),
            (Compression::Zstd, 3, Some(2))
        );
        assert_eq!("lz4".parse::<CompressOption>().unwrap().threads, None);
        for bad in [
            "",
            "zip",
            "gzip:10",
            "gzip:1:0",
            "gzip:1:256",
            "gzip:1:1:1",
            "gzip:",
        ] {
            assert!(bad.parse::<CompressOption>().is_err(), "{bad:?}");
        }
    }
}
