//! Checks of the vectors that need real files: convert, redo, merge, scan, recover.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use walkeep_store::image::DiscardPolicy;
use walkeep_store::ldev::LogDevice;
use walkeep_store::wdiff::{self, MergeOptions, Shape};
use walkeep_store::wlog::{self, ConvertOptions};
use walkeep_store::{Meter, Workers};
use walkeep_wire::wdiff::text::{
    HeaderText, IndexRecordText, PackRecordText, StatText, indexed_data_size,
};
use walkeep_wire::wdiff::{
    CompressOption, Compression, Cursor, DEFAULT_MAX_IO_BLOCKS, Format, Kind, Tally,
};
use walkeep_wire::{LOGICAL_BLOCK, units::SUPERBLOCK_POSITION};

use crate::files::{Check, Diff, bytes_of, image, scratch, sha256, shown, xorshift};
use crate::log_cases::{mutated_input, unhex};

/// Numbers of threads that must all give the same.
const THREADS: [usize; 2] = [1, 3];

/// One case, the folder of its inputs, and a folder for its outputs.
struct Case<'a> {
    params: &'a Value,
    inputs: &'a Value,
    expect: &'a Value,
    vectors: &'a Path,
    scratch: TempDir,
}

/// Checks a case of a kind that needs files; `None` if the kind is not one of these.
pub(crate) fn check(case: &Value, vectors: &Path) -> Option<Check> {
    let check: fn(&Case<'_>) -> Check = match case["kind"].as_str()? {
        "wlog-redo" => check_wlog_redo,
        "wlog-to-wdiff" => check_convert,
        "wdiff-parse" => check_parse,
        "wdiff-redo" => check_wdiff_redo,
        "wdiff-merge" => check_merge,
        "virt-full" => check_scan,
        "ldev-redo" => check_recovery,
        "text" => check_text,
        _ => return None,
    };
    Some(scratch().map_err(shown).and_then(|scratch| {
        check(&Case {
            params: &case["params"],
            inputs: &case["inputs"],
            expect: &case["expect"],
            vectors,
            scratch,
        })
    }))
}

impl Case<'_> {
    fn vector(&self, name: &Value) -> Check<PathBuf> {
        Ok(self.vectors.join(text(name)?))
    }

    fn output(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn wdiffs(&self) -> Check<Vec<PathBuf>> {
        let names = self.inputs["wdiffs"]
            .as_array()
            .ok_or("no list of wdiffs")?;
        names.iter().map(|name| self.vector(name)).collect()
    }

    fn base(&self) -> Check<Vec<u8>> {
        let base = &self.inputs["base"];
        let size = number(&base["size"])? as usize;
        match text(&base["recipe"])? {
            "zero" => Ok(vec![0; size]),
            "xorshift64" => Ok(xorshift(number(&base["seed"])?, size)),
            other => Err(format!("recipe {other}")),
        }
    }

    fn discard(&self) -> Check<DiscardPolicy> {
        text(&self.params["discard"])?.parse()
    }

    fn max_io(&self) -> Check<u32> {
        let bytes = number(&self.params["max_io_bytes"])?;
        u32::try_from(bytes / LOGICAL_BLOCK as u64).map_err(shown)
    }

    /// The result must be a whole image with the hash that is expected.
    fn check_image(&self, path: &Path) -> Check {
        equal(
            "sha256",
            sha256(&bytes_of(path)?).as_str(),
            text(&self.expect["sha256"])?,
        )
    }
}

fn text(value: &Value) -> Check<&str> {
    value.as_str().ok_or_else(|| format!("{value} is no text"))
}

fn number(value: &Value) -> Check<u64> {
    value
        .as_u64()
        .ok_or_else(|| format!("{value} is no number"))
}

fn equal<T: PartialEq + std::fmt::Debug + ?Sized>(what: &str, found: &T, wanted: &T) -> Check {
    if found == wanted {
        return Ok(());
    }
    Err(format!("{what}: found {found:?}, expected {wanted:?}"))
}

/// Like [`equal`] for whole files, which nobody wants to see printed.
fn equal_bytes(what: &str, found: &[u8], wanted: &[u8]) -> Check {
    let differs = found.iter().zip(wanted).position(|(a, b)| a != b);
    if found.len() == wanted.len() && differs.is_none() {
        return Ok(());
    }
    let (found, wanted) = (found.len(), wanted.len());
    Err(format!(
        "{what}: {found} bytes, expected {wanted}; first difference at {differs:?}"
    ))
}

