//! Walks the records of a diff of either format, in bounded memory (reference: "wdiff").
//!
//! A cursor reads headers and index only. Payloads are fetched by whoever wants them, in any
//! order and on any thread, through [`load_stored`](Cursor::load_stored) and the like.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::{Error, Flaw, Result, demand};

use super::indexed::{INDEX_RECORD, INDEX_SUPER, IndexRecord, IndexSuper};
use super::record::{Body, Record, Stored};
use super::sorted::{Pack, check_order, check_stored};
use super::{FILE_HEADER, FileHeader, Format, PACK_HEADER};

/// Index records read at once.
const INDEX_STEP: u32 = 128;
/// Images remembered to check that records of one image agree about it.
const IMAGES_REMEMBERED: usize = 1024;

/// Something that can be read at any place, from several threads.
pub trait ReadAt {
    /// Fills `buf` from byte `offset`; `UnexpectedEof` if the data ends before.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()>;
    /// Bytes in all.
    fn size(&self) -> std::io::Result<u64>;
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        let range = usize::try_from(offset)
            .ok()
            .and_then(|start| Some(start..start.checked_add(buf.len())?));
        match range.and_then(|range| self.get(range)) {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn size(&self) -> std::io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        (**self).read_exact_at(buf, offset)
    }

    fn size(&self) -> std::io::Result<u64> {
        (**self).size()
    }
}

impl<T: ReadAt + ?Sized> ReadAt for Arc<T> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        (**self).read_exact_at(buf, offset)
    }

    fn size(&self) -> std::io::Result<u64> {
        (**self).size()
    }
}

/// A sequence of records sorted by address without overlap.
pub trait RecordSource {
    /// The next record, or `None` at the end.
    fn next_record(&mut self) -> Result<Option<Record>>;
}

/// The records of one diff, from its first to its last.
pub struct Cursor<S> {
    source: S,
    name: Arc<str>,
    size: u64,
    header: FileHeader,
    place: Place,
    ready: std::vec::IntoIter<Record>,
    last_end: u64,
}

enum Place {
    Sorted {
        next_pack: u64,
        ended: bool,
    },
    Indexed {
        index: IndexSuper,
        next: u32,
        images: HashMap<u64, Stored>,
    },
}

impl<S: ReadAt> Cursor<S> {
    /// Reads the file header, and the super of an indexed diff. `name` labels errors.
    pub fn open(source: S, name: impl Into<Arc<str>>) -> Result<Self> {
        let name = name.into();
        let size = source.size().map_err(|e| Error::io(&name, 0, "size", e))?;
        let header = read_array(&source, &name, 0, "wdiff header")?;
        let header = FileHeader::decode(&header).map_err(|f| f.in_source(&name))?;
        let place = match header.format {
            Format::Sorted => Place::Sorted {
                next_pack: FILE_HEADER as u64,
                ended: false,
            },
            Format::Indexed => {
                let index = read_super(&source, &name, size)?;
                Place::Indexed {
                    index,
                    next: 0,
                    images: HashMap::new(),
                }
            }
        };
        Ok(Self {
            source,
            name,
            size,
            header,
            place,
            ready: Vec::new().into_iter(),
            last_end: 0,
        })
    }

    /// The file header.
    pub const fn header(&self) -> &FileHeader {
        &self.header
    }

    /// The label of errors.
    pub const fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The source, for payloads.
    pub const fn source(&self) -> &S {
        &self.source
    }

    /// The super of an indexed diff.
    pub const fn index(&self) -> Option<&IndexSuper> {
        match &self.place {
            Place::Indexed { index, .. } => Some(index),
            Place::Sorted { .. } => None,
        }
    }

    /// Bytes of the file, and how many of them belong to what was read so far.
    pub const fn progress(&self) -> (u64, u64) {
        let done = match &self.place {
            Place::Sorted { next_pack, .. } => *next_pack,
            Place::Indexed { index, next, .. } => match index.n_records {
                0 => self.size,
                all => (self.size as u128 * *next as u128 / all as u128) as u64,
            },
        };
        (done, self.size)
    }

    /// The next pack header of a sorted diff with its position; `None` for an indexed one, and
    /// after the end pack. Not to be mixed with [`RecordSource::next_record`].
    pub fn next_pack(&mut self) -> Result<Option<(u64, Pack)>> {
        let Place::Sorted { next_pack, ended } = &mut self.place else {
            return Ok(None);
        };
        if *ended {
            return Ok(None);
        }
        let position = *next_pack;
        let bytes = read_array(&self.source, &self.name, position, "pack header")?;
        let pack = Pack::decode(&bytes)
            .map_err(|f| f.shifted(position))
            .and_then(|pack| {
                let end = position + PACK_HEADER as u64 + u64::from(pack.total_size);
                demand!(
                    end <= self.size,
                    position + 8,
                    "data size of the pack",
                    format!("an end within the {} bytes of the file", self.size),
                    format!("{} bytes", pack.total_size)
                );
                *next_pack = end;
                *ended = pack.is_end;
                Ok(pack)
            })
            .map_err(|f: Flaw| f.in_source(&self.name))?;
        Ok(Some((position, pack)))
    }

