//! What a bucket holds, page by page.

use crate::{
    S3Client, S3Failure,
    call::{LIST, Target},
    get::length,
};
use aws_sdk_s3::{operation::list_objects_v2::ListObjectsV2Output, types::EncodingType};
use futures_util::{FutureExt, Stream, TryStreamExt, stream};
use mainstay_policy::Error;
use percent_encoding::percent_decode_str;
use std::{fmt, pin::Pin, time::SystemTime};

/// One object, without its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObjectSummary {
    /// Its key.
    pub key: String,
    /// Its length in bytes.
    pub size: u64,
    /// The store's mark of this version; not a checksum.
    pub etag: Option<String>,
    /// When it was written.
    pub last_modified: Option<SystemTime>,
}

/// Up to 1,000 entries of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// Objects, in the order of their keys.
    pub objects: Vec<ObjectSummary>,
    /// With a [`delimiter`](List::delimiter): what the keys of the others begin with.
    pub prefixes: Vec<String>,
}

/// A listing to be made; see [`S3Client::list`].
#[derive(Clone)]
#[must_use = "a listing is made when this is awaited or streamed"]
pub struct List {
    client: S3Client,
    bucket: String,
    prefix: String,
    delimiter: Option<String>,
    start_after: Option<String>,
    page_size: Option<i32>,
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("List").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

impl S3Client {
    /// Lists the objects whose keys begin with `prefix`; an empty one means the whole bucket.
    ///
    /// Awaited it gives all of them at once, whose number only the bucket bounds;
    /// [`List::stream`] holds a page of up to 1,000 at a time. Each page is a call of its own.
    ///
    /// # Errors
    /// A missing bucket, a store that says there is more and not where, or what kept a page from being read.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn main_(s3: mainstay_s3::S3Client) -> Result<(), mainstay_policy::Error> {
    /// use futures_util::TryStreamExt;
    ///
    /// for object in s3.list("bucket", "2026/").await? {
    ///     println!("{} {}", object.size, object.key);
    /// }
    /// let mut all = std::pin::pin!(s3.list("bucket", "").stream());
    /// while let Some(object) = all.try_next().await? {
    ///     println!("{} {}", object.size, object.key);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn list(&self, bucket: &str, prefix: &str) -> List {
        List {
            client: self.clone(),
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            delimiter: None,
            start_after: None,
            page_size: None,
        }
    }
}

/// Where the next page begins.
enum Next {
    First,
    Token(String),
    None,
    /// There are more, and the store does not say how to ask for them.
    Lost,
}

impl List {
    /// Keys that have this after the prefix are not listed: what they begin with up to there is, in
    /// [`Page::prefixes`]. With `/` that is a folder's view. Default: none.
    pub fn delimiter(mut self, delimiter: impl Into<String>) -> Self {
        self.delimiter = Some(delimiter.into());
        self
    }

    /// Begins after this key, to go on with a listing that was left.
    pub fn start_after(mut self, key: impl Into<String>) -> Self {
        self.start_after = Some(key.into());
        self
    }

    /// Entries in a page, 1 to 1,000. Default: the store's, 1,000.
    pub const fn page_size(mut self, entries: u16) -> Self {
        self.page_size = Some(entries as i32);
        self
    }

    /// Objects as they come, a page at a time in memory; the next is asked for when the last one has
    /// been taken. It ends after an error.
    pub fn stream(self) -> impl Stream<Item = Result<ObjectSummary, Error>> + Send {
        self.pages().map_ok(|page| stream::iter(page.objects.into_iter().map(Ok))).try_flatten()
    }

    /// Pages as they come, objects and prefixes; the next is asked for when this one has been taken.
    /// It ends after an error.
    pub fn pages(self) -> impl Stream<Item = Result<Page, Error>> + Send {
        stream::unfold((self, Next::First), |(list, next)| async {
            let token = match next {
                Next::First => None,
                Next::Token(token) => Some(token),
                Next::None => return None,
                Next::Lost => {
                    let lost = S3Failure::garbled().about(&list.bucket, false);
                    let error = list.client.local(&LIST, lost);
                    return Some((Err(error), (list, Next::None)));
                }
            };
            Some(match list.page(token).await {
                Ok((page, next)) => (Ok(page), (list, next)),
                Err(error) => (Err(error), (list, Next::None)),
            })
        })
    }

    async fn page(&self, token: Option<String>) -> Result<(Page, Next), Error> {
        let target = Target::bucket(&self.bucket)?;
        if self.page_size.is_some_and(|entries| !(1..=1_000).contains(&entries)) {
            return Err(Error::invalid("a page of a listing has 1 to 1,000 entries"));
        }
        let page: ListObjectsV2Output = self
            .client
            .call(&LIST, target, 0, |sdk, attempt| {
                let page = sdk
                    .list_objects_v2()
                    .bucket(&self.bucket)
                    .prefix(&self.prefix)
                    .set_delimiter(self.delimiter.clone())
                    .set_start_after(self.start_after.clone())
                    .set_max_keys(self.page_size)
                    // XML cannot hold every character that a key may.
                    .encoding_type(EncodingType::Url)
                    .set_continuation_token(token.clone())
                    .send();
                async move { page.await.map_err(|e| S3Failure::sdk(e, attempt)) }
            })
            .await?;
        let next = match (page.is_truncated, page.next_continuation_token) {
            // The same token again would go round for ever.
            (Some(true), Some(next)) if token.as_ref() != Some(&next) => Next::Token(next),
            // As of a store that knows the first version of listings only, which has markers.
            (Some(true), _) => Next::Lost,
            _ => Next::None,
        };
        let encoded = page.encoding_type == Some(EncodingType::Url);
        let plain = |text: String| if encoded { decoded(&text) } else { text };
        let objects = page.contents.unwrap_or_default().into_iter().map(|object| ObjectSummary {
            key: plain(object.key.unwrap_or_default()),
            size: length(object.size).unwrap_or_default(),
            etag: object.e_tag,
            last_modified: object.last_modified.and_then(|t| t.try_into().ok()),
        });
        let prefixes = page.common_prefixes.unwrap_or_default().into_iter();
        let prefixes = prefixes.filter_map(|entry| entry.prefix).map(plain).collect();
        Ok((Page { objects: objects.collect(), prefixes }, next))
    }
}

/// As S3 encodes it: a space is a plus sign.
pub(crate) fn decoded(text: &str) -> String {
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
}

impl IntoFuture for List {
    type Output = Result<Vec<ObjectSummary>, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        self.stream().try_collect().boxed()
    }
}
