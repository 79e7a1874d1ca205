//! `DatabaseClient` with SQLite, for the promises that need no network.

use crate::{
    database::doors,
    subject::{Tune, quick},
};
use futures_util::TryStreamExt;
use mainstay::{
    SqliteDatabase,
    sqlx::{self, Connection},
};
use tempfile::TempDir;

/// A file of its own.
pub(crate) struct Subject(TempDir);

impl crate::subject::Subject for Subject {
    type Client = SqliteDatabase;

    async fn start() -> Self {
        let subject = Self(tempfile::tempdir().unwrap());
        let client = subject.client(1, |policy| policy);
        sqlx::query("create table done (id integer)").execute(&client).await.unwrap();
        subject
    }

    fn client(&self, pool: u32, tune: Tune) -> SqliteDatabase {
        let file = self.0.path().join("file");
        SqliteDatabase::builder()
            .name(self.0.path().display().to_string())
            .url(format!("sqlite://{}?mode=rwc", file.display()))
            .max_connections(pool)
            .policy(move |policy| tune(quick(policy)))
            .build()
            .unwrap()
    }
}

impl Subject {
    /// Another program's connection to the file.
    pub(crate) async fn other(&self) -> sqlx::SqliteConnection {
        let file = self.0.path().join("file");
        sqlx::SqliteConnection::connect(&format!("sqlite://{}", file.display())).await.unwrap()
    }
}

doors!(SqliteDatabase, "select count(*) from done", "insert into done values (1)");
