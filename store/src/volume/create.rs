//! How a volume comes to be: a plan that is checked as a whole, then files, then the registration
//! (reference: "Volume folder").
//!
//! Nothing that exists is ever written to. New files get their names when they are complete, the
//! registration comes last: an interruption leaves at most files, and nothing registered.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use walkeep_wire::PhysicalBlock;
use walkeep_wire::ldev::Superblock;
use walkeep_wire::ldev::ring::Ring;

use super::{Entry, Home, Options, VolumeConfig, VolumeName};
use crate::disk::RealDisk;
use crate::input::{is_same_file, size_of_file};
use crate::ldev::{FormatOptions, LogDevice, format_file};
use crate::nbd::Address;
use crate::output::Output;
use crate::wal_device::state::State;
use crate::{Error, Meter, Result, sys};

const MIB: u64 = 1 << 20;
/// Smaller logs are not made: they would be full after moments.
const LEAST_LOG: u64 = 16 * MIB;
/// Data of the largest packs that the WAL device writes.
const LARGEST_PACK: u64 = 512 << 10;
/// Zeros are written to a new log in steps of this size.
const STEP: usize = 1 << 20;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Name of the volume.
    pub name: VolumeName,
    /// The data: file or block device.
    pub data: PathBuf,
    /// The log: file or block device.
    pub log: PathBuf,
    /// Bytes of new data.
    pub size: Option<u64>,
    /// Bytes of a new log, with its superblocks.
    pub log_size: Option<u64>,
    /// Physical block size of the log.
    pub block_size: Option<PhysicalBlock>,
    /// Existing data and logs may be taken, as they are.
    pub adopt: bool,
    /// Where NBD clients shall find the volume, if not in its folder.
    pub nbd: Option<Address>,
    /// Clients may not write.
    pub read_only: bool,
    /// Limits of the WAL device.
    pub options: Options,
}

/// Whether a file is made or taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlannedFile {
    /// A new file of so many bytes.
    Make(u64),
    /// What exists, of so many bytes.
    Take(u64),
}

/// A plan that was found to be sound, to be carried out.
#[derive(Debug)]
pub struct Checked {
    config: VolumeConfig,
    data: PlannedFile,
    log: PlannedFile,
    pbs: PhysicalBlock,
    taken: Option<Superblock>,
}

/// A volume that was registered.
#[derive(Debug)]
pub struct Created {
    /// The registration.
    pub entry: Entry,
    /// What became of the data.
    pub data: PlannedFile,
    /// What became of the log.
    pub log: PlannedFile,
    /// The log's superblock.
    pub superblock: Superblock,
}

/// Size of a log if none is said: an eighth of the volume, at least 64 MiB, at most 8 GiB.
pub fn default_log_bytes(volume_bytes: u64) -> u64 {
    let eighth = (volume_bytes / 8).next_multiple_of(MIB);
    eighth.clamp(64 * MIB, 8192 * MIB)
}

/// Checks all that is asked for, and changes nothing.
pub fn plan_create(home: &Home, plan: Plan) -> Result<Checked> {
    home.check_free(&plan.name)?;
    let [data_path, log_path] = [&plan.data, &plan.log].map(|path| absolute(path));
    let (data_path, log_path) = (data_path?, log_path?);
    check_paths(home, &data_path, &log_path)?;
    let found_data = inspect(&data_path)?;
    let found_log = inspect(&log_path)?;
    for (found, path) in [(&found_data, &data_path), (&found_log, &log_path)] {
        if found.is_some() && !plan.adopt {
            return refuse(
                path,
                "expected a name that is free, found something: --adopt takes it as it is",
            );
        }
    }
    let taken = match (&found_log, &found_data) {
        (None, _) => None,
        (Some(_), None) => {
            return refuse(
                &data_path,
                "expected the data that belongs to the existing log, found nothing",
            );
        }
        (Some(_), Some(_)) => Some(superblock_of(&log_path, &plan)?),
    };
    let pbs = match (&taken, plan.block_size) {
        (Some(superblock), _) => superblock.pbs(),
        (None, asked) => asked.unwrap_or(PhysicalBlock::B4096),
    };
    let data = plan_data(&data_path, found_data, plan.size, pbs)?;
    let log = match (&taken, found_log) {
        (Some(superblock), Some(found)) => {
            check_adopted(
                &log_path,
                superblock,
                &data_path,
                data.bytes(),
                plan.log_size,
            )?;
            PlannedFile::Take(found.bytes)
        }
        _ => plan_log(&log_path, plan.log_size, data.bytes())?,
    };
    let config = VolumeConfig {
        nbd: plan.nbd,
        read_only: plan.read_only,
        options: plan.options,
        ..VolumeConfig::new(plan.name, data_path, log_path, pbs)
    };
    Ok(Checked {
        config,
        data,
        log,
        pbs,
        taken,
    })
}

