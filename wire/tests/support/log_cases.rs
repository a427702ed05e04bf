//! Checks of single vectors: one case of the manifest in, what is wrong with it out.
//!
//! Included by more than one test by `#[path]`, so nothing here knows the test it serves.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test that includes this uses a part"
)]

use std::path::Path;

use serde_json::{Value, json};
use walkeep_wire::checksum::checksum;
use walkeep_wire::ldev::Superblock;
use walkeep_wire::logpack::{Header, Record, RecordKind};
use walkeep_wire::units::{PhysicalBlock, SUPERBLOCK_POSITION};
use walkeep_wire::wlog::text::{HeaderLine, PackLine, RecordLine, Statistics};
use walkeep_wire::wlog::{Reader, Step, Writer};
use walkeep_wire::{Uuid, blocks_to_bytes};

/// Kinds with cases that are checked here; of `text` and `reject` only those about logs.
pub const KINDS: [&str; 7] = [
    "checksum",
    "checksum-file",
    "ldev-fresh",
    "ldev-super",
    "reject",
    "text",
    "wlog-parse",
];

type Check = Result<(), String>;

/// True if [`check`] covers the case.
pub fn covers(case: &Value) -> bool {
    match text(&case["kind"]) {
        "text" => text(&case["params"]["tool"]).starts_with("wlog-show"),
        "reject" => matches!(
            text(&case["params"]["operation"]),
            "wlog-read" | "ldev-open"
        ),
        kind => KINDS.contains(&kind),
    }
}

/// Checks one case whose files stand in `dir`.
pub fn check(case: &Value, dir: &Path) -> Result<(), String> {
    if !covers(case) {
        return Err("not a case of a log".to_owned());
    }
    match text(&case["kind"]) {
        "checksum" => check_checksum(case),
        "checksum-file" => check_checksum_file(case, dir),
        "ldev-fresh" => check_fresh(case),
        "ldev-super" => check_superblock(case, dir),
        "reject" => check_reject(case, dir),
        "text" => check_text(case, dir),
        _ => check_wlog(case, dir),
    }
}

/// The bytes of `inputs.file`, with `inputs.mutations` applied in order.
pub fn mutated_input(case: &Value, dir: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = read(dir, &case["inputs"]["file"])?;
    for mutation in case["inputs"]["mutations"].as_array().into_iter().flatten() {
        mutate(&mut bytes, mutation).ok_or_else(|| format!("cannot apply {mutation}"))?;
    }
    Ok(bytes)
}

fn mutate(bytes: &mut Vec<u8>, mutation: &Value) -> Option<()> {
    let at = mutation["offset"].as_u64().unwrap_or(0) as usize;
    match mutation["op"].as_str()? {
        "xor" => *bytes.get_mut(at)? ^= mutation["value"].as_u64()? as u8,
        "truncate" => bytes.truncate(mutation["size"].as_u64()? as usize),
        "set" => {
            let new = unhex(mutation["hex"].as_str()?)?;
            bytes.get_mut(at..at + new.len())?.copy_from_slice(&new);
        }
        _ => return None,
    }
    Some(())
}

