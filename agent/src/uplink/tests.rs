//! Async: how long the uplink waits, and when it takes another computer for itself. The rest is shown over real sockets in `tests/hop`.

use muster_mesh::{
    clock::{ManualClock, Reading},
    ids::BootId,
};

use super::*;

fn replaced() -> SessionEnd {
    SessionEnd::Closed(Ended::ByPeer { code: Some(CloseCode::Replaced), number: 2, text: String::new() })
}

#[test]
fn retries_wait_up_to_twice_as_long_each_time_and_never_more_than_a_minute() {
    let mut tries = Tries::default();
    let mut waits = Vec::new();
    for _ in 0..7 {
        tries.ended(Duration::ZERO, &SessionEnd::NoWelcome, 0);
        waits.push(tries.next_wait(1.0).as_secs());
    }
    assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60]);
    assert_eq!(tries.next_wait(0.5).as_secs(), 30);
    tries.ended(GOOD_AFTER, &SessionEnd::NoWelcome, 0);
    assert_eq!(tries.next_wait(1.0), RETRY_FIRST);
}

#[test]
fn a_connection_that_is_taken_away_again_and_again_is_a_clones() {
    let mut tries = Tries::default();
    for minute in 0..20 {
        tries.ended(Duration::from_secs(30), &replaced(), minute * 30_000);
        assert!(!tries.is_cloned(), "now and then is no alarm");
    }
    let mut tries = Tries::default();
    for second in 0..3 {
        tries.ended(Duration::ZERO, &replaced(), second * 10_000);
        assert!(!tries.is_cloned());
    }
    tries.ended(Duration::ZERO, &replaced(), 40_000);
    assert!(tries.is_cloned() && !tries.is_cloned());
}

#[test]
fn a_wake_dials_soon() {
    let mut tries = Tries::default();
    (0..5).for_each(|_| tries.ended(Duration::ZERO, &SessionEnd::NoWelcome, 0));
    tries.ended(Duration::ZERO, &SessionEnd::Woken, 0);
    assert!(tries.next_wait(1.0) <= RETRY_FIRST);
}

#[test]
fn a_guest_looks_for_its_own_relay_again_and_who_is_at_home_stays() {
    assert_eq!(visit(Some("oslo"), Some("oslo")), None);
    let lengths: Vec<Duration> = (0..100).map(|_| visit(Some("oslo"), Some("bergen")).unwrap()).collect();
    assert!(lengths.iter().all(|length| (GUEST_FOR..2 * GUEST_FOR).contains(length)));
    assert!(lengths.iter().any(|length| *length != lengths[0]), "a whole branch would leave together");
}

#[tokio::test]
async fn another_network_and_a_sleep_wake_whoever_waits() {
    let clock = ManualClock::new(Reading { wall_ms: 0, boot_ms: 0 }, BootId([1; 16]));
    let network = Arc::new(Mutex::new(vec![IpAddr::from([10, 0, 0, 7])]));
    let (wake, stop, every) = (Arc::new(Notify::new()), CancellationToken::new(), Duration::from_millis(1));
    let seen = {
        let network = network.clone();
        move || network.lock().unwrap().clone()
    };
    let watching = tokio::spawn(watch_for_wakes(Arc::new(clock.clone()), seen, every, wake.clone(), stop.clone()));
    let woken = |change: fn(&ManualClock, &Mutex<Vec<IpAddr>>)| {
        let (wake, clock, network) = (wake.clone(), clock.clone(), network.clone());
        async move {
            let mut woken = pin!(wake.notified());
            woken.as_mut().enable();
            // The watch has looked at what was before.
            sleep(Duration::from_millis(50)).await;
            assert!(timeout(Duration::ZERO, woken.as_mut()).await.is_err(), "woken by nothing");
            change(&clock, &network);
            timeout(Duration::from_secs(60), woken).await.expect("nobody was woken");
        }
    };
    woken(|_, network| *network.lock().unwrap() = vec![IpAddr::from([192, 168, 1, 7])]).await;
    woken(|clock, _| clock.advance(60_000)).await;
    stop.cancel();
    watching.await.unwrap();
}
