//! Async: what people may look at, over HTTP: pictures only with a reason, titles only where they are asked for, and each look on record.
#![allow(clippy::unwrap_used)]

mod studio;
mod world;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use muster_certs::{Ca, DIALLED_NAME, Keys, Name, Role, SystemTime, client_config};
use muster_hub::{api, ingest::plan::Retention, password, retention, serve};
use muster_mesh::{
    batch::Batch,
    message::SYNC_CONTENT_TYPE,
    record::{Capability, Kind, Record},
};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use studio::*;
use tokio_util::sync::CancellationToken;
use world::*;

/// People's door to a hub, with somebody signed in.
struct Door {
    url: String,
    token: String,
    client: reqwest::Client,
    stop: CancellationToken,
}

impl Door {
    async fn open(studio: &Studio) -> Door {
        assert!(studio.world.hub.store.create_admin("kari", &password::hash("correct-horse").unwrap(), 0).await.unwrap());
        let listener = serve::bind("127.0.0.1:0".parse().unwrap(), "web.listen").await.unwrap();
        let (url, stop) = (format!("http://{}", listener.local_addr().unwrap()), CancellationToken::new());
        serve::spawn(listener, serve::Door::Web, api::web(&studio.world.hub), stop.clone());
        let client = reqwest::Client::new();
        let credentials = json!({ "name": "kari", "password": "correct-horse" });
        let token: Value = client.post(format!("{url}/api/v1/login")).json(&credentials).send().await.unwrap().json().await.unwrap();
        Door { url, token: token["token"].as_str().unwrap().to_owned(), client, stop }
    }

    async fn get(&self, path: &str) -> Response {
        self.client.get(format!("{}/api/v1/{path}", self.url)).bearer_auth(&self.token).send().await.unwrap()
    }

