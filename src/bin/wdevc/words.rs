//! The grammar: a command, its operands, and options of one dash anywhere behind it.

use std::path::PathBuf;

use walkeep_store::volume::{Options, VolumeName};

/// What is shown for wrong usage.
pub const USAGE: &str = "\
usage: wdevc [-debug] COMMAND ARGUMENTS
  format-ldev LDEV DDEV [-n NAME] [-nd]
  create-wdev LDEV DDEV [-n NAME] [-maxl KIB] [-maxp MIB] [-minp MIB] [-qp MS] [-fs MIB] [-fp MS]
              [-bp N] [-bi N]
  delete-wdev WDEV [-f]
  list
  set-checkpoint-interval WDEV MS   get-checkpoint-interval WDEV   force-checkpoint WDEV
  set-oldest-lsid WDEV LSID         get-oldest-lsid WDEV           get-written-lsid WDEV
  get-permanent-lsid WDEV           get-completed-lsid WDEV
  get-log-usage WDEV                get-log-capacity WDEV
  is-flush-capable WDEV             is-log-overflow WDEV           is-flozen WDEV
  resize WDEV [LB]                  reset-wal WDEV                 clear-wal WDEV [SECONDS]
  freeze WDEV [SECONDS]             melt WDEV                      get-version
WDEV is /dev/walb/NAME or NAME";

/// A command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    FormatLdev(FormatLdev),
    CreateWdev(CreateWdev),
    List,
    GetVersion,
    Of(VolumeName, Verb),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatLdev {
    pub ldev: PathBuf,
    pub ddev: PathBuf,
    pub name: String,
    pub discard: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateWdev {
    pub ldev: PathBuf,
    pub ddev: PathBuf,
    pub name: Option<VolumeName>,
    pub options: Options,
}

/// What is done with one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Delete,
    SetCheckpointInterval(u64),
    GetCheckpointInterval,
    ForceCheckpoint,
    SetOldest(u64),
    GetOldest,
    GetWritten,
    GetPermanent,
    GetCompleted,
    GetLogUsage,
    GetLogCapacity,
    IsFlushCapable,
    IsLogOverflow,
    IsFrozen,
    /// Logical blocks; 0 is the size of the data.
    Resize(u64),
    Reset,
    /// Seconds; 0 is no limit.
    Clear(u64),
    /// Seconds; 0 is no limit.
    Freeze(u64),
    Melt,
}

type Result<T> = std::result::Result<T, String>;

pub fn parse(arguments: &[String]) -> Result<Word> {
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.retain(|argument| *argument != "-debug");
    let Some((command, rest)) = arguments.split_first() else {
        return Err(format!("expected a command\n{USAGE}"));
    };
    parse_command(command, rest).map_err(|e| format!("{command}: {e}\n{USAGE}"))
}

fn parse_command(command: &str, rest: &[&str]) -> Result<Word> {
    match command {
        "format-ldev" => format_ldev(rest),
        "create-wdev" => create_wdev(rest),
        "list" => Arguments::split(rest, &[], &[])?
            .none()
            .map(|()| Word::List),
        "get-version" => Arguments::split(rest, &[], &[])?
            .none()
            .map(|()| Word::GetVersion),
        _ => of_volume(command, rest),
    }
}

fn format_ldev(rest: &[&str]) -> Result<Word> {
    let arguments = Arguments::split(rest, &["-n"], &["-nd"])?;
    let [ldev, ddev] = arguments.operands()?;
    Ok(Word::FormatLdev(FormatLdev {
        ldev: ldev.into(),
        ddev: ddev.into(),
        name: arguments.value("-n").unwrap_or_default().to_owned(),
        discard: !arguments.has("-nd"),
    }))
}

fn create_wdev(rest: &[&str]) -> Result<Word> {
    const LIMITS: [&str; 9] = [
        "-n", "-maxl", "-maxp", "-minp", "-qp", "-fs", "-fp", "-bp", "-bi",
    ];
    let arguments = Arguments::split(rest, &LIMITS, &[])?;
    let [ldev, ddev] = arguments.operands()?;
    // All are checked; those that have no counterpart have no effect.
    for limit in &LIMITS[1..] {
        arguments.number(limit)?;
    }
    let options = Options {
        max_pending_mib: arguments.number("-maxp")?,
        log_sync_mib: arguments.number("-fs")?,
        log_sync_ms: arguments.number("-fp")?,
        ..Options::default()
    };
    Ok(Word::CreateWdev(CreateWdev {
        ldev: ldev.into(),
        ddev: ddev.into(),
        name: arguments.value("-n").map(str::parse).transpose()?,
        options,
    }))
}

