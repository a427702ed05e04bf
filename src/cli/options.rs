//! Options that several commands share.

use std::str::FromStr;

use clap::{Args, ValueEnum};
use walkeep_store::Workers;
use walkeep_store::wdiff::Shape;
use walkeep_wire::wdiff::{CompressOption, DEFAULT_MAX_IO_BLOCKS, Format};
use walkeep_wire::{LOGICAL_BLOCK, PhysicalBlock};

/// A size in bytes: a number with an optional K, M, G or T (powers of 1024).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: expected a number of bytes, or one with K, M, G or T");
        let (digits, shift) = match text.as_bytes().last() {
            Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
            Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
            Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
            Some(b'T' | b't') => (&text[..text.len() - 1], 40),
            _ => (text, 0),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        number
            .checked_mul(1 << shift)
            .map(Self)
            .ok_or_else(|| format!("{text:?}: too large"))
    }
}

/// A size that must be whole logical blocks, given in blocks.
pub fn blocks(text: &str) -> Result<u64, String> {
    let Size(bytes) = text.parse()?;
    if !bytes.is_multiple_of(LOGICAL_BLOCK as u64) {
        return Err(format!("{text:?}: expected a multiple of {LOGICAL_BLOCK}"));
    }
    Ok(bytes / LOGICAL_BLOCK as u64)
}

/// As [`blocks`], within 32 bits.
pub fn io_blocks(text: &str) -> Result<u32, String> {
    u32::try_from(blocks(text)?).map_err(|_| format!("{text:?}: too large for one IO"))
}

/// A physical block size of 512 or 4096 bytes.
pub fn block_size(text: &str) -> Result<PhysicalBlock, String> {
    match text {
        "512" => Ok(PhysicalBlock::B512),
        "4096" => Ok(PhysicalBlock::B4096),
        other => Err(format!("{other:?}: expected 512 or 4096")),
    }
}

/// The form of a listing.
#[derive(Clone, Copy, ValueEnum, PartialEq, Eq)]
pub enum ListFormat {
    /// The text that the WalB tools print
    Walb,
}

/// How a listing is printed.
#[derive(Args)]
pub struct Listing {
    /// One JSON document, for scripts
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Another form of text
    #[arg(long, value_enum)]
    pub format: Option<ListFormat>,
}

impl Listing {
    /// The form asked for.
    pub fn form(&self) -> Form {
        match (self.json, self.format) {
            (true, _) => Form::Json,
            (false, Some(ListFormat::Walb)) => Form::Walb,
            (false, None) => Form::Human,
        }
    }
}

/// The form of what is printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For a person.
    Human,
    /// For scripts.
    Json,
    /// As the WalB tools.
    Walb,
}

/// Number of workers.
#[derive(Args)]
pub struct Threads {
    /// Workers [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub threads: Option<u8>,
}

impl Threads {
    /// The workers asked for here, else in the compression option, else one a core.
    pub fn workers(&self, compress: Option<&CompressOption>) -> Workers {
        match self.threads.or_else(|| compress.and_then(|c| c.threads)) {
            Some(threads) => Workers::new(usize::from(threads)),
            None => Workers::default(),
        }
    }
}

/// How a diff is written.
#[derive(Args)]
pub struct DiffOut {
    /// Write the indexed format
    #[arg(long)]
    pub indexed: bool,
    /// Cut records to this size: bytes, or a number with K, M, G or T; 0 is no limit [default: 1M,
    /// and no limit where wdiffs are merged]
    #[arg(long, value_name = "SIZE", value_parser = io_blocks)]
    pub max_io: Option<u32>,
    /// How payloads are stored: none, gzip, snappy, lzma, lz4 or zstd, with a level of 0 (the
    /// algorithm's own) to 9 and a number of workers [default: snappy, and as they are where wdiffs
    /// are merged]
    #[arg(long, value_name = "ALGO[:LEVEL[:THREADS]]")]
    pub compress: Option<CompressOption>,
    #[command(flatten)]
    pub threads: Threads,
}

impl DiffOut {
    /// Container and limit; records are cut to `max_io` blocks unless said otherwise.
    pub fn shape(&self, max_io: u32) -> Shape {
        let format = if self.indexed {
            Format::Indexed
        } else {
            Format::Sorted
        };
        Shape {
            format,
            max_io: self.max_io.unwrap_or(max_io),
        }
    }

    /// As [`Self::shape`], with the customary limit of 1 MiB.
    pub fn cut_shape(&self) -> Shape {
        self.shape(DEFAULT_MAX_IO_BLOCKS)
    }

    /// The workers.
    pub fn workers(&self) -> Workers {
        self.threads.workers(self.compress.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_suffixes_and_refuse_the_rest() {
        assert_eq!("64K".parse(), Ok(Size(65536)));
        assert_eq!("1G".parse(), Ok(Size(1 << 30)));
        assert_eq!("7".parse(), Ok(Size(7)));
        for bad in ["", "K", "-1", "1.5M", "1Q", "1MiB", "99999999999T"] {
            assert!(bad.parse::<Size>().is_err(), "{bad:?}");
        }
        assert_eq!(blocks("1M"), Ok(2048));
        assert!(blocks("513").is_err());
        assert!(io_blocks("4T").is_err());
    }
}