    async fn shown(&self, path: &str) -> Value {
        let answer = self.get(path).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        answer.json().await.unwrap()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[tokio::test]
async fn pictures_are_shown_only_to_who_says_why_and_the_reason_is_on_record() {
    each_store(async |world| {
        let mut studio = Studio::new(world);
        studio.post(&[shot(1), shot(2), shot(3)]).await.unwrap();
        let stranger = Batch { device: device(2), ..pictures_batch(1, vec![start(NOW)]) }.seal().unwrap();
        studio.post(&[stranger]).await.unwrap();
        let door = Door::open(&studio).await;
        let day = format!("devices/{}/days/2026-11-23/pictures", device(1));

        let too_long = "x".repeat(201);
        for none in ["", "?reason=", "?reason=+", &format!("?reason={too_long}")] {
            let refused = door.get(&format!("{day}{none}")).await;
            assert_eq!(
                (refused.status(), &refused.headers()["content-type"]),
                (StatusCode::BAD_REQUEST, &"application/problem+json".parse().unwrap())
            );
            let problem: Value = refused.json().await.unwrap();
            assert!(problem["type"] == "urn:muster:problem:reason" && problem["detail"].as_str().unwrap().contains("reason"), "{problem}");
        }
        let list = door.shown(&format!("{day}?reason=Kari+asked")).await;
        let pictures = list["pictures"].as_array().unwrap();
        assert_eq!(pictures.len(), 3);
        let about = json!({
            "area": "monitor", "width": 24, "height": 16, "content_type": "image/webp", "bytes": picture(2).bytes.len(), "blurred": true,
            "why": "interval", "group": "02".repeat(16), "part": 0, "parts": 1, "at": "2026-11-23T09:00:02.000Z",
            "picture": pictures[1]["picture"],
        });
        assert_eq!(pictures[1], about);

        let name = pictures[1]["picture"].as_str().unwrap();
        let path = format!("devices/{}/pictures/{name}", device(1));
        assert_eq!(door.get(&path).await.status(), StatusCode::BAD_REQUEST);
        let request = door.client.get(format!("{}/api/v1/{path}", door.url)).bearer_auth(&door.token);
        let shown = request.header("muster-reason", "Kari asked again").send().await.unwrap();
        let header = |name: &str| shown.headers()[name].to_str().unwrap().to_owned();
        assert_eq!((shown.status(), header("content-type")), (StatusCode::OK, "image/webp".into()));
        assert_eq!((header("x-content-type-options"), header("cache-control")), ("nosniff".into(), "private, no-store".into()));
        assert_eq!(header("content-disposition"), format!("inline; filename=\"{name}.webp\""));
        assert_eq!(header("content-security-policy"), "sandbox; default-src 'none'");
        assert_eq!(shown.bytes().await.unwrap(), picture(2).bytes);

        let looks = door.shown("looks").await;
        let reasons: Vec<_> = looks["looks"].as_array().unwrap().iter().map(|look| (&look["what"], &look["reason"])).collect();
        assert_eq!(reasons, [(&json!("showPicture"), &json!("Kari asked again")), (&json!("listPictures"), &json!("Kari asked"))]);

        // Another device's name doesn't open it, and sounds as one that nobody has.
        let mut refused = Vec::new();
        for (device, name) in [(device(2), name), (device(1), "00112233445566778899aabbccddeeff"), (device(9), name), (device(1), "..%2f1")]
        {
            let answer = door.get(&format!("devices/{device}/pictures/{name}?reason=x")).await;
            refused.push((answer.status(), answer.text().await.unwrap()));
        }
        assert!(refused.iter().all(|one| *one == refused[0] && one.0 == StatusCode::NOT_FOUND), "{refused:?}");
        assert_eq!(door.shown("looks").await["looks"].as_array().unwrap().len(), 2, "nothing was seen");
    })
    .await;
}

#[tokio::test]
async fn a_look_that_cannot_be_written_down_refuses_the_picture() {
    each_store(async |world| {
        let mut studio = Studio::new(world);
        studio.post(&[shot(1)]).await.unwrap();
        let door = Door::open(&studio).await;
        let list = door.shown(&format!("devices/{}/days/2026-11-23/pictures?reason=x", device(1))).await;
        let path = format!("devices/{}/pictures/{}?reason=x", device(1), list["pictures"][0]["picture"].as_str().unwrap());
        studio.world.meddle("ALTER TABLE looks RENAME TO looks_away").await;
        let refused = door.get(&path).await;
        assert_eq!(
            (refused.status(), &refused.headers()["content-type"]),
            (StatusCode::INTERNAL_SERVER_ERROR, &"application/problem+json".parse().unwrap())
        );
        studio.world.meddle("ALTER TABLE looks_away RENAME TO looks").await;
        assert_eq!(door.get(&path).await.status(), StatusCode::OK);
    })
    .await;
}

#[tokio::test]
async fn an_object_that_is_damaged_or_gone_is_never_shown_as_the_picture() {
    let mut studio = Studio::new(World::new().await);
    studio.post(&[shot(1)]).await.unwrap();
    let door = Door::open(&studio).await;
    let hub = &studio.world.hub;
    let kept = hub.store.kept_numbers(device(1), pictures_spool(), 1, 1).await.unwrap();
    let object = &kept[0].objects[0];
    let list = door.shown(&format!("devices/{}/days/2026-11-23/pictures?reason=x", device(1))).await;
    let path = format!("devices/{}/pictures/{}?reason=x", device(1), list["pictures"][0]["picture"].as_str().unwrap());
    let check = async || {
        let asked = json!({ "spools": [{ "device": device(1), "spool": pictures_spool(), "first": 1, "last": 1 }] });
        let request = door.client.post(format!("{}/api/v1/check/spools", door.url)).bearer_auth(&door.token).json(&asked);
        let proof: Value = request.send().await.unwrap().json().await.unwrap();
        proof["spools"][0]["numbers"][0].clone()
    };
    let sent = [Record { at: NOW, kind: Kind::Screenshot(picture(1)) }];
    let sha256: String = muster_mesh::record::digest(&sent).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(check().await, json!({ "seq": 1, "verdict": "stored", "count": 1, "sha256": sha256 }));

    let mut damaged = picture(1).bytes;
    damaged[30] ^= 1;
    hub.objects.put(object, Bytes::from(damaged)).await.unwrap();
    assert_eq!(door.get(&path).await.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_ne!(check().await["sha256"], json!(sha256));
    hub.objects.delete(object).await.unwrap();
    assert_eq!(door.get(&path).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(check().await, json!({ "seq": 1, "verdict": "object_missing", "count": 1 }));
    studio.store.set(Fault::Down);
    assert_eq!(door.get(&path).await.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn titles_are_in_a_days_focus_alone_and_abilities_and_deletions_can_be_read() {
    each_store(async |world| {
        let mut studio = Studio::new(world);
        let able = |at: i64, what: &str, able: bool, why: &str| {
            Record { at, kind: Kind::Capability(Capability { what: what.into(), able, why: why.into() }) }
        };
        let records = vec![focus(NOW, "xterm"), able(NOW - 9, "pictures", false, "muster-shot isn't installed"), able(NOW - 5, "counts", true, "")];
        studio.world.post(&[batch(1, records).seal().unwrap(), batch(2, vec![able(NOW, "pictures", true, "")]).seal().unwrap()]).await;
        studio.post(&[shot(1)]).await.unwrap();
        let door = Door::open(&studio).await;
        let device_path = format!("devices/{}", device(1));

        let day = door.shown(&format!("{device_path}/days/2026-11-23")).await;
        assert_eq!((&day["counts"]["focus"], &day["counts"]["screenshot"]), (&json!(1), &json!(1)));
        assert!(!day.to_string().contains("plan.txt"), "{day}");
        let focus = door.shown(&format!("{device_path}/days/2026-11-23/focus")).await;
        let span = json!({ "from": "2026-11-23T09:00:02.000Z", "length_ms": 900, "application": "xterm", "private": false, "title": "plan.txt", "source": "x11" });
        assert_eq!((&focus["focus"], &focus["zone"]), (&json!([span]), &json!("Europe/Oslo")));

        let abilities = door.shown(&format!("{device_path}/capabilities")).await;
        let shown: Vec<_> = abilities["capabilities"].as_array().unwrap().iter().map(|one| (&one["what"], &one["able"])).collect();
        assert_eq!(shown, [(&json!("counts"), &json!(true)), (&json!("pictures"), &json!(true))]);

        assert_eq!(door.shown("deleted").await, json!({ "deleted": [] }));
        let hub = &studio.world.hub;
        retention::sweep(&hub.store, &hub.objects, NOW + 60 * DAY_MS, Retention::alike(45), 100).await.unwrap();
        let deleted = door.shown("deleted").await;
        let pictures = deleted["deleted"].as_array().unwrap().iter().find(|one| one["kind"] == "screenshot").unwrap_or_else(|| panic!("{deleted}"));
        assert_eq!((&pictures["records"], &pictures["kept_days"]), (&json!(1), &json!(45)));
        assert_eq!(door.shown("looks?limit=100").await["looks"].as_array().unwrap().len(), 3, "counts are nobody's data");
    })
    .await;
}

/// Over real TLS: the slots for POSTs are shared by both lanes, and pictures that wait for the object store must not hold them all.
#[tokio::test]
async fn relays_whose_pictures_wait_leave_the_way_free_for_telemetry() {
    let mut studio = Studio::new(World::new().await);
    // Certificates have the real clock's times.
    studio.world.clock.set_wall(real_ms());
    let folder = studio.world.folder.path().to_owned();
    let ca = Ca::init(&folder.join("ca"), "muster.test").unwrap();
    let keys = |name: &str, signed: muster_certs::Signed, role: Role| {
        let path = folder.join(name);
        muster_certs::files::write_secret(&path.with_extension("key"), signed.key_pem.as_bytes()).unwrap();
        std::fs::write(path.with_extension("pem"), &signed.pem).unwrap();
        Keys::load(&path.with_extension("pem"), &path.with_extension("key"), &ca.roots_path(), role, Arc::new(SystemTime)).unwrap()
    };
    let hub_keys = keys("hub", ca.issue_hub("hub-1").unwrap(), Role::Hub);
    let relay_keys = keys("relay", ca.issue_relay("oslo", "oslo-1").unwrap(), Role::Relay);
    let listener = serve::bind("127.0.0.1:0".parse().unwrap(), "mesh.listen").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let door = serve::Door::mesh(hub_keys, Arc::new(studio.world.clock.clone()), studio.world.hub.control.denied()).unwrap();
    serve::spawn(listener, door, api::mesh(&studio.world.hub), stop.clone());
    let post = |body: Bytes| {
        let tls = client_config(&relay_keys, &Name::Hub { id: "hub-1".into() }, &[b"h2", b"http/1.1"]).unwrap();
        let client = reqwest::Client::builder().tls_backend_preconfigured(tls).resolve(DIALLED_NAME, address).build().unwrap();
        let url = format!("https://{DIALLED_NAME}:{}/sync/1", address.port());
        async move { client.post(url).header("content-type", SYNC_CONTENT_TYPE).body(body).send().await.unwrap().status() }
    };

    studio.store.set(Fault::Hangs);
    let mut waiting: FuturesUnordered<_> = (1..=24).map(|seq| tokio::spawn(post(studio.body(&[shot(seq)])))).collect();
    let refused = async {
        for _ in 0..16 {
            assert_eq!(waiting.next().await.unwrap().unwrap(), StatusCode::SERVICE_UNAVAILABLE);
        }
    };
    tokio::time::timeout(Duration::from_secs(60), refused).await.expect("more than eight POSTs wait for the object store");
    let head = studio.world.head(RELAY, true);
    let facts = facts(studio.world.now_ms()).bytes().unwrap();
    let telemetry = head.body([(&facts[..], &sealed(1).bytes()[..])]).unwrap();
    assert_eq!(post(telemetry).await, StatusCode::OK);
    studio.store.set(Fault::None);
    // All have one number: the first commits, the others are stale.
    let statuses: Vec<_> = waiting.map(Result::unwrap).collect().await;
    assert!(statuses.len() == 8 && statuses.iter().all(|status| [StatusCode::OK, StatusCode::CONFLICT].contains(status)), "{statuses:?}");
    stop.cancel();
}
