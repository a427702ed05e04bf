//! Checks the vectors about metadata: serialisation, file names, the algebra of snapshots and diffs,
//! diff sets, the queue file, and MurmurHash3. Each check takes one case of the manifest.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use walkeep_wire::meta::{
    CompressOpt, DiffSet, FullReplState, HostInfo, MetaDiff, MetaLsidGid, MetaSnap, MetaState,
    QueueFile, Relation, RestorePoint, name,
};
use walkeep_wire::murmur3::murmur3;
use walkeep_wire::serial::Serial;

/// Kinds, and operations of the kinds `reject` and `reject-hex`, that [`check`] knows.
pub(crate) const KINDS: [&str; 7] = [
    "serialize",
    "diff-filename",
    "meta-apply",
    "meta-merge",
    "meta-manager",
    "murmur3-x64-128",
    "queue-file",
];
/// See [`KINDS`].
const OPERATIONS: [&str; 3] = ["queue-open", "queue-read", "load-MetaState"];

type Checked<T = ()> = Result<T, String>;

/// True if the case is one of these.
pub(crate) fn is_known(case: &Value) -> bool {
    let operation = case["params"]["operation"].as_str().unwrap_or_default();
    match case["kind"].as_str().unwrap_or_default() {
        "reject" | "reject-hex" => OPERATIONS.contains(&operation),
        kind => KINDS.contains(&kind),
    }
}

/// Checks a case whose files are in `dir`.
pub(crate) fn check(case: &Value, dir: &Path) -> Checked {
    let (params, expect) = (&case["params"], &case["expect"]);
    match text(&case["kind"])? {
        "serialize" => check_serialize(params, expect),
        "diff-filename" => check_name(params, expect),
        "meta-apply" => check_apply(params, expect),
        "meta-merge" => check_merge(params, expect),
        "meta-manager" => check_set(case, params, expect),
        "murmur3-x64-128" => check_murmur(params, expect),
        "queue-file" => check_queue(case, dir),
        "reject" => refused(QueueFile::open(&input(case, dir)?)),
        "reject-hex" => refused(MetaState::from_bytes(&unhex(text(&params["hex"])?)?)),
        kind => Err(format!("kind {kind} is not known here")),
    }
}

fn check_serialize(p: &Value, expect: &Value) -> Checked {
    let hex = text(&expect["hex"])?;
    match text(&p["type"])? {
        "u32" => same_bytes(&u32::try_from(number(&p["value"])?).map_err(shown)?, hex),
        "u64" => same_bytes(&number(&p["value"])?, hex),
        "string" => same_bytes(&text(&p["value"])?.to_owned(), hex),
        "MetaSnap" => same_bytes(&snap_of(number(&p["gidB"])?, number(&p["gidE"])?)?, hex),
        "MetaDiff" => same_bytes(&diff(p)?, hex),
        "MetaState" => same_bytes(&state(p)?, hex),
        "MetaLsidGid" => same_bytes(&lsid_gid(p)?, hex),
        "HostInfoForBkp" => same_bytes(&host_info(p)?, hex),
        "FullReplState" => same_bytes(&full_repl(p)?, hex),
        other => Err(format!("type {other}")),
    }
}

/// Both directions. The values are compared by their debug form: equality leaves fields out.
fn same_bytes<T: Serial + std::fmt::Debug>(value: &T, hex: &str) -> Checked {
    let bytes = unhex(hex)?;
    equal("bytes", &value.to_bytes(), &bytes)?;
    let back = T::from_bytes(&bytes).map_err(shown)?;
    equal("value", &format!("{back:?}"), &format!("{value:?}"))
}

fn host_info(p: &Value) -> Checked<HostInfo> {
    let byte = |field: &str| u8::try_from(number(&p[field])?).map_err(shown);
    let (kind, level, cpus) = (byte("cmpr_type")?, byte("cmpr_level")?, byte("cmpr_cpu")?);
    Ok(HostInfo {
        addr: text(&p["addr"])?.to_owned(),
        port: u16::try_from(number(&p["port"])?).map_err(shown)?,
        compression: CompressOpt { kind, level, cpus },
        send_delay: u32::try_from(number(&p["wdiffSendDelaySec"])?).map_err(shown)?,
    })
}

