//! `S3Client` with the store in this process.

use crate::subject::{Client, Mood, Remote, Tune, Work, quick, servers};
use mainstay::{Error, Health, Policy, S3Client, S3Failure};
use mainstay_test_support::{
    Proxy, S3,
    s3::{Answer, BUCKET, KEY, SECRET},
};
use std::{path::PathBuf, sync::LazyLock};
use tempfile::TempDir;

/// A store of its own.
pub(crate) struct Subject {
    pub(crate) store: S3,
    proxy: Proxy,
}

impl crate::subject::Subject for Subject {
    type Client = S3Client;

    async fn start() -> Self {
        let store = servers().spawn(S3::start()).await.unwrap();
        store.write("object", b"its bytes");
        let address = store.endpoint().strip_prefix("http://").unwrap().parse().unwrap();
        Self { store, proxy: Proxy::in_front_of(address) }
    }

    fn client(&self, _: u32, tune: Tune) -> S3Client {
        S3Client::builder()
            .endpoint_url(format!("http://{}", self.proxy.addr()))
            .credentials(KEY, SECRET)
            .bucket(BUCKET)
            .policy(move |policy| tune(quick(policy)))
            .build()
            .unwrap()
    }
}

/// Of this process, which writes what is uploaded once: an upload of a file that is being written fails.
pub(crate) fn file(name: &str) -> PathBuf {
    static FILES: LazyLock<TempDir> = LazyLock::new(|| {
        let directory = mainstay_test_support::temporary();
        std::fs::write(directory.path().join("up"), "a file").unwrap();
        directory
    });
    FILES.path().join(name)
}

impl Client for S3Client {
    const DOORS: &'static [&'static str] =
        &["get", "put", "delete", "head", "exists", "list", "upload_file", "download_file"];
    const REPEATED: &'static str = "put";
    const REPEATED_TOO: &'static [&'static str] = &["get", "delete"];
    /// All of them may be done twice. So may the creation of an upload in parts, which they make too:
    /// it holds no data, and a second one is aborted or expires.
    const ONCE: Option<&'static str> = None;
    type Failure = S3Failure;
    type Driver = aws_sdk_s3::error::SdkError<aws_sdk_s3::operation::put_object::PutObjectError>;

    fn policy(&self) -> &Policy {
        self.policy()
    }

    fn call(&self, door: &'static str) -> Work {
        let s3 = self.clone();
        Box::pin(async move {
            match door {
                "get" => drop(s3.get(BUCKET, "object").await?),
                "put" => drop(s3.put(BUCKET, "new", "bytes").await?),
                "delete" => s3.delete(BUCKET, "old").await?,
                "head" => drop(s3.head(BUCKET, "object").await?),
                "exists" => drop(s3.exists(BUCKET, "object").await?),
                "list" => drop(s3.list(BUCKET, "obj").await?),
                "upload_file" => drop(s3.upload_file(file("up"), BUCKET, "uploaded").await?),
                "download_file" => s3.download_file(BUCKET, "object", file("down")).await?,
                other => panic!("{other}?"),
            }
            Ok::<_, Error>(())
        })
    }

    async fn health(&self) -> Health {
        self.health_check().await
    }
}

impl Remote for Subject {
    const GREETS: bool = false;

    fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    async fn set(&self, mood: Mood) {
        self.store.front(move |_| match mood {
            Mood::Well => Answer::Pass,
            Mood::NotNow => Answer::Status(503, "ServiceUnavailable"),
            Mood::Never => Answer::Status(404, "NoSuchKey"),
            Mood::Silent => Answer::Hang,
        });
    }

    async fn asked(&self, door: &'static str) -> u64 {
        let like = match door {
            "put" => "PUT /bucket/new",
            "get" => "GET /bucket/object",
            "delete" => "DELETE /bucket/old",
            other => panic!("{other} is not counted"),
        };
        u64::try_from(self.store.seen(|line| line.starts_with(like))).unwrap()
    }
}
