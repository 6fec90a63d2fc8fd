//! Blocking: reads the whole tree: the rules of the house that a compiler doesn't check.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

// --- arrows between crates ---

/// Who may use whom: tests and ops use all, agent, relay and hub never see each other, and nothing points upwards.
#[test]
fn crates_point_only_where_the_house_says() {
    let programs = ["muster-agent", "muster-relay", "muster-hub"];
    let all: Vec<&str> = programs.into_iter().chain(["muster-certs", "muster-mesh"]).collect();
    let mut seen = BTreeSet::new();
    for manifest in manifests() {
        let (name, uses) = (manifest.name.as_str(), &manifest.uses);
        let may: Vec<&str> = match name {
            "muster-certs" => vec![],
            "muster-mesh" => vec!["muster-certs"],
            "muster-agent" | "muster-relay" | "muster-hub" => vec!["muster-certs", "muster-mesh"],
            // The screen-capture helper is a program that the agent starts.
            "muster-shot" => vec!["muster-mesh"],
            "muster-fuzz" => vec!["muster-mesh"],
            "muster-tests" => all.iter().copied().chain(["muster-swarm", "muster-start"]).collect(),
            // The benchmarks drive the swarm's agents, and a whole mesh of real processes.
            "muster-bench" => all.iter().copied().chain(["muster-swarm", "muster-start"]).collect(),
            _ if manifest.folder.starts_with("ops") => all.iter().copied().chain(["muster-swarm"]).collect(),
            other => panic!("{other}: where it stands among the others isn't written here yet"),
        };
        for used in uses {
            assert!(may.contains(&used.as_str()), "{name} uses {used}, and may use only {may:?}");
        }
        seen.insert(manifest.name);
    }
    for name in all {
        assert!(seen.contains(name), "{name} is gone, or its manifest isn't read");
    }
}

struct Manifest {
    name: String,
    folder: PathBuf,
    /// Packages of ours, in any kind of dependency.
    uses: Vec<String>,
}

fn manifests() -> Vec<Manifest> {
    let files = tree().into_iter().filter(|file| file.ends_with("Cargo.toml") && file != Path::new("Cargo.toml"));
    files.map(|file| manifest(&file)).collect()
}

fn manifest(file: &Path) -> Manifest {
    let table: toml::Table = read(file).parse().unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut uses = Vec::new();
    dependencies(&table, &mut uses);
    let name = table["package"]["name"].as_str().unwrap().to_owned();
    // A test of its own package needs no arrow.
    uses.retain(|used| *used != name);
    Manifest { name, folder: file.parent().unwrap().to_owned(), uses }
}

/// All `dependencies`, `dev-dependencies`, `build-dependencies`, also below `target`.
fn dependencies(table: &toml::Table, uses: &mut Vec<String>) {
    for (key, value) in table {
        let Some(inner) = value.as_table() else { continue };
        if key.ends_with("dependencies") {
            uses.extend(inner.iter().map(|(name, how)| package(name, how)).filter(|name| name.starts_with("muster-")));
        } else if key == "target" || key.starts_with("cfg(") {
            dependencies(inner, uses);
        }
    }
}

fn package(name: &str, how: &toml::Value) -> String {
    how.get("package").and_then(toml::Value::as_str).unwrap_or(name).to_owned()
}

// --- rooms ---

const ROOMS: [&str; 3] = ["Quiet", "Blocking", "Async"];

#[test]
fn each_files_first_line_says_its_room() {
    for file in sources() {
        let first = read(&file).lines().next().unwrap_or_default().to_owned();
        let room = ROOMS.iter().any(|room| first.strip_prefix(&format!("//! {room}: ")).is_some_and(|what| !what.is_empty()));
        assert!(room, "{}: its first line says no room: {first:?}", file.display());
    }
}

/// What a quiet file doesn't name: clocks, files, sockets, threads, processes, and everything asynchronous.
const LOUD: [&str; 13] = [
    "std::fs",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::os::unix::net",
    "std::thread",
    "std::process",
    "std::time::Instant",
    "std::time::SystemTime",
    "tokio",
    "futures_util",
    "quinn",
    "hyper",
];