fn full_repl(p: &Value) -> Checked<FullReplState> {
    let (progress, timestamp) = (number(&p["progressLb"])?, number(&p["timestamp"])?);
    Ok(FullReplState {
        state: state(&p["metaSt"])?,
        progress,
        timestamp,
    })
}

fn check_name(p: &Value, expect: &Value) -> Checked {
    let parsed = name::parse_name(text(&p["name"])?);
    match (text(&expect["result"])?, parsed) {
        ("error" | "lenient", Err(_)) => Ok(()),
        ("ok" | "lenient", Ok(parsed)) => {
            equal(
                "diff",
                &format!("{parsed:?}"),
                &format!("{:?}", diff(expect)?),
            )?;
            let canonical = name::format_name(&parsed).map_err(shown)?;
            equal("name", &canonical.as_str(), &text(&expect["canonical"])?)
        }
        (_, parsed) => Err(format!("parsed as {parsed:?}")),
    }
}

fn check_apply(p: &Value, expect: &Value) -> Checked {
    let (snap, diff) = (snap(&p["snap"])?, diff(&p["diff"])?);
    let relation = match snap.relation(&diff) {
        Relation::Applicable => "applicable",
        Relation::TooOld => "too_old",
        Relation::TooNew => "too_new",
        Relation::NotApplicable => "not_applicable",
    };
    equal("relation", &relation, &text(&expect["relation"])?)?;
    let applied = expect.get("applied").map(self::snap).transpose()?;
    equal("applied", &snap.apply(&diff).ok(), &applied)
}

fn check_merge(p: &Value, expect: &Value) -> Checked {
    let (older, newer) = (diff(&p["older"])?, diff(&p["newer"])?);
    equal(
        "can_merge",
        &Some(older.can_merge(&newer)),
        &expect["can_merge"].as_bool(),
    )?;
    let merged = expect.get("merged").map(diff).transpose()?;
    let found = older.merge(&newer).ok();
    equal("merged", &format!("{found:?}"), &format!("{merged:?}"))
}

fn check_set(case: &Value, p: &Value, expect: &Value) -> Checked {
    let (state, mut set) = (state(&p["state"])?, DiffSet::new());
    for diff in diffs(&p["diffs"])? {
        set.insert(diff).map_err(shown)?;
    }
    let (gid, begin) = (number(&p["gid"])?, number(&p["merge_from_gid"])?);
    same_list("applicable", &set.applicable(state.snap_b()), expect)?;
    same_list("min_applicable", &set.minimum_applicable(&state), expect)?;
    same_list("mergeable_from", &set.mergeable_from(begin), expect)?;
    same_list(
        "apply_diffs",
        &set.to_apply(&state, gid, usize::MAX),
        expect,
    )?;
    same_list("gc_removed", &set.gc_from(state.snap_b()), expect)?;
    let greedy = set.to_restore(&state, gid);
    equal(
        "restore_ok",
        &Some(greedy.is_some()),
        &expect["restore_ok"].as_bool(),
    )?;
    if let Some(list) = greedy {
        same_list("restore_diffs", &list, expect)?;
    }
    same_points("restorable", &set.restorable(&state, false), expect)?;
    same_points("restorable_all", &set.restorable(&state, true), expect)?;
    check_latest(&set.latest(&state), &expect["latest"])?;
    check_sound(text(&case["id"])?, &set, &state, gid, expect)
}

fn check_latest(found: &MetaState, expect: &Value) -> Checked {
    let wanted = state_of(
        &expect["applying"],
        &expect["b"],
        &expect["e"],
        &expect["ts"],
    )?;
    equal("latest", &format!("{found:?}"), &format!("{wanted:?}"))
}

/// The cases where the sound search differs from the greedy choice: gids it finds besides, gids that
/// are unsound.
const SOUND: [(&str, &[u64], &[u64]); 11] = [
    ("algebra/manager-0", &[], &[1]),
    ("algebra/manager-2", &[4, 6], &[]),
    ("algebra/manager-3", &[3, 4, 5, 7, 8], &[]),
    ("algebra/manager-5", &[2, 4], &[]),
    ("algebra/manager-8", &[4, 6], &[]),
    ("algebra/manager-9", &[3, 5], &[]),
    ("algebra/manager-10", &[], &[3]),
    ("algebra/manager-22", &[2, 4, 5], &[]),
    ("algebra/manager-25", &[5, 6], &[3]),
    ("algebra/manager-28", &[2, 3], &[]),
    ("algebra/manager-29", &[], &[7]),
];

