//! Blocking: a program's configuration: TOML from a file, each value overridable from the environment, as a typed struct or as one clear
//! line that names what is wrong.
//!
//! `MUSTER_HUB__WEB__LISTEN=127.0.0.1:9000` overrides `listen` in `[web]` of the hub; two underscores go one level down, and a number is
//! a place in a list: `MUSTER_AGENT__RELAYS__0__ADDRESS`.

use std::{
    collections::BTreeMap,
    env, fmt, fs, io,
    path::{Path, PathBuf},
};

use ::config::{Config, ConfigError, File, FileFormat};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, de::DeserializeOwned};

use crate::complaint::{Complaint, program_name};

/// Reads `program`'s ("hub", "relay", "agent") configuration from `path`, or from the usual places when none is given:
/// `~/.config/muster/<program>.toml`, then `/etc/muster/<program>.toml`.
///
/// `T` should have `deny_unknown_fields` at every level: a misspelt name is then named instead of being silently without effect.
pub fn load<T: DeserializeOwned>(program: &str, path: Option<&Path>) -> Result<T, Complaint> {
    let program = program.strip_prefix("muster-").unwrap_or(program);
    let source = Source::find(program, path)?;
    source.parse(&Overrides::from(
        program,
        env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
    ))
}

/// The path with a leading `~/` replaced by the home folder. Without a home folder it stays, and whoever opens it complains.
pub fn expand(path: &Path) -> PathBuf {
    expand_in(path, env::home_dir())
}

fn expand_in(path: &Path, home: Option<PathBuf>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(below), Some(home)) if home.is_absolute() => home.join(below),
        _ => path.to_path_buf(),
    }
}

/// The text of one configuration file, and how to call it.
struct Source {
    shown: String,
    text: String,
}

impl Source {
    fn find(program: &str, path: Option<&Path>) -> Result<Source, Complaint> {
        match path {
            Some(path) => Source::read(&expand(path)),
            None => Source::usual(program),
        }
    }

    fn usual(program: &str) -> Result<Source, Complaint> {
        let places =
            [format!("~/.config/muster/{program}.toml"), format!("/etc/muster/{program}.toml")].map(|place| expand(Path::new(&place)));
        match places.iter().find(|place| place.exists()) {
            Some(place) => Source::read(place),
            None => Err(Complaint::new(
                format!("no configuration is given, and there is none at {} or {}", places[0].display(), places[1].display()),
                format!("Write one of them, or name a file: {} --config FILE", program_name(program)),
            )),
        }
    }

    fn read(path: &Path) -> Result<Source, Complaint> {
        let shown = path.display().to_string();
        match fs::read_to_string(path) {
            Ok(text) => Ok(Source { shown, text }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Complaint::new(format!("the configuration {shown} does not exist"), "Write it, or name another with --config FILE"))
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(Complaint::new(format!("the configuration {shown} is not UTF-8 text"), "Save it as UTF-8"))
            }
            Err(error) => {
                Err(Complaint::new(format!("the configuration {shown} can't be read: {error}"), "Make it readable for this user"))
            }
        }
    }

    fn parse<T: DeserializeOwned>(&self, overrides: &Overrides) -> Result<T, Complaint> {
        let mut builder = Config::builder().add_source(File::from_str(&self.text, FileFormat::Toml));
        for (key, (name, value)) in &overrides.by_key {
            builder = builder.set_override(key, value.as_str()).map_err(|_| {
                Complaint::new(
                    format!("the environment variable {name} names no field"),
                    format!("Take it away, or spell it like the field in {}", self.shown),
                )
            })?;
        }
        let parsed = builder.build().and_then(Config::try_deserialize);
        parsed.map_err(|error| self.complaint(&error, overrides))
    }

    fn complaint(&self, error: &ConfigError, overrides: &Overrides) -> Complaint {
        let (fault, key) = fault(error);
        let Some(key) = key else {
            return Complaint::new(format!("the configuration {}: {fault}", self.shown), "Correct it there");
        };
        match overrides.name_of(&key) {
            Some(name) => Complaint::new(format!("the environment variable {name}: {fault}"), "Correct it or take it away"),
            None => Complaint::new(format!("the configuration {}, `{key}`: {fault}", self.shown), todo(error)),
        }
    }
}

fn todo(error: &ConfigError) -> &'static str {
    if matches!(error, ConfigError::NotFound(_)) { "Add it there" } else { "Correct it there" }
}