fn check_wlog_redo(case: &Case<'_>) -> Check {
    let log = case.vector(&case.inputs["wlog"])?;
    for threads in THREADS {
        let path = case.output("image");
        let image = image(&path, &case.base()?, case.discard()?)?;
        let meter = Meter::default();
        let report =
            wlog::redo(&log, &image, false, Workers::new(threads), &meter).map_err(shown)?;
        equal("records outside", &report.outside, &Tally::default())?;
        case.check_image(&path)?;
    }
    Ok(())
}

fn check_wdiff_redo(case: &Case<'_>) -> Check {
    let diff = case.vector(&case.inputs["wdiff"])?;
    for threads in THREADS {
        let path = case.output("image");
        let image = image(&path, &case.base()?, case.discard()?)?;
        let report = wdiff::redo(&diff, &image, Workers::new(threads), &Meter::default());
        equal(
            "records outside",
            &report.map_err(shown)?.outside,
            &Tally::default(),
        )?;
        case.check_image(&path)?;
    }
    Ok(())
}

fn check_scan(case: &Case<'_>) -> Check {
    // Zeros for discards are all that a scan can give.
    equal("policy", text(&case.params["discard"])?, "zero")?;
    let (base, output) = (case.output("base"), case.output("image"));
    std::fs::write(&base, case.base()?).map_err(shown)?;
    for threads in THREADS {
        let workers = Workers::new(threads);
        wdiff::scan(&base, &case.wdiffs()?, &output, workers, &Meter::default()).map_err(shown)?;
        case.check_image(&output)?;
    }
    Ok(())
}

/// `[address, blocks, kind, hash]` of each record, as the manifest has them.
fn listed(diff: &Diff) -> Value {
    let record = |r: &crate::files::Plain| {
        let hash = (r.kind == Kind::Data).then(|| sha256(&r.data));
        json!([r.address, r.blocks, r.kind.letter().to_string(), hash])
    };
    diff.records.iter().map(record).collect()
}

fn check_records(case: &Case<'_>, diff: &Diff) -> Check {
    let expect = case.expect;
    equal(
        "n_records",
        &(diff.records.len() as u64),
        &number(&expect["n_records"])?,
    )?;
    if let Some(uuid) = expect.get("uuid") {
        equal("uuid", diff.header.uuid.to_string().as_str(), text(uuid)?)?;
    }
    match &expect["records"] {
        Value::Null => Ok(()),
        records => equal("records", &listed(diff), records),
    }
}

fn check_convert(case: &Case<'_>) -> Check {
    let format = match text(&case.params["format"])? {
        "sorted" => Format::Sorted,
        "indexed" => Format::Indexed,
        other => return Err(format!("format {other}")),
    };
    let compress: CompressOption = text(&case.params["compression"])?.parse()?;
    let shape = Shape {
        format,
        max_io: case.max_io()?,
    };
    let (log, output) = (case.vector(&case.inputs["wlog"])?, case.output("wdiff"));
    let reference = bytes_of(&case.vector(&case.expect["reference"])?)?;
    let wanted = Diff::read(&reference)?;
    for threads in THREADS {
        let options = ConvertOptions {
            shape,
            compress,
            workers: Workers::new(threads),
        };
        wlog::convert(&log, &output, &options, &Meter::default()).map_err(shown)?;
        let bytes = bytes_of(&output)?;
        let diff = Diff::read(&bytes)?;
        check_records(case, &diff)?;
        equal("header", &diff.header, &wanted.header)?;
        equal("records of the reference", &diff.records, &wanted.records)?;
        check_shrinking(&diff, compress.algorithm)?;
        if wanted.is_plain() {
            equal_bytes("reference", &bytes, &reference)?;
        }
    }
    Ok(())
}

/// Data is stored as it is exactly when it does not shrink.
fn check_shrinking(diff: &Diff, algorithm: Compression) -> Check {
    equal("oracle", algorithm.name(), "snappy")?;
    for (stored, image) in &diff.images {
        let packed = snap::raw::Encoder::new().compress_vec(image);
        let shrinks = packed.map_err(shown)?.len() < image.len();
        let wanted = if shrinks {
            algorithm
        } else {
            Compression::None
        };
        equal("algorithm of a record", &stored.compression, &wanted)?;
        equal(
            "stored smaller",
            &(u64::from(stored.size) < stored.image_bytes()),
            &shrinks,
        )?;
    }
    Ok(())
}

