//! The cases: one file up or down, by each peer.

use crate::server::{self, MIB};
use aws_sdk_s3::{
    Client,
    config::{BehaviorVersion, Credentials, Region},
    primitives::{ByteStream, Length},
    types::{CompletedMultipartUpload, CompletedPart},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use mainstay_s3::S3Client;
use object_store::{
    ObjectStoreExt, WriteMultipart,
    aws::{AmazonS3, AmazonS3Builder, Checksum},
    path::Path as Key,
};
use std::{
    fs::File,
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::task::spawn_blocking;

/// The first of each direction is what the others are compared with; "again" is the noise.
pub const UP: [&str; 5] = ["mainstay", "object_store", "sdk-path", "sdk-guide", "mainstay again"];
pub const DOWN: [&str; 5] = ["mainstay", "plain", "object_store", "sdk-guide", "mainstay again"];

/// What the guide sends at once.
const GUIDE_PART: u64 = 5 * MIB;
/// object_store's parts are of our size, as many at once.
const PART: u64 = 8 * MIB;
const PARALLEL: usize = 8;

pub struct Peers {
    ours: S3Client,
    sdk: Client,
    store: Arc<AmazonS3>,
    from: PathBuf,
    to: PathBuf,
    key: String,
    length: u64,
}

impl Peers {
    pub fn new(endpoint: &str, directory: &Path, mib: u64) -> Self {
        let from = directory.join("from");
        let mut file = File::create(&from).expect("a file");
        let pattern = server::pattern();
        (0..mib).for_each(|_| file.write_all(&pattern).expect("room"));
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("a", "b", None, None, "bench"))
            .endpoint_url(endpoint)
            .force_path_style(true)
            .build();
        let store = AmazonS3Builder::new()
            .with_endpoint(endpoint)
            .with_allow_http(true)
            .with_region("us-east-1")
            .with_bucket_name("bucket")
            .with_access_key_id("a")
            .with_secret_access_key("b")
            .with_unsigned_payload(true)
            .with_checksum_algorithm(Checksum::CRC64NVME);
        let ours = S3Client::builder().endpoint_url(endpoint).credentials("a", "b");
        Self {
            ours: ours.build().expect("a client"),
            sdk: Client::from_conf(config),
            store: Arc::new(store.build().expect("a store")),
            to: directory.join("to"),
            from,
            key: mib.to_string(),
            length: mib * MIB,
        }
    }

    pub async fn up(&self, peer: &str) {
        match peer {
            "object_store" => self.store_up().await,
            "sdk-path" => self.path_up().await,
            "sdk-guide" => self.guide_up().await,
            _ => drop(self.ours.upload_file(&self.from, "bucket", &self.key).await.expect("it")),
        }
    }

    pub async fn down(&self, peer: &str) {
        match peer {
            "plain" => self.plain_down().await,
            "object_store" => {
                let got = self.store.get(&Key::from(self.key.as_str())).await.expect("an object");
                self.write(got.into_stream()).await;
            }
            "sdk-guide" => self.guide_down().await,
            _ => self.ours.download_file("bucket", &self.key, &self.to).await.expect("it"),
        }
    }

    /// Its parts, read as ours are.
    async fn store_up(&self) {
        let upload = self.store.put_multipart(&Key::from(self.key.as_str())).await;
        let mut writer =
            WriteMultipart::new_with_chunk_size(upload.expect("an upload"), PART as usize);
        let mut at = 0;
        while at < self.length {
            writer.wait_for_capacity(PARALLEL).await.expect("a part");
            let (file, length) = (self.from.clone(), PART.min(self.length - at));
            let part = spawn_blocking(move || {
                let mut bytes = vec![0; length as usize];
                File::open(file).and_then(|file| file.read_exact_at(&mut bytes, at))?;
                Ok::<_, std::io::Error>(Bytes::from(bytes))
            });
            writer.put(part.await.expect("a thread").expect("bytes"));
            at += length;
        }
        writer.finish().await.expect("an upload");
    }

    async fn path_up(&self) {
        let body = ByteStream::from_path(&self.from).await.expect("a file");
        let put = self.sdk.put_object().bucket("bucket").key(&self.key).body(body);
        put.send().await.expect("an upload");
    }

    /// <https://docs.aws.amazon.com/sdk-for-rust/latest/dg/rust_s3_code_examples.html>, multipart.
    async fn guide_up(&self) {
        let (sdk, key) = (&self.sdk, &self.key);
        let begun = sdk.create_multipart_upload().bucket("bucket").key(key).send().await;
        let id = begun.expect("an upload").upload_id.expect("an id");
        let (mut parts, mut at, mut number) = (Vec::new(), 0, 1);
        while at < self.length {
            let length = GUIDE_PART.min(self.length - at);
            let body = ByteStream::read_from()
                .path(&self.from)
                .offset(at)
                .length(Length::Exact(length))
                .build()
                .await
                .expect("a file");
            let part = sdk.upload_part().bucket("bucket").key(key).upload_id(&id);
            let sent = part.part_number(number).body(body).send().await.expect("a part");
            let sent = CompletedPart::builder().set_e_tag(sent.e_tag);
            parts.push(sent.part_number(number).build());
            (at, number) = (at + length, number + 1);
        }
        let all = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let end = sdk.complete_multipart_upload().bucket("bucket").key(key).upload_id(id);
        end.multipart_upload(all).send().await.expect("an upload");
    }

    /// The same guide's: it writes on the thread that reads.
    async fn guide_down(&self) {
        let got = self.sdk.get_object().bucket("bucket").key(&self.key).send().await;
        let mut body = got.expect("an object").body;
        let mut file = File::create(&self.to).expect("a file");
        while let Some(bytes) = body.try_next().await.expect("bytes") {
            file.write_all(&bytes).expect("room");
        }
    }

    /// One answer of the SDK, which compares its checksum.
    async fn plain_down(&self) {
        let got = self.sdk.get_object().bucket("bucket").key(&self.key).send().await;
        let body = got.expect("an object").body;
        let next = |mut body: ByteStream| async { body.next().await.map(|frame| (frame, body)) };
        self.write(stream::unfold(body, next)).await;
    }

    /// A MiB at a time on the blocking pool, the next one gathered meanwhile; then synced.
    async fn write<E: std::fmt::Debug>(&self, frames: impl Stream<Item = Result<Bytes, E>>) {
        let file = Arc::new(File::create(&self.to).expect("a file"));
        let mut frames = std::pin::pin!(frames);
        let (mut at, mut gathered, mut batch) = (0, 0, Vec::new());
        let mut writing = spawn_blocking(|| {});
        loop {
            let frame = frames.next().await.map(|frame| frame.expect("bytes"));
            let end = frame.is_none();
            if let Some(frame) = frame {
                gathered += frame.len() as u64;
                batch.push(frame);
            }
            if gathered >= MIB || end {
                writing.await.expect("a thread");
                let (file, batch, mut from) = (file.clone(), std::mem::take(&mut batch), at);
                writing = spawn_blocking(move || {
                    for frame in batch {
                        file.write_all_at(&frame, from).expect("room");
                        from += frame.len() as u64;
                    }
                });
                (at, gathered) = (at + gathered, 0);
            }
            if end {
                writing.await.expect("a thread");
                return spawn_blocking(move || file.sync_all())
                    .await
                    .expect("a thread")
                    .expect("a disk");
            }
        }
    }
}
