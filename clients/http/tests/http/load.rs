//! Many requests at once through a network that fails: no POST is done twice, and no GET fails.

use crate::server::{Server, Step, answer, builder};
use mainstay_policy::Effect;
use mainstay_test_support::Proxy;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::task::JoinSet;

const TASKS: usize = 32;
const MS: Duration = Duration::from_millis(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_posts_are_each_done_at_most_once() {
    const POSTS: usize = 10_000;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let draws = Mutex::new(fastrand::Rng::with_seed(seed));
    let done: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let effects = Arc::clone(&done);
    let server = Server::scripted(move |_, request| {
        let draw = draws.lock().unwrap().u32(..100);
        let id = request.rsplit("\r\n\r\n").next().unwrap().to_owned();
        // Before the work is done.
        match draw {
            0 => return Step::Close(Vec::new()),
            1 => return Step::Keep(answer("429 Later", "retry-after: 0\r\n", "")),
            2 => return Step::Keep(answer("425 Too Early", "", "")),
            3 => return Step::Reset(answer("503 Busy", "", "")),
            _ => {}
        }
        *effects.lock().unwrap().entry(id).or_default() += 1;
        let created = answer("201 Created", "", "[1,2,3]");
        match draw {
            4 => Step::Close(Vec::new()),
            5 => Step::Reset(Vec::new()),
            6 => Step::Close(b"HTTP/1.1 201 Cre".to_vec()),
            7 => Step::Close(created[..created.len() - 3].to_vec()),
            8 => Step::Keep(answer("500 Broken", "", "")),
            9 => Step::Keep(answer("504 Late", "", "")),
            // A keep-alive that ends without a word.
            10..20 => Step::Close(created),
            _ => Step::Keep(created),
        }
    })
    .await;
    let proxy = Arc::new(Proxy::in_front_of(server.address));
    let client = builder(&format!("http://{}", proxy.addr()))
        .policy(|p| {
            p.max_attempts(5)
                .base_delay(MS)
                .max_delay(5 * MS)
                .enable_circuit_breaker(false)
                .enable_budget(false)
        })
        .build()
        .unwrap();
    let (mut tasks, ends) = (JoinSet::new(), Arc::new(Mutex::new(HashMap::new())));
    for task in 0..TASKS {
        let (client, ends, proxy) = (client.clone(), Arc::clone(&ends), Arc::clone(&proxy));
        tasks.spawn(async move {
            for n in (task..POSTS).step_by(TASKS) {
                match n % 500 {
                    0 => proxy.cut(),
                    250 => proxy.lose_next_reply(),
                    _ => {}
                }
                let id = format!("post-{n}");
                let end = client.post("x").body(id.clone()).await;
                let end = end.map_err(|error| error.effect());
                ends.lock().unwrap().insert(id, end.map(|response| response.status().as_u16()));
            }
        });
    }
    tasks.join_all().await;
    let (done, ends) = (done.lock().unwrap(), ends.lock().unwrap());
    let (mut acked, mut unknown, mut not_done) = (0, 0, 0);
    for (id, end) in &*ends {
        let times = done.get(id).copied().unwrap_or_default();
        match end {
            Ok(201) => {
                acked += 1;
                assert_eq!(times, 1, "{id} was acknowledged; seed {seed}");
            }
            Err(Effect::Unknown) => {
                unknown += 1;
                assert!(times <= 1, "{id} was done {times} times; seed {seed}");
            }
            end => {
                not_done += 1;
                assert_eq!(times, 0, "{id} ended as {end:?}; seed {seed}");
            }
        }
    }
    println!("{acked} acknowledged, {unknown} unknown, {not_done} known not to be done");
    assert_eq!(ends.len(), POSTS);
    assert!(acked > 8_000 && unknown > 100, "{acked} {unknown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_closes_its_connections_costs_no_idempotent_request() {
    // Closed without a word after one answer in three, or in mid-answer after one in fifty.
    let whole = answer("200 OK", "", "[1,2,3]");
    let server = Server::scripted(move |n, _| match n {
        n if n % 50 == 0 => Step::Close(whole[..20].to_vec()),
        n if n % 3 == 0 => Step::Close(whole.clone()),
        _ => Step::Keep(whole.clone()),
    })
    .await;
    let client = server
        .builder()
        .policy(|p| p.base_delay(MS).max_delay(5 * MS).without_slow_rate().without_failure_rate());
    let client = client.build().unwrap();
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let client = client.clone();
        tasks.spawn(async move {
            for n in 0..100 {
                let request =
                    if (task + n) % 2 == 0 { client.get("x") } else { client.put("x").body("1") };
                let numbers: Vec<u8> = request.await.unwrap().json().unwrap();
                assert_eq!(numbers, [1, 2, 3]);
            }
        });
    }
    tasks.join_all().await;
    assert!(server.seen() >= TASKS * 100);
}