#[test]
fn quiet_files_name_no_clock_no_file_no_thread_and_nothing_asynchronous() {
    let mut quiet = 0;
    for file in sources().into_iter().filter(|file| read(file).starts_with("//! Quiet: ")) {
        quiet += 1;
        let code = code(&read(&file));
        for path in paths(&code) {
            let loud = LOUD.iter().find(|loud| path == **loud || path.starts_with(&format!("{loud}::")));
            assert!(loud.is_none(), "{} is quiet and names {path}", file.display());
        }
        for word in ["async", "await"] {
            assert!(!words(&code).any(|found| found == word), "{} is quiet and says {word}", file.display());
        }
    }
    assert!(quiet > 20, "only {quiet} quiet files were found");
}

// --- drivers ---

/// The one place below `src/` that names each driver.
const DRIVERS: [(&str, &[&str]); 19] = [
    ("redb", &["mesh/src/queue/segment.rs", "mesh/src/queue/segment/"]),
    ("quinn", &["mesh/src/quic.rs", "mesh/src/quic/"]),
    ("hyper", &["mesh/src/status.rs", "hub/src/serve.rs"]),
    ("hyper_util", &["mesh/src/status.rs", "hub/src/serve.rs"]),
    ("reqwest", &["relay/src/sync.rs"]),
    ("x11rb", &["agent/src/x11.rs", "agent/shot/src/windows.rs"]),
    ("xcap", &["agent/shot/src/capture.rs"]),
    ("zbus", &["agent/src/bus.rs", "agent/src/bus/"]),
    ("starship_battery", &["agent/src/power.rs"]),
    ("if_addrs", &["agent/src/network.rs"]),
    ("sqlx", &["hub/src/store.rs", "hub/src/store/"]),
    ("warp", &["hub/src/api.rs", "hub/src/api/", "hub/src/serve.rs"]),
    ("object_store", &["hub/src/objects.rs"]),
    // Both decode only in tests.
    ("image", &["hub/src/images.rs", "agent/shot/src/encode.rs"]),
    // day.rs has only the derives of what the API shows of a day.
    ("utoipa", &["hub/src/api/", "hub/src/day.rs"]),
    ("rcgen", &["certs/src/"]),
    ("flate2", &["mesh/src/batch.rs"]),
    // ids.rs, door.rs and relay_list.rs have only the derives of what the three others write; a join token is written where it is shown, too.
    (
        "bincode",
        &[
            "mesh/src/batch.rs",
            "mesh/src/message.rs",
            "mesh/src/record.rs",
            "mesh/src/ids.rs",
            "mesh/src/door.rs",
            "certs/src/join.rs",
            "mesh/src/relay_list.rs",
        ],
    ),
    ("rusqlite", &[]),
];

/// The product's own code; tests, quickstart, swarm and benchmarks may need a driver to look at what the product did with it.
#[test]
fn each_driver_is_named_in_one_place() {
    let mut used = BTreeSet::new();
    for file in sources().into_iter().filter(|file| is_product(file)) {
        let name = file.to_str().unwrap().to_owned();
        for path in paths(&code_with_tests(&read(&file))) {
            let first = path.split("::").next().unwrap();
            let Some((driver, places)) = DRIVERS.iter().find(|(driver, _)| *driver == first) else { continue };
            assert!(places.iter().any(|place| name.starts_with(place)), "{name} names {path}: {driver} belongs to {places:?}");
            used.insert(*driver);
        }
    }
    for driver in [
        "redb",
        "quinn",
        "hyper",
        "sqlx",
        "warp",
        "bincode",
        "flate2",
        "rcgen",
        "reqwest",
        "x11rb",
        "zbus",
        "starship_battery",
        "if_addrs",
        "xcap",
    ] {
        assert!(used.contains(driver), "{driver} is named nowhere: is it still looked for in the right way?");
    }
}

fn is_product(file: &Path) -> bool {
    ["agent", "agent/shot", "relay", "hub", "certs", "mesh"].iter().any(|part| file.starts_with(Path::new(part).join("src")))
}

// --- what our targets are built of ---

/// Name, and whether a version is banned.
type Banned = (&'static str, fn(u64) -> bool);

const BANNED: [Banned; 8] = [
    ("ring", any),
    ("openssl-sys", any),
    ("openssl", any),
    ("native-tls", any),
    ("rustls-pemfile", any),
    ("rsa", any),
    // 3.0.0 is an empty tombstone.
    ("bincode", |major| major >= 3),
    ("rdev", any),
];

fn any(_: u64) -> bool {
    true
}

#[test]
fn no_banned_crate_is_in_our_targets() {
    let target = ["-e", "normal,build", "--target", "x86_64-unknown-linux-gnu"];
    let printed = run(&cargo(), &[&["tree", "--offline", "--workspace", "--prefix", "none"], &target[..]].concat());
    let mut found = BTreeSet::new();
    for line in printed.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(version)) = (words.next(), words.next()) else { continue };
        let major = version.trim_start_matches('v').split('.').next().unwrap().parse().unwrap_or(0);
        let banned = BANNED.iter().any(|(banned, is_banned)| *banned == name && is_banned(major));
        assert!(!banned, "{name} {version} is in our targets: cargo tree --workspace -i {name}");
        found.insert(name.to_owned());
    }
    for ours in ["rustls", "aws-lc-rs", "bincode", "quinn", "redb", "sqlx"] {
        assert!(found.contains(ours), "{ours} isn't in the tree: is it read in the right way?");
    }
}