/// Bytes of hex digits, in order.
pub fn unhex(digits: &str) -> Option<Vec<u8>> {
    let pair = |at| {
        digits
            .get(at..at + 2)
            .and_then(|d| u8::from_str_radix(d, 16).ok())
    };
    (0..digits.len()).step_by(2).map(pair).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn number(value: &Value) -> Result<u64, String> {
    value.as_u64().ok_or_else(|| format!("no number: {value}"))
}

fn read(dir: &Path, name: &Value) -> Result<Vec<u8>, String> {
    let path = dir.join(text(name));
    std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Every field of `expect` must be equal in `found`, and be there.
fn compare(expect: &Value, found: &Value) -> Check {
    for (name, value) in expect.as_object().into_iter().flatten() {
        if found.get(name) != Some(value) {
            return Err(format!("{name}: expected {value}, found {}", found[name]));
        }
    }
    Ok(())
}

fn hex(sum: u32) -> String {
    format!("{sum:08x}")
}

fn check_checksum(case: &Value) -> Check {
    let data = unhex(text(&case["params"]["data_hex"])).ok_or("bad data_hex")?;
    let salt = number(&case["params"]["salt"])? as u32;
    compare(&case["expect"], &json!({ "u32": checksum(&data, salt) }))
}

fn check_checksum_file(case: &Value, dir: &Path) -> Check {
    let data = read(dir, &case["inputs"]["file"])?;
    let salt = number(&case["params"]["salt"])? as u32;
    let pieces: Vec<_> = data
        .chunks(4096)
        .map(|piece| hex(checksum(piece, salt)))
        .collect();
    let whole = hex(checksum(&data, salt));
    compare(
        &case["expect"],
        &json!({ "whole": whole, "per_4096_bytes": pieces }),
    )
}

/// Opens a log device image.
fn open(image: &[u8]) -> Result<Superblock, String> {
    let from = image.len().min(SUPERBLOCK_POSITION as usize);
    let to = image.len().min(from + Superblock::MAX_BYTES);
    Superblock::decode(&image[from..to], image.len() as u64).map_err(|flaw| flaw.to_string())
}

fn superblock_fields(sb: &Superblock) -> Value {
    let block = sb.encode();
    let sum = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    json!({
        "sector_type": 1,
        "version": 2,
        "checksum": hex(sum),
        "logical_bs": 512,
        "physical_bs": sb.pbs().bytes(),
        "metadata_size": 0,
        "salt": hex(sb.salt),
        "uuid": sb.uuid.to_string(),
        "name": sb.name.to_string(),
        "ring_buffer_size": sb.ring.size(),
        "oldest_lsid": sb.oldest_lsid,
        "written_lsid": sb.written_lsid,
        "device_size": sb.device_blocks,
        "checksum_ok": true,
    })
}

fn check_superblock(case: &Value, dir: &Path) -> Check {
    let image = read(dir, &case["inputs"]["ldev"])?;
    let sb = open(&image)?;
    compare(&case["expect"], &superblock_fields(&sb))?;
    let block = sb.encode();
    let same = image[SUPERBLOCK_POSITION as usize..].starts_with(&block);
    if same {
        Ok(())
    } else {
        Err("encoding it again changes it".to_owned())
    }
}

fn check_fresh(case: &Value) -> Check {
    let (params, expect) = (&case["params"], &case["expect"]);
    let want = unhex(text(&expect["superblock_hex"])).ok_or("bad superblock_hex")?;
    let salt = want
        .get(20..24)
        .and_then(|b| b.try_into().ok())
        .ok_or("short superblock_hex")?;
    let uuid = want
        .get(24..40)
        .and_then(|b| b.try_into().ok())
        .ok_or("short superblock_hex")?;
    let pbs = PhysicalBlock::new(number(&params["pbs"])? as u32, 0).map_err(|f| f.to_string())?;
    let (ldev, blocks) = (
        number(&params["ldev_size"])?,
        number(&params["ddev_size"])? / 512,
    );
    let (salt, name) = (u32::from_le_bytes(salt), text(&params["name"]));
    let sb = Superblock::format(Uuid(uuid), salt, name, blocks, ldev, pbs);
    let sb = sb.map_err(|flaw| flaw.to_string())?;
    compare(&expect["fields"], &superblock_fields(&sb))?;
    let block = sb.encode();
    let zero = block
        .get(want.len()..)
        .is_some_and(|rest| rest.iter().all(|b| *b == 0));
    if block.starts_with(&want) && zero {
        Ok(())
    } else {
        Err("other bytes".to_owned())
    }
}

fn check_reject(case: &Value, dir: &Path) -> Check {
    let bytes = mutated_input(case, dir)?;
    let accepted = match text(&case["params"]["operation"]) {
        "wlog-read" => read_wlog(&bytes).is_ok(),
        _ => open(&bytes).is_ok(),
    };
    if accepted {
        Err("accepted".to_owned())
    } else {
        Ok(())
    }
}

/// A wlog read to its end, as the manifest describes it, and as the show tool prints it.
struct Log {
    fields: Value,
    lines: String,
    rewritten: Vec<u8>,
}

fn read_wlog(bytes: &[u8]) -> Result<Log, String> {
    read_log(bytes).map_err(|error| error.to_string())
}

fn read_log(bytes: &[u8]) -> walkeep_wire::Result<Log> {
    let mut reader = Reader::new(bytes, "vector");
    let file = reader.file_header()?;
    let (mut stats, mut lines) = (Statistics::new(&file), format!("{}\n", HeaderLine(&file)));
    let (mut packs, mut records, mut rewritten) = (vec![], 0, vec![]);
    let mut writer = Some(Writer::new(vec![], "copy", file)?);
    loop {
        match reader.next_step()? {
            None => break,
            Some(Step::Header(next)) => {
                stats.continue_with(&next);
                writer = Some(Writer::new(vec![], "copy", next)?);
            }
            Some(Step::Pack(header)) => {
                let position = reader.walk().pack_position();
                stats.add(&header, file.pbs);
                lines += &format!("{}\n", PackLine(&header));
                header
                    .records
                    .iter()
                    .for_each(|r| lines += &format!("{}\n", RecordLine(r)));
                records += header.records.len();
                verify_data(&mut reader)?;
                packs.push(pack_fields(&header, position));
                let start = position as usize + file.pbs.bytes();
                let size = header.pack_bytes(file.pbs) as usize - file.pbs.bytes();
                // The reader checks padding and tails only when it moves on.
                let data = bytes.get(start..start + size).unwrap_or_default();
                writer
                    .iter_mut()
                    .try_for_each(|w| w.write_pack(&header, data))?;
            }
            Some(Step::End { .. }) => {
                if let Some(writer) = writer.take() {
                    rewritten.extend(writer.finish()?);
                }
            }
        }
    }
    let fields = json!({
        "pbs": file.pbs.bytes(),
        "salt": hex(file.salt),
        "uuid": file.uuid.to_string(),
        "begin_lsid": file.begin_lsid,
        "end_lsid_field": file.end_lsid,
        "real_end_lsid": reader.walk().lsid(),
        "file_size": reader.bytes_read(),
        "n_packs": packs.len(),
        "n_records": records,
        "packs": packs,
    });
    Ok(Log {
        fields,
        lines: format!("{lines}{stats}\n"),
        rewritten,
    })
}

/// Reads every record of the pack; the data of writes must have their length.
fn verify_data(reader: &mut Reader<&[u8]>) -> walkeep_wire::Result<()> {
    let mut data = vec![];
    while let Some(record) = reader.read_data(&mut data)? {
        let want = if record.kind == RecordKind::Data {
            blocks_to_bytes(record.blocks)
        } else {
            0
        };
        assert_eq!(data.len() as u64, want);
    }
    Ok(())
}

fn pack_fields(header: &Header, position: u64) -> Value {
    json!({
        "lsid": header.lsid,
        "total_io_pb": header.total_pb,
        "n_padding": header.n_padding,
        "offset": position,
        "records": header.records.iter().map(record_fields).collect::<Vec<_>>(),
    })
}

fn record_fields(r: &Record) -> Value {
    let kind = match r.kind {
        RecordKind::Data => "N",
        RecordKind::Padding => "P",
        RecordKind::Discard => "D",
    };
    json!([r.lsid, r.local, r.address, r.blocks, kind, hex(r.checksum)])
}

fn check_wlog(case: &Value, dir: &Path) -> Check {
    let bytes = read(dir, &case["inputs"]["wlog"])?;
    let log = read_wlog(&bytes)?;
    compare(&case["expect"], &log.fields)?;
    if log.rewritten == bytes {
        Ok(())
    } else {
        Err("writing it again changes it".to_owned())
    }
}

fn check_text(case: &Value, dir: &Path) -> Check {
    let log = read_wlog(&read(dir, &case["inputs"]["file"])?)?;
    let want = read(dir, &case["expect"]["text"])?;
    let found = log.lines.as_bytes();
    if found == want {
        Ok(())
    } else {
        Err(format!("other text:\n{}", log.lines))
    }
}