impl PlannedFile {
    /// Its size.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Make(bytes) | Self::Take(bytes) => bytes,
        }
    }
}

/// What stands at a path.
struct Found {
    bytes: u64,
    /// Physical block size, of a block device.
    block_bytes: Option<u32>,
}

fn inspect(path: &Path) -> Result<Option<Found>> {
    let fail = |e| Error::file(path, "inspect", e);
    // A link that leads nowhere also takes the name.
    if std::fs::symlink_metadata(path).is_err() {
        return Ok(None);
    }
    let kind = std::fs::metadata(path).map_err(fail)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return refuse(
            path,
            "expected a file or block device, found something else",
        );
    }
    let file = File::open(path).map_err(fail)?;
    let block_bytes = match kind.is_block_device() {
        true => Some(sys::device_block_bytes(&file).map_err(fail)?),
        false => None,
    };
    let bytes = size_of_file(&file).map_err(fail)?;
    Ok(Some(Found { bytes, block_bytes }))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path).map_err(|e| Error::file(path, "find", e))?;
    match path.to_str() {
        Some(_) => Ok(path),
        None => refuse(&path, "expected a path in UTF-8"),
    }
}

/// Nothing is used twice: two writers destroy each other's bytes.
fn check_paths(home: &Home, data: &Path, log: &Path) -> Result<()> {
    if data == log || is_same_file(data, log) {
        return refuse(log, "expected a log beside the data, found the same file");
    }
    for (name, entry) in home.list()? {
        let Ok(entry) = entry else { continue };
        for used in [&entry.config.data, &entry.config.log] {
            for path in [data, log] {
                if path == used || is_same_file(path, used) {
                    let text =
                        format!("expected a file of its own, found it used by volume {name}");
                    return refuse(path, &text);
                }
            }
        }
    }
    Ok(())
}

fn superblock_of(path: &Path, plan: &Plan) -> Result<Superblock> {
    let device = LogDevice::open(path)?;
    let superblock = device.superblock().clone();
    let found = superblock.pbs();
    if let Some(asked) = plan.block_size.filter(|asked| *asked != found) {
        let text = format!(
            "block size: expected {} (--block-size), found {} in the superblock",
            asked.bytes(),
            found.bytes()
        );
        return refuse(path, &text);
    }
    Ok(superblock)
}

fn check_adopted(
    log: &Path,
    superblock: &Superblock,
    data: &Path,
    data_bytes: u64,
    log_size: Option<u64>,
) -> Result<()> {
    let volume = superblock.device_blocks.saturating_mul(512);
    if data_bytes < volume {
        let text = format!(
            "expected at least {volume} bytes, as the log {} says, found {data_bytes}: is it the \
             data of this log?",
            log.display()
        );
        return refuse(data, &text);
    }
    if log_size.is_some() {
        return refuse(log, "expected no --log-size, since the log exists");
    }
    check_ring(log, &superblock.ring)
}

/// The ring has to hold two of the largest packs, so that one can be written while one is needed.
fn check_ring(path: &Path, ring: &Ring) -> Result<()> {
    let pb = ring.pbs().bytes() as u64;
    let least = 2 * (LARGEST_PACK / pb + 1);
    if ring.size() >= least {
        return Ok(());
    }
    let found = ring.size();
    let text = format!("ring: expected at least {least} blocks of {pb} bytes, found {found}");
    refuse(path, &text)
}

