//! Fills `fuzz/corpus/<target>` from the test vectors: `seed VECTORS CORPUS`.
//!
//! Every seed comes twice, as it is and with its checksums to be fixed, so that mutations of the
//! latter get behind them.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use walkeep_wire::wdiff::{Codec, Compression};
use walkeep_wire::wlog::generate::{Generator, Options};
use walkeep_wire::wlog::{FileHeader, Writer};
use walkeep_wire::{LOGICAL_BLOCK, PhysicalBlock};

/// Larger files slow a fuzzer down and say nothing that smaller ones do not.
const MOST_BYTES: usize = 48 << 10;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

struct Corpus {
    root: PathBuf,
    count: usize,
}

impl Corpus {
    fn add(&mut self, target: &str, parts: &[&[u8]]) -> Result<()> {
        let dir = self.root.join(target);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(format!("seed-{:04}", self.count)), parts.concat())?;
        self.count += 1;
        Ok(())
    }

    fn add_with(&mut self, target: &str, choices: &[u8], parts: &[&[u8]]) -> Result<()> {
        choices.iter().try_for_each(|choice| {
            let mut all = vec![*choice];
            parts.iter().for_each(|part| all.extend_from_slice(part));
            self.add(target, &[&all])
        })
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(PathBuf::from);
    let (Some(vectors), Some(root)) = (arguments.next(), arguments.next()) else {
        return Err("usage: seed VECTORS CORPUS".into());
    };
    let mut corpus = Corpus { root, count: 0 };
    let mut files: Vec<_> = fs::read_dir(&vectors)?.collect::<Result<_, _>>()?;
    files.sort_by_key(std::fs::DirEntry::file_name);
    for file in files {
        seed_file(&mut corpus, &file.path())?;
    }
    seed_manifest(&mut corpus, &fs::read(vectors.join("manifest.json"))?)?;
    seed_generated(&mut corpus)?;
    println!("{} seeds in {}", corpus.count, corpus.root.display());
    Ok(())
}

fn seed_file(corpus: &mut Corpus, path: &Path) -> Result<()> {
    let bytes = fs::read(path)?;
    match path.extension().and_then(|e| e.to_str()) {
        Some("img") => {
            corpus.add_with(
                "superblock",
                &[0, 1, 3],
                &[bytes.get(4096..8192).unwrap_or_default()],
            )?;
        }
        Some("wlog") => seed_wlog(corpus, &bytes)?,
        Some("wdiff") if bytes.len() > MOST_BYTES => {}
        Some("wdiff") if bytes.get(6) == Some(&0) => {
            corpus.add_with("wdiff_sorted", &[0, 1], &[&bytes])?;
        }
        Some("wdiff") => corpus.add_with("wdiff_indexed", &[0, 1, 3], &[&bytes])?,
        Some("bin") => {
            corpus.add_with("queue", &[0, 1], &[&bytes])?;
            corpus.add_with("queue", &[21], &[&[0, 1, 2, 3, 5, 3, 3, 4, 6, 1], &bytes])?;
        }
        _ => {}
    }
    Ok(())
}

fn seed_wlog(corpus: &mut Corpus, bytes: &[u8]) -> Result<()> {
    if bytes.len() <= MOST_BYTES {
        corpus.add_with("wlog", &[0, 1], &[bytes])?;
    }
    let Some(head) = bytes.get(..FileHeader::BYTES) else {
        return Ok(());
    };
    if let Ok(header) = FileHeader::decode(head) {
        let pbs = header.pbs.bytes();
        let choice = (header.pbs.logical().trailing_zeros() << 1) as u8;
        let (block, rest) = (&bytes[4096..], &bytes[bytes.len() - pbs..]);
        for block in [&block[..pbs], rest] {
            let salt = header.salt.to_le_bytes();
            corpus.add_with("logpack", &[choice, choice | 1], &[&salt, block])?;
        }
    }
    Ok(())
}

/// Values and names that stand in the manifest itself.
fn seed_manifest(corpus: &mut Corpus, manifest: &[u8]) -> Result<()> {
    const SERIAL: [&str; 4] = ["u32", "u64", "i64", "string"];
    const METADATA: [&str; 7] = [
        "MetaSnap",
        "MetaDiff",
        "MetaState",
        "MetaLsidGid",
        "CompressOpt",
        "HostInfoForBkp",
        "FullReplState",
    ];
    let manifest: Value = serde_json::from_slice(manifest)?;
    for case in manifest["cases"].as_array().into_iter().flatten() {
        let params = &case["params"];
        if let Some(name) = params["name"].as_str() {
            corpus.add("names", &[name.as_bytes()])?;
        }
        let hex = case["expect"]["hex"].as_str().or(params["hex"].as_str());
        let Some(bytes) = hex.and_then(from_hex) else {
            continue;
        };
        let kind = params["type"]
            .as_str()
            .or(params["operation"].as_str())
            .unwrap_or_default();
        let kind = kind.trim_start_matches("load-");
        match (position(&SERIAL, kind), position(&METADATA, kind)) {
            (Some(at), _) => corpus.add("serial", &[&[at], &bytes])?,
            (_, Some(at)) => corpus.add("metadata", &[&[at], &bytes])?,
            _ => (0..14).try_for_each(|at| corpus.add("metadata", &[&[at], &bytes]))?,
        }
    }
    for text in [
        "7.cold",
        "a.archive",
        "snappy:1:2",
        "0210ef9991596961263041f5f9241a91",
    ] {
        corpus.add("names", &[text.as_bytes()])?;
    }
    Ok(())
}

fn position(names: &[&str], name: &str) -> Option<u8> {
    names
        .iter()
        .zip(0..)
        .find(|(known, _)| **known == name)
        .map(|(_, at)| at)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect()
}

/// Small logs of each block size, and payloads of each algorithm.
fn seed_generated(corpus: &mut Corpus) -> Result<()> {
    for (pbs, seed) in [(512, 1), (1024, 2), (2048, 3), (4096, 4)] {
        let options = Options {
            seed,
            total_bytes: 8 << 10,
            device_blocks: 64,
            pbs: PhysicalBlock::new(pbs, 0)?,
            min_io: 1,
            max_io: 4,
            ..Options::default()
        };
        let mut log = Vec::new();
        let packs = Generator::new(options)?;
        let mut writer = Writer::new(&mut log, "seed", packs.file_header())?;
        for pack in packs {
            writer.write_pack(&pack.header, &pack.data)?;
        }
        writer.finish()?;
        seed_wlog(corpus, &log)?;
    }
    let plain: Vec<u8> = (0..LOGICAL_BLOCK).map(|i| (i / 9) as u8).collect();
    for algorithm in Compression::ALL {
        let mut stored = Vec::new();
        let used = Codec::default().compress(algorithm, 1, &plain, &mut stored);
        let size = (plain.len() as u16).to_le_bytes();
        corpus.add("codec", &[&[(used as u8) << 4 | 1], &size, &stored])?;
        corpus.add("codec", &[&[(algorithm as u8) << 4], &size, &plain])?;
    }
    Ok(())
}
