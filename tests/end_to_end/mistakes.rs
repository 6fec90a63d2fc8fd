//! Async: what people get wrong, each once, in the program where it is likeliest: one clear line that says what and what to do, and nothing lost.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use muster_certs::{Identity, Issuer, files};
use muster_mesh::clock::{Clock, SystemClock};
use muster_start::{
    http,
    mesh::{AgentAt, Mesh, Node},
    process::Process,
};
use serde_json::json;
use sqlx::{AnyConnection, Connection};

use crate::{
    backup::is_on_a_server,
    swarm::{folder, mesh, program},
};

const SITE: &str = "oslo";
const AT: AgentAt<'static> = AgentAt { person: "ada", name: "Ada", site: SITE, relays: &[SITE], display: None };
/// A program that goes on although it can't is stopped then.
const SECONDS: &str = "30";
const NOBODY: u32 = 65_534;

/// A mesh that worked, and was stopped: configurations, certificates and states lie there.
async fn worked(folder: &Path) -> Mesh {
    let mut mesh = mesh(folder, &[SITE]);
    mesh.start_hub().await.unwrap();
    mesh.start_relay(SITE).await.unwrap();
    mesh.start_agent(&AT).await.unwrap();
    mesh.stop_all().await.unwrap();
    mesh
}

fn relay() -> Node {
    Node::Relay(SITE.into())
}

fn agent() -> Node {
    Node::Agent(AT.person.into())
}

fn configuration(mesh: &Mesh, node: &Node) -> PathBuf {
    mesh.folder_of(node).join(format!("{}.toml", node.program()))
}

/// The program with its own configuration, as its user would start it.
fn command(mesh: &Mesh, node: &Node, words: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.arg(SECONDS).arg(program(&format!("muster-{}", node.program()))).args(words);
    command.arg("--config").arg(configuration(mesh, node)).env_remove("DISPLAY").env("MUSTER_LOG", "error").stdin(Stdio::null());
    command
}

/// The one line that is said by a program that can't go on.
fn complaint(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{command:?} said {said}");
    assert!(output.stdout.is_empty(), "{command:?} answers although it can't");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 1, "{command:?} said {said}");
    println!("{}", lines[0]);
    lines[0].to_owned()
}

/// Says all of these, and ends as a sentence does.
fn says(line: &str, words: &[&str]) {
    assert!(words.iter().all(|word| line.contains(word)) && line.ends_with('.'), "{line:?} doesn't say {words:?}");
}

#[tokio::test]
async fn each_mistake_gets_one_clear_line_and_costs_nothing() {
    let folder = folder();
    let mut mesh = worked(folder.path()).await;
    let before = states(&mesh);

    let missing = complaint(Command::new(program("muster-relay")).args(["run", "--config", "/nowhere/relay.toml"]).stdin(Stdio::null()));
    says(&missing, &["muster-relay:", "/nowhere/relay.toml"]);

    let mistyped = configuration(&mesh, &Node::Hub);
    let whole = fs::read_to_string(&mistyped).unwrap();
    for (wrong, words) in [("[mesh", ["hub.toml", "line"]), ("colour = \"red\"\n", ["colour", "hub.toml"])] {
        fs::write(&mistyped, format!("{wrong}\n{whole}")).unwrap();
        says(&complaint(&mut command(&mesh, &Node::Hub, &["serve"])), &words);
    }
    fs::write(&mistyped, whole).unwrap();
    says(
        &complaint(command(&mesh, &Node::Hub, &["serve"]).env("MUSTER_HUB__WEB__LISTEN", "everywhere")),
        &["MUSTER_HUB__WEB__LISTEN", "socket address"],
    );

    let an_agents = mesh.ca().issue_agent(SITE, "somebody", "Somebody").unwrap().signed;
    let of_an_agent = |name: &str| folder.path().join(name);
    files::write_secret(&of_an_agent("certificate.pem"), an_agents.pem.as_bytes()).unwrap();
    files::write_secret(&of_an_agent("key.pem"), an_agents.key_pem.as_bytes()).unwrap();
    let wrong_role = complaint(
        command(&mesh, &relay(), &["run"])
            .env("MUSTER_RELAY__AGENTS__CERTIFICATE", of_an_agent("certificate.pem"))
            .env("MUSTER_RELAY__AGENTS__KEY", of_an_agent("key.pem"))
            .env("MUSTER_RELAY__AGENTS__ROOTS", mesh.ca().roots_path()),
    );
    says(&wrong_role, &["certificate", "agent", "relay"]);

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (at, port) = (taken.local_addr().unwrap().to_string(), taken.local_addr().unwrap().port().to_string());
    says(&complaint(command(&mesh, &Node::Hub, &["serve"]).env("MUSTER_HUB__WEB__LISTEN", &at)), &[&port, "in use"]);
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (at, port) = (taken.local_addr().unwrap().to_string(), taken.local_addr().unwrap().port().to_string());
    says(&complaint(command(&mesh, &relay(), &["run"]).env("MUSTER_RELAY__AGENTS__LISTEN", &at)), &[&port, "in use"]);

    // Not even root makes a folder there.
    says(&complaint(command(&mesh, &agent(), &["run"]).env("MUSTER_AGENT__STATE", "/proc/muster")), &["/proc/muster"]);
    let long = folder.path().join("a".repeat(120));
    says(&complaint(command(&mesh, &agent(), &["run"]).env("MUSTER_AGENT__STATE", &long)), &["107", "shorter", "`state`"]);

    says(&complaint(&mut command(&mesh, &agent(), &["status"])), &["isn't running", "muster-agent run"]);
    assert_eq!(states(&mesh), before, "a program that can't start changes nothing");
    mesh.start_hub().await.unwrap();
    mesh.start_relay(SITE).await.unwrap();
    mesh.start_agent(&AT).await.unwrap();
    mesh.until(&agent(), "everything is in the hub", async |mesh| {
        let status = mesh.ask(&agent(), &json!({ "verb": "status" })).await.unwrap();
        let in_hub = mesh.hub().unwrap().get("/api/v1/summary").await.unwrap();
        status["journey"]["made"] == status["journey"]["hub"] && in_hub["missing"] == 0 && in_hub["lost"] == 0 && in_hub["gaps"] == 0
    })
    .await
    .unwrap();
}

