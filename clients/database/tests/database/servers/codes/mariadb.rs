use super::*;

#[tokio::test]
async fn its_answers() {
    type My = sqlx::MySql;
    let server = Mariadb::start_with(&[
        "--max-connections=10",
        "--max-user-connections=8",
        "--secure-file-priv=/usr",
    ]);
    let name = "codes-maria";
    let db: MySqlDatabase = once(name, &server.url());
    let referee: MySqlDatabase = client("codes-maria-referee", server.url());
    run(&db, "create table t (id int primary key, n int) engine=innodb").await.unwrap();
    run(&db, "insert into t values (1, 0), (2, 0)").await.unwrap();
    judge::<My>(name, "23000", run(&db, "insert into t values (1, 1)"), OWN_FAULT).await;
    judge::<My>(name, "42S02", run(&db, "select * from nowhere"), OWN_FAULT).await;
    judge::<My>(name, "42000", run(&db, "selec 1"), OWN_FAULT).await;
    // 1290, which is also that of a server that takes no writes, below.
    judge::<My>(name, "HY000", run(&db, "select 1 into outfile '/tmp/x'"), OWN_FAULT).await;
    let slow = "set statement max_statement_time = 0.02 for select sleep(9) from t";
    judge::<My>(name, "70100", run(&db, slow), ILL).await;
    // 1205, whose SQLSTATE says nothing.
    let mut other = referee.session().await.unwrap();
    sqlx::query("update t set n = 1 where id = 1").execute(&mut other).await.unwrap();
    let wait = "set statement innodb_lock_wait_timeout = 1 for update t set n = 2 where id = 1";
    judge::<My>(name, "HY000", run(&db, wait), CONFLICT).await;
    // 1317: a statement that waits is killed by somebody else.
    let kill = async {
        let waits =
            "select id from information_schema.processlist where info like 'update t set n = 3%'";
        let who = || async {
            let who = sqlx::query_scalar::<_, i64>(waits).fetch_optional(&referee);
            who.await.unwrap()
        };
        until("it waits", || async { who().await.is_some() }).await;
        run(&referee, &format!("kill query {}", who().await.unwrap())).await.unwrap();
    };
    let killed = judge::<My>(name, "70100", run(&db, "update t set n = 3 where id = 1"), ILL);
    tokio::join!(killed, kill);
    other.rollback().await.unwrap();
    // 1020: what was read is no longer as it was.
    let conflict = db.transaction(async |tx| {
        sqlx::query("set innodb_snapshot_isolation = on").execute(&mut *tx).await?;
        sqlx::query("select * from t").execute(&mut *tx).await?;
        sqlx::query("update t set n = n + 1 where id = 2").execute(&referee).await?;
        sqlx::query("update t set n = n + 1 where id = 2").execute(&mut *tx).await?;
        Ok::<_, Error>(())
    });
    judge::<My>(name, "HY000", conflict, CONFLICT).await;
    // 1153: the server refuses the packet, and hangs up.
    run(&referee, "set global max_allowed_packet = 1048576").await.unwrap();
    let name = "codes-maria-packet";
    let fresh: MySqlDatabase = once(name, &server.url());
    let large = format!("select length('{}')", "x".repeat(2_000_000));
    // It does so while we send: what it says may be overtaken by the reset.
    let mut tries = 0;
    loop {
        let before = counts(name);
        let refused = run(&fresh, &large).await.unwrap_err();
        if code_of(&refused) == "08S01" {
            assert_eq!(refused.effect(), OWN_FAULT.0, "{}", text(&refused));
            let after = counts(name);
            assert_eq!((after.0 - before.0, after.1), (1, before.1), "the server answered");
            break;
        }
        // Or, on the next connection, that it is still clearing the last one away.
        let known = matches!(refused.effect(), Effect::Unknown | Effect::NeverSent);
        tries += 1;
        assert!(known && tries < 200, "the server never said why it hung up: {}", text(&refused));
    }
    until_at_rest(&fresh).await;
    assert_eq!(fresh.pool_status().idle, 0, "a connection that is closed was kept");
    run(&fresh, "select 1").await.unwrap();

    let url = server.url().replace("root@", "stranger@");
    let name = "codes-maria-stranger";
    judge::<My>(name, "28000", run(&once::<My>(name, &url), "select 1"), REFUSED).await;
    let url = server.url().replace("/mysql?", "/nowhere?");
    let name = "codes-maria-nodb";
    judge::<My>(name, "42000", run(&once::<My>(name, &url), "select 1"), REFUSED).await;

    // A server that takes no writes, for those who are no administrators.
    run(&referee, "create user writer identified by ''").await.unwrap();
    run(&referee, "grant all on mysql.* to writer").await.unwrap();
    run(&referee, "set global read_only = 1").await.unwrap();
    let url = server.url().replace("root@", "writer@");
    let name = "codes-maria-readonly";
    let writer: MySqlDatabase = once(name, &url);
    judge::<My>(name, "HY000", run(&writer, "insert into t values (5, 5)"), ILL).await;
    run(&referee, "set global read_only = 0").await.unwrap();
    run(&writer, "insert into t values (5, 5)").await.unwrap();

    // 1044: a database that is there, and not for this user.
    run(&referee, "create database secret").await.unwrap();
    let name = "codes-maria-secret";
    let secret: MySqlDatabase = once(name, &url.replace("/mysql?", "/secret?"));
    judge::<My>(name, "42000", run(&secret, "select 1"), REFUSED).await;

    // 1203 and 1040: no connection is left, for this user or for anybody. The server counts one that
    // ends, or that it refuses, until it has cleared it away.
    for done in [&db, &fresh, &writer, &secret] {
        done.close(ms(10_000)).await;
    }
    let open = "select count(*) from information_schema.processlist";
    let only = async |held: usize| {
        until("only these connections are there", || async {
            let open: i64 = sqlx::query_scalar(open).fetch_one(&referee).await.unwrap();
            open == i64::from(referee.pool_status().size) + held as i64
        })
        .await;
    };
    only(0).await;
    let hog: MySqlDatabase = DatabaseClient::builder()
        .name("codes-maria-hog")
        .url(&url)
        .max_connections(20)
        .connect_timeout(ms(10_000))
        .policy(|p| p.max_attempts(1))
        .build()
        .unwrap();
    let mut held = Vec::new();
    while let Ok(connection) = hog.acquire().await {
        held.push(connection);
    }
    let name = "codes-maria-many";
    let late: MySqlDatabase = once(name, &url);
    judge::<My>(name, "42000", run(&late, "select 1"), ILL).await;
    only(held.len()).await;
    run(&referee, "set global max_user_connections = 1000").await.unwrap();
    while let Ok(connection) = hog.acquire().await {
        held.push(connection);
    }
    let started = Instant::now();
    // Whoever refuses it, the listener or the thread that was to serve it, says 1040; only one of them
    // adds an SQLSTATE.
    judge::<My>(name, "08004|", run(&late, "select 1"), ILL).await;
    assert!(started.elapsed() < ms(4_000));
    drop(held);
    hog.close(ms(10_000)).await;
    until("there is a connection again", || async { run(&late, "select 1").await.is_ok() }).await;
}