#[test]
fn every_crate_comes_from_the_public_registry_with_a_checksum() {
    let lock: toml::Table = read(Path::new("Cargo.lock")).parse().unwrap();
    let packages = lock["package"].as_array().unwrap();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let source = package.get("source").and_then(toml::Value::as_str);
        match source {
            None => assert!(name.starts_with("muster-"), "{name} comes from nowhere"),
            Some(source) => {
                assert_eq!(source, "registry+https://github.com/rust-lang/crates.io-index", "{name}");
                assert!(package.get("checksum").is_some(), "{name} has no checksum");
            }
        }
    }
}

// --- what is in the repository ---

/// Put together here, so that this file itself is clean.
fn private_paths() -> Vec<String> {
    ["work", "root", "mnt"].iter().map(|folder| format!("/{folder}/")).chain([["/tmp", "brief"].join("/")]).collect()
}

#[test]
fn no_path_of_somebodys_machine_is_in_the_tree() {
    let (home, here) = (std::env::var("HOME").unwrap_or_default(), root());
    for file in tree().into_iter().filter(|file| !is_foreign(file)) {
        // What isn't text has no path for people.
        let Ok(text) = fs::read_to_string(root().join(&file)) else { continue };
        for (line, text) in (1..).zip(text.lines()) {
            let own = [here.to_str().unwrap(), home.as_str()];
            for own in own.into_iter().filter(|own| own.matches('/').count() > 1) {
                assert!(!text.contains(own), "{}:{line} names {own}", file.display());
            }
            for private in private_paths() {
                let begins = |at: usize| !text[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || "._-}>".contains(c));
                let named = text.match_indices(&private).any(|(at, _)| begins(at));
                assert!(!named, "{}:{line} names {private}: {text}", file.display());
            }
        }
    }
}

/// Hosts that configuration, manifests and scripts may name.
const HOSTS: [&str; 12] = [
    "github.com",
    "rustup.rs",
    "docs.rs",
    "keepachangelog.com",
    "semver.org",
    "localhost",
    "127.0.0.1",
    "[::1]",
    "www.apache.org",
    "apache.org",
    "opensource.org",
    "json-schema.org",
];

/// A registry, a mirror or a proxy of one machine breaks the build on all others.
#[test]
fn no_registry_or_other_host_is_named_where_machines_read() {
    for file in tree().into_iter().filter(|file| is_read_by_machines(file)) {
        let text = read(&file);
        for host in hosts(&text) {
            let known =
                HOSTS.contains(&host) || host.ends_with(".example.org") || host == "example.org" || host.starts_with(['$', '{', '%']);
            assert!(known, "{}: {host} isn't a host that may stand there", file.display());
        }
        if file.ends_with("Cargo.toml") || file.ends_with("config.toml") {
            for word in ["[source.", "[registries", "registry =", "[registry", "replace-with"] {
                assert!(!text.contains(word), "{}: {word}", file.display());
            }
        }
    }
}

fn is_read_by_machines(file: &Path) -> bool {
    let script = file.extension().is_none() && (file.starts_with("ops") || file.starts_with(".ci"));
    script || file.extension().is_some_and(|kind| ["toml", "lock", "sh", "yml", "yaml", "cfg", "ini"].iter().any(|known| kind == *known))
}

/// Hosts of http and https URLs.
fn hosts(text: &str) -> impl Iterator<Item = &str> {
    let after = text.split("https://").skip(1).chain(text.split("http://").skip(1));
    after.map(|rest| {
        let host = rest.split(|c: char| c.is_whitespace() || "/\"'`)<>,;?#".contains(c)).next().unwrap();
        match host.strip_prefix('[') {
            Some(_) => host.split_inclusive(']').next().unwrap(),
            None => host.split(':').next().unwrap(),
        }
    })
}

