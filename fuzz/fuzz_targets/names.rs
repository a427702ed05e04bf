//! Texts with a strict form: names of diff files, cold snapshots and archives, uuids, compression.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walkeep_wire::Uuid;
use walkeep_wire::meta::files::{archive_name, cold_name, parse_archive_name, parse_cold_name};
use walkeep_wire::meta::name::{format_name, parse_name};
use walkeep_wire::wdiff::CompressOption;

fuzz_target!(|text: &str| {
    if let Ok(diff) = parse_name(text) {
        let name = format_name(&diff).expect("a diff with a name");
        // The one exception: four gids of a clean diff become two.
        if name != text {
            assert!(diff.is_clean() && text.matches('-').count() - name.matches('-').count() == 2);
            assert_eq!(
                format!("{:?}", parse_name(&name)),
                format!("{:?}", Ok::<_, ()>(diff))
            );
        }
    }
    if let Some(gid) = parse_cold_name(text) {
        assert_eq!(cold_name(gid), text);
    }
    if let Some(archive) = parse_archive_name(text) {
        assert_eq!(archive_name(archive), text);
    }
    if let Some(uuid) = Uuid::parse(text) {
        assert_eq!(uuid.to_string(), text.to_ascii_lowercase());
    }
    if let Ok(option) = text.parse::<CompressOption>() {
        assert!(option.level <= 9 && option.threads != Some(0));
    }
});