/// Only the public set has a table of the sound choice; elsewhere the search must be consistent.
fn check_sound(id: &str, set: &DiffSet, state: &MetaState, gid: u64, expect: &Value) -> Checked {
    let found: BTreeSet<u64> = set
        .restorable_gids(state)
        .iter()
        .map(|point| point.gid)
        .collect();
    for gid in &found {
        let chain = set
            .chain_to(state, *gid)
            .ok_or_else(|| format!("no chain to {gid}"))?;
        let reached = state.snap_b().apply_all(&chain).map_err(shown)?;
        equal("end of the chain", &reached, &MetaSnap::clean(*gid))?;
    }
    equal(
        "materialise",
        &set.chain_to(state, gid).is_some(),
        &found.contains(&gid),
    )?;
    let greedy: Checked<BTreeSet<u64>> = list(&expect["restorable_all"])?
        .iter()
        .map(|point| number(&point[0]))
        .collect();
    let (more, unsound) = SOUND
        .iter()
        .find(|(case, ..)| *case == id)
        .map_or((&[][..], &[][..]), |(_, more, unsound)| (*more, *unsound));
    let mut wanted = greedy?;
    wanted.extend(more);
    wanted.retain(|gid| !unsound.contains(gid));
    equal("sound choice", &found, &wanted)
}

fn same_list(what: &str, found: &[MetaDiff], expect: &Value) -> Checked {
    let order = |diffs: &[MetaDiff]| {
        let mut lines: Vec<_> = diffs.iter().map(|diff| format!("{diff:?}")).collect();
        if what == "gc_removed" {
            lines.sort();
        }
        lines
    };
    equal(what, &order(found), &order(&diffs(&expect[what])?))
}

fn same_points(what: &str, found: &[RestorePoint], expect: &Value) -> Checked {
    let found: Vec<_> = found
        .iter()
        .map(|point| vec![point.gid, point.timestamp])
        .collect();
    let points = list(&expect[what])?.iter();
    let wanted: Checked<Vec<Vec<u64>>> = points
        .map(|point| list(point)?.iter().map(number).collect())
        .collect();
    equal(what, &found, &wanted?)
}

fn check_murmur(p: &Value, expect: &Value) -> Checked {
    let seed = u32::try_from(number(&p["seed"])?).map_err(shown)?;
    let size = usize::try_from(number(&p["size"])?).map_err(shown)?;
    let data = match p["data"].as_str() {
        Some("zero") => vec![0; size],
        _ => top_bytes(number(&p["data"]["seed"])?, size),
    };
    equal(
        "hash",
        &murmur3(&data, seed).to_vec(),
        &unhex(text(&expect["hex"])?)?,
    )
}

fn top_bytes(mut x: u64, size: usize) -> Vec<u8> {
    let next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 56) as u8
    };
    std::iter::repeat_with(next).take(size).collect()
}

fn check_queue(case: &Value, dir: &Path) -> Checked {
    let found = QueueFile::open(&input(case, dir)?).and_then(|queue| queue.records());
    let mut records = &case["expect"]["records"];
    let manifest;
    if let Some(other) = case["expect"]["same_as"].as_str() {
        manifest = read_manifest(dir)?;
        let cases = list(&manifest["cases"])?;
        let other = cases
            .iter()
            .find(|case| case["id"] == other)
            .ok_or("same_as names no case")?;
        records = &other["expect"]["records"];
    }
    let wanted: Checked<Vec<MetaLsidGid>> = list(records)?.iter().map(lsid_gid).collect();
    equal("records", &Vec::from(found.map_err(shown)?), &wanted?)?;
    list(records)?.iter().try_for_each(|record| {
        let payload = unhex(text(&record["payload_hex"])?)?;
        equal("payload", &lsid_gid(record)?.to_bytes(), &payload)
    })
}