fn of_volume(command: &str, rest: &[&str]) -> Result<Word> {
    let flags: &[&str] = if command == "delete-wdev" {
        &["-f"]
    } else {
        &[]
    };
    let arguments = Arguments::split(rest, &[], flags)?;
    let mut operands = arguments.operands.iter().copied();
    let volume = operands.next();
    let mut number = |missing: Option<u64>| match (operands.next(), missing) {
        (Some(text), _) => parse_number(text),
        (None, Some(default)) => Ok(default),
        (None, None) => Err("expected a number".to_owned()),
    };
    let verb = match command {
        "delete-wdev" => Verb::Delete,
        "set-checkpoint-interval" => Verb::SetCheckpointInterval(number(None)?),
        "get-checkpoint-interval" => Verb::GetCheckpointInterval,
        "force-checkpoint" => Verb::ForceCheckpoint,
        "set-oldest-lsid" => Verb::SetOldest(number(None)?),
        "get-oldest-lsid" => Verb::GetOldest,
        "get-written-lsid" => Verb::GetWritten,
        "get-permanent-lsid" => Verb::GetPermanent,
        "get-completed-lsid" => Verb::GetCompleted,
        "get-log-usage" => Verb::GetLogUsage,
        "get-log-capacity" => Verb::GetLogCapacity,
        "is-flush-capable" => Verb::IsFlushCapable,
        "is-log-overflow" => Verb::IsLogOverflow,
        "is-flozen" => Verb::IsFrozen,
        "resize" => Verb::Resize(number(Some(0))?),
        "reset-wal" => Verb::Reset,
        "clear-wal" => Verb::Clear(number(Some(0))?),
        "freeze" => Verb::Freeze(number(Some(0))?),
        "melt" => Verb::Melt,
        _ => return Err("expected a command".to_owned()),
    };
    if let Some(extra) = operands.next() {
        return Err(format!("{extra:?}: expected no more arguments"));
    }
    let volume = volume.ok_or("expected a volume")?;
    let name = volume.strip_prefix("/dev/walb/").unwrap_or(volume);
    Ok(Word::Of(name.parse()?, verb))
}

fn parse_number<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.parse()
        .map_err(|_| format!("{text:?}: expected a number"))
}

/// Operands, options with values, and flags of a command line.
struct Arguments<'a> {
    operands: Vec<&'a str>,
    values: Vec<(&'a str, &'a str)>,
    flags: Vec<&'a str>,
}

impl<'a> Arguments<'a> {
    fn split(rest: &[&'a str], valued: &[&str], flags: &[&str]) -> Result<Self> {
        let mut split = Self {
            operands: Vec::new(),
            values: Vec::new(),
            flags: Vec::new(),
        };
        let mut rest = rest.iter().copied();
        while let Some(argument) = rest.next() {
            if valued.contains(&argument) {
                let value = rest.next();
                let value = value.ok_or_else(|| format!("{argument}: expected a value"))?;
                split.values.push((argument, value));
            } else if flags.contains(&argument) {
                split.flags.push(argument);
            } else if argument.starts_with('-') {
                return Err(format!("{argument}: expected an option of this command"));
            } else {
                split.operands.push(argument);
            }
        }
        Ok(split)
    }

    fn operands<const N: usize>(&self) -> Result<[&'a str; N]> {
        let found = self.operands.len();
        <[&str; N]>::try_from(self.operands.as_slice())
            .map_err(|_| format!("expected {N} arguments, found {found}"))
    }

    fn none(&self) -> Result<()> {
        self.operands::<0>().map(drop)
    }

    fn value(&self, option: &str) -> Option<&'a str> {
        let given = self.values.iter().rfind(|(name, _)| *name == option);
        given.map(|(_, value)| *value)
    }

    fn number(&self, option: &str) -> Result<Option<u32>> {
        self.value(option).map(parse_number).transpose()
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Word> {
        let arguments: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        parse(&arguments)
    }

    #[test]
    fn the_words_of_the_original_are_understood() {
        let of = |verb| Ok(Word::Of("v0".parse().unwrap(), verb));
        for (line, verb) in [
            ("delete-wdev /dev/walb/v0 -f", Verb::Delete),
            (
                "-debug set-checkpoint-interval v0 500",
                Verb::SetCheckpointInterval(500),
            ),
            (
                "set-oldest-lsid v0 18446744073709551614",
                Verb::SetOldest(u64::MAX - 1),
            ),
            ("get-oldest-lsid /dev/walb/v0", Verb::GetOldest),
            ("is-flozen v0", Verb::IsFrozen),
            ("resize v0", Verb::Resize(0)),
            ("resize v0 2048", Verb::Resize(2048)),
            ("clear-wal v0", Verb::Clear(0)),
            ("freeze v0 7", Verb::Freeze(7)),
            ("melt v0", Verb::Melt),
        ] {
            assert_eq!(parsed(line), of(verb), "{line}");
        }
        assert_eq!(parsed("list"), Ok(Word::List));
        let format = FormatLdev {
            ldev: "l".into(),
            ddev: "d".into(),
            name: "n".into(),
            discard: false,
        };
        assert_eq!(
            parsed("format-ldev l -nd d -n n"),
            Ok(Word::FormatLdev(format))
        );
        let create = CreateWdev {
            ldev: "l".into(),
            ddev: "d".into(),
            name: None,
            options: Options {
                max_pending_mib: Some(32),
                log_sync_ms: Some(100),
                ..Options::default()
            },
        };
        let line = "create-wdev l d -maxp 32 -fp 100 -bi 1024 -maxl 32";
        assert_eq!(parsed(line), Ok(Word::CreateWdev(create)));
    }

    #[test]
    fn everything_else_is_refused() {
        for line in [
            "",
            "-debug",
            "fly",
            "fly v0",
            "list v0",
            "get-version 1",
            "melt",
            "melt v0 1",
            "melt -f v0",
            "melt /dev/walb/",
            "melt /dev/sda",
            "set-oldest-lsid v0",
            "set-oldest-lsid v0 -1",
            "set-oldest-lsid v0 x",
            "freeze v0 1 2",
            "format-ldev l",
            "format-ldev l d -n",
            "create-wdev l d -n ../x",
            "create-wdev l d -maxp x",
            "create-wdev l d -bi x",
            "create-wdev l d -x 1",
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.ends_with(USAGE), "{line}: {error}");
        }
    }
}
