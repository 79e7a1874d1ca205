//! An SQLite file, and a connection beside the client that counts, locks and damages it.

use crate::timeline::AnyError;
use mainstay::sqlx::{self, Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use std::{
    fs::OpenOptions,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// What makes a file a database: <https://www.sqlite.org/fileformat.html#the_database_header>.
const HEADER: usize = 100;

pub(crate) struct Sqlite {
    path: PathBuf,
    beside: SqliteConnection,
    header: [u8; HEADER],
}

impl Sqlite {
    pub(crate) async fn create(directory: &Path) -> Result<Self, AnyError> {
        let path = directory.join("mainstay_quickstart.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let beside = SqliteConnection::connect_with(&options).await?;
        Ok(Self { path, beside, header: [0; HEADER] })
    }

    pub(crate) fn url(&self) -> String {
        format!("sqlite://{}", self.path.display())
    }

    /// Rows in the table; `None` if the file is no database now.
    pub(crate) async fn rows(&mut self) -> Option<usize> {
        let count = sqlx::query_scalar("select count(*) from mainstay_quickstart");
        let rows: i64 = count.fetch_one(&mut self.beside).await.ok()?;
        usize::try_from(rows).ok()
    }

    /// Nobody else may read or write until it is unlocked.
    pub(crate) async fn lock(&mut self) -> Result<(), AnyError> {
        sqlx::query("begin exclusive").execute(&mut self.beside).await?;
        Ok(())
    }

    pub(crate) async fn unlock(&mut self) -> Result<(), AnyError> {
        sqlx::query("commit").execute(&mut self.beside).await?;
        Ok(())
    }

    pub(crate) fn damage(&mut self) -> Result<(), AnyError> {
        let mut file = OpenOptions::new().read(true).write(true).open(&self.path)?;
        file.read_exact(&mut self.header)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&[b'?'; HEADER])?;
        Ok(())
    }

    pub(crate) fn repair(&mut self) -> Result<(), AnyError> {
        let mut file = OpenOptions::new().write(true).open(&self.path)?;
        file.write_all(&self.header)?;
        Ok(())
    }
}
