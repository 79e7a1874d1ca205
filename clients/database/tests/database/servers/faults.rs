//! Each fault of a server and of the network to it, for PostgreSQL and for MariaDB: every call ends in
//! its time, and afterwards the pool is whole again.

use super::*;
use futures_util::future::{join_all, try_join_all};
use mainstay_test_support::{
    Proxy,
    proxy::{End, Faults},
    servers::{Program, Server},
};

const SIZE: u32 = 6;
const DEADLINE: Duration = ms(1_500);

type Change<P> = fn(&mut Server<P>, &Proxy);

/// As many connections as there may be, all at once, each of which answers; given back, all are idle.
async fn whole<DB: Backend>(db: &DatabaseClient<DB>, when: &str) {
    // One by one while the breaker probes: a probe that is dropped with the others says nothing.
    until(&format!("it answers {when}"), || async { select(db).await.is_ok() }).await;
    until(&format!("the pool is whole {when}"), || async {
        let all = try_join_all((0..SIZE).map(|_| db.acquire())).await;
        let Ok(mut all) = all else { return false };
        let answers = join_all(all.iter_mut().map(|c| select(c))).await;
        drop(all);
        // What was given up is still open until it is cancelled, and one that comes back is then one
        // too many.
        let status = db.pool_status();
        let is_whole = (status.size, status.idle, status.in_use, status.waiting);
        answers.into_iter().all(|answer| answer.is_ok()) && is_whole == (SIZE, SIZE, 0, 0)
    })
    .await;
}

async fn select<'e, DB, E>(executor: E) -> Result<(), Error>
where
    DB: Backend,
    E: sqlx::Executor<'e, Database = DB>,
{
    sqlx::raw_sql("select 1").execute(executor).await?;
    Ok(())
}

/// What callers do meanwhile: half of them in a transaction.
async fn call<DB: Backend>(db: &DatabaseClient<DB>, n: u32) -> Result<(), Error> {
    if n.is_multiple_of(2) {
        return select(db).await;
    }
    let mut session = db.session().await?;
    select(&mut session).await?;
    session.commit().await
}

async fn comes_back_whole<P: Program, DB: Backend>(mut server: Server<P>) {
    let proxy = Proxy::in_front_of(server.address());
    let db: DatabaseClient<DB> = DatabaseClient::builder()
        .name(format!("faults-{}", DB::NAME))
        .url(Server::<P>::url_at(proxy.addr()))
        .max_connections(SIZE)
        .policy(|p| {
            let p = p.timeout(ms(500)).deadline(DEADLINE).base_delay(ms(5)).max_delay(ms(50));
            p.recovery_timeout(ms(100)).ramp(false)
        })
        .build()
        .unwrap();
    let faults: [(&str, Change<P>, Change<P>); 9] = [
        ("killed", |server, _| server.kill(), |server, _| server.restart()),
        ("restarted", |server, _| server.restart(), |_, _| {}),
        ("stopped", |server, _| server.stop(), |server, _| server.restart()),
        ("hung", |server, _| server.hang(), |server, _| server.resume()),
        ("refused", |_, proxy| (proxy.refuse(), proxy.cut()).1, |_, proxy| proxy.listen()),
        ("cut", |_, proxy| proxy.cut(), |_, _| {}),
        ("reply lost", |_, proxy| proxy.lose_next_reply(), |_, _| {}),
        ("held", |_, proxy| proxy.set(Faults::hold), |_, proxy| (proxy.heal(), proxy.cut()).1),
        (
            "half-closed",
            |_, proxy| proxy.set(|faults| faults.replies.after = Some((0, End::HalfClose))),
            |_, proxy| (proxy.heal(), proxy.cut()).1,
        ),
    ];
    for (name, start, end) in faults {
        whole(&db, &format!("before it is {name}")).await;
        let mut held = db.session().await.unwrap();
        start(&mut server, &proxy);
        let calls = (0..3 * SIZE).map(|n| {
            let db = &db;
            async move {
                let started = Instant::now();
                let end = call(db, n).await;
                // A session's statements have each their own limit.
                let (took, most) = (started.elapsed(), 3 * DEADLINE);
                assert!(took < most, "{}, {name}: {took:?}: {end:?}", DB::NAME);
                end
            }
        });
        let ends = join_all(calls).await;
        let failed = ends.iter().filter(|end| end.is_err()).count();
        let _ = select(&mut held).await;
        drop(held);
        end(&mut server, &proxy);
        let back = Instant::now();
        whole(&db, &format!("after it was {name}")).await;
        println!(
            "{} {name}: {failed} of {} failed, whole again after {:?}",
            DB::NAME,
            ends.len(),
            back.elapsed()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_of_postgres_is_whole_after_each_fault() {
    comes_back_whole::<_, sqlx::Postgres>(Postgres::start()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_of_mariadb_is_whole_after_each_fault() {
    comes_back_whole::<_, sqlx::MySql>(Mariadb::start()).await;
}