    /// The next records of the index with the position of the first; `None` for a sorted diff,
    /// and at the end. Not to be mixed with [`RecordSource::next_record`].
    pub fn next_index(&mut self) -> Result<Option<(u64, Vec<IndexRecord>)>> {
        let Place::Indexed { index, next, .. } = &mut self.place else {
            return Ok(None);
        };
        let count = INDEX_STEP.min(index.n_records - *next);
        if count == 0 {
            return Ok(None);
        }
        let position = index.index_offset + u64::from(*next) * INDEX_RECORD as u64;
        *next += count;
        let mut bytes = vec![0; count as usize * INDEX_RECORD];
        self.source
            .read_exact_at(&mut bytes, position)
            .map_err(|e| Error::io(&self.name, position, "index", e))?;
        let (records, _) = bytes.as_chunks::<INDEX_RECORD>();
        let records = records
            .iter()
            .zip(0u64..)
            .map(|(b, i)| {
                IndexRecord::decode(b).map_err(|f| f.shifted(position + i * INDEX_RECORD as u64))
            })
            .collect::<Result<Vec<_>, Flaw>>()
            .map_err(|f| f.in_source(&self.name))?;
        Ok(Some((position, records)))
    }

    /// Reads the next batch of records; false at the end.
    fn refill(&mut self) -> Result<bool> {
        let records = match self.header.format {
            Format::Sorted => match self.next_pack()? {
                Some((position, pack)) => pack.to_records(position, &mut self.last_end),
                None => return Ok(false),
            },
            Format::Indexed => match self.next_index()? {
                Some((position, records)) => self.index_batch(position, &records),
                None => return Ok(false),
            },
        };
        self.ready = records.map_err(|f| f.in_source(&self.name))?.into_iter();
        Ok(true)
    }

    fn index_batch(&mut self, position: u64, records: &[IndexRecord]) -> Result<Vec<Record>, Flaw> {
        let Place::Indexed { index, images, .. } = &mut self.place else {
            return Ok(Vec::new());
        };
        let mut batch = Vec::with_capacity(records.len());
        for (record, i) in records.iter().zip(0u64..) {
            let at = position + i * INDEX_RECORD as u64;
            let record = record
                .to_record(index.index_offset)
                .map_err(|f| f.shifted(at))?;
            check_order(&mut self.last_end, &record, at)?;
            if let Body::Data(stored) = record.body {
                agree_on_image(images, &stored, at)?;
            }
            batch.push(record);
        }
        Ok(batch)
    }
}

impl<S: ReadAt> RecordSource for Cursor<S> {
    fn next_record(&mut self) -> Result<Option<Record>> {
        loop {
            if let Some(record) = self.ready.next() {
                return Ok(Some(record));
            }
            if !self.refill()? {
                return Ok(None);
            }
        }
    }
}

impl Stored {
    /// Appends the stored bytes, checked against their checksum, to `out`.
    pub fn load<S: ReadAt + ?Sized>(
        &self,
        source: &S,
        name: &str,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let start = out.len();
        out.resize(start + self.size as usize, 0);
        source
            .read_exact_at(&mut out[start..], self.position)
            .map_err(|e| Error::io(name, self.position, "record data", e))?;
        check_stored(self, &out[start..]).map_err(|f| f.in_source(name))
    }
}

fn read_array<const N: usize>(
    source: &impl ReadAt,
    name: &str,
    offset: u64,
    what: &'static str,
) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    source
        .read_exact_at(&mut bytes, offset)
        .map_err(|e| Error::io(name, offset, what, e))?;
    Ok(bytes)
}

fn read_super(source: &impl ReadAt, name: &str, size: u64) -> Result<IndexSuper> {
    let smallest = (FILE_HEADER + INDEX_SUPER) as u64;
    if size < smallest {
        let expected = format!("at least {smallest} bytes");
        return Err(Flaw::new(size, "indexed wdiff", expected, size).in_source(name));
    }
    let at = size - INDEX_SUPER as u64;
    let bytes = read_array(source, name, at, "index super")?;
    IndexSuper::decode(&bytes, size).map_err(|f| f.shifted(at).in_source(name))
}

