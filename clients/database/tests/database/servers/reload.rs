//! What a reload changes for connections that are opened after it.

use super::*;
use mainstay_policy::reload;

/// Runs again in a process of its own, whose settings it changes.
#[test]
fn a_longer_timeout_is_the_servers_limit_on_new_connections() {
    let test = "servers::reload::a_longer_timeout_is_the_servers_limit_on_new_connections";
    let Some(file) = std::env::var_os("MAINSTAY_CONFIG").map(std::path::PathBuf::from) else {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mainstay.toml");
        std::fs::write(&file, "").unwrap();
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let again = again.args(["--exact", test]).env("MAINSTAY_CONFIG", &file);
        assert!(again.status().unwrap().success());
        return;
    };
    let set = |seconds: f64| {
        std::fs::write(&file, format!("[database]\ntimeout = {seconds}\n")).unwrap();
        reload().unwrap();
    };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        set(2.0);
        let pg = PgDatabase::builder().name("reload-pg").url(POSTGRES.url()).build().unwrap();
        let my = MySqlDatabase::builder().name("reload-my").url(MARIADB.url()).build().unwrap();
        for seconds in [2.0, 7.0] {
            set(seconds);
            let (mut pg, mut my) = (pg.acquire().await.unwrap(), my.acquire().await.unwrap());
            let limit: String =
                sqlx::query_scalar("show statement_timeout").fetch_one(&mut pg).await.unwrap();
            assert_eq!(limit, format!("{seconds}s"));
            let limit = "select cast(@@max_statement_time as double)";
            let limit: f64 = sqlx::query_scalar(limit).fetch_one(&mut my).await.unwrap();
            assert!((limit - seconds).abs() < 0.01, "{limit}");
            // Whose connections are closed: the next ones are new.
            sqlx::raw_sql("set @x = 1").execute(&mut my).await.unwrap();
            sqlx::raw_sql("set search_path = x").execute(&mut pg).await.unwrap();
        }
    });
}