const FILE_BYTES_MAX: u64 = 1 << 20;

#[test]
fn no_file_is_larger_than_a_mebibyte() {
    for file in tree() {
        let bytes = fs::metadata(root().join(&file)).unwrap().len();
        assert!(bytes <= FILE_BYTES_MAX, "{} has {bytes} bytes", file.display());
    }
}

#[test]
fn the_list_of_packages_says_what_is_needed() {
    let packages = read(Path::new("ops/packages"));
    let listed: Vec<&str> = packages.lines().map(|line| line.split('#').next().unwrap().trim()).filter(|line| !line.is_empty()).collect();
    assert!(listed.contains(&"build-essential"), "aws-lc and SQLite need a C compiler: {listed:?}");
    let unique: BTreeSet<_> = listed.iter().collect();
    assert_eq!(unique.len(), listed.len(), "a package stands twice");
    assert!(listed.iter().all(|name| !name.contains(char::is_whitespace)), "one package a line: {listed:?}");
}

// --- rows ---

#[test]
fn every_row_of_bad_input_has_a_test_that_exists_or_a_reason() {
    let rows: toml::Table = read(Path::new("tests/rows.toml")).parse().unwrap();
    let mut ids = BTreeSet::new();
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in rows["row"].as_array().unwrap() {
        let field = |name: &str| row.get(name).and_then(toml::Value::as_str).filter(|text| !text.trim().is_empty());
        let id = field("id").unwrap_or_else(|| panic!("a row without an id: {row}"));
        assert!(ids.insert(id.to_owned()), "{id} stands twice");
        assert!(field("text").is_some(), "{id} has no text");
        let tests = row.get("tests").map_or(&[][..], |tests| tests.as_array().unwrap());
        assert!(!tests.is_empty() || field("reason").is_some(), "{id} has neither a test nor a reason why not yet");
        for test in tests {
            let (file, name) = test.as_str().and_then(|test| test.split_once("::")).unwrap_or_else(|| panic!("{id}: {test}"));
            let found = known.entry(file.to_owned()).or_insert_with(|| tests_of(Path::new(file)));
            assert!(found.contains(name), "{id}: {file} has no test {name}");
        }
        let fields: Vec<_> =
            row.as_table().unwrap().keys().filter(|key| !["id", "text", "tests", "reason"].contains(&key.as_str())).collect();
        assert!(fields.is_empty(), "{id}: {fields:?}?");
    }
    for family in ["frame-", "tls-"] {
        assert!(ids.iter().any(|id| id.starts_with(family)), "there are no rows {family}…");
    }
}

/// Names of functions that stand below a `#[test]`.
fn tests_of(file: &Path) -> BTreeSet<String> {
    let path = root().join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut tests = BTreeSet::new();
    let mut marked = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            marked = true;
        } else if let Some(rest) = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn ")) {
            if std::mem::take(&mut marked) {
                tests.insert(rest.split('(').next().unwrap().to_owned());
            }
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            marked = false;
        }
    }
    tests
}

// --- reading Rust, as far as needed ---

/// Without comments, texts and the tests at the file's end.
fn code(source: &str) -> String {
    let end = ["\n#[cfg(test)]\nmod ", "\n#[cfg(test)]\npub mod ", "\n#[cfg(test)]\npub(crate) mod "]
        .iter()
        .filter_map(|tests| source.find(tests))
        .min();
    code_with_tests(&source[..end.unwrap_or(source.len())])
}

/// Without comments and texts.
fn code_with_tests(source: &str) -> String {
    let (mut code, mut rest) = (String::with_capacity(source.len()), source);
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(raw) = raw_text(rest) {
            raw
        } else if first == '"' {
            text_end(rest)
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\") {
            rest[2..].find('\'').map_or(rest.len(), |end| end + 3)
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        code.push(' ');
        rest = &rest[skipped..];
    }
    code
}

/// Length of a raw text, if one begins here.
fn raw_text(rest: &str) -> Option<usize> {
    let hashes = rest.strip_prefix('r').or_else(|| rest.strip_prefix("br"))?;
    let count = hashes.len() - hashes.trim_start_matches('#').len();
    let body = hashes[count..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(count));
    let begun = rest.len() - body.len();
    Some(body.find(&end).map_or(rest.len(), |at| begun + at + end.len()))
}