fn plan_data(
    path: &Path,
    found: Option<Found>,
    size: Option<u64>,
    pbs: PhysicalBlock,
) -> Result<PlannedFile> {
    let planned = match (found, size) {
        (None, None) => return refuse(path, "it does not exist: --size says how large to make it"),
        (None, Some(size)) => PlannedFile::Make(size),
        (Some(found), Some(size)) if found.bytes != size => {
            let text = format!("expected {size} bytes (--size), found {}", found.bytes);
            return refuse(path, &text);
        }
        (Some(found), _) => {
            check_block(path, &found, pbs)?;
            PlannedFile::Take(found.bytes)
        }
    };
    let (bytes, block) = (planned.bytes(), pbs.bytes());
    if bytes == 0 || !bytes.is_multiple_of(block as u64) {
        let text = format!(
            "size: expected a multiple of the block size {block}, at least one block, found \
             {bytes} (--block-size 512 needs less)"
        );
        return refuse(path, &text);
    }
    Ok(planned)
}

/// A block of the volume is a whole one of the device.
fn check_block(path: &Path, found: &Found, pbs: PhysicalBlock) -> Result<()> {
    match found.block_bytes {
        Some(device) if device as usize > pbs.bytes() => {
            let text = format!(
                "block size: expected at least the device's {device}, found {}",
                pbs.bytes()
            );
            refuse(path, &text)
        }
        _ => Ok(()),
    }
}

fn plan_log(path: &Path, asked: Option<u64>, volume_bytes: u64) -> Result<PlannedFile> {
    let bytes = asked.unwrap_or_else(|| default_log_bytes(volume_bytes));
    if bytes < LEAST_LOG {
        let text = format!("size of the log: expected at least {LEAST_LOG} bytes, found {bytes}");
        return refuse(path, &text);
    }
    Ok(PlannedFile::Make(bytes))
}

fn refuse<T>(path: &Path, text: &str) -> Result<T> {
    Err(Error::Refused(format!("{}: {text}", path.display())))
}

impl Checked {
    /// Makes what has to be made, then registers the volume. `meter` counts what is written to a
    /// new log. After an error nothing is registered, and the files that were made are gone.
    pub fn carry_out(self, home: &Home, meter: &Meter) -> Result<Created> {
        let mut made = Made::default();
        let superblock = match &self.taken {
            Some(superblock) => superblock.clone(),
            None => self.make(&mut made, meter)?,
        };
        let entry = home.register(self.config)?;
        made.keep();
        if self.taken.is_none() {
            // Without it the log is taken for a foreign one: all of it is cleared once, no more.
            drop(State::fresh(&superblock).save(&RealDisk, &entry.state_path()));
        }
        Ok(Created {
            entry,
            data: self.data,
            log: self.log,
            superblock,
        })
    }

    /// Without a log to take over there is always one to make; the data may be there already.
    fn make(&self, made: &mut Made, meter: &Meter) -> Result<Superblock> {
        let VolumeConfig {
            name, data, log, ..
        } = &self.config;
        let mut new_log = Output::create(log)?;
        write_zeros(&mut new_log, self.log.bytes(), meter)?;
        let options = FormatOptions {
            data_blocks: self.data.bytes() / 512,
            pbs: self.pbs,
            name: name.as_str(),
            force: false,
        };
        let Some(file) = new_log.disk_file() else {
            return refuse(log, "expected a name that is free, found a device");
        };
        let superblock = format_file(log, file, &options)?;
        if let PlannedFile::Make(bytes) = self.data {
            made.name(new_data(data, bytes)?)?;
        }
        made.name(new_log)?;
        Ok(superblock)
    }
}

