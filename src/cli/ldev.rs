//! `walkeep ldev …`

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Subcommand;
use serde_json::{Value, json};
use walkeep_store::image::{DiscardPolicy, ImageFile};
use walkeep_store::ldev::{FormatOptions, LogDevice, LogEnd, format};
use walkeep_wire::PhysicalBlock;
use walkeep_wire::ldev::Superblock;
use walkeep_wire::ldev::redo::Repair;

use super::Outcome;
use super::guard::{expect_kind, refuse_same, usage};
use super::options::{Form, block_size, blocks};
use super::progress::with_progress;
use super::report::{Bytes, json_failure, lb_bytes, outside, pace, print_json, say, tally_text};

#[derive(Subcommand)]
pub enum Ldev {
    /// Format an existing file or block device as an empty log device
    Format {
        /// Size of the data device: bytes, or a number with K, M, G or T
        #[arg(long, value_name = "SIZE", value_parser = blocks)]
        data_size: u64,
        /// Physical block size: 512 or 4096
        #[arg(long, default_value = "4096", value_parser = block_size)]
        block_size: PhysicalBlock,
        /// Name in the superblock, at most 31 bytes
        #[arg(long, default_value = "")]
        name: String,
        /// Format although a log device stands there: its log is lost
        #[arg(long)]
        force: bool,
        /// The log device
        ldev: PathBuf,
    },
    /// Print the superblock
    Show {
        /// One JSON document, for scripts
        #[arg(long)]
        json: bool,
        /// The log device, or its image
        ldev: PathBuf,
    },
    /// Check the superblock and the log from its oldest pack to its end
    Verify {
        /// One JSON document, for scripts
        #[arg(long)]
        json: bool,
        /// The log device, or its image
        ldev: PathBuf,
    },
    /// Recover after a crash: replay the log onto the data device
    Redo {
        /// What becomes of discarded ranges: zero, ignore or passdown
        #[arg(long, default_value = "zero", value_name = "POLICY")]
        discard: DiscardPolicy,
        /// The log device, or its image
        ldev: PathBuf,
        /// The data device, or its image
        image: PathBuf,
    },
}

impl Ldev {
    pub fn run(self) -> Result<Outcome> {
        match self {
            Self::Format {
                data_size,
                block_size,
                name,
                force,
                ldev,
            } => {
                if data_size == 0 || !data_size.is_multiple_of(u64::from(block_size.logical())) {
                    usage(&format!(
                        "--data-size: expected a multiple of the block size {}, at least one block",
                        block_size.bytes()
                    ));
                }
                let options = FormatOptions {
                    data_blocks: data_size,
                    pbs: block_size,
                    name: &name,
                    force,
                };
                let superblock = format(&ldev, &options)?;
                say(None, &superblock_text(&ldev, &superblock))?;
            }
            Self::Show { json, ldev } => {
                let form = if json { Form::Json } else { Form::Human };
                let device = json_failure(open(&ldev), &ldev, form)?;
                if json {
                    print_json(&superblock_json(&ldev, device.superblock()))?;
                } else {
                    say(None, &superblock_text(&ldev, device.superblock()))?;
                }
            }
            Self::Verify { json, ldev } => return verify(&ldev, json),
            Self::Redo {
                discard,
                ldev,
                image,
            } => return redo(&ldev, &image, discard),
        }
        Ok(Outcome::Sound)
    }
}

fn open(ldev: &Path) -> Result<LogDevice> {
    expect_kind(
        LogDevice::open(ldev).map_err(Into::into),
        ldev,
        "log device",
    )
}