fn text_end(rest: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in rest.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// All paths that the code names: those of `use` with their braces written out, and those in the midst of code.
fn paths(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for (at, _) in code.match_indices("use ") {
        let begins = code[..at].chars().next_back().is_none_or(|before| before.is_whitespace() || ";{}".contains(before));
        if let Some(end) = code[at..].find(';').filter(|_| begins) {
            let tree: String = code[at + 4..at + end].split_whitespace().collect::<Vec<_>>().join(" ");
            spread("", &tree, &mut paths);
        }
    }
    let inside =
        code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':').filter(|word| word.contains("::") && !word.ends_with(':'));
    paths.extend(inside.map(|path| path.trim_matches(':').to_owned()));
    paths
}

/// `a::{b, c::{d, e}}` is a::b, a::c::d, a::c::e.
fn spread(before: &str, tree: &str, paths: &mut Vec<String>) {
    let (mut depth, mut begun) = (0, 0);
    for (at, c) in tree.char_indices().chain([(tree.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let one = tree[begun..at].trim();
                begun = at + 1;
                match one.split_once('{') {
                    Some((start, rest)) => {
                        let rest = rest.trim_end();
                        spread(&format!("{before}{}", start.trim()), rest.strip_suffix('}').unwrap_or(rest), paths);
                    }
                    None if one.is_empty() => {}
                    None => paths.push(format!("{before}{}", one.split(" as ").next().unwrap().trim())),
                }
            }
            _ => {}
        }
    }
}

#[test]
fn use_trees_and_texts_are_read_as_rust_reads_them() {
    let source = "use std::{fs, io::{self, Read as _}};\n// use tokio::x;\nlet a = \"quinn::y \\\" redb::z\"; crate::b::c(); let q = '\"'; sqlx::d;\n#[cfg(test)]\nmod tests { use hyper::e; }";
    let read = paths(&code(source));
    assert_eq!(read, ["std::fs", "std::io::self", "std::io::Read", "crate::b::c", "sqlx::d"]);
    assert!(paths(&code_with_tests(source)).contains(&"hyper::e".to_owned()));
    assert_eq!(paths(&code("use a::{b::{c, d}, e}; let r = r#\"warp::x \" \"#;")), ["a::b::c", "a::b::d", "a::e"]);
    let text = "a https://index.invalid/x and http://[::1]:80/y, (https://docs.rs)";
    assert_eq!(hosts(text).collect::<BTreeSet<_>>(), BTreeSet::from(["index.invalid", "docs.rs", "[::1]"]));
}

// --- what was released ---

/// What version 0.1.0 has put on disks and lines, with the CRC-32C of each file. A change comes as a new migration, a new kind of message or a
/// new version of the envelope, never here.
#[rustfmt::skip]
const RELEASED: [(&str, u32); 7] = [
    ("tests/golden/batch.hex", 0xd5d898a6),
    ("tests/golden/compressed.hex", 0x6d7339b4),
    ("tests/golden/envelope.hex", 0xf718ea2a),
    ("tests/golden/messages.hex", 0x02c4ed7e),
    ("tests/golden/records.hex", 0x8d758b10),
    ("hub/migrations/postgres/0001_first.sql", 0x2a9dabac),
    ("hub/migrations/sqlite/0001_first.sql", 0x8925dd5f),
];

#[test]
fn what_was_released_does_not_change() {
    for (file, crc) in RELEASED {
        let found = crc32c::crc32c(read(Path::new(file)).as_bytes());
        assert_eq!(found, crc, "{file} was released with CRC-32C {crc:#010x}, and now has {found:#010x}");
    }
}

// --- the tree ---

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// What is in the repository, or will be with the next commit.
fn tree() -> Vec<PathBuf> {
    let listed = run("git", &["ls-files", "--cached", "--others", "--exclude-standard", "-z"]);
    let files: Vec<PathBuf> =
        listed.split('\0').filter(|file| !file.is_empty()).map(PathBuf::from).filter(|file| root().join(file).is_file()).collect();
    assert!(files.contains(&PathBuf::from("Cargo.toml")), "git lists no files here");
    files
}

/// Kept as others wrote it: licences, and the yardsticks that we are measured against.
fn is_foreign(file: &Path) -> bool {
    file.starts_with("ops/bench/peers") || file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("LICENSE"))
}

fn sources() -> Vec<PathBuf> {
    tree().into_iter().filter(|file| file.extension().is_some_and(|kind| kind == "rs") && !is_foreign(file)).collect()
}

fn read(file: &Path) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

fn run(program: &str, arguments: &[&str]) -> String {
    let done = Command::new(program).args(arguments).current_dir(root()).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(done.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}
