//! How far the server is trusted: each mode, against servers with certificates of a private authority.

use super::*;
use mainstay_database::TlsMode;
use mainstay_test_support::{
    Authority,
    servers::{Encrypted, Server},
};

/// The servers are at 127.0.0.1.
const RIGHT: &str = "127.0.0.1";
const WRONG: &str = "other.example";

fn with_tls<DB: Backend>(
    name: &str,
    url: &str,
    mode: TlsMode,
    ca: &Authority,
) -> DatabaseClient<DB> {
    DatabaseClient::builder()
        .name(name)
        .url(url)
        .tls(mode)
        .tls_ca(ca.file())
        .connect_timeout(ms(10_000))
        .policy(|p| p.base_delay(ms(5)))
        .build()
        .unwrap()
}

/// Whether the server says that this client's connection is encrypted.
async fn is_encrypted<DB>(db: &DatabaseClient<DB>, ask: &'static str) -> Result<bool, Error>
where
    DB: Backend,
    for<'r> bool: sqlx::Decode<'r, DB> + sqlx::Type<DB>,
    usize: sqlx::ColumnIndex<DB::Row>,
    <DB as sqlx::Database>::Arguments: sqlx::IntoArguments<DB>,
{
    Ok(sqlx::query_scalar(ask).fetch_one(db).await?)
}

async fn each_mode<P, DB>(plain: Server<P>, ask: &'static str)
where
    P: Encrypted,
    DB: Backend,
    for<'r> bool: sqlx::Decode<'r, DB> + sqlx::Type<DB>,
    usize: sqlx::ColumnIndex<DB::Row>,
    <DB as sqlx::Database>::Arguments: sqlx::IntoArguments<DB>,
{
    use TlsMode::{Disable, Prefer, Require, VerifyCa, VerifyFull};
    let (ours, others) = (Authority::new(), Authority::new());
    let right = Server::<P>::start_with_tls(&ours, RIGHT);
    let wrong = Server::<P>::start_with_tls(&ours, WRONG);
    let name = |what: &str| format!("tls-{}-{what}", DB::NAME);

    for (server, mode, encrypted) in [
        (&right, Disable, false),
        (&right, Prefer, true),
        (&right, Require, true),
        (&right, VerifyCa, true),
        (&right, VerifyFull, true),
        // The authority is right; whose the certificate is does not matter.
        (&wrong, VerifyCa, true),
        (&plain, Prefer, false),
    ] {
        let db: DatabaseClient<DB> = with_tls(&name("in"), &server.url(), mode, &ours);
        let seen = is_encrypted(&db, ask).await;
        let seen = seen.unwrap_or_else(|error| panic!("{} {mode:?}: {}", P::NAME, text(&error)));
        assert_eq!(seen, encrypted, "{} {mode:?}", P::NAME);
    }

    for (server, mode, ca, words) in [
        (&right, VerifyCa, &others, "not trusted; name its file in tls_ca"),
        (&right, VerifyFull, &others, "not trusted; name its file in tls_ca"),
        (&wrong, VerifyFull, &ours, "for another name than the URL's host"),
        (&plain, Require, &ours, "no TLS with this server: it offers none"),
    ] {
        let url =
            server.url().replace("root@", "root:s3cret@").replace("postgres@", "postgres:s3cret@");
        let db: DatabaseClient<DB> = with_tls(&name("out"), &url, mode, ca);
        let started = Instant::now();
        let error = is_encrypted(&db, ask).await.unwrap_err();
        let what = format!("{} {mode:?}: {}", P::NAME, text(&error));
        println!("{what}");
        assert!(text(&error).contains(words) && !text(&error).contains("s3cret"), "{what}");
        assert_eq!(error.attempts(), 1, "{what}");
        assert!(!error.is_outcome_unknown() && started.elapsed() < ms(8_000), "{what}");
        db.policy().breaker().reset();
    }

    // A file that is not there is named when it is needed, not by a panic.
    let db: DatabaseClient<DB> = DatabaseClient::builder()
        .name(name("no-file"))
        .url(right.url())
        .tls(VerifyFull)
        .tls_ca("/no/such/ca.pem")
        .build()
        .unwrap();
    let error = is_encrypted(&db, ask).await.unwrap_err();
    assert!(text(&error).contains("check the file of tls_ca"), "{}", text(&error));
}

#[tokio::test]
async fn postgres_is_trusted_as_far_as_the_mode_says() {
    let ask = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    each_mode::<_, sqlx::Postgres>(Postgres::start(), ask).await;
}

#[tokio::test]
async fn mariadb_is_trusted_as_far_as_the_mode_says() {
    let ask = "select variable_value <> '' from information_schema.session_status \
               where variable_name = 'Ssl_cipher'";
    each_mode::<_, sqlx::MySql>(Mariadb::start(), ask).await;
}