/// What is wrong, in one line, and the field's full name where there is one.
fn fault(error: &ConfigError) -> (String, Option<String>) {
    match error {
        ConfigError::NotFound(key) => ("it is missing".to_owned(), Some(key.clone())),
        ConfigError::Type { unexpected, expected, key, .. } => (format!("this is {unexpected}, and {expected} is expected"), key.clone()),
        ConfigError::At { error, key, .. } => {
            let (fault, inner) = fault(error);
            let whole = match (key, inner) {
                (Some(outer), Some(inner)) => Some(format!("{outer}.{inner}")),
                (outer, inner) => outer.clone().or(inner),
            };
            (fault, whole)
        }
        ConfigError::Message(text) => match unknown_field(text) {
            Some((field, known)) => (format!("there is no such field, {known}"), Some(field.to_owned())),
            None => (text.clone(), None),
        },
        ConfigError::FileParse { cause, .. } => (syntax_fault(&cause.to_string()), None),
        other => (other.to_string(), None),
    }
}

/// serde's "unknown field `lisen`, expected `listen` or `workers`", taken apart.
fn unknown_field(text: &str) -> Option<(&str, &str)> {
    let (field, known) = text.strip_prefix("unknown field `")?.split_once('`')?;
    Some((field, known.trim_start_matches([',', ' '])))
}

/// The parser's picture of the place is many lines; the first has the place, the last the reason.
fn syntax_fault(picture: &str) -> String {
    let mut lines = picture.lines().map(str::trim).filter(|line| !line.is_empty());
    match (lines.next(), lines.next_back()) {
        (Some(place), Some(reason)) => format!("{place}: {reason}"),
        (Some(place), None) => place.to_owned(),
        (None, _) => "it is not TOML".to_owned(),
    }
}

/// What the environment overrides: path of the field → variable and value.
struct Overrides {
    by_key: BTreeMap<String, (String, String)>,
}

impl Overrides {
    fn from(program: &str, variables: impl IntoIterator<Item = (String, String)>) -> Overrides {
        let prefix = format!("MUSTER_{}__", program.to_uppercase());
        let ours = variables.into_iter().filter_map(|(name, value)| {
            let key = key(name.strip_prefix(&prefix)?);
            Some((key, (name, value)))
        });
        Overrides { by_key: ours.collect() }
    }

    /// The variable that gave this field, or something inside it.
    fn name_of(&self, key: &str) -> Option<&str> {
        let inside = |given: &str| given.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
        self.by_key.iter().find(|(given, _)| inside(given)).map(|(_, (name, _))| name.as_str())
    }
}

/// `RELAYS__0__ADDRESS` → `relays[0].address`
fn key(levels: &str) -> String {
    let mut key = String::new();
    for level in levels.split("__") {
        match level.parse::<usize>() {
            Ok(place) => key.push_str(&format!("[{place}]")),
            Err(_) if key.is_empty() => key.push_str(&level.to_lowercase()),
            Err(_) => key.push_str(&format!(".{}", level.to_lowercase())),
        }
    }
    key
}

/// A number of bytes; written as `"64 MiB"`, `"20 GiB"`, `"512 KiB"`, `"1 TiB"` or as a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

const UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl Bytes {
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Reads `"64 MiB"` and the like.
    fn parse(text: &str) -> Option<Bytes> {
        let text = text.trim();
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim();
        let factor = if unit.is_empty() { 1 } else { UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1 };
        number.parse::<u64>().ok()?.checked_mul(factor).map(Bytes)
    }
}

impl fmt::Display for Bytes {
    /// The largest unit that says it exactly.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = UNITS.iter().find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor));
        let (unit, factor) = exact.unwrap_or(&("B", 1));
        write!(f, "{} {unit}", self.0 / factor)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        from.deserialize_any(BytesVisitor)
    }
}

struct BytesVisitor;