/// The manifest of the vectors in `dir`.
pub(crate) fn read_manifest(dir: &Path) -> Checked<Value> {
    let file = std::fs::read(dir.join("manifest.json")).map_err(shown)?;
    serde_json::from_slice(&file).map_err(shown)
}

/// The input file, mutated.
fn input(case: &Value, dir: &Path) -> Checked<Vec<u8>> {
    let mut bytes = std::fs::read(dir.join(text(&case["inputs"]["file"])?)).map_err(shown)?;
    for mutation in case["inputs"]["mutations"].as_array().into_iter().flatten() {
        let place = |field: &str| usize::try_from(number(&mutation[field])?).map_err(shown);
        match text(&mutation["op"])? {
            "xor" => bytes[place("offset")?] ^= place("value")? as u8,
            "truncate" => bytes.truncate(place("size")?),
            "set" => {
                let (at, new) = (place("offset")?, unhex(text(&mutation["hex"])?)?);
                bytes[at..at + new.len()].copy_from_slice(&new);
            }
            other => return Err(format!("mutation {other}")),
        }
    }
    Ok(bytes)
}

fn lsid_gid(p: &Value) -> Checked<MetaLsidGid> {
    Ok(MetaLsidGid {
        is_mergeable: flag(&p["isMergeable"])?,
        timestamp: number(&p["timestamp"])?,
        lsid: number(&p["lsid"])?,
        gid: number(&p["gid"])?,
    })
}

fn state(p: &Value) -> Checked<MetaState> {
    state_of(&p["isApplying"], &p["snapB"], &p["snapE"], &p["timestamp"])
}

/// The end of a state that is not applying has no meaning.
fn state_of(applying: &Value, b: &Value, e: &Value, timestamp: &Value) -> Checked<MetaState> {
    if !flag(applying)? {
        return Ok(MetaState::new(snap(b)?, number(timestamp)?));
    }
    MetaState::applying(snap(b)?, snap(e)?, number(timestamp)?).map_err(shown)
}

fn diff(p: &Value) -> Checked<MetaDiff> {
    let mut diff = MetaDiff::new(snap(&p["snapB"])?, snap(&p["snapE"])?).map_err(shown)?;
    diff.is_mergeable = flag(&p["isMergeable"])?;
    diff.is_comp = flag(&p["isCompDiff"])?;
    diff.timestamp = number(&p["timestamp"])?;
    diff.data_size = p["dataSize"].as_u64().unwrap_or_default();
    Ok(diff)
}

fn diffs(p: &Value) -> Checked<Vec<MetaDiff>> {
    list(p)?.iter().map(diff).collect()
}

fn snap(p: &Value) -> Checked<MetaSnap> {
    snap_of(number(&p[0])?, number(&p[1])?)
}

fn snap_of(gid_b: u64, gid_e: u64) -> Checked<MetaSnap> {
    MetaSnap::new(gid_b, gid_e).map_err(shown)
}

fn refused<T: std::fmt::Debug, E>(result: Result<T, E>) -> Checked {
    result.map_or(Ok(()), |value| Err(format!("accepted as {value:?}")))
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, wanted: &T) -> Checked {
    if found == wanted {
        return Ok(());
    }
    Err(format!("{what}: found {found:?}, expected {wanted:?}"))
}

fn unhex(hex: &str) -> Checked<Vec<u8>> {
    let pair = |at| {
        hex.get(at..at + 2)
            .ok_or("odd hex")
            .map(|pair| u8::from_str_radix(pair, 16))
    };
    (0..hex.len())
        .step_by(2)
        .map(|at| pair(at)?.map_err(shown))
        .collect()
}

fn text(value: &Value) -> Checked<&str> {
    value.as_str().ok_or_else(|| format!("{value} is no text"))
}

fn number(value: &Value) -> Checked<u64> {
    value
        .as_u64()
        .ok_or_else(|| format!("{value} is no number"))
}

fn flag(value: &Value) -> Checked<bool> {
    value.as_bool().ok_or_else(|| format!("{value} is no flag"))
}

fn list(value: &Value) -> Checked<&[Value]> {
    value
        .as_array()
        .map(Vec::as_slice)
        .ok_or_else(|| format!("{value} is no list"))
}

fn shown(error: impl std::fmt::Display) -> String {
    error.to_string()
}
