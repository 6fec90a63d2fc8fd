//! Async: a running hub on real sockets: relays over mutual TLS, people over HTTP.
#![allow(clippy::unwrap_used)]

mod studio;
mod world;

use std::{collections::HashMap, net::SocketAddr, path::PathBuf, sync::Arc};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use muster_certs::{
    Ca, DIALLED_NAME, DeviceKey, KeyRequest, Keys, Name, Report, Role, SystemTime, Trusted, client_config,
    join::JoinToken,
    material::{CHAIN_CERTIFICATES_MAX, certificates},
    read_leaf, stranger_config,
};
use muster_hub::{
    api::{
        self,
        routes::{Access, Entry, Looks, Method, ROUTES},
    },
    config::{Config, ControlFiles, Door, Mesh, SignerAt, StatusAt, StoreAt, Web},
    control, password, report,
    running::{self, Running},
    serve,
    store::{Grant, MemberRow, Store, TokenRow},
};
use muster_mesh::{
    asking::{Asking, Way},
    clock::{Clock, SystemClock},
    control_key::ControlKey,
    door::{self, DOOR_CONTENT_TYPE, DOOR_PROTOCOL, Issued, Refusal, Said, Standing, Wish},
    ids::{Lane, Version},
    message::{Answer, PostHead, SIGNED_CONTENT_TYPE, SYNC_CONTENT_TYPE, Signed, SignedKind},
    record,
    seal::SealTo,
};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use world::*;

const PASSWORD: &str = "correct-horse";
const TOKEN: &str = "0123456789abcdef";
const MEMBER: &str = "site/oslo/agent/0190b7e8c4d27d30a5f1c2d3e4f50617";

/// A hub with its own CA.
struct House {
    folder: tempfile::TempDir,
    ca: Ca,
    config: Config,
    running: Option<Running>,
}

impl House {
    async fn new() -> House {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::init(&folder.path().join("ca"), "muster.test").unwrap();
        let at = |name: &str| folder.path().join(name);
        write_keys(&at("hub"), &ca.issue_hub("hub-1").unwrap());
        write_keys(&at("control"), &ca.issue_control(1).unwrap());
        std::fs::write(at("policy.toml"), include_str!("policy.toml")).unwrap();
        let anywhere: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let config = Config {
            state: at("state"),
            policy: at("policy.toml"),
            issued: ca.issued_path(),
            test_mode: true,
            mesh: Mesh { listen: anywhere, certificate: at("hub.pem"), key: at("hub.key"), roots: ca.roots_path(), address: None },
            door: Some(Door { listen: anywhere, address: None }),
            signer: Some(SignerAt { ca: at("ca"), agent_life_s: None, relay_life_s: None }),
            control: Some(ControlFiles { certificate: at("control.pem"), key: at("control.key") }),
            web: Web { listen: anywhere, certificate: None, key: None },
            store: StoreAt { url: format!("sqlite://{}", at("muster.db").display()), objects: None },
            status: StatusAt { listen: anywhere },
        };
        let store = Store::open(&config.store.url).await.unwrap();
        assert!(store.create_admin("kari", &password::hash(PASSWORD).unwrap(), 0).await.unwrap());
        store.close().await;
        let running = running::start(config.clone(), false).await.unwrap();
        House { folder, ca, config, running: Some(running) }
    }

    fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.running().web)
    }

    /// A client with this certificate's name and keys.
    fn dial(&self, name: &str, role: Role) -> reqwest::Client {
        let path = self.folder.path().join(name);
        let (certificate, key) = (path.with_extension("pem"), path.with_extension("key"));
        self.dial_by(&Keys::load(&certificate, &key, &self.ca.roots_path(), role, Arc::new(SystemTime)).unwrap())
    }

    fn dial_by(&self, keys: &Arc<Keys>) -> reqwest::Client {
        let tls = client_config(keys, &Name::Hub { id: "hub-1".into() }, &[b"h2", b"http/1.1"]).unwrap();
        reqwest::Client::builder().tls_backend_preconfigured(tls).resolve(DIALLED_NAME, self.running().mesh).build().unwrap()
    }

    fn relay(&self) -> reqwest::Client {
        write_keys(&self.folder.path().join("relay"), &self.ca.issue_relay("oslo", "oslo-1").unwrap());
        self.dial("relay", Role::Relay)
    }

    fn sync_url(&self, protocol: &str) -> String {
        format!("https://{DIALLED_NAME}:{}/sync/{protocol}", self.running().mesh.port())
    }

    /// A client with what the hub has issued to a relay.
    fn member(&self, relay: &Newcomer, issued: &Issued) -> reqwest::Client {
        let keys = Keys::from_pem(&issued.chain, &relay.request.key_pem, &issued.roots, Role::Relay, Arc::new(SystemTime)).unwrap();
        self.dial_by(&keys)
    }

    /// As whoever has no certificate asks the hub.
    fn door(&self) -> Knock {
        let trusted = Trusted::of_roots("muster.test", self.ca.roots_pem()).unwrap();
        Knock::at_door(self.running().door.unwrap(), &trusted, &Name::Hub { id: "hub-1".into() })
    }

    /// As a relay asks the hub, for itself or for an agent.
    fn through(&self, relay: reqwest::Client) -> Knock {
        Knock { client: relay, url: format!("https://{DIALLED_NAME}:{}/door/{DOOR_PROTOCOL}", self.running().mesh.port()) }
    }

    async fn admin(&self) -> Admin<'_> {
        Admin { house: self, token: self.token().await }
    }

    /// As far as the hub's rows say.
    async fn ends_all_certificates(&self) {
        run_at(&self.config.store.url, "UPDATE certificates SET not_after_ms = 1").await;
    }

    async fn token(&self) -> String {
        let answer = login(&self.url(""), "kari", PASSWORD).await;
        assert_eq!(answer.status(), StatusCode::OK);
        answer.json::<Value>().await.unwrap()["token"].as_str().unwrap().to_owned()
    }

    async fn stop(mut self) -> (tempfile::TempDir, Config) {
        self.running.take().unwrap().drain().await;
        (self.folder, self.config)
    }
}

#[tokio::test]
async fn a_relays_post_travels_over_mutual_tls_into_rows_that_the_api_proves() {
    let house = House::new().await;
    let now_ms = SystemClock::new().now().wall_ms;
    let mut real = batch(1, vec![activity(now_ms, 100), focus(now_ms, "xterm"), heartbeat(now_ms)]);
    real.head.wall_ms = now_ms;
    let answer = post(&house, &house.relay(), "1", &body(now_ms, &[real.seal().unwrap()])).await;
    assert_eq!(answer.version(), reqwest::Version::HTTP_2);
    assert_eq!((answer.status(), answer.headers()["content-type"].to_str().unwrap()), (StatusCode::OK, SYNC_CONTENT_TYPE));
    let Answer::Taken(taken) = Answer::read(&answer.bytes().await.unwrap()).unwrap() else { panic!() };
    assert_eq!((taken.counts.stored, taken.signed.len()), (1, 3));

    let token = house.token().await;
    let client = reqwest::Client::new();
    let asked = json!({ "spools": [{ "device": device(1), "spool": spool(1), "first": 1, "last": 9 }] });
    let proof = client.post(house.url("/api/v1/check/spools")).bearer_auth(&token).json(&asked).send().await.unwrap();
    let proof: Value = proof.json().await.unwrap();
    let sha256: String = record::digest(&real.records).iter().map(|byte| format!("{byte:02x}")).collect();
    let number = json!({ "seq": 1, "verdict": "stored", "count": 3, "sha256": sha256 });
    assert_eq!(proof["spools"][0]["numbers"], json!([number]));
    let summary: Value = client.get(house.url("/api/v1/summary")).bearer_auth(&token).send().await.unwrap().json().await.unwrap();
    assert_eq!((&summary["kinds"]["focus"], &summary["duplicates"], &summary["missing"]), (&json!(1), &json!(0), &json!(0)));
    house.stop().await;
}

