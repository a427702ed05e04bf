//! Fetches the data of records: verified, decompressed, cut and compressed anew.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use walkeep_wire::wdiff::{
    Body, Codec, CompressOption, Compression, OutRecord, ReadAt, Record, Stored,
};
use walkeep_wire::{LOGICAL_BLOCK, blocks_to_bytes};

use crate::Result;
use crate::input::InputFile;

/// Decompressed images that several records share, kept up to this many bytes. The newest is kept
/// whatever its size, or each of its pieces would decompress it anew.
const CACHE_BYTES: usize = 8 << 20;

/// The inputs of a job with their labels, in the order in which pieces number them.
pub struct Sources {
    files: Vec<(Arc<InputFile>, Arc<str>)>,
    images: Mutex<ImageCache>,
}

impl Sources {
    /// Sources from opened inputs.
    pub fn new(files: Vec<Arc<InputFile>>) -> Self {
        let files = files
            .into_iter()
            .map(|f| {
                let name: Arc<str> = f.name().into();
                (f, name)
            })
            .collect();
        Self {
            files,
            images: Mutex::default(),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// One input and its label.
    pub fn get(&self, input: usize) -> (&InputFile, &Arc<str>) {
        let (file, name) = &self.files[input];
        (file, name)
    }
}

/// Input and description of a stored image: who describes it otherwise gets another entry, checked
/// on its own.
type ImageKey = (usize, Stored);

/// Decompressed images by input and position, the least recently used leaving first.
#[derive(Default)]
struct ImageCache {
    images: HashMap<ImageKey, (Arc<Vec<u8>>, u64)>,
    bytes: usize,
    clock: u64,
}

impl ImageCache {
    fn get(&mut self, key: ImageKey) -> Option<Arc<Vec<u8>>> {
        self.clock += 1;
        let clock = self.clock;
        let (image, used) = self.images.get_mut(&key)?;
        *used = clock;
        Some(image.clone())
    }

    fn put(&mut self, key: ImageKey, image: Arc<Vec<u8>>) {
        while self.bytes + image.len() > CACHE_BYTES {
            let oldest = self
                .images
                .iter()
                .min_by_key(|(_, (_, used))| *used)
                .map(|(k, _)| *k);
            let Some((removed, _)) = oldest.and_then(|key| self.images.remove(&key)) else {
                break;
            };
            self.bytes -= removed.len();
        }
        self.clock += 1;
        self.bytes += image.len();
        if let Some((replaced, _)) = self.images.insert(key, (image, self.clock)) {
            self.bytes -= replaced.len();
        }
    }
}

/// One worker's contexts and buffers.
#[derive(Default)]
pub struct Fetcher {
    codec: Codec,
    stored: Vec<u8>,
    plain: Vec<u8>,
}

impl Fetcher {
    /// Appends the record's plain data, checked, to `out`. Zeros for all-zero and discard.
    pub fn plain(
        &mut self,
        sources: &Sources,
        input: usize,
        record: &Record,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let start = out.len();
        let bytes = blocks_to_bytes(record.blocks) as usize;
        let Body::Data(stored) = &record.body else {
            out.resize(start + bytes, 0);
            return Ok(());
        };
        if record.is_whole_image() {
            return self.whole_image(sources, input, stored, out);
        }
        let image = self.shared_image(sources, input, stored)?;
        let from = stored.image_offset as usize * LOGICAL_BLOCK;
        out.extend_from_slice(&image[from..from + bytes]);
        Ok(())
    }

    fn whole_image(
        &mut self,
        sources: &Sources,
        input: usize,
        stored: &Stored,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let (file, name) = sources.get(input);
        if stored.compression == Compression::None {
            return Ok(stored.load(file, name, out)?);
        }
        self.stored.clear();
        stored.load(file, name, &mut self.stored)?;
        let start = out.len();
        out.resize(start + stored.image_bytes() as usize, 0);
        self.codec
            .decompress(stored.compression, &self.stored, &mut out[start..])
            .map_err(|flaw| flaw.shifted(stored.position).in_source(name))?;
        Ok(())
    }

    fn shared_image(
        &mut self,
        sources: &Sources,
        input: usize,
        stored: &Stored,
    ) -> Result<Arc<Vec<u8>>> {
        let key = (input, stored.image());
        if let Some(image) = sources.images.lock().get(key) {
            return Ok(image);
        }
        let mut image = Vec::new();
        self.whole_image(sources, input, stored, &mut image)?;
        let image = Arc::new(image);
        sources.images.lock().put(key, image.clone());
        Ok(image)
    }

    /// Appends the record's stored form to `out`.
    ///
    /// Without `compress`, the stored bytes of a record that was not cut are copied as they are,
    /// and a cut one is compressed by the algorithm it had.
    pub fn stored(
        &mut self,
        sources: &Sources,
        input: usize,
        record: &Record,
        compress: Option<CompressOption>,
        out: &mut Vec<u8>,
    ) -> Result<OutRecord> {
        let Body::Data(stored) = &record.body else {
            return Ok(OutRecord::empty(
                record.address,
                record.blocks,
                record.kind(),
            ));
        };
        let start = out.len();
        if compress.is_none() && record.is_whole_image() {
            let (file, name) = sources.get(input);
            stored.load(file, name, out)?;
            return Ok(OutRecord {
                address: record.address,
                blocks: record.blocks,
                kind: record.kind(),
                compression: stored.compression,
                size: stored.size,
                checksum: stored.checksum,
            });
        }
        let option = compress.unwrap_or(CompressOption {
            algorithm: stored.compression,
            level: 0,
            threads: None,
        });
        if option.algorithm == Compression::None {
            self.plain(sources, input, record, out)?;
            return Ok(OutRecord::data(
                record.address,
                record.blocks,
                Compression::None,
                &out[start..],
            ));
        }
        let mut plain = std::mem::take(&mut self.plain);
        plain.clear();
        let fetched = self.plain(sources, input, record, &mut plain);
        let used = fetched.map(|()| {
            self.codec
                .compress(option.algorithm, option.level, &plain, out)
        });
        self.plain = plain;
        Ok(OutRecord::data(
            record.address,
            record.blocks,
            used?,
            &out[start..],
        ))
    }

    /// Appends the stored form of data that lies plain in a file, such as a log.
    pub fn compress_from(
        &mut self,
        file: &dyn ReadAt,
        name: &str,
        position: u64,
        range: (u64, u32),
        option: CompressOption,
        out: &mut Vec<u8>,
    ) -> Result<OutRecord> {
        let (address, blocks) = range;
        let bytes = blocks_to_bytes(blocks) as usize;
        let start = out.len();
        let read = |buf: &mut [u8]| {
            file.read_exact_at(buf, position)
                .map_err(|e| walkeep_wire::Error::io(name, position, "data", e))
        };
        if option.algorithm == Compression::None {
            out.resize(start + bytes, 0);
            read(&mut out[start..])?;
            return Ok(OutRecord::data(
                address,
                blocks,
                Compression::None,
                &out[start..],
            ));
        }
        self.plain.resize(bytes, 0);
        read(&mut self.plain)?;
        let used = self
            .codec
            .compress(option.algorithm, option.level, &self.plain, out);
        Ok(OutRecord::data(address, blocks, used, &out[start..]))
    }
}

#[cfg(test)]
mod tests {
    use walkeep_wire::checksum::checksum;

    use super::*;
    use crate::input::FilePool;

    /// A file that holds one plain image of two blocks, and a record of its first block.
    fn one_image(dir: &tempfile::TempDir) -> (Sources, Stored) {
        let path = dir.path().join("images");
        let image = [[1; LOGICAL_BLOCK], [2; LOGICAL_BLOCK]].concat();
        std::fs::write(&path, &image).unwrap();
        let file = Arc::new(FilePool::default()).open(&path).unwrap();
        let stored = Stored {
            position: 0,
            size: image.len() as u32,
            compression: Compression::None,
            checksum: checksum(&image, 0),
            image_offset: 0,
            image_blocks: 2,
        };
        (Sources::new(vec![Arc::new(file)]), stored)
    }

    fn plain(sources: &Sources, stored: Stored) -> Result<Vec<u8>> {
        let record = Record {
            address: 7,
            blocks: 1,
            body: Body::Data(stored),
        };
        let mut out = vec![];
        Fetcher::default().plain(sources, 0, &record, &mut out)?;
        Ok(out)
    }

    /// The records of an index that agree share an image. One that describes the image otherwise,
    /// met long after the cursor forgot the first, must not get it unchecked.
    #[test]
    fn a_record_that_describes_a_cached_image_otherwise_is_checked_on_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (sources, first) = one_image(&dir);
        let second = Stored {
            image_offset: 1,
            ..first
        };
        assert_eq!(plain(&sources, first).unwrap(), [1; LOGICAL_BLOCK]);
        assert_eq!(plain(&sources, second).unwrap(), [2; LOGICAL_BLOCK]);
        assert_eq!(sources.images.lock().images.len(), 1, "shared");
        let liars = [
            Stored {
                checksum: first.checksum ^ 1,
                ..first
            },
            Stored {
                compression: Compression::Zstd,
                ..first
            },
            Stored { size: 512, ..first },
            Stored {
                compression: Compression::Lz4,
                image_blocks: 3,
                ..first
            },
        ];
        for liar in liars {
            let error = plain(&sources, liar).unwrap_err().to_string();
            assert!(error.contains("images: offset "), "{liar:?}: {error}");
        }
        assert_eq!(plain(&sources, first).unwrap(), [1; LOGICAL_BLOCK]);
    }

    #[test]
    fn the_cache_keeps_to_its_bytes_and_drops_what_was_used_least_recently() {
        let dir = tempfile::tempdir().unwrap();
        let (_, stored) = one_image(&dir);
        let key = |position| (0, Stored { position, ..stored });
        let image = Arc::new(vec![0; CACHE_BYTES / 4]);
        let mut cache = ImageCache::default();
        (0..4).for_each(|position| cache.put(key(position), image.clone()));
        assert!(cache.get(key(0)).is_some());
        cache.put(key(4), image.clone());
        let kept: Vec<_> = (0..5).filter(|at| cache.get(key(*at)).is_some()).collect();
        assert_eq!((kept, cache.bytes), (vec![0, 2, 3, 4], CACHE_BYTES));
        cache.put(key(9), Arc::new(vec![0; 2 * CACHE_BYTES]));
        assert!(cache.get(key(9)).is_some(), "the newest is kept");
        assert_eq!((cache.images.len(), cache.bytes), (1, 2 * CACHE_BYTES));
    }
}