/// 1114: the tables' file may not grow.
#[tokio::test]
async fn it_has_no_room_left() {
    type My = sqlx::MySql;
    let full = ["--innodb-data-file-path=ibdata1:12M", "--innodb-file-per-table=0"];
    let server = Mariadb::start_with(&full);
    let name = "codes-maria-full";
    let db: MySqlDatabase = once(name, &server.url());
    run(&db, "create table large (n longblob) engine=innodb").await.unwrap();
    let fill = "insert into large select repeat('x', 4000) from seq_1_to_5000";
    judge::<My>(name, "HY000", run(&db, fill), ILL).await;
    // Nothing of it is there, and the server goes on.
    let rows: i64 = sqlx::query_scalar("select count(*) from large").fetch_one(&db).await.unwrap();
    assert_eq!(rows, 0);
    run(&db, "insert into large values ('x')").await.unwrap();
}

/// The connection is killed by an operator while it works, and while it waits in a transaction.
#[tokio::test]
async fn it_kills_connections() {
    let db: MySqlDatabase = once("codes-maria-killed", &MARIADB.url());
    let referee = mariadb("codes-maria-killed-referee");
    for at_work in [true, false] {
        let mut session = db.session().await.unwrap();
        let id = sqlx::query_scalar("select connection_id()");
        let id: u64 = id.fetch_one(&mut session).await.unwrap();
        let kill = async {
            until("it sleeps", || async {
                let asleep = "select count(*) from information_schema.processlist \
                              where id = ? and info like 'do sleep%'";
                let asleep = sqlx::query_scalar::<_, i64>(asleep).bind(id);
                !at_work || asleep.fetch_one(&referee).await.unwrap() == 1
            })
            .await;
            run(&referee, &format!("kill {id}")).await.unwrap();
        };
        let error = if at_work {
            let work = sqlx::raw_sql("do sleep(60)").execute(&mut session);
            tokio::join!(work, kill).0.unwrap_err()
        } else {
            kill.await;
            sqlx::raw_sql("do 1").execute(&mut session).await.unwrap_err()
        };
        let error = Error::from(error);
        println!("killed, at work {at_work}: {}", text(&error));
        assert!(!error.is_outcome_unknown(), "{}", text(&error));
        let refused = session.commit().await.unwrap_err();
        assert!(!refused.is_outcome_unknown(), "{}", text(&refused));
        run(&db, "do 1").await.unwrap();
    }
    until_at_rest(&db).await;
}

/// 1226 has two meanings: so many connections, or so many statements in an hour.
#[tokio::test]
async fn a_quota_of_statements_is_no_lack_of_connections() {
    type My = sqlx::MySql;
    let name = "codes-maria-quota";
    let referee = mariadb("codes-maria-quota-referee");
    let limited = "create user limited identified by '' with max_queries_per_hour 20";
    run(&referee, limited).await.unwrap();
    run(&referee, "grant all on mysql.* to limited").await.unwrap();
    let db: MySqlDatabase = once(name, &MARIADB.url().replace("root@", "limited@"));
    let mut last = Ok(());
    for _ in 0..20 {
        last = run(&db, "select 1").await;
    }
    let words = text(&last.unwrap_err());
    assert!(words.contains("no more connections or work"), "{words}");
    judge::<My>(name, "42000", run(&db, "select 1"), ILL).await;
}
