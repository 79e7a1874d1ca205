//! Nothing outlives its owner: no task, no socket, no file.

use crate::subject::{Client, Remote, Subject, ms, ready};
use std::{
    fs, thread,
    time::{Duration, Instant},
};
use tokio::runtime::{Builder, Handle, Runtime};

each_alone!(runtimes_leave_no_descriptor: database mariadb sqlite redis http s3);

fn runtimes_leave_no_descriptor<S: Subject>() {
    let own = runtime();
    let server = own.block_on(S::start());
    // What a process opens once is open after the first.
    for client_goes_first in [true, false] {
        work_and_go(&server, client_goes_first);
    }
    let before = descriptors();
    for client_goes_first in [true, false, true, false] {
        work_and_go(&server, client_goes_first);
        // A thread of a driver's, or the other end, may take a moment.
        until(
            || descriptors().len() <= before.len(),
            || format!("{:?} were open, now {:?}", before, descriptors()),
        );
    }
}

/// Every door, in a runtime that then ends.
fn work_and_go<S: Subject>(server: &S, client_goes_first: bool) {
    let runtime = runtime();
    let client = server.client(2, |policy| policy);
    runtime.block_on(async {
        ready(&client).await;
        for door in S::Client::DOORS {
            client.call(door).await.unwrap();
        }
        client.health().await;
    });
    if client_goes_first {
        drop(client);
        drop(runtime);
    } else {
        drop(runtime);
        drop(client);
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// What each open descriptor is.
pub(crate) fn descriptors() -> Vec<String> {
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let what = |link: fs::DirEntry| fs::read_link(link.path()).ok();
    // The directory that is being read is one of them, and gone by now.
    open.filter_map(what)
        .map(|path| path.display().to_string())
        .filter(|p| !p.contains("/fd"))
        .collect()
}

pub(crate) fn until(mut holds: impl FnMut() -> bool, told: impl Fn() -> String) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "{}", told());
        thread::sleep(ms(1));
    }
}

each_alone!(a_client_that_outlives_its_runtimes_holds_nothing_of_them: database mariadb sqlite redis http s3);

fn a_client_that_outlives_its_runtimes_holds_nothing_of_them<S: Subject>() {
    let own = runtime();
    let server = own.block_on(S::start());
    // What a process opens once is open after the first.
    work_and_go(&server, true);
    let before = descriptors();
    let client = server.client(2, |policy| policy);
    for _ in 0..3 {
        let runtime = runtime();
        runtime.block_on(async {
            ready(&client).await;
            for door in S::Client::DOORS {
                client.call(door).await.unwrap();
            }
        });
        drop(runtime);
        until(
            || descriptors().len() <= before.len(),
            || format!("{:?} were open, now {:?}", before, descriptors()),
        );
    }
}

each!(a_dropped_client_leaves_its_runtime_as_it_was: database mariadb redis http s3);

async fn a_dropped_client_leaves_its_runtime_as_it_was<S: Remote>() {
    let server = S::start().await;
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    for _ in 0..3 {
        let client = server.client(2, |policy| policy);
        ready(&client).await;
        for door in S::Client::DOORS {
            client.call(door).await.unwrap();
        }
        client.health().await;
        assert!(server.proxy().live() > 0);
        let name = client.name().to_owned();
        drop(client);
        server.proxy().until("its connections are gone", |proxy| proxy.live() == 0).await;
        let end = Instant::now() + Duration::from_secs(10);
        while tasks() > before {
            assert!(Instant::now() < end, "{name}: {before} tasks were alive, now {}", tasks());
            tokio::task::yield_now().await;
        }
    }
}