/// All state files of agent and hub with their sizes, but for the locks, which name the last process. A relay that found its port taken had
/// opened its queue, with a new segment.
fn states(mesh: &Mesh) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![mesh.state(&agent()), mesh.state(&Node::Hub)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else if entry.file_name() != "lock" {
                found.push((entry.path(), entry.metadata().unwrap().len()));
            }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_left_alone() {
    let folder = folder();
    let mesh = worked(folder.path()).await;
    let url = muster_start::mesh::database_url(mesh.folder());
    sqlx::any::install_default_drivers();
    let mut database = AnyConnection::connect(&url).await.unwrap();
    let (yes, nothing) = if is_on_a_server(&mesh) { ("TRUE", "''::bytea") } else { ("1", "x'00'") };
    let newer = format!(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (99999, 'newer', {yes}, {nothing}, 0)"
    );
    sqlx::query(sqlx::AssertSqlSafe(newer)).execute(&mut database).await.unwrap();
    database.close().await.unwrap();
    let before = fs::read(mesh.database()).ok();
    says(&complaint(&mut command(&mesh, &Node::Hub, &["serve"])), &["database", "newer"]);
    assert_eq!(fs::read(mesh.database()).ok(), before);
}

#[tokio::test]
async fn a_wrong_password_is_told_so_and_a_right_one_still_works() {
    let folder = folder();
    let mut mesh = mesh(folder.path(), &[SITE]);
    mesh.start_hub().await.unwrap();
    let hub = mesh.hub().unwrap();
    let web = hub.address().trim_start_matches("http://").parse().unwrap();
    let login = json!({ "name": hub.name(), "password": "letmein" }).to_string();
    let refused = http::ask(web, "POST", "/api/v1/login", &[("content-type", "application/json")], login.as_bytes()).await.unwrap();
    let problem: serde_json::Value = serde_json::from_slice(&refused.body).unwrap();
    assert_eq!(refused.status, 401);
    assert_eq!(problem["title"], "Name or password is wrong", "{problem}");
    hub.get("/api/v1/summary").await.unwrap();
}

#[tokio::test]
async fn an_agent_whose_certificate_has_ended_or_that_has_no_display_says_so_and_goes_on_collecting() {
    const DAY_MS: i64 = 24 * 3_600 * 1_000;
    let folder = folder();
    let mut mesh = worked(folder.path()).await;
    // The same device under an older certificate.
    let ca = mesh.ca();
    let name = mesh.member(&agent()).unwrap().unwrap().name;
    // A leaf lives 30 days.
    let then_ms = SystemClock::new().now().wall_ms - 60 * DAY_MS;
    let (root, issuer) = Issuer::in_memory(ca.domain(), then_ms).unwrap();
    let ended = issuer.issue(&Identity::new(ca.domain(), name).unwrap(), then_ms).unwrap();
    for (name, text) in [("certificate", ended.pem.as_str()), ("key", ended.key_pem.as_str()), ("roots", root.pem())] {
        let file = folder.path().join(name);
        files::write_secret(&file, text.as_bytes()).unwrap();
        mesh.set(&agent(), &format!("MUSTER_AGENT__{}", name.to_uppercase()), file.to_str().unwrap());
    }
    mesh.start_agent(&AT).await.unwrap();
    mesh.until(&agent(), "it collects", async |mesh| {
        mesh.ask(&agent(), &json!({ "verb": "status" })).await.is_ok_and(|status| status["journey"]["made"]["batches"].as_u64() > Some(0))
    })
    .await
    .unwrap();
    let log = fs::read_to_string(mesh.process(&agent()).map(|process: &mut Process| process.log().to_owned()).unwrap()).unwrap();
    let about: Vec<&str> = log.lines().filter(|line| line.contains("certificate") && line.contains("WARN")).collect();
    assert!(about.iter().any(|line| line.contains("no relay will take what is collected before there is a new certificate")), "{log}");
    let status = mesh.ask(&agent(), &json!({ "verb": "status" })).await.unwrap();
    assert!(status["text"].as_str().unwrap().contains("display") || log.contains("display"), "{status} {log}");
}

#[tokio::test]
async fn another_user_is_not_answered_on_the_control_socket() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can play another user");
        return;
    }
    let folder = folder();
    let mut mesh = worked(folder.path()).await;
    mesh.start_agent(&AT).await.unwrap();
    // All of it may be read, but for what the agent itself closes.
    let may = |path: &Path, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    for open in [folder.path(), mesh.folder(), &mesh.folder().join("agents"), &mesh.folder_of(&agent())] {
        may(open, 0o755);
    }
    may(&configuration(&mesh, &agent()), 0o644);
    let line = complaint(command(&mesh, &agent(), &["status"]).uid(NOBODY).gid(NOBODY));
    says(&line, &["another user"]);
    assert!(mesh.ask(&agent(), &json!({ "verb": "status" })).await.is_ok());
}