fn check_parse(case: &Case<'_>) -> Check {
    let path = case.vector(&case.inputs["wdiff"])?;
    let diff = Diff::read(&bytes_of(&path)?)?;
    check_records(case, &diff)?;
    let expect = case.expect;
    equal(
        "format",
        diff.header.format.name(),
        text(&expect["format"])?,
    )?;
    if let Some(packs) = expect["n_packs"].as_u64() {
        equal("n_packs", &diff.n_packs, &packs)?;
    }
    let compressions = expect["compressions"].as_array().into_iter().flatten();
    let compressions: Check<BTreeSet<&str>> = compressions.map(text).collect();
    equal("compressions", &diff.compressions(), &compressions?)?;
    check_verify(&path, &diff)?;
    check_rewritten(case, &path, &diff)
}

/// Verification must count what is in the file.
fn check_verify(path: &Path, diff: &Diff) -> Check {
    for threads in THREADS {
        let workers = Workers::new(threads);
        let report = wdiff::verify(path, true, workers, &Meter::default()).map_err(shown)?;
        equal(
            "verified records",
            &report.tally.total(),
            &(diff.records.len() as u64),
        )?;
        let names: BTreeSet<_> = report.by_compression().map(|(c, ..)| c.name()).collect();
        equal("verified compressions", &names, &diff.compressions())?;
    }
    Ok(())
}

/// `X.m-ALGO_LEVEL_THREADS.wdiff` and `X.i-ALGO.wdiff` were made of `X.sorted.wdiff`: making them
/// again gives the same records, and the same bytes where none is compressed. The first were
/// written with a zero uuid, so only what follows the header is compared.
fn check_rewritten(case: &Case<'_>, path: &Path, wanted: &Diff) -> Check {
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy())
        .unwrap_or_default();
    let Some((stem, option)) = name
        .strip_suffix(".wdiff")
        .and_then(|n| n.split_once(".m-").or_else(|| n.split_once(".i-")))
    else {
        return Ok(());
    };
    let (format, header) = match wanted.header.format {
        Format::Sorted => (Format::Sorted, 32),
        Format::Indexed => (Format::Indexed, 0),
    };
    let compress = Some(option.replace('_', ":").parse()?);
    let source = vec![case.vectors.join(format!("{stem}.sorted.wdiff"))];
    let max_io = DEFAULT_MAX_IO_BLOCKS;
    let bytes = merged(case, &source, Shape { format, max_io }, compress)?;
    let diff = Diff::read(&bytes)?;
    equal("rewritten records", &diff.records, &wanted.records)?;
    if wanted.is_plain() {
        let reference = bytes_of(path)?;
        equal_bytes("rewritten", &bytes[header..], &reference[header..])?;
    }
    Ok(())
}

/// The bytes of a merge, which must be the same for any number of threads.
fn merged(
    case: &Case<'_>,
    wdiffs: &[PathBuf],
    shape: Shape,
    compress: Option<CompressOption>,
) -> Check<Vec<u8>> {
    let output = case.output("merged");
    let with = |threads| {
        let options = MergeOptions {
            shape,
            compress,
            any_uuid: true,
            workers: Workers::new(threads),
        };
        wdiff::merge(wdiffs, &output, &options, &Meter::default()).map_err(shown)?;
        bytes_of(&output)
    };
    let bytes = with(THREADS[0])?;
    for threads in &THREADS[1..] {
        equal_bytes("another number of threads", &with(*threads)?, &bytes)?;
    }
    Ok(bytes)
}

fn check_merge(case: &Case<'_>) -> Check {
    let (wdiffs, max_io) = (case.wdiffs()?, case.max_io()?);
    equal("order", text(&case.params["order"])?, "oldest first")?;
    let wanted = text(&case.expect["block_map_sha256"])?;
    let reference = Diff::read(&bytes_of(&case.vector(&case.expect["reference"])?)?)?;
    equal(
        "map of the reference",
        block_map(&reference).as_str(),
        wanted,
    )?;
    let newest = wdiffs.last().ok_or("no inputs")?;
    let newest = Diff::read(&bytes_of(newest)?)?.header.uuid;
    for format in [Format::Sorted, Format::Indexed] {
        for compress in [None, Some(CompressOption::default())] {
            let diff = Diff::read(&merged(case, &wdiffs, Shape { format, max_io }, compress)?)?;
            equal("map", block_map(&diff).as_str(), wanted)?;
            equal("uuid", &diff.header.uuid, &newest)?;
            let longest = diff.records.iter().map(|r| r.blocks).max().unwrap_or(0);
            if max_io > 0 && longest > max_io {
                return Err(format!("a record of {longest} blocks, limit {max_io}"));
            }
        }
    }
    Ok(())
}