/// Prometheus' own habits: base units, counters end in `_total`, and nothing that grows with the number of people is a label.
#[tokio::test]
async fn metrics_are_named_as_the_field_names_them_and_name_nobody() {
    let house = House::new().await;
    let (relay, now_ms) = (house.relay(), SystemClock::new().now().wall_ms);
    post(&house, &relay, "1", &body(now_ms, &[sealed(1)])).await;
    post_a_picture(&house, &relay, now_ms).await;
    let mut unfit = studio::picture(2);
    unfit.sha256[0] ^= 1;
    let records = vec![record::Record { at: now_ms, kind: record::Kind::Screenshot(unfit) }];
    let held = studio::pictures_batch(2, records).seal().unwrap();
    post(&house, &relay, "1", &body_of(Lane::Pictures, 2, now_ms, &[held])).await;
    post(&house, &relay, "1", &[1, 2, 3]).await;
    let metrics = reqwest::get(format!("http://{}/metrics", house.running().status)).await.unwrap().text().await.unwrap();
    let types: HashMap<&str, &str> = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    for wanted in [
        "muster_hub_records_total",
        "muster_hub_stored_batches_total",
        "muster_hub_held_batches_total",
        "muster_hub_unfit_pictures_total",
        "muster_hub_object_put_bytes_total",
        "muster_hub_object_put_seconds",
        "muster_hub_post_seconds",
    ] {
        assert!(types.contains_key(wanted), "{wanted} isn't there:\n{metrics}");
    }
    for (name, kind) in types.iter().filter(|(name, _)| name.starts_with("muster_hub_")) {
        assert_eq!(*kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        assert!(*kind != "histogram" || name.ends_with("_seconds") || name.ends_with("_bytes"), "{name} has no base unit");
        for unit in ["_ms", "_kib", "_mib", "_minutes", "_percent"] {
            assert!(!name.contains(unit), "{name}");
        }
    }
    for line in metrics.lines().filter(|line| line.starts_with("muster_hub_")) {
        let labels = line.split_once('{').map_or("", |(_, rest)| rest.split('}').next().unwrap());
        for label in labels.split(',').filter_map(|label| label.split_once('=')) {
            assert!(["lane", "reason", "standing", "kind", "wish", "outcome", "le"].contains(&label.0), "{line}");
            assert!(!label.1.bytes().filter(u8::is_ascii_hexdigit).count().ge(&32), "{line}");
        }
    }
    assert!(metrics.contains(r#"muster_hub_held_batches_total{lane="pictures",reason="picture"}"#), "{metrics}");
    for person in [device(1).to_string(), spool(1).to_string(), "oslo".into(), "xterm".into()] {
        assert!(!metrics.contains(&person), "{person}");
    }
    house.stop().await;
}

#[tokio::test]
async fn only_relays_pass_the_mesh_port_and_only_our_protocol_is_spoken() {
    let house = House::new().await;
    let body = body(0, &[]);
    let agent = house.ca.issue_agent("oslo", "kari", "Kari").unwrap();
    write_keys(&house.folder.path().join("agent"), &agent.signed);
    let refused = house.dial("agent", Role::Agent).post(house.sync_url("1")).body(body.clone()).send().await;
    assert!(refused.is_err());
    let relay = house.relay();
    let other = post(&house, &relay, "2", &body).await;
    assert_eq!(other.status(), StatusCode::NOT_FOUND);
    let problem: Value = other.json().await.unwrap();
    assert_eq!(problem["detail"], "this hub speaks /sync/1 to /sync/1");
    assert_eq!(post(&house, &relay, "1", &[1, 2, 3]).await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(post(&house, &relay, "1", &vec![0; (8 << 20) + 1]).await.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let plain = relay.post(house.sync_url("1")).body(body.clone()).send().await.unwrap();
    assert_eq!(plain.status(), StatusCode::BAD_REQUEST);
    assert_eq!(relay.get(house.sync_url("1")).send().await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
    // The API isn't there, and relays aren't at the web port.
    let api = format!("https://{DIALLED_NAME}:{}/api/v1/devices", house.running().mesh.port());
    assert_eq!(relay.get(api).send().await.unwrap().status(), StatusCode::NOT_FOUND);
    assert_eq!(reqwest::Client::new().post(house.url("/sync/1")).body(body).send().await.unwrap().status(), StatusCode::NOT_FOUND);
    house.stop().await;
}

#[tokio::test]
async fn each_route_answers_whom_its_row_says_and_each_look_is_on_record() {
    let house = House::new().await;
    let now_ms = SystemClock::new().now().wall_ms;
    let relay = house.relay();
    post(&house, &relay, "1", &body(now_ms, &[sealed(1)])).await;
    let picture = post_a_picture(&house, &relay, now_ms).await;
    house.has_a_token_and_a_member().await;
    let token = house.token().await;
    let client = reqwest::Client::new();
    let mut personal = 0;
    for entry in ROUTES {
        let send = async |token: Option<&str>| {
            let path = entry
                .path
                .replace("{device}", &device(1).to_string())
                .replace("{day}", "2026-11-23")
                .replace("{picture}", &picture)
                .replace("{token}", TOKEN);
            let reason = if entry.looks == Looks::WithReason { "?reason=a+test" } else { "" };
            let url = house.url(&format!("{path}{reason}"));
            let request = match entry.method {
                Method::Get => client.get(url),
                Method::Post => client.post(url).json(&right_body(entry)),
            };
            let request = match token {
                Some(token) => request.bearer_auth(token),
                None => request,
            };
            request.send().await.unwrap()
        };
        let refused = match entry.access {
            Access::Anyone => StatusCode::OK,
            Access::Admin => StatusCode::UNAUTHORIZED,
        };
        let looks = looks(&house).await;
        assert_eq!(send(None).await.status(), refused, "{}", entry.path);
        assert_eq!(send(Some("a.b.c")).await.status(), refused, "{}", entry.path);
        assert_eq!(self::looks(&house).await, looks, "{}: a look that saw nothing", entry.path);
        let answer = send(Some(&token)).await;
        assert_eq!(answer.status(), StatusCode::OK, "{}: {}", entry.path, answer.text().await.unwrap());
        let is_look = i64::from(entry.looks != Looks::Never);
        assert_eq!(self::looks(&house).await, looks + is_look, "{}", entry.path);
        personal += is_look;
        let wrong_method = client.delete(house.url(&entry.path.replace(['{', '}'], "")));
        assert!([StatusCode::METHOD_NOT_ALLOWED, StatusCode::NOT_FOUND].contains(&wrong_method.send().await.unwrap().status()));
    }
    let shown: Value = client.get(house.url("/api/v1/looks")).bearer_auth(&token).send().await.unwrap().json().await.unwrap();
    // One more for the picture's name.
    assert_eq!(shown["looks"].as_array().unwrap().len() as i64, personal + 1);
    assert_eq!(shown["looks"][0]["who"], "kari");
    house.stop().await;
}

#[tokio::test]
async fn what_is_not_there_looks_the_same_whatever_it_is() {
    let house = House::new().await;
    let token = house.token().await;
    let client = reqwest::Client::new();
    let mut bodies = Vec::new();
    for path in [format!("/api/v1/devices/{}", device(9)), "/api/v1/devices/..%2f..".into(), "/api/v1/nothing".into(), "/".into()] {
        let answer = client.get(house.url(&path)).bearer_auth(&token).send().await.unwrap();
        assert_eq!(
            (answer.status(), &answer.headers()["content-type"]),
            (StatusCode::NOT_FOUND, &"application/problem+json".parse().unwrap())
        );
        bodies.push(answer.text().await.unwrap());
    }
    assert!(bodies.iter().all(|body| *body == bodies[0]), "{bodies:?}");
    for (path, field) in [
        ("/api/v1/devices?limit=1000000000", "limit"),
        ("/api/v1/devices?limit=-1", "limit"),
        ("/api/v1/devices?sort=name", "query"),
        ("/api/v1/summary?since=yesterday", "since"),
    ] {
        let answer = client.get(house.url(path)).bearer_auth(&token).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY, "{path}");
        assert!(answer.text().await.unwrap().contains(field), "{path}");
    }
    for bad in
        [r#"{"name":"kari"}"#, r#"{"name":"kari","password":"x","admin":true}"#, r#"{"name":"a","name":"b","password":"x"}"#, "[]", ""]
    {
        let answer = client.post(house.url("/api/v1/login")).body(bad).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{bad}");
    }
    let large = client.post(house.url("/api/v1/login")).body(vec![b' '; 1 << 20]).send().await.unwrap();
    assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE);
    house.stop().await;
}

#[tokio::test]
async fn a_name_that_points_here_from_elsewhere_is_not_answered() {
    let house = House::new().await;
    let client = reqwest::Client::new();
    let answer = client.get(house.url("/api/v1/devices")).header("host", "evil.example").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::MISDIRECTED_REQUEST);
    let answer = client.get(house.url("/api/v1/devices")).header("host", "localhost:1").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    house.stop().await;
}

#[tokio::test]
async fn wrong_passwords_and_unknown_names_sound_alike_and_make_one_wait() {
    // A clock that stands: however slow this machine is, no wait ends by itself.
    let world = World::new().await;
    assert!(world.hub.store.create_admin("kari", &password::hash(PASSWORD).unwrap(), 0).await.unwrap());
    let listener = serve::bind("127.0.0.1:0".parse().unwrap(), "web.listen").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let stop = tokio_util::sync::CancellationToken::new();
    let serving = serve::spawn(listener, serve::Door::Web, api::web(&world.hub), stop.clone());

    let (wrong, unknown) = (login(&url, "kari", "wrong").await, login(&url, "nobody", "wrong").await);
    assert_eq!((wrong.status(), unknown.status()), (StatusCode::UNAUTHORIZED, StatusCode::UNAUTHORIZED));
    assert_eq!(wrong.text().await.unwrap(), unknown.text().await.unwrap());
    let tries = (0..12).map(|_| login(&url, "kari", "wrong"));
    let statuses: Vec<_> = futures_util::future::join_all(tries).await.iter().map(|answer| answer.status()).collect();
    let checked = statuses.iter().filter(|status| **status == StatusCode::UNAUTHORIZED).count();
    assert_eq!(checked, 4, "parallel tries slipped through: {statuses:?}");
    let waiting = login(&url, "kari", PASSWORD).await;
    assert_eq!((waiting.status(), waiting.headers()["retry-after"].to_str().unwrap()), (StatusCode::TOO_MANY_REQUESTS, "1"));
    world.clock.advance(1_000);
    assert_eq!(login(&url, "kari", PASSWORD).await.status(), StatusCode::OK);
    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn an_address_asks_ten_times_a_minute_at_the_door_over_one_connection_or_many() {
    // Whose minute ends when it is told to.
    let world = World::new().await;
    let door = OpenDoor::of(&world).await;
    // What can't be read is answered without anybody's key, and is an ask like any other.
    let ask = async |client: &reqwest::Client| {
        let answer = client.post(door.url("/door/1")).header("content-type", DOOR_CONTENT_TYPE).body("what?").send().await?;
        assert_eq!((answer.status(), &answer.headers()["content-type"]), (StatusCode::OK, &DOOR_CONTENT_TYPE.parse().unwrap()));
        reqwest::Result::Ok(door::Answer::read(&answer.bytes().await?).unwrap())
    };
    let (first, second) = (door.stranger(), door.stranger());
    for n in 1..=10 {
        assert_eq!(ask(&first).await.unwrap(), door::Answer::Unreadable, "ask {n}");
    }
    assert_eq!(ask(&first).await.unwrap(), door::Answer::Busy { seconds: 60 }, "the eleventh over one connection");
    assert_eq!(ask(&second).await.unwrap(), door::Answer::Busy { seconds: 60 }, "another connection is the same address");
    world.clock.advance(60_000);
    assert_eq!(ask(&first).await.unwrap(), door::Answer::Unreadable, "a minute later");
    // Connections have a bound of their own: the first two are of the minute before.
    let mut answered = 0;
    for _ in 0..11 {
        answered += usize::from(ask(&door.stranger()).await.is_ok());
    }
    assert_eq!(answered, 10);
    drop((first, second));
    door.close().await;
}

#[tokio::test]
async fn at_the_door_there_is_nothing_but_the_door_and_whoever_looks_for_more_reaches_no_database() {
    let world = World::new().await;
    let door = OpenDoor::of(&world).await;
    let stranger = door.stranger();
    let relays = [("/sync/1", SYNC_CONTENT_TYPE), ("/signed/1", SIGNED_CONTENT_TYPE)].map(|(path, kind)| (Method::Post, path, kind));
    let peoples = ROUTES.iter().map(|entry| (entry.method, entry.path, "application/json"));
    let all: Vec<_> = relays.into_iter().chain(peoples).chain([(Method::Get, "/", "text/plain")]).collect();
    world.hub.store.close().await;
    assert!(!world.hub.store.is_up().await, "whoever asks it would be told to come again");
    for (method, path, kind) in all {
        // Everybody has ten asks a minute.
        world.clock.advance(60_000);
        let url = door.url(&path.replace(['{', '}'], ""));
        let request = match method {
            Method::Get => stranger.get(url),
            Method::Post => stranger.post(url).header("content-type", kind).body("{}"),
        };
        let answer = request.send().await.unwrap();
        assert_eq!(problem(answer).await, (StatusCode::NOT_FOUND, "urn:muster:problem:not-found".to_owned()), "{path}");
    }
    let knocks = stranger.post(door.url("/door/1")).header("content-type", DOOR_CONTENT_TYPE).body("what?").send().await.unwrap();
    assert_eq!(knocks.status(), StatusCode::OK, "the door itself isn't there");
    drop(stranger);
    door.close().await;
}

#[tokio::test]
async fn a_running_hub_has_that_door_and_no_other_where_nobody_needs_a_certificate() {
    let house = House::new().await;
    let Knock { client, url } = house.door();
    for path in ["/sync/1", "/signed/1", "/api/v1/login"] {
        let answer = client.post(url.replace("/door/1", path)).body("{}").send().await.unwrap();
        assert_eq!(problem(answer).await, (StatusCode::NOT_FOUND, "urn:muster:problem:not-found".to_owned()), "{path}");
    }
    house.stop().await;
}

#[tokio::test]
async fn the_door_reads_sixteen_kibibytes_and_not_a_byte_more() {
    let house = House::new().await;
    let Knock { client, url } = house.door();
    // Which reads as an ask, and opens with nobody's key.
    let longest = door::Ask::Sealed(vec![7; 16 * 1_024 - 4]).bytes().unwrap();
    assert_eq!(longest.len(), 16 * 1_024);
    let longer = [&longest[..], &[7]].concat();
    let in_pieces = |bytes: &[u8]| {
        let pieces: Vec<_> = bytes.chunks(4 * 1_024).map(|piece| std::io::Result::Ok(piece.to_vec())).collect();
        reqwest::Body::wrap_stream(futures_util::stream::iter(pieces))
    };
    let send = async |body: reqwest::Body| client.post(&url).header("content-type", DOOR_CONTENT_TYPE).body(body).send().await.unwrap();
    for body in [longest.clone().into(), in_pieces(&longest)] {
        let answer = send(body).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(door::Answer::read(&answer.bytes().await.unwrap()).unwrap(), door::Answer::Unreadable, "it isn't what it says");
    }
    for body in [longer.clone().into(), in_pieces(&longer)] {
        assert_eq!(problem(send(body).await).await, (StatusCode::PAYLOAD_TOO_LARGE, "urn:muster:problem:too-large".to_owned()));
    }
    house.stop().await;
}

#[tokio::test]
async fn a_token_of_the_api_makes_relays_at_the_door_and_stands_in_the_list_until_it_is_ended() {
    let house = House::new().await;
    let admin = house.admin().await;
    let relay = json!({ "id": "oslo-2", "address": "relay.oslo.example.org" });
    let (made, token) = admin.makes_token(json!({ "site": "oslo", "relay": relay, "uses": 3 })).await;
    let listed = async || admin.gets("/api/v1/tokens").await["tokens"].clone();
    let shown = listed().await;
    assert_eq!(shown.as_array().unwrap().len(), 1, "{shown}");
    let mut wanted = json!({ "role": "relay", "site": "oslo", "relay": "oslo-2", "uses_left": 3, "made_by": "kari" });
    (wanted["id"], wanted["ends"], wanted["made"]) = (made["id"].clone(), made["ends"].clone(), shown[0]["made"].clone());
    assert_eq!(shown[0], wanted);
    assert_eq!(made["id"], HEXLOWER.encode(&token.id));

    // Whoever has the token knows from it alone where to go, and who must answer.
    let (address, name) = token.doors().next().unwrap();
    let door = Knock::at_door(address.parse().unwrap(), &token.trusted(), &name);
    let newcomer = Newcomer::of(&token);
    let issued = newcomer.is_issued(&door, enroll(&token)).await;
    assert_eq!((&*issued.name, issued.join_state, issued.standing), ("site/oslo/relay/oslo-2", 1, Standing::Approved));
    let posted = post(&house, &house.member(&newcomer, &issued), "1", &body(SystemClock::new().now().wall_ms, &[])).await;
    assert_eq!(posted.status(), StatusCode::OK, "what it was given is good for nothing");
    assert_eq!(listed().await[0]["uses_left"], 2);
    assert_eq!(admin.standings().await, [("site/oslo/relay/oslo-2".to_owned(), "member".to_owned())]);

    let path = format!("/api/v1/tokens/{}/end", made["id"].as_str().unwrap());
    assert_eq!(admin.posts(&path, json!({})).await, json!({ "id": made["id"] }));
    assert_eq!(listed().await, json!([]));
    assert_eq!(Newcomer::of(&token).ask(&door, enroll(&token)).await, Said::Refused(Refusal::Token));
    assert_eq!(newcomer.is_issued(&door, renewal(&issued)).await, issued, "who has joined stays");
    assert_eq!(admin.standings().await.len(), 1);
    house.stop().await;
}

#[tokio::test]
async fn whom_the_api_approves_is_a_member_at_the_door_and_whom_it_denies_is_refused_there() {
    let house = House::new().await;
    let admin = house.admin().await;
    admin.posts("/api/v1/relays/set", json!({ "relay": "site/oslo/relay/oslo-1", "address": "relay.oslo.example.org" })).await;
    let (_, token) = admin.makes_token(json!({ "site": "oslo", "uses": 2 })).await;
    // What follows takes the ten asks that an address has in a minute.
    let (door, karis, lost) = (house.door(), Newcomer::of(&token), Newcomer::of(&token));
    let (hers, losts) = (karis.is_issued(&door, enroll(&token)).await, lost.is_issued(&door, enroll(&token)).await);
    assert_eq!([hers.standing, losts.standing], [Standing::Waiting; 2]);
    let listed = async |hers_stands: &str, losts_stands: &str| {
        let mut expected = [(hers.name.clone(), hers_stands.to_owned()), (losts.name.clone(), losts_stands.to_owned())];
        expected.sort();
        assert_eq!(admin.standings().await, expected);
    };
    listed("waits_for_approval", "waits_for_approval").await;

    let approval = json!({ "member": hers.name, "owner": { "person": "kari", "name": "Kari N." } });
    assert_eq!(admin.posts("/api/v1/members/approve", approval).await["standing"], "member");
    listed("member", "waits_for_approval").await;
    admin.posts("/api/v1/members/deny", json!({ "member": losts.name, "why": "lost on a train" })).await;
    listed("member", "denied").await;
    let device = hers.name.rsplit('/').next().unwrap();
    let shown = admin.gets(&format!("/api/v1/devices/{device}")).await;
    assert_eq!((&shown["person"], &shown["display"]), (&json!("kari"), &json!("Kari N.")));

    assert_eq!(karis.is_issued(&door, renewal(&hers)).await.standing, Standing::Approved);
    // Both sleep past the end of what they have.
    house.ends_all_certificates().await;
    let back = karis.with_new_request().is_issued(&door, renewal(&hers)).await;
    assert_eq!((back.join_state, back.standing), (2, Standing::Approved));
    assert_eq!(lost.with_new_request().ask(&door, renewal(&losts)).await, Said::Refused(Refusal::Denied));
    house.stop().await;
}

#[tokio::test]
async fn whom_the_api_lets_come_back_a_third_time_comes_back_that_once() {
    let house = House::new().await;
    let admin = house.admin().await;
    admin.posts("/api/v1/relays/set", json!({ "relay": "site/oslo/relay/oslo-1", "address": "relay.oslo.example.org" })).await;
    let owner = json!({ "person": "kari", "name": "Kari N." });
    let (_, token) = admin.makes_token(json!({ "site": "oslo", "owner": owner })).await;
    // Nobody counts at the mesh port how often a relay asks for its agents.
    let (way, mut kari) = (house.through(house.relay()), Newcomer::of(&token));
    let mut issued = kari.is_issued(&way, enroll(&token)).await;
    assert_eq!(issued.standing, Standing::Approved);
    for _ in 0..2 {
        house.ends_all_certificates().await;
        kari = kari.with_new_request();
        issued = kari.is_issued(&way, renewal(&issued)).await;
    }
    for join_state in [4, 5] {
        house.ends_all_certificates().await;
        kari = kari.with_new_request();
        assert_eq!(kari.ask(&way, renewal(&issued)).await, Said::Waiting);
        assert_eq!(admin.standings().await, [(issued.name.clone(), "waits_to_come_back".to_owned())]);
        let approved = admin.posts("/api/v1/members/approve", json!({ "member": issued.name })).await;
        assert_eq!(approved["standing"], "member");
        issued = kari.is_issued(&way, renewal(&issued)).await;
        assert_eq!(issued.join_state, join_state);
        assert_eq!(admin.standings().await, [(issued.name.clone(), "member".to_owned())]);
    }
    house.stop().await;
}

#[tokio::test]
async fn a_hub_that_is_put_back_takes_what_it_renewed_since_the_backup_and_renews_it_again() {
    let mut house = House::new().await;
    let relay = json!({ "id": "oslo-2", "address": "relay.oslo.example.org" });
    let (_, token) = house.admin().await.makes_token(json!({ "site": "oslo", "relay": relay })).await;
    let first_keys = Newcomer::of(&token);
    let first = first_keys.is_issued(&house.door(), enroll(&token)).await;
    let (database, backup) = (path(&house.folder, "muster.db"), path(&house.folder, "backup.db"));
    run_at(&house.config.store.url, &format!("VACUUM INTO '{}'", backup.display())).await;

    let relay = house.member(&first_keys, &first);
    let since_keys = first_keys.with_new_request();
    let since = since_keys.is_issued(&house.through(relay), renewal(&first)).await;
    assert_ne!(since.chain, first.chain);
    house.running.take().unwrap().drain().await;
    std::fs::rename(&backup, &database).unwrap();
    house.running = Some(running::start(house.config.clone(), true).await.unwrap());
    let store = Store::open(&house.config.store.url).await.unwrap();
    assert_eq!(store.last_certificates().await.unwrap()[0].chain, first.chain, "it knows of the renewal, so this shows nothing");
    store.close().await;

    let empty = body(SystemClock::new().now().wall_ms, &[]);
    let relay = house.member(&since_keys, &since);
    assert_eq!(post(&house, &relay, "1", &empty).await.status(), StatusCode::OK);
    let again_keys = since_keys.with_new_request();
    let again = again_keys.is_issued(&house.through(relay), renewal(&since)).await;
    assert_eq!((&again.name, again.join_state, again.standing), (&first.name, 1, Standing::Approved));
    assert!(again.chain != first.chain && again.chain != since.chain);
    assert_eq!(post(&house, &house.member(&again_keys, &again), "1", &empty).await.status(), StatusCode::OK);
    house.stop().await;
}

#[tokio::test]
async fn what_stops_a_start_is_one_clear_line() {
    let house = House::new().await;
    let (web, config) = (house.running().web, house.config.clone());
    let twice = start_fails(&config).await;
    assert!(twice.contains("already running"), "{twice}");
    let other_state =
        Config { state: house.folder.path().join("state-2"), web: Web { listen: web, certificate: None, key: None }, ..config.clone() };
    let in_use = start_fails(&other_state).await;
    assert!(in_use.contains("in use") && in_use.contains("web.listen"), "{in_use}");
    let (folder, config) = house.stop().await;
    write_keys(&folder.path().join("relay"), &Ca::open(&folder.path().join("ca")).unwrap().issue_relay("oslo", "oslo-1").unwrap());
    let wrong_role = Config {
        mesh: Mesh { certificate: path(&folder, "relay.pem"), key: path(&folder, "relay.key"), ..config.mesh.clone() },
        ..config.clone()
    };
    let refused = start_fails(&wrong_role).await;
    assert!(refused.contains("certificate"), "{refused}");
    std::fs::write(&config.policy, "purpose = 3").unwrap();
    let broken = start_fails(&config).await;
    assert!(broken.contains("purpose") && broken.contains("policy.toml"), "{broken}");
}

#[tokio::test]
async fn a_changed_policy_and_list_are_seen_and_broken_ones_change_nothing() {
    let house = House::new().await;
    let token = house.token().await;
    let client = reqwest::Client::new();
    let get = async |path: &str| client.get(house.url(path)).bearer_auth(&token).send().await.unwrap().json::<Value>().await.unwrap();
    assert_eq!(get("/api/v1/policy").await["version"]["n"], 1);
    let policy = include_str!("policy.toml");
    std::fs::write(&house.config.policy, policy.replace("titles = true", "titles = perhaps")).unwrap();
    let agent = house.ca.issue_agent("oslo", "ola", "Ola N.").unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(2_500)).await;
    assert_eq!(get("/api/v1/policy").await["version"]["n"], 1);
    let shown = get(&format!("/api/v1/devices/{}", muster_mesh::ids::DeviceId(agent.device()))).await;
    assert_eq!((&shown["display"], &shown["presence"]["state"]), (&json!("Ola N."), &json!("no_signal")));
    std::fs::write(&house.config.policy, policy.replace("titles = true", "titles = false")).unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(2_500)).await;
    let shown = get("/api/v1/policy").await;
    assert_eq!((&shown["version"]["n"], &shown["notice"]["n"]), (&json!(2), &json!(1)));
    house.stop().await;
}

#[tokio::test]
async fn a_hub_signs_with_a_key_of_its_own_or_doesnt_start() {
    let (folder, config) = House::new().await.stop().await;
    let config = Config { signer: None, ..config };
    let without = Config { control: None, ..config.clone() };
    let refused = start_fails(&without).await;
    assert!(refused.contains("[control]") && refused.contains("[signer]"), "{refused}");
    let ca = Ca::open(&folder.path().join("ca")).unwrap();
    write_keys(&folder.path().join("other"), &ca.issue_control(1).unwrap());
    let files = |certificate: &str, key: &str| Some(ControlFiles { certificate: path(&folder, certificate), key: path(&folder, key) });
    let mixed = start_fails(&Config { control: files("control.pem", "other.key"), ..config.clone() }).await;
    assert!(mixed.contains("control certificate can't be used"), "{mixed}");
    // The number of another's key.
    let taken = start_fails(&Config { control: files("other.pem", "other.key"), ..config.clone() }).await;
    assert!(taken.contains("control key 1 is another hub's"), "{taken}");

    let signer = SignerAt { ca: folder.path().join("ca"), agent_life_s: None, relay_life_s: None };
    let signing = Config { signer: Some(signer), ..without };
    let mut chains = Vec::new();
    for _ in 0..2 {
        running::start(signing.clone(), false).await.unwrap().drain().await;
        chains.push(std::fs::read_to_string(config.state.join("control.pem")).unwrap());
    }
    assert_eq!(chains[0], chains[1], "a certificate that lasts was made again");
    let key = std::fs::metadata(config.state.join("control.key")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&key.permissions()) & 0o777, 0o600);
    let store = Store::open(&config.store.url).await.unwrap();
    let numbers: Vec<u32> = store.control_keys().await.unwrap().iter().map(|row| row.n).collect();
    assert_eq!(numbers, [1, 2]);
}

#[tokio::test]
async fn the_report_names_the_keys_that_only_this_hub_has_and_nothing_secret_of_them() {
    let (folder, config) = House::new().await.stop().await;
    let signing = Config { control: None, ..config.clone() };
    let new = Config { state: folder.path().join("new"), ..signing.clone() };
    assert_eq!((report::own_keys(&new).unwrap(), new.state.exists()), (Vec::new(), false), "asking makes no key");
    running::start(signing.clone(), false).await.unwrap().drain().await;
    let keys = report::own_keys(&signing).unwrap();
    let seal = std::fs::read_to_string(path(&folder, "state/seal.key")).unwrap();
    let (public, secret) = seal.trim().split_at(64);
    let control = std::fs::read_to_string(path(&folder, "state/control.key")).unwrap();
    let id = |public: &[u8]| HEXLOWER.encode(digest(&SHA256, public).as_ref());
    let named: Vec<(&str, &str)> = keys.iter().map(|key| (&*key.what, &*key.key)).collect();
    let seal_id = id(&HEXLOWER.decode(public.as_bytes()).unwrap());
    let control_id = id(ControlKey::from_pem(0, &control).unwrap().public());
    assert_eq!(named, [("the hub's sealing key (seal.key)", &*seal_id), ("the hub's control key (control.key)", &*control_id)]);

    let store = Store::open(&config.store.url).await.unwrap();
    let told = report::report(&store, "muster.test", report::own(&signing).unwrap(), 1).await.unwrap();
    let text = serde_json::to_string_pretty(&told).unwrap();
    assert_eq!(Report::read(&text, "muster.test").unwrap().keys, keys);
    let body: Vec<&str> = control.lines().filter(|line| !line.starts_with("-----")).collect();
    assert!(secret.len() == 64 && !body.is_empty());
    assert!(!text.contains(secret) && body.iter().all(|line| !text.contains(line)), "{text}");

    let elsewhere = report::own_keys(&Config { signer: None, ..config }).unwrap();
    assert_eq!(elsewhere.len(), 1, "nothing is sealed to a hub without the issuing key");
    assert!(elsewhere[0].what.contains("control key") && elsewhere[0].key != control_id, "its files hold another");
}

#[tokio::test]
async fn the_report_names_the_certificates_of_the_hub_that_the_ca_does_not_list() {
    let (folder, config) = House::new().await.stop().await;
    let named = |config: &Config| report::own(config).unwrap().certificates;
    assert_eq!(named(&config), [], "its control certificate is in the CA's list");
    let signing = Config { control: None, ..config.clone() };
    running::start(signing.clone(), false).await.unwrap().drain().await;
    let chain = std::fs::read_to_string(path(&folder, "state/control.pem")).unwrap();
    let leaf = certificates("certificate", &chain, CHAIN_CERTIFICATES_MAX).unwrap().remove(0);
    let end_ms = read_leaf(&leaf).unwrap().not_after_ms;
    let [control] = named(&signing).try_into().unwrap();
    assert_eq!((&*control.what, control.not_after_ms), ("the hub's control certificate", end_ms));
    let half_ms = end_ms - control.renews_ms.unwrap();
    assert!((182 * DAY_MS..183 * DAY_MS).contains(&half_ms), "{half_ms}");
    // The organisation's, for which any will do here.
    let web = Web { certificate: Some(config.mesh.certificate.clone()), key: Some(config.mesh.key.clone()), ..config.web.clone() };
    let [web] = named(&Config { web, ..config }).try_into().unwrap();
    assert_eq!((&*web.what, web.renews_ms), ("the hub's web certificate (web.certificate)", None));
    let store = Store::open(&signing.store.url).await.unwrap();
    let own = report::OfHub { certificates: vec![web.clone()], ..report::OfHub::default() };
    let told = serde_json::to_string(&report::report(&store, "muster.test", own, 1).await.unwrap()).unwrap();
    assert_eq!(Report::read(&told, "muster.test").unwrap().certificates, [web]);
}

#[tokio::test]
async fn a_running_signer_whose_control_key_was_ended_makes_itself_another_and_other_hubs_are_told_to() {
    let (folder, config) = House::new().await.stop().await;
    let signing = Config { control: None, ..config.clone() };
    let running = running::start(signing.clone(), false).await.unwrap();
    let store = Store::open(&config.store.url).await.unwrap();
    let ended = std::fs::read_to_string(path(&folder, "state/control.key")).unwrap();
    assert!(control::end_key(&store, 2, SystemClock::new().now().wall_ms).await.unwrap());
    let numbers = async || store.control_keys().await.unwrap().iter().map(|row| row.n).collect::<Vec<_>>();
    for _ in 0..100 {
        if numbers().await != [1] {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(numbers().await, [1, 3]);
    assert_ne!(std::fs::read_to_string(path(&folder, "state/control.key")).unwrap(), ended);
    running.drain().await;
    // Ended while it doesn't run: the same at its start.
    assert!(control::end_key(&store, 3, SystemClock::new().now().wall_ms).await.unwrap());
    running::start(signing, false).await.unwrap().drain().await;
    assert_eq!(numbers().await, [1, 4]);
    assert!(control::end_key(&store, 1, SystemClock::new().now().wall_ms).await.unwrap());
    let refused = start_fails(&Config { signer: None, ..config }).await;
    assert!(refused.contains("control key 1 was ended") && refused.contains("issue control"), "{refused}");
}

#[tokio::test]
async fn a_running_hub_without_the_issuing_key_passes_on_what_it_is_asked() {
    let Some(server) = Server::new().await else { return skipped() };
    Store::migrate(&server.url).await.unwrap().close().await;
    let (folder, config) = House::new().await.stop().await;
    let ca = Ca::open(&folder.path().join("ca")).unwrap();
    write_keys(&path(&folder, "second"), &ca.issue_hub("hub-2").unwrap());
    write_keys(&path(&folder, "second-control"), &ca.issue_control(2).unwrap());
    write_keys(&path(&folder, "relay"), &ca.issue_relay("oslo", "oslo-1").unwrap());
    let objects = Some(path(&folder, "shared").to_str().unwrap().to_owned());
    let first = Config { store: StoreAt { url: server.url.clone(), objects }, ..config };
    let (certificate, key) = (path(&folder, "second.pem"), path(&folder, "second.key"));
    let second = Config {
        state: path(&folder, "second-state"),
        mesh: Mesh { certificate, key, ..first.mesh.clone() },
        signer: None,
        control: Some(ControlFiles { certificate: path(&folder, "second-control.pem"), key: path(&folder, "second-control.key") }),
        ..first.clone()
    };
    let (first, second) = (running::start(first, false).await.unwrap(), running::start(second, false).await.unwrap());
    let relay = Keys::load(&path(&folder, "relay.pem"), &path(&folder, "relay.key"), &ca.roots_path(), Role::Relay, Arc::new(SystemTime));
    let tls = client_config(&relay.unwrap(), &Name::Hub { id: "hub-2".into() }, &[b"h2", b"http/1.1"]).unwrap();
    let client = reqwest::Client::builder().tls_backend_preconfigured(tls).resolve(DIALLED_NAME, second.mesh).build().unwrap();
    let url = format!("https://{DIALLED_NAME}:{}/door/{DOOR_PROTOCOL}", second.mesh.port());
    let ask = door::Ask::Nonce.bytes().unwrap();
    let answer = client.post(url).header("content-type", DOOR_CONTENT_TYPE).body(ask).send().await.unwrap();
    let answer = door::Answer::read(&answer.bytes().await.unwrap()).unwrap();
    assert!(matches!(answer, door::Answer::Nonce(_)), "{answer:?}");
    first.drain().await;
    second.drain().await;
}

#[tokio::test]
async fn a_denied_relay_is_cut_at_once_and_turned_away_and_its_neighbour_is_not() {
    let house = House::new().await;
    let (lost, now_ms) = (house.relay(), SystemClock::new().now().wall_ms);
    write_keys(&house.folder.path().join("neighbour"), &house.ca.issue_relay("oslo", "oslo-2").unwrap());
    let neighbour = house.dial("neighbour", Role::Relay);
    for relay in [&lost, &neighbour] {
        assert_eq!(post(&house, relay, "1", &body(now_ms, &[])).await.status(), StatusCode::OK);
    }
    // A request under way, whose body never ends.
    let (sender, forever) = tokio::sync::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(1);
    let stream = futures_util::stream::unfold(forever, async |mut forever| Some((forever.recv().await?, forever)));
    let under_way = lost.post(house.sync_url("1")).header("content-type", SYNC_CONTENT_TYPE).body(reqwest::Body::wrap_stream(stream));
    let under_way = tokio::spawn(under_way.send());
    sender.send(Ok(vec![0])).await.unwrap();

    let store = Store::open(&house.config.store.url).await.unwrap();
    muster_hub::control::deny(&store, &"site/oslo/relay/oslo-1".parse().unwrap(), SystemClock::new().now().wall_ms, "stolen")
        .await
        .unwrap();
    store.close().await;
    let cut = tokio::time::timeout(std::time::Duration::from_secs(20), under_way).await.expect("it is cut").unwrap();
    assert!(cut.is_err(), "it was answered: {cut:?}");
    let again = lost.post(house.sync_url("1")).header("content-type", SYNC_CONTENT_TYPE).body(body(now_ms, &[])).send().await;
    assert!(again.is_err(), "a new connection was let in: {again:?}");
    let answer = post(&house, &neighbour, "1", &body(now_ms, &[])).await;
    let Answer::Taken(taken) = Answer::read(&answer.bytes().await.unwrap()).unwrap() else { panic!() };
    assert!(taken.signed.iter().any(|bytes| Signed::read(bytes).unwrap().kind == SignedKind::Deny.as_u8()), "its neighbour isn't told");
    house.stop().await;
}

fn path(folder: &tempfile::TempDir, name: &str) -> PathBuf {
    folder.path().join(name)
}

async fn start_fails(config: &Config) -> String {
    let error = running::start(config.clone(), false).await.err().unwrap();
    let line = muster_mesh::complaint::line("hub", &error);
    assert!(line.starts_with("muster-hub: ") && !line.contains('\n'), "{line}");
    line
}

fn write_keys(path: &std::path::Path, signed: &muster_certs::Signed) {
    let files = muster_certs::files::write_secret(&path.with_extension("key"), signed.key_pem.as_bytes());
    files.unwrap();
    std::fs::write(path.with_extension("pem"), &signed.pem).unwrap();
}

async fn login(url: &str, name: &str, password: &str) -> reqwest::Response {
    let credentials = json!({ "name": name, "password": password });
    reqwest::Client::new().post(format!("{url}/api/v1/login")).json(&credentials).send().await.unwrap()
}

async fn post(house: &House, relay: &reqwest::Client, protocol: &str, body: &[u8]) -> reqwest::Response {
    relay.post(house.sync_url(protocol)).header("content-type", SYNC_CONTENT_TYPE).body(body.to_vec()).send().await.unwrap()
}

fn body(now_ms: i64, envelopes: &[muster_mesh::batch::Envelope]) -> Vec<u8> {
    body_of(Lane::Telemetry, 1, now_ms, envelopes)
}

/// A picture is posted; returns what the API calls it.
async fn post_a_picture(house: &House, relay: &reqwest::Client, now_ms: i64) -> String {
    let records = vec![record::Record { at: now_ms, kind: record::Kind::Screenshot(studio::picture(1)) }];
    let mut batch = studio::pictures_batch(1, records);
    batch.head.wall_ms = now_ms;
    let answer = post(house, relay, "1", &body_of(Lane::Pictures, 1, now_ms, &[batch.seal().unwrap()])).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let time: jiff::Timestamp = jiff::Timestamp::from_millisecond(now_ms).unwrap();
    let today = time.in_tz("Europe/Oslo").unwrap().date();
    let path = format!("/api/v1/devices/{}/days/{today}/pictures?reason=a+test", device(1));
    let list = reqwest::Client::new().get(house.url(&path)).bearer_auth(house.token().await).send().await.unwrap();
    let list: Value = list.json().await.unwrap();
    list["pictures"][0]["picture"].as_str().unwrap_or_else(|| panic!("{list}")).to_owned()
}

fn body_of(lane: Lane, number: u64, now_ms: i64, envelopes: &[muster_mesh::batch::Envelope]) -> Vec<u8> {
    use muster_mesh::message::QueueState;
    let queue = |of| QueueState { lane: of, instance: instance(RELAY, of), answered: if of == lane { number - 1 } else { 0 } };
    let head = PostHead {
        lane,
        number: if envelopes.is_empty() { 0 } else { number },
        queues: Lane::ALL.map(queue).to_vec(),
        asks: Vec::new(),
        presence: None,
        relay_ms: now_ms,
        versions: Vec::new(),
    };
    let facts = muster_mesh::message::Facts { zero_ms: now_ms - 1_000_000, ..facts(now_ms) }.bytes().unwrap();
    head.body(envelopes.iter().map(|envelope| (&facts[..], &envelope.bytes()[..]))).unwrap().to_vec()
}

fn right_body(entry: &Entry) -> Value {
    match entry.path {
        "/api/v1/login" => json!({ "name": "kari", "password": PASSWORD }),
        "/api/v1/check/spools" => json!({ "spools": [] }),
        "/api/v1/tokens" => json!({ "site": "oslo", "relay": { "id": "oslo-2", "address": "relay.oslo.example.org" } }),
        "/api/v1/tokens/{token}/end" => json!({}),
        "/api/v1/members/approve" => json!({ "member": MEMBER, "owner": { "person": "kari", "name": "Kari" } }),
        "/api/v1/members/deny" => json!({ "member": MEMBER }),
        "/api/v1/relays/set" => json!({ "relay": "site/oslo/relay/oslo-2", "address": "relay.oslo.example.org" }),
        "/api/v1/relays/remove" => json!({ "relay": "site/oslo/relay/oslo-2" }),
        "/api/v1/relays/guests" => json!({ "site": "oslo", "guests": ["home"] }),
        other => panic!("{other} needs a body here"),
    }
}

impl House {
    /// A join token that can be used, and somebody who waits for an admin.
    async fn has_a_token_and_a_member(&self) {
        let store = Store::open(&self.config.store.url).await.unwrap();
        let grant = Grant { site: "oslo".into(), relay: None, place: None, person: None, display: None };
        let (id, role) = (TOKEN.to_owned(), "agent".to_owned());
        let token = TokenRow { id, secret: "00".into(), role, grant, uses_left: 1, made_ms: 0, ends_ms: i64::MAX, made_by: "kari".into() };
        store.add_token(&token).await.unwrap();
        let mut writing = store.write().await.unwrap();
        let member = MemberRow {
            name: MEMBER.into(),
            device_key: "00".into(),
            join_state: 1,
            approved: false,
            token: TOKEN.into(),
            joined_ms: 0,
            version: "0.1.0".into(),
            allowed: 0,
            waits_ms: None,
            cloned_ms: None,
            denied_ms: None,
        };
        writing.keep_member(&member).await.unwrap();
        writing.commit().await.unwrap();
        store.close().await;
    }
}

async fn looks(house: &House) -> i64 {
    let token = house.token().await;
    let shown = reqwest::Client::new().get(house.url("/api/v1/looks?limit=1000")).bearer_auth(token).send().await.unwrap();
    shown.json::<Value>().await.unwrap()["looks"].as_array().unwrap().len() as i64
}

/// An answer's status, and what its problem is called if it is one.
async fn problem(answer: reqwest::Response) -> (StatusCode, String) {
    let status = answer.status();
    let problem: Value = answer.json().await.unwrap_or_default();
    (status, problem["type"].as_str().unwrap_or_default().to_owned())
}

/// The door of a world's hub, by the world's clock.
struct OpenDoor {
    ca: Ca,
    at: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl OpenDoor {
    async fn of(world: &World) -> OpenDoor {
        let ca = Ca::init(&world.folder.path().join("door-ca"), "muster.test").unwrap();
        let own = ca.issue_hub("hub-1").unwrap();
        let keys = Keys::from_pem(&own.pem, &own.key_pem, ca.roots_pem(), Role::Hub, Arc::new(SystemTime)).unwrap();
        let listener = serve::bind("127.0.0.1:0".parse().unwrap(), "door.listen").await.unwrap();
        let (at, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let door = serve::Door::strangers(&keys, Arc::new(world.clock.clone())).unwrap();
        let serving = serve::spawn(listener, door, api::door(&world.hub), stop.clone());
        OpenDoor { ca, at, stop, serving }
    }

    fn stranger(&self) -> reqwest::Client {
        let trusted = Trusted::of_roots("muster.test", self.ca.roots_pem()).unwrap();
        Knock::at_door(self.at, &trusted, &Name::Hub { id: "hub-1".into() }).client
    }

    fn url(&self, path: &str) -> String {
        format!("https://{DIALLED_NAME}:{}{path}", self.at.port())
    }

    async fn close(self) {
        self.stop.cancel();
        self.serving.await.unwrap();
    }
}

/// A way to the hub's word.
struct Knock {
    client: reqwest::Client,
    url: String,
}

impl Knock {
    /// Without a certificate.
    fn at_door(at: SocketAddr, trusted: &Trusted, hub: &Name) -> Knock {
        let tls = stranger_config(trusted, hub, Arc::new(SystemTime), &[b"h2", b"http/1.1"]).unwrap();
        let client = reqwest::Client::builder().tls_backend_preconfigured(tls).resolve(DIALLED_NAME, at).build().unwrap();
        Knock { client, url: format!("https://{DIALLED_NAME}:{}/door/{DOOR_PROTOCOL}", at.port()) }
    }
}

impl Way for Knock {
    async fn ask(&self, ask: Vec<u8>) -> Result<Vec<u8>, String> {
        let asking = self.client.post(&self.url).header("content-type", DOOR_CONTENT_TYPE).body(ask);
        let answer = asking.send().await.and_then(reqwest::Response::error_for_status).map_err(|error| error.to_string())?;
        Ok(answer.bytes().await.map_err(|error| error.to_string())?.into())
    }
}

/// Somebody with a join token, and the keys that never leave it.
struct Newcomer {
    device: DeviceKey,
    request: KeyRequest,
    seal: SealTo,
}

impl Newcomer {
    fn of(token: &JoinToken) -> Newcomer {
        Newcomer { device: DeviceKey::generate().unwrap(), request: KeyRequest::generate().unwrap(), seal: SealTo(token.seal) }
    }

    /// The same with a new key for its next certificate.
    fn with_new_request(&self) -> Newcomer {
        let device = DeviceKey::from_pem(self.device.to_pem()).unwrap();
        Newcomer { device, request: KeyRequest::generate().unwrap(), seal: self.seal }
    }

    async fn ask(&self, way: &Knock, wish: Wish) -> Said {
        let asking = Asking { device_key: &self.device, seal: &self.seal, version: "0.1.0", bundle: Version::default() };
        asking.ask(way, wish, &self.request).await.unwrap()
    }

    async fn is_issued(&self, way: &Knock, wish: Wish) -> Issued {
        match self.ask(way, wish).await {
            Said::Issued(issued) => issued,
            other => panic!("{other:?}"),
        }
    }
}

fn enroll(token: &JoinToken) -> Wish {
    Wish::Enroll { token: token.id, secret: token.secret }
}

fn renewal(issued: &Issued) -> Wish {
    Wish::Renew { name: issued.name.clone(), join_state: issued.join_state }
}

/// Somebody who is signed in at the web port.
struct Admin<'a> {
    house: &'a House,
    token: String,
}

impl Admin<'_> {
    async fn gets(&self, path: &str) -> Value {
        self.asks(reqwest::Client::new().get(self.house.url(path))).await
    }

    async fn posts(&self, path: &str, body: Value) -> Value {
        self.asks(reqwest::Client::new().post(self.house.url(path)).json(&body)).await
    }

    async fn asks(&self, request: reqwest::RequestBuilder) -> Value {
        let answer = request.bearer_auth(&self.token).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert_eq!(status, StatusCode::OK, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// What the API says of a new token, and the token.
    async fn makes_token(&self, wanted: Value) -> (Value, JoinToken) {
        let made = self.posts("/api/v1/tokens", wanted).await;
        let token = made["token"].as_str().unwrap().parse().unwrap();
        (made, token)
    }

    /// Each member's name and standing.
    async fn standings(&self) -> Vec<(String, String)> {
        let shown = self.gets("/api/v1/members").await;
        let text = |member: &Value, field: &str| member[field].as_str().unwrap().to_owned();
        shown["members"].as_array().unwrap().iter().map(|member| (text(member, "name"), text(member, "standing"))).collect()
    }
}