fn verify(ldev: &Path, json: bool) -> Result<Outcome> {
    let form = if json { Form::Json } else { Form::Human };
    let device = json_failure(open(ldev), ldev, form)?;
    json_failure(device.check_overflow().map_err(Into::into), ldev, form)?;
    let superblock = device.superblock();
    let (end, time) = with_progress("verifying", |meter| {
        device.find_end(superblock.oldest_lsid, meter)
    });
    let end = json_failure(end.map_err(Into::into), ldev, form)?;
    let end_lsid = end.outcome.written_lsid;
    let lost = device.check_end(end_lsid, superblock.written_lsid, &end.reason);
    if json {
        let mut document = superblock_json(ldev, superblock);
        document["packs"] = json!(end.packs);
        document["data_bytes"] = json!(end.data_bytes);
        document["end_lsid"] = json!(end_lsid);
        document["end_reason"] = json!(end.reason);
        document["sound"] = json!(lost.is_ok() && end.bad_record.is_none());
        print_json(&document)?;
    } else {
        let text = format!(
            "{}\n  log      {} packs, {} {}\n  end      lsid {end_lsid}: {}",
            superblock_text(ldev, superblock),
            end.packs,
            Bytes(end.data_bytes),
            pace(end.data_bytes, time),
            end.reason
        );
        say(None, &text)?;
    }
    lost?;
    if end.bad_record.is_some() {
        bail!(
            "{}: {}; after a crash, `walkeep ldev redo` recovers the log",
            ldev.display(),
            end.reason
        );
    }
    Ok(Outcome::Sound)
}

fn redo(ldev: &Path, image: &Path, discard: DiscardPolicy) -> Result<Outcome> {
    refuse_same([ldev], image);
    let target = ImageFile::open(image, discard)?;
    let mut device = LogDevice::open_for_recovery(ldev)?;
    let (report, time) = with_progress("recovering", |meter| device.recover(&target, meter));
    let report = report?;
    let bytes = lb_bytes(report.applied.blocks[0]);
    let replayed = format!(
        "{}: replayed {} packs, {} {}",
        image.display(),
        report.end.packs,
        tally_text(&report.applied),
        pace(bytes, time)
    );
    say(None, &replayed)?;
    let (ldev, from, to) = (
        ldev.display(),
        report.from_lsid,
        report.end.outcome.written_lsid,
    );
    if report.outside.total() == 0 {
        let repair = repair_text(&report.end);
        say(
            None,
            &format!("{ldev}: written lsid {from} to {to}{repair}"),
        )?;
    } else {
        eprintln!(
            "walkeep: {ldev}: left as it is, written lsid {from}; its log, up to lsid {to}, is \
             still to be replayed onto the right image"
        );
    }
    Ok(outside(image, &report.outside))
}

fn repair_text(end: &LogEnd) -> String {
    let what = match (&end.outcome.repair, end.bad_record) {
        (_, None) => return String::new(),
        (Repair::None, _) => "left as it is: its first record is bad, and nothing stands before it",
        (Repair::Shrink(_), _) => "shrunk to the records before the bad one",
        (Repair::EndBlock, _) => "replaced by an end block: its first record is bad",
    };
    format!(
        "; the last pack, at lsid {}, was {what} ({})",
        end.outcome.lsid, end.reason
    )
}

fn superblock_text(path: &Path, superblock: &Superblock) -> String {
    let ring = &superblock.ring;
    let ring_bytes = ring.size() * ring.pbs().bytes() as u64;
    let overflow = if superblock.is_overflowed() {
        " OVERFLOWED"
    } else {
        ""
    };
    format!(
        "{}: log device {:?}\n  uuid     {}\n  salt     {:08x}\n  blocks   {} bytes\n  ring     {} \
         blocks ({})\n  lsids    oldest {}, written {}{overflow}\n  data     {}",
        path.display(),
        superblock.name.to_string(),
        superblock.uuid,
        superblock.salt,
        ring.pbs().bytes(),
        ring.size(),
        Bytes(ring_bytes),
        superblock.oldest_lsid,
        superblock.written_lsid,
        Bytes(lb_bytes(superblock.device_blocks))
    )
}

fn superblock_json(path: &Path, superblock: &Superblock) -> Value {
    json!({
        "file": path.display().to_string(),
        "name": superblock.name.to_string(),
        "uuid": superblock.uuid.to_string(),
        "salt": format!("{:08x}", superblock.salt),
        "block_size": superblock.pbs().bytes(),
        "ring_blocks": superblock.ring.size(),
        "oldest_lsid": superblock.oldest_lsid,
        "written_lsid": superblock.written_lsid,
        "device_blocks": superblock.device_blocks,
        "overflowed": superblock.is_overflowed(),
    })
}
