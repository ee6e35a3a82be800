//! What the runtime promises, without any cluster.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sim::{
    network::{CallFailure, LinkQuality, Network},
    runtime::{Owner, World},
};

const LIMIT: Duration = Duration::from_secs(60);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Three nodes that chat over rough links; the hash of what happened.
fn chatter(seed: u64) -> (u64, u64) {
    let world = World::new(seed, 3);
    let network = Network::new(world.clone());
    network.set_quality(LinkQuality::ROUGH);
    let heard = Arc::new(AtomicU64::new(0));
    for node in 0..3 {
        let owner = world.boot(node);
        let (world, network, heard) = (world.clone(), network.clone(), heard.clone());
        world.clone().spawn(owner, async move {
            loop {
                world.sleep(owner, ms(5)).await;
                let heard = heard.clone();
                network.send(node, (node + 1) % 3, "chat", 0, move || {
                    heard.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
    }
    world.run(LIMIT, || heard.load(Ordering::Relaxed) >= 1000).unwrap();
    let hash = world.trace_hash();
    world.shut_down();
    hash
}

#[test]
fn a_seed_repeats_and_seeds_differ() {
    assert_eq!(chatter(7), chatter(7));
    assert_ne!(chatter(7).0, chatter(8).0);
}

#[test]
fn ready_tasks_run_in_a_seeded_order() {
    let order = |seed: u64| {
        let world = World::new(seed, 0);
        let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
        for n in 0..8 {
            let seen = seen.clone();
            world.spawn(Owner::Harness, async move { seen.lock().push(n) });
        }
        let all = seen.clone();
        world.run(LIMIT, move || all.lock().len() == 8).unwrap();
        std::mem::take(&mut *seen.lock())
    };
    assert_eq!(order(1), order(1));
    assert!((2..20).any(|seed| order(seed) != order(1)));
}

#[test]
fn a_panic_fails_the_run_with_its_message() {
    let world = World::new(1, 0);
    world.spawn(Owner::Harness, async { panic!("on purpose") });
    let error = world.run(LIMIT, || false).unwrap_err();
    assert!(error.contains("on purpose"), "{error}");
}

#[test]
fn waiting_for_ever_fails_the_run() {
    let world = World::new(1, 0);
    world.spawn(Owner::Harness, std::future::pending());
    let error = world.run(LIMIT, || false).unwrap_err();
    assert!(error.contains("waits for ever"), "{error}");
}

#[test]
fn a_crash_ends_tasks_and_events_of_that_life_only() {
    let world = World::new(1, 2);
    let beats = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    for node in 0..2 {
        let owner = world.boot(node);
        let (world, beats) = (world.clone(), beats.clone());
        world.clone().spawn(owner, async move {
            loop {
                world.sleep(owner, ms(10)).await;
                beats[node].fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let crasher = world.clone();
    world.schedule(Owner::Harness, ms(55), "crash", 0, move || crasher.crash(0));
    let watched = beats.clone();
    world.run(LIMIT, || watched[1].load(Ordering::Relaxed) == 20).unwrap();
    assert_eq!(beats[0].load(Ordering::Relaxed), 5);
    world.shut_down();
}

#[test]
fn a_paused_node_goes_on_later() {
    let world = World::new(1, 1);
    let owner = world.boot(0);
    world.pause(0, ms(500));
    let (at, waker) = (Arc::new(AtomicU64::new(0)), world.clone());
    let noted = at.clone();
    world.spawn(owner, async move {
        waker.sleep(owner, ms(10)).await;
        noted.store(waker.now().as_millis() as u64, Ordering::Relaxed);
    });
    let seen = at.clone();
    world.run(LIMIT, || seen.load(Ordering::Relaxed) > 0).unwrap();
    assert_eq!(at.load(Ordering::Relaxed), 500);
}

#[test]
fn calls_end_when_the_callee_dies_or_is_not_there() {
    let world = World::new(1, 2);
    let network = Network::new(world.clone());
    let caller = world.boot(0);
    let ends = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let (noted, calling, life) = (ends.clone(), network.clone(), world.clone());
    world.spawn(caller, async move {
        let nobody = calling.call(0, 1, "call", || async { 1 }).await;
        noted.lock().push(nobody);
        life.boot(1);
        let answered = calling.call(0, 1, "call", || async { 2 }).await;
        noted.lock().push(answered);
        let crash = life.clone();
        life.schedule(Owner::Harness, ms(50), "crash", 0, move || crash.crash(1));
        let died = calling.call(0, 1, "call", std::future::pending::<i32>).await;
        noted.lock().push(died);
    });
    let seen = ends.clone();
    world.run(LIMIT, || seen.lock().len() == 3).unwrap();
    assert_eq!(*ends.lock(), vec![Err(CallFailure::Unreachable), Ok(2), Err(CallFailure::Lost)]);
    world.shut_down();
}
