//! Async: the keys under people's tokens: any hub of a database takes what any of them signed, and none what an ended key signed.
#![allow(clippy::unwrap_used)]

mod world;

use std::os::unix::fs::PermissionsExt;

use muster_hub::token::{Caller, LIFE_S, TokenError, Tokens};
use world::*;

#[tokio::test]
async fn a_token_of_one_hub_counts_at_every_hub() {
    each_store(async |world: World| {
        let (one, other) = (hub(&world, "one").await, hub(&world, "other").await);
        let token = other.issue(&kari(), NOW).unwrap();
        // That one made its key after the other had looked, a moment ago: it looks once more, but not for every token.
        assert_eq!(one.check(&token, NOW).await, Err(TokenError));
        assert_eq!(one.check(&token, NOW + 1_000).await, Ok(kari()));
        assert_eq!(other.check(&one.issue(&kari(), NOW).unwrap(), NOW).await, Ok(kari()));
        assert_ne!(one.kid(), other.kid());
    })
    .await;
}

#[tokio::test]
async fn what_an_ended_key_signed_counts_nowhere_and_its_hub_makes_another() {
    each_store(async |world: World| {
        let (one, other) = (hub(&world, "one").await, hub(&world, "other").await);
        let (stolen, honest) = (one.issue(&kari(), NOW).unwrap(), other.issue(&kari(), NOW).unwrap());
        let ended = one.kid();
        assert!(world.hub.store.end_token_key(&ended, NOW).await.unwrap());
        assert!(!world.hub.store.end_token_key(&ended, NOW).await.unwrap());
        for hub in [&one, &other] {
            hub.look(NOW + 1_000).await.unwrap();
            assert_eq!(hub.check(&stolen, NOW + 1_000).await, Err(TokenError));
            assert_eq!(hub.check(&honest, NOW + 1_000).await, Ok(kari()), "another hub's key was ended with it");
        }
        assert_ne!(one.kid(), ended);
        let again = one.issue(&kari(), NOW + 2_000).unwrap();
        assert_eq!(other.check(&again, NOW + 2_000).await, Ok(kari()));
        // The key in its folder is the new one.
        assert_eq!(hub(&world, "one").await.kid(), one.kid());
    })
    .await;
}

#[tokio::test]
async fn a_key_is_replaced_in_time_and_nobody_is_signed_out_by_that() {
    each_store(async |world: World| {
        let tokens = hub(&world, "one").await;
        let first = tokens.kid();
        let at = NOW + 30 * DAY_MS - 1_000;
        tokens.look(at).await.unwrap();
        assert_eq!(tokens.kid(), first);
        let token = tokens.issue(&kari(), at).unwrap();
        tokens.look(at + 1_000).await.unwrap();
        assert_ne!(tokens.kid(), first);
        assert_eq!(tokens.check(&token, at + LIFE_S * 1_000 - 1_000).await, Ok(kari()));
        // Afterwards the old one is good for nothing: neither is a token that it would sign now.
        let rows = world.hub.store.token_keys(at + LIFE_S * 1_000 + 61_000, 100).await.unwrap();
        assert!(rows.iter().all(|row| row.kid != first));
    })
    .await;
}

#[tokio::test]
async fn a_backup_brings_no_ended_key_back() {
    each_store(async |world: World| {
        let tokens = hub(&world, "one").await;
        let token = tokens.issue(&kari(), NOW).unwrap();
        let restored = Tokens::open(world.hub.store.clone(), &world.folder.path().join("one"), true, NOW).await.unwrap();
        assert_eq!(restored.check(&token, NOW + 1_000).await, Err(TokenError));
        assert_eq!(restored.check(&restored.issue(&kari(), NOW).unwrap(), NOW).await, Ok(kari()));
    })
    .await;
}

#[tokio::test]
async fn the_key_is_made_once_and_only_the_owner_reads_it() {
    let world = World::new().await;
    let path = world.folder.path().join("one");
    let first = hub(&world, "one").await.kid();
    assert_eq!(hub(&world, "one").await.kid(), first);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::write(&path, "no key").unwrap();
    let refused = Tokens::open(world.hub.store.clone(), &path, false, NOW).await;
    assert!(refused.is_err_and(|complaint| complaint.to_string().contains("Put") && complaint.to_string().contains("right")));
}

async fn hub(world: &World, name: &str) -> Tokens {
    Tokens::open(world.hub.store.clone(), &world.folder.path().join(name), false, NOW).await.unwrap()
}

fn kari() -> Caller {
    Caller { admin_id: 7, name: "kari".into() }
}