/// A log is written once: on extents that are only allocated each sync would cost a commit of the
/// file system's journal.
fn write_zeros(output: &mut Output, bytes: u64, meter: &Meter) -> Result<()> {
    meter.expect(bytes);
    let zeros = vec![0; STEP];
    let mut left = bytes;
    while left > 0 {
        let step = left.min(STEP as u64);
        output
            .write_all(&zeros[..step as usize])
            .map_err(|e| output.error("write zeros to", e))?;
        meter.add(step);
        left -= step;
    }
    Ok(())
}

fn new_data(path: &Path, bytes: u64) -> Result<Output> {
    let output = Output::create(path)?;
    let sized = match output.disk_file() {
        Some(file) => file.set_size(bytes),
        None => Err(std::io::ErrorKind::AlreadyExists.into()),
    };
    sized.map_err(|e| output.error("make", e))?;
    Ok(output)
}

/// Files that got their names; removed again unless kept.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Made {
    fn name(&mut self, output: Output) -> Result<()> {
        let path = output.path().to_owned();
        output.commit_new()?;
        self.0.push(path);
        Ok(())
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            // The error that led here says more than one about cleaning up.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Case {
        dir: tempfile::TempDir,
        home: Home,
    }

    impl Case {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let home = dir.path().join("home");
            let home = Home::choose(Some(home), |_| None, false).unwrap();
            Self { dir, home }
        }

        fn plan(&self, name: &str) -> Plan {
            let path = |kind: &str| self.dir.path().join(format!("{name}.{kind}"));
            Plan {
                name: name.parse().unwrap(),
                data: path("data"),
                log: path("log"),
                size: Some(4 * MIB),
                log_size: Some(LEAST_LOG),
                block_size: None,
                adopt: false,
                nbd: None,
                read_only: false,
                options: Options::default(),
            }
        }

        fn adopt(&self, name: &str) -> Plan {
            Plan {
                size: None,
                log_size: None,
                adopt: true,
                ..self.plan(name)
            }
        }

        fn create(&self, plan: Plan) -> Result<Created> {
            plan_create(&self.home, plan)?.carry_out(&self.home, &Meter::default())
        }

        fn refused(&self, plan: Plan, expected: &str) {
            let error = plan_create(&self.home, plan).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_new_volume_has_a_written_log_and_sparse_data() {
        use std::os::unix::fs::MetadataExt;
        let case = Case::new();
        let created = case.create(case.plan("a")).unwrap();
        let config = &created.entry.config;
        assert_eq!(
            (created.data, created.log),
            (PlannedFile::Make(4 * MIB), PlannedFile::Make(LEAST_LOG))
        );
        let log = LogDevice::open(&config.log).unwrap();
        assert_eq!(*log.superblock(), created.superblock);
        assert_eq!(log.superblock().device_blocks, 8192);
        assert_eq!(log.superblock().name.as_bytes(), b"a");
        assert_eq!(config.block_size, 4096);
        let blocks = |path: &Path| std::fs::metadata(path).unwrap().blocks() * 512;
        assert!(blocks(&config.log) >= LEAST_LOG);
        assert!(blocks(&config.data) < MIB);
        assert_eq!(case.home.find(created.entry.name()).unwrap(), created.entry);
    }

    #[test]
    fn nothing_that_exists_is_touched_unless_adopted() {
        let case = Case::new();
        let plan = case.plan("a");
        for path in [&plan.data, &plan.log] {
            std::fs::write(path, "precious").unwrap();
            case.refused(case.plan("a"), "--adopt takes it as it is");
            assert_eq!(std::fs::read(path).unwrap(), b"precious");
            std::fs::remove_file(path).unwrap();
        }
        std::os::unix::fs::symlink("/nowhere/at/all", &plan.data).unwrap();
        assert!(plan_create(&case.home, case.plan("a")).is_err());
    }

    #[test]
    fn an_image_is_adopted_with_a_new_log() {
        let case = Case::new();
        let image = vec![7; MIB as usize];
        std::fs::write(case.plan("a").data, &image).unwrap();
        let plan = Plan {
            log_size: Some(LEAST_LOG),
            ..case.adopt("a")
        };
        let created = case.create(plan).unwrap();
        assert_eq!(created.data, PlannedFile::Take(MIB));
        assert_eq!(created.superblock.device_blocks, MIB / 512);
        assert!(std::fs::read(&created.entry.config.data).unwrap() == image);
    }

    #[test]
    fn a_log_is_adopted_with_its_data_only() {
        let case = Case::new();
        let plan = Plan {
            block_size: Some(PhysicalBlock::B512),
            ..case.plan("a")
        };
        let first = case.create(plan).unwrap();
        case.home.delete(first.entry.name(), false).unwrap();
        let data = first.entry.config.data.clone();
        let with = |plan: Plan, block_size| Plan { block_size, ..plan };
        case.refused(
            with(case.adopt("a"), Some(PhysicalBlock::B4096)),
            "found 512 in the superblock",
        );
        case.refused(
            Plan {
                log_size: Some(LEAST_LOG),
                ..case.adopt("a")
            },
            "expected no --log-size",
        );
        case.refused(
            Plan {
                size: Some(MIB),
                ..case.adopt("a")
            },
            "expected 1048576 bytes (--size)",
        );
        let content = std::fs::read(&data).unwrap();
        std::fs::write(&data, &content[..MIB as usize]).unwrap();
        case.refused(case.adopt("a"), "is it the data of this log?");
        std::fs::remove_file(&data).unwrap();
        case.refused(
            Plan {
                size: Some(MIB),
                ..case.adopt("a")
            },
            "belongs to the existing log",
        );
        std::fs::write(&data, content).unwrap();
        let again = case.create(case.adopt("a")).unwrap();
        assert_eq!(again.superblock, first.superblock);
        assert_eq!(again.entry.config.block_size, 512);
        case.refused(
            Plan {
                data,
                ..case.adopt("b")
            },
            "used by volume a",
        );
    }

    #[test]
    fn senseless_plans_are_refused() {
        let case = Case::new();
        let plan = || case.plan("a");
        case.refused(
            Plan {
                size: None,
                ..plan()
            },
            "--size says how large",
        );
        case.refused(
            Plan {
                size: Some(0),
                ..plan()
            },
            "at least one block",
        );
        case.refused(
            Plan {
                size: Some(4608),
                ..plan()
            },
            "a multiple of the block size 4096",
        );
        case.refused(
            Plan {
                log_size: Some(MIB),
                ..plan()
            },
            "at least 16777216",
        );
        case.refused(
            Plan {
                log: plan().data,
                ..plan()
            },
            "the same file",
        );
        case.refused(
            Plan {
                data: case.dir.path().into(),
                adopt: true,
                ..plan()
            },
            "a file or block device",
        );
        std::fs::write(plan().data, vec![0; 4096]).unwrap();
        std::fs::write(plan().log, vec![0; 1 << 20]).unwrap();
        case.refused(case.adopt("a"), "superblock sector type");
        assert!(case.home.list().unwrap().is_empty());
    }

    #[test]
    fn a_failure_leaves_no_files() {
        let case = Case::new();
        let checked = plan_create(&case.home, case.plan("a")).unwrap();
        // The name of the log is taken between plan and deed.
        std::fs::write(case.plan("a").log, "theirs").unwrap();
        assert!(checked.carry_out(&case.home, &Meter::default()).is_err());
        assert!(!case.plan("a").data.exists());
        assert_eq!(std::fs::read(case.plan("a").log).unwrap(), b"theirs");
        let checked = plan_create(&case.home, case.plan("b")).unwrap();
        std::fs::write(case.home.path(), "no folder").unwrap();
        assert!(checked.carry_out(&case.home, &Meter::default()).is_err());
        assert!(!case.plan("b").data.exists() && !case.plan("b").log.exists());
    }

    #[test]
    fn default_logs_are_an_eighth_within_limits() {
        assert_eq!(default_log_bytes(0), 64 * MIB);
        assert_eq!(default_log_bytes(1 << 40), 8192 * MIB);
        assert_eq!(default_log_bytes((8 << 30) + 512), 1025 * MIB);
    }
}