/// Records that refer to the same image must describe it alike. Only the images met last are
/// remembered: each record is checked against its image anyway when that is loaded.
fn agree_on_image(images: &mut HashMap<u64, Stored>, stored: &Stored, at: u64) -> Result<(), Flaw> {
    let image = stored.image();
    if images.len() >= IMAGES_REMEMBERED {
        images.clear();
    }
    let known = images.entry(stored.position).or_insert(image);
    demand!(
        *known == image,
        at,
        "description of the stored image",
        format!("{known:?}, as in an earlier record"),
        format!("{image:?}")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::units::Uuid;

    use super::super::record::Kind;
    use super::super::{Compression, OutRecord, SortedWriter};
    use super::*;

    /// Stored images of 8 bytes each, back to back behind the file header.
    const IMAGE: u64 = 8;

    /// A data record that is the whole of the image with this number.
    fn data(address: u64, blocks: u32, image: u64) -> IndexRecord {
        IndexRecord {
            address,
            blocks,
            kind: Kind::Data,
            compression: Compression::Snappy as u8,
            data_offset: FILE_HEADER as u64 + image * IMAGE,
            data_size: IMAGE as u32,
            io_offset: 0,
            orig_blocks: blocks,
            io_checksum: 1,
            rec_checksum: 0,
        }
    }

    fn discard(address: u64, blocks: u32) -> IndexRecord {
        IndexRecord {
            kind: Kind::Discard,
            data_size: 0,
            ..data(address, blocks, 0)
        }
    }

    /// A diff of these index records, whatever they say, and where its index begins.
    fn diff(records: &[IndexRecord]) -> (Vec<u8>, u64) {
        let (format, uuid) = (Format::Indexed, Uuid::ZERO);
        let mut file = FileHeader { format, uuid }.encode().to_vec();
        file.resize(FILE_HEADER + records.len() * IMAGE as usize, 0xda);
        let index_offset = file.len() as u64;
        records.iter().for_each(|r| file.extend(r.encode()));
        let n_records = records.len() as u32;
        let end = IndexSuper {
            index_offset,
            n_records,
            n_data: n_records,
        };
        file.extend(end.encode());
        (file, index_offset)
    }

    fn read_all(file: &[u8]) -> Result<u64> {
        let mut cursor = Cursor::open(file, "name")?;
        let mut count = 0;
        while cursor.next_record()?.is_some() {
            count += 1;
        }
        Ok(count)
    }

    #[test]
    fn an_index_out_of_order_is_refused_at_its_record() {
        // More than one batch, and neighbours that touch.
        let sound: Vec<_> = (0..300).map(|i| data(4 * i, 4, i)).collect();
        assert_eq!(read_all(&diff(&sound).0).unwrap(), 300);
        for at in [1, 127, 128, 129, 299] {
            let last_end = sound[at - 1].end();
            for bad in [discard(0, 1), discard(last_end - 1, 2), sound[at - 1]] {
                let mut records = sound.clone();
                records[at] = bad;
                let (file, index) = diff(&records);
                let offset = index + (at * INDEX_RECORD) as u64;
                let expected = format!(
                    "name: offset {offset}: order of the records: expected an address of at least \
                     {last_end}, found {}",
                    bad.address
                );
                assert_eq!(read_all(&file).unwrap_err().to_string(), expected);
            }
        }
    }

    #[test]
    fn packs_out_of_order_are_refused_at_their_record() {
        let mut writer =
            SortedWriter::create(std::io::Cursor::new(Vec::new()), Uuid::ZERO).unwrap();
        let records: Vec<_> = (0..130)
            .map(|i| OutRecord::empty(4 * i, 4, Kind::Discard))
            .collect();
        writer.push(&records, &[]).unwrap();
        let sound = writer.finish().unwrap().into_inner();
        assert_eq!(read_all(&sound).unwrap(), 130);
        // The second of the first pack, and the first of the second.
        for (pack, slot, last_end) in [(0, 1, 4), (1, 0, 508)] {
            let header = FILE_HEADER + pack * PACK_HEADER;
            let offset = header + 16 + slot * 32;
            let mut file = sound.clone();
            file[offset..offset + 8].copy_from_slice(&(last_end - 1_u64).to_le_bytes());
            crate::checksum::embed(&mut file[header..header + PACK_HEADER], 0, 0);
            let by_cursor = read_all(&file).unwrap_err().to_string();
            let expected = format!(
                "name: offset {offset}: order of the records: expected an address of at least \
                 {last_end}, found {}",
                last_end - 1
            );
            assert_eq!(by_cursor, expected);
            let mut reader = super::super::SortedReader::open(&file[..], "name").unwrap();
            let mut stored = Vec::new();
            let by_stream = loop {
                match reader.next(&mut stored) {
                    Ok(record) => assert!(record.is_some(), "the flaw was not seen"),
                    Err(error) => break error.to_string(),
                }
            };
            assert_eq!(by_stream, expected);
        }
    }

    #[test]
    fn records_that_describe_one_image_otherwise_are_refused() {
        let first = IndexRecord {
            orig_blocks: 8,
            ..data(0, 4, 0)
        };
        let second = IndexRecord {
            address: 4,
            io_offset: 4,
            ..first
        };
        assert_eq!(read_all(&diff(&[first, second]).0).unwrap(), 2);
        let liars = [
            IndexRecord {
                data_size: 7,
                ..second
            },
            IndexRecord {
                compression: Compression::Lz4 as u8,
                ..second
            },
            IndexRecord {
                orig_blocks: 9,
                ..second
            },
            IndexRecord {
                io_checksum: 2,
                ..second
            },
        ];
        for liar in liars {
            let (file, index) = diff(&[first, liar]);
            let error = read_all(&file).unwrap_err().to_string();
            let offset = index + INDEX_RECORD as u64;
            let place = format!("name: offset {offset}: description of the stored image: ");
            assert!(error.starts_with(&place), "{error}");
        }
    }
}