/// The hash over all covered blocks: address, kind, and data if there is any.
fn block_map(diff: &Diff) -> String {
    let mut map = vec![];
    for record in &diff.records {
        let mut data = record.data.chunks(LOGICAL_BLOCK);
        for address in (record.address..).take(record.blocks as usize) {
            map.extend(address.to_le_bytes());
            map.push(record.kind.letter() as u8);
            map.extend(data.next().unwrap_or_default());
        }
    }
    sha256(&map)
}

fn check_recovery(case: &Case<'_>) -> Check {
    // The mutations of the manifest speak of `file`; here the input is called `ldev`.
    let input = json!({ "inputs": {
        "file": case.inputs["ldev"],
        "mutations": case.inputs["mutations"],
    }});
    let before = mutated_input(&input, case.vectors)?;
    let (log, path) = (case.output("ldev"), case.output("image"));
    std::fs::write(&log, &before).map_err(shown)?;
    let image = image(&path, &case.base()?, case.discard()?)?;
    let mut device = LogDevice::open_for_recovery(&log).map_err(shown)?;
    let report = device.recover(&image, &Meter::default()).map_err(shown)?;
    equal("records outside", &report.outside, &Tally::default())?;
    case.check_image(&path)?;
    let bad = report.end.bad_record.map(|index| json!(index));
    equal(
        "first_invalid_record",
        &bad.as_ref(),
        &case.expect.get("first_invalid_record"),
    )?;
    check_log_after(case, &log, before)
}

/// The log after recovery: superblock, the repaired block, and all else as it was.
fn check_log_after(case: &Case<'_>, log: &Path, mut wanted: Vec<u8>) -> Check {
    let (expect, device) = (case.expect, LogDevice::open(log).map_err(shown)?);
    let superblock = device.superblock();
    let (written, oldest) = (superblock.written_lsid, superblock.oldest_lsid);
    equal(
        "written_lsid_after",
        &json!(written),
        &expect["written_lsid_after"],
    )?;
    equal(
        "oldest_lsid_after",
        &json!(oldest),
        &expect["oldest_lsid_after"],
    )?;
    if expect["shrunk"] == true {
        let lsid = number(&expect["last_header_lsid"])?;
        let mut block = unhex(text(&expect["last_header_hex"])?).ok_or("bad last_header_hex")?;
        block.resize(superblock.pbs().bytes(), 0);
        let at = superblock.ring.position(lsid) as usize;
        wanted[at..at + block.len()].copy_from_slice(&block);
    }
    let block = superblock.encode();
    let at = SUPERBLOCK_POSITION as usize;
    wanted[at..at + block.len()].copy_from_slice(&block);
    equal_bytes("log device", &bytes_of(log)?, &wanted)
}

fn check_text(case: &Case<'_>) -> Check {
    equal("tool", text(&case.params["tool"])?, "wdiff-show -stat")?;
    let bytes = bytes_of(&case.vector(&case.inputs["file"])?)?;
    let found = show(&bytes).map_err(shown)?;
    let wanted = bytes_of(&case.vector(&case.expect["text"])?)?;
    equal_bytes("text", found.as_bytes(), &wanted)
}

/// What the show tool prints of a diff.
fn show(bytes: &[u8]) -> walkeep_wire::Result<String> {
    let mut cursor = Cursor::open(bytes, "diff")?;
    let format = cursor.header().format;
    let mut lines = format!("{}\n", HeaderText(cursor.header()));
    let (mut tally, mut data_size) = (Tally::default(), 0);
    while let Some((_, pack)) = cursor.next_pack()? {
        for record in &pack.records {
            lines += &format!("{}\n", PackRecordText(record));
            tally.add(record.kind, record.blocks);
            data_size += u64::from(record.data_size);
        }
    }
    while let Some((_, records)) = cursor.next_index()? {
        for record in &records {
            lines += &format!("{}\n", IndexRecordText(record));
            tally.add(record.kind, record.blocks);
        }
    }
    let data_size = cursor.index().map_or(data_size, indexed_data_size);
    let stat = StatText {
        format,
        tally: &tally,
        data_size,
    };
    Ok(format!("{lines}{stat}\n"))
}
