use super::*;
use crate::process::{again, within_limit};
use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    os::unix::fs::PermissionsExt,
    process::Stdio,
};

fn refuses<P: Program>(server: &Server<P>) -> bool {
    let connected = TcpStream::connect(server.address());
    connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// The kernel accepts for a server that hangs; only an answer shows that it does not.
fn is_silent<P: Program>(server: &Server<P>) -> bool {
    let stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    P::is_ready(stream).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

fn lives_hangs_dies_and_lives_again<P: Program>() {
    let mut server = Server::<P>::start();
    let address = server.address();
    let dir = server.dir.path().to_owned();
    server.hang();
    assert!(is_silent(&server));
    server.resume();
    assert!(ready::<P>(address).unwrap());

    server.kill();
    assert!(refuses(&server));
    server.restart();
    assert!(ready::<P>(address).unwrap());

    server.hang();
    server.stop();
    assert!(refuses(&server));
    server.restart();
    assert!(ready::<P>(address).unwrap());

    server.hang();
    drop(server);
    assert!(!dir.exists());
}

#[test]
fn postgres_lives_hangs_dies_and_lives_again() {
    lives_hangs_dies_and_lives_again::<postgres::Postgres>();
}

#[test]
fn mariadb_lives_hangs_dies_and_lives_again() {
    lives_hangs_dies_and_lives_again::<mariadb::Mariadb>();
}

#[test]
fn a_cluster_moves_a_slot_and_replaces_a_master() {
    let mut cluster = RedisCluster::start(3, true);
    let key = cluster.key_of(0, 0);
    assert!(cluster.nodes[0].say(&format!("SET {key} 1")).starts_with("+OK"));
    let moving = cluster.start_to_move(cluster.slot(&key), 0, 1);
    moving.key(&key);
    assert!(cluster.nodes[0].say(&format!("GET {key}")).starts_with("-ASK "));
    moving.finish();
    assert!(cluster.nodes[0].say(&format!("GET {key}")).starts_with("-MOVED "));
    assert_eq!(cluster.nodes[1].say(&format!("GET {key}")), "$1\r\n1\r\n");
    cluster.nodes[2].kill();
    let replaced = || cluster.nodes[5].say("ROLE").contains("master");
    assert!(within_limit(replaced), "no failover: {}", cluster.nodes[5].say("CLUSTER NODES"));
}

#[test]
fn sentinels_replace_a_master() {
    let mut redis = RedisSentinels::start();
    redis.servers[0].kill();
    redis.until_replaced();
}

#[test]
fn redis_lives_hangs_dies_and_lives_again() {
    lives_hangs_dies_and_lives_again::<redis::Redis>();
}

/// A connection on which a query was just sent.
fn asked(server: &Postgres, query: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    let startup = b"\0\0\0\x17\0\x03\0\0user\0postgres\0\0";
    stream.write_all(startup).unwrap();
    // Ready for a query, in a transaction or not: the last of its answers to a startup.
    let mut seen = Vec::new();
    while !seen.ends_with(b"Z\0\0\0\x05I") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    let length = u32::try_from(query.len() + 5).unwrap();
    stream.write_all(b"Q").unwrap();
    stream.write_all(&length.to_be_bytes()).unwrap();
    stream.write_all(query.as_bytes()).unwrap();
    stream.write_all(&[0]).unwrap();
    stream
}

#[test]
fn a_postgres_that_hangs_answers_on_no_connection() {
    let mut server = Postgres::start();
    let mut stream = asked(&server, "select 1 from pg_sleep(3)");
    server.hang();
    stream.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    let silent = stream.read(&mut [0]).unwrap_err();
    assert_eq!(silent.kind(), ErrorKind::WouldBlock);
    server.resume();
    stream.set_read_timeout(None).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 1);
}

/// A backend that works would outlive its postmaster, and forbid the next one the shared memory.
#[test]
fn a_postgres_killed_in_mid_work_starts_again_at_once() {
    let mut server = Postgres::start();
    let mut stream = asked(&server, "select count(*) from generate_series(1, 1000000000)");
    server.kill();
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    server.restart();
}

#[test]
fn the_referee_reads_whole_answers() {
    let redis = Redis::start();
    let long = "x".repeat(60_000);
    assert_eq!(redis.say(&format!("SET k {long}")), "+OK\r\n");
    assert_eq!(redis.say("GET k"), format!("$60000\r\n{long}\r\n"));
    assert_eq!(redis.say("GET none"), "$-1\r\n");
    assert_eq!(redis.say("DEL k"), ":1\r\n");
}

#[test]
#[should_panic(expected = "Bad directive or wrong number of arguments")]
fn a_server_that_does_not_start_says_why() {
    let _ = Redis::start_with(&["--nonsense", "yes"]);
}

/// Runs itself again, and kills that.
#[test]
fn a_process_that_is_killed_leaves_nothing_behind() {
    const NAME: &str = "servers::tests::a_process_that_is_killed_leaves_nothing_behind";
    if std::env::var_os("INNER").is_some() {
        // From a thread that ends: the servers must outlive it.
        let servers = thread::spawn(|| (Postgres::start(), Redis::start())).join().unwrap();
        let (mut postgres, redis) = servers;
        assert!(ready::<redis::Redis>(redis.address()).unwrap());
        // Its children are forked by it, not by us, and cannot notice that it died.
        postgres.hang();
        println!("ready");
        loop {
            thread::park();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    // For `nobody` too.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut inner = again(NAME);
    inner.env("INNER", "1").env("TMPDIR", dir.path()).stdout(Stdio::piped());
    let mut inner = inner.spawn().unwrap();
    let lines = BufReader::new(inner.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("ready")), "it failed");
    let living = || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let of_it = |path: &Path| {
            fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir.path()))
        };
        processes.filter(|process| of_it(&process.path())).count()
    };
    assert!(living() >= 2 + 3, "a redis-server, a postmaster and its children");
    inner.kill().unwrap();
    inner.wait().unwrap();
    assert!(within_limit(|| living() == 0), "{} still run", living());
    let left = || fs::read_dir(dir.path()).unwrap().count();
    assert!(within_limit(|| left() == 0), "{} directories are left", left());
}

#[test]
fn a_standby_follows_and_a_pooler_lends() {
    let server = Server::<postgres::Postgres>::start();
    let standby = server.standby();
    assert!(ready::<postgres::Postgres>(standby.address()).unwrap());
    let mut pooler = server.pooler();
    assert!(ready::<pgbouncer::Pgbouncer>(pooler.address()).unwrap());
    pooler.restart();
    assert!(ready::<pgbouncer::Pgbouncer>(pooler.address()).unwrap());
}