impl de::Visitor<'_> for BytesVisitor {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of bytes such as \"64 MiB\" or \"20 GiB\"")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Bytes, E> {
        Ok(Bytes(number))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Bytes, E> {
        u64::try_from(number).map(Bytes).map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
        Bytes::parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Hub {
        state: PathBuf,
        #[serde(default)]
        test_mode: bool,
        web: Web,
        #[serde(default)]
        relays: Vec<Relay>,
        budget: Option<Bytes>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Web {
        listen: SocketAddr,
        #[serde(default)]
        workers: u16,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Relay {
        address: String,
    }

    const GOOD: &str =
        "state = \"/tmp/x\"\n[web]\nlisten = \"127.0.0.1:1\"\n[[relays]]\naddress = \"a:1\"\n[[relays]]\naddress = \"b:1\"\n";

    fn parse(text: &str, variables: &[(&str, &str)]) -> Result<Hub, String> {
        let overrides = Overrides::from("hub", variables.iter().map(|(name, value)| (name.to_string(), value.to_string())));
        let source = Source { shown: "hub.toml".to_owned(), text: text.to_owned() };
        source.parse(&overrides).map_err(|complaint| complaint.to_string())
    }

    #[test]
    fn a_file_becomes_a_typed_struct() {
        let hub = parse(&format!("budget = \"64 MiB\"\n{GOOD}"), &[]).unwrap();
        assert_eq!(hub.web.listen.port(), 1);
        assert_eq!(hub.budget, Some(Bytes(64 << 20)));
        assert_eq!(hub.relays.len(), 2);
    }

    #[test]
    fn the_environment_overrides_each_value() {
        let variables = [
            ("MUSTER_HUB__WEB__LISTEN", "127.0.0.1:9000"),
            ("MUSTER_HUB__WEB__WORKERS", "7"),
            ("MUSTER_HUB__TEST_MODE", "true"),
            ("MUSTER_HUB__RELAYS__1__ADDRESS", "c:1"),
            ("MUSTER_HUB__BUDGET", "1 GiB"),
            ("MUSTER_AGENT__STATE", "/not/ours"),
            ("MUSTER_LOG", "debug"),
        ];
        let hub = parse(GOOD, &variables).unwrap();
        assert_eq!((hub.web.listen.port(), hub.web.workers, hub.test_mode), (9000, 7, true));
        assert_eq!(hub.relays.iter().map(|relay| relay.address.as_str()).collect::<Vec<_>>(), ["a:1", "c:1"]);
        assert_eq!((hub.budget, hub.state), (Some(Bytes(1 << 30)), PathBuf::from("/tmp/x")));
    }

    #[test]
    fn each_fault_is_one_line_that_names_the_field() {
        type Variables<'a> = &'a [(&'a str, &'a str)];
        let cases: [(&str, Variables, &[&str]); 9] = [
            (GOOD, &[("MUSTER_HUB__NONSENSE", "1")], &["MUSTER_HUB__NONSENSE", "no such field"]),
            ("state = \"/tmp/x\"\n", &[], &["hub.toml", "`web`", "missing"]),
            ("state = \"/tmp/x\"\n[web]\n", &[], &["hub.toml", "`web.listen`", "missing"]),
            ("state = \"/tmp/x\"\n[web]\nlisten = \"here\"\n", &[], &["hub.toml", "`web.listen`", "socket address"]),
            ("state = \"/tmp/x\"\n[web]\nlisten = \"127.0.0.1:1\"\nlisen = 1\n", &[], &["hub.toml", "`web.lisen`", "expected `listen`"]),
            ("state = \"/tmp/x\"\nbudget = \"64 MB\"\n[web]\nlisten = \"127.0.0.1:1\"\n", &[], &["`budget`", "64 MB", "64 MiB"]),
            ("state = 1\nweb listen\n", &[], &["hub.toml", "line 2", "`=`"]),
            (GOOD, &[("MUSTER_HUB__WEB__LISTEN", "there")], &["MUSTER_HUB__WEB__LISTEN", "socket address"]),
            (GOOD, &[("MUSTER_HUB__WEB__WORKERS", "many")], &["MUSTER_HUB__WEB__WORKERS", "many"]),
        ];
        for (text, variables, expected) in cases {
            let line = parse(text, variables).unwrap_err();
            assert!(expected.iter().all(|part| line.contains(part)), "{line}");
            assert!(!line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let line = load::<Hub>("hub", Some(Path::new("/nowhere/hub.toml"))).unwrap_err().to_string();
        assert_eq!(line, "the configuration /nowhere/hub.toml does not exist. Write it, or name another with --config FILE.");
    }

    #[test]
    fn bytes_are_read_in_binary_units() {
        for (text, bytes) in [("64 MiB", 64 << 20), ("20GiB", 20 << 30), ("5", 5), (" 1 kib ", 1024), ("3 B", 3)] {
            assert_eq!(Bytes::parse(text), Some(Bytes(bytes)), "{text}");
        }
        for bad in ["", "MiB", "64 MB", "-1", "1.5 GiB", "99999999999 TiB"] {
            assert_eq!(Bytes::parse(bad), None, "{bad}");
        }
        assert_eq!([Bytes(0), Bytes(1 << 20), Bytes(1_500)].map(|bytes| bytes.to_string()), ["0 B", "1 MiB", "1500 B"]);
    }

    #[test]
    fn a_leading_tilde_is_the_home_folder() {
        let home = || Some(PathBuf::from("/home/kim"));
        assert_eq!(expand_in(Path::new("~/.config/x"), home()), Path::new("/home/kim/.config/x"));
        assert_eq!(expand_in(Path::new("/etc/~/x"), home()), Path::new("/etc/~/x"));
        assert_eq!(expand_in(Path::new("~kim/x"), home()), Path::new("~kim/x"));
        assert_eq!(expand_in(Path::new("~/x"), None), Path::new("~/x"));
    }
}
