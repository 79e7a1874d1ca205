//! A store in memory that keeps what S3 says about parts, versions and checksums, where s3s-fs does not: part
//! checksums, If-Match, lists of uploads and of their parts, NoSuchUpload.

mod body;
mod said;

use base64::{Engine, engine::general_purpose::STANDARD};
use body::{blob, crc, etag, length, read};
use hyper::body::Bytes;
use s3s::{S3, S3Request, S3Response, S3Result, dto::*, s3_error};
use said::{Said, said, tell, url_decoded, url_encoded};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::SystemTime,
};

/// What a store says about the bytes of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sums {
    /// The checksum of the whole object, where it was asked for.
    Full,
    /// A checksum of the parts' checksums, whatever was asked for.
    Composite,
    /// Nothing, as many stores that are not Amazon's.
    Without,
}

/// The objects and unfinished uploads of one bucket; clones are the same store.
#[derive(Debug, Clone)]
pub struct Memory {
    sums: Sums,
    data: Arc<Mutex<Data>>,
}

#[derive(Debug, Default)]
struct Data {
    objects: BTreeMap<String, Object>,
    /// By key and id, those that a test keeps.
    versions: BTreeMap<(String, String), Object>,
    uploads: BTreeMap<String, Upload>,
    started: u32,
    tells_no_encryption: bool,
}

#[derive(Debug, Clone)]
struct Object {
    bytes: Bytes,
    etag: ETag,
    crc32: Option<String>,
    full: bool,
    /// The lengths of the parts that it came in.
    parts: Option<Vec<i64>>,
    said: Said,
}

#[derive(Debug)]
struct Upload {
    key: String,
    full: bool,
    algorithm: Option<ChecksumAlgorithm>,
    said: Said,
    initiated: Timestamp,
    parts: BTreeMap<i32, (Bytes, ETag, String)>,
}

impl Memory {
    pub(super) fn new(sums: Sums) -> Self {
        Self { sums, data: Arc::default() }
    }

    fn data(&self) -> MutexGuard<'_, Data> {
        self.data.lock().unwrap()
    }

    /// The bytes of an object.
    #[must_use]
    pub fn object(&self, key: &str) -> Option<Bytes> {
        self.data().objects.get(key).map(|object| object.bytes.clone())
    }

    /// Says of no part that it is encrypted, as stores that do not know of it.
    pub fn tell_no_encryption(&self) {
        self.data().tells_no_encryption = true;
    }

    /// How many uploads in parts are neither completed nor aborted.
    #[must_use]
    pub fn uploads(&self) -> usize {
        self.data().uploads.len()
    }

    /// How many parts these hold.
    #[must_use]
    pub fn parts(&self) -> usize {
        self.data().uploads.values().map(|upload| upload.parts.len()).sum()
    }

    /// How many bytes all of it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let data = self.data();
        let objects: usize = data.objects.values().map(|object| object.bytes.len()).sum();
        let parts = data.uploads.values().flat_map(|upload| upload.parts.values());
        objects + parts.map(|(bytes, ..)| bytes.len()).sum::<usize>()
    }

    /// Puts an object there as another client would.
    pub fn put(&self, key: &str, bytes: impl Into<Bytes>) {
        self.store(key, bytes.into(), Said::default());
    }

    /// Keeps what an object is now under this version's id, whatever it becomes.
    pub fn keep(&self, key: &str, version: &str) {
        let mut data = self.data();
        if let Some(object) = data.objects.get(key).cloned() {
            data.versions.insert((key.to_owned(), version.to_owned()), object);
        }
    }

    /// Puts an object there whose checksum is not that of its bytes.
    pub fn put_damaged(&self, key: &str, bytes: impl Into<Bytes>) {
        self.put(key, bytes);
        self.damage(key);
    }

    /// From now on the checksum of an object is not that of its bytes.
    pub fn damage(&self, key: &str) {
        if let Some(object) = self.data().objects.get_mut(key) {
            object.crc32 = Some(STANDARD.encode([1, 2, 3, 4]));
        }
    }

    fn store(&self, key: &str, bytes: Bytes, said: Said) -> Object {
        let crc32 = (self.sums != Sums::Without).then(|| STANDARD.encode(crc(&bytes)));
        let etag = etag(&bytes, "");
        let object = Object { bytes, etag, crc32, full: true, parts: None, said };
        self.data().objects.insert(key.to_owned(), object.clone());
        object
    }

    /// Whether a write's condition holds.
    fn may_write(
        &self,
        key: &str,
        if_match: Option<&IfMatch>,
        if_none_match: Option<&IfNoneMatch>,
    ) -> S3Result<()> {
        let there = self.data().objects.contains_key(key);
        match (if_match, if_none_match) {
            (Some(_), _) => self.find(key, None, if_match).map(drop),
            (None, Some(_)) if there => Err(s3_error!(PreconditionFailed)),
            _ => Ok(()),
        }
    }

    /// An object that was written with a key of the customer's is read with that key only.
    fn unlock(said: &Said, key_md5: Option<&String>) -> S3Result<()> {
        match said.key_md5.as_ref() == key_md5 {
            true => Ok(()),
            false => Err(s3_error!(InvalidRequest)),
        }
    }

    fn find(
        &self,
        key: &str,
        version: Option<&str>,
        if_match: Option<&IfMatch>,
    ) -> S3Result<Object> {
        let data = self.data();
        let object = match version {
            Some(version) => data.versions.get(&(key.to_owned(), version.to_owned())),
            None => data.objects.get(key),
        };
        let object = object.ok_or_else(|| s3_error!(NoSuchKey))?;
        match if_match {
            Some(ETagCondition::ETag(etag)) if *etag != object.etag => {
                Err(s3_error!(PreconditionFailed))
            }
            _ => Ok(object.clone()),
        }
    }

    /// What is to be copied.
    fn source(&self, source: &CopySource, if_match: Option<&IfMatch>) -> S3Result<Object> {
        match source {
            CopySource::Bucket { key, version_id, .. } => {
                self.find(key, version_id.as_deref(), if_match)
            }
            _ => Err(s3_error!(NotImplemented)),
        }
    }
}

impl Object {
    fn sum(&self, mode: Option<&ChecksumMode>) -> (Option<String>, Option<ChecksumType>) {
        let sum = self.crc32.clone().filter(|_| mode.is_some());
        let name = if self.full { ChecksumType::FULL_OBJECT } else { ChecksumType::COMPOSITE };
        let kind = sum.as_ref().map(|_| ChecksumType::from_static(name));
        (sum, kind)
    }
}

fn done<T>(output: T) -> S3Result<S3Response<T>> {
    Ok(S3Response::new(output))
}

#[async_trait::async_trait]
impl S3 for Memory {
    async fn head_bucket(
        &self,
        _: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        done(HeadBucketOutput::default())
    }

    async fn put_object(
        &self,
        request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        let bytes = read(input.body, input.checksum_crc32.as_deref()).await?;
        self.may_write(&input.key, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        let object = self.store(&input.key, bytes, said!(input));
        done(PutObjectOutput { e_tag: Some(object.etag), ..Default::default() })
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.data().objects.remove(&request.input.key);
        done(DeleteObjectOutput::default())
    }

    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let object = self.find(&input.key, input.version_id.as_deref(), input.if_match.as_ref())?;
        Self::unlock(&object.said, input.sse_customer_key_md5.as_ref())?;
        let total = object.bytes.len();
        // As AWS, which says nothing about the whole when asked for a range.
        let ((checksum_crc32, checksum_type), range) = match input.range {
            Some(range) => ((None, None), Some(range.check(total as u64)?)),
            None => (object.sum(input.checksum_mode.as_ref()), None),
        };
        let (bytes, content_range) = match range {
            Some(range) => {
                let part =
                    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
                let told = format!("bytes {}-{}/{total}", range.start, range.end - 1);
                (object.bytes.slice(part), Some(told))
            }
            None => (object.bytes.clone(), None),
        };
        done(tell!(
            object,
            GetObjectOutput {
                content_length: Some(length(bytes.len())),
                body: Some(blob(bytes)),
                content_range: content_range,
                checksum_crc32: checksum_crc32,
                checksum_type: checksum_type,
            }
        ))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = request.input;
        let object = self.find(&input.key, input.version_id.as_deref(), input.if_match.as_ref())?;
        Self::unlock(&object.said, input.sse_customer_key_md5.as_ref())?;
        let (checksum_crc32, checksum_type) = object.sum(input.checksum_mode.as_ref());
        let (content_length, parts_count) = match (input.part_number, &object.parts) {
            (Some(number), Some(parts)) => {
                let part = usize::try_from(number - 1).ok().and_then(|at| parts.get(at));
                let part = part.ok_or_else(|| s3_error!(InvalidRange))?;
                (*part, i32::try_from(parts.len()).ok())
            }
            _ => (length(object.bytes.len()), None),
        };
        done(tell!(
            object,
            HeadObjectOutput {
                content_length: Some(content_length),
                parts_count: parts_count,
                checksum_crc32: checksum_crc32,
                checksum_type: checksum_type,
            }
        ))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = request.input;
        let asked = input.checksum_type.as_ref().map(ChecksumType::as_str);
        let full = self.sums == Sums::Full && asked == Some(ChecksumType::FULL_OBJECT);
        let mut data = self.data();
        data.started += 1;
        let id = format!("upload-{:06}", data.started);
        let upload = Upload {
            key: input.key.clone(),
            full,
            algorithm: input.checksum_algorithm.clone(),
            said: said!(input),
            initiated: SystemTime::now().into(),
            parts: BTreeMap::new(),
        };
        data.uploads.insert(id.clone(), upload);
        let kind = if full { ChecksumType::FULL_OBJECT } else { ChecksumType::COMPOSITE };
        let told = self.sums != Sums::Without;
        done(CreateMultipartUploadOutput {
            upload_id: Some(id),
            bucket: Some(input.bucket),
            key: Some(input.key),
            checksum_type: told.then(|| ChecksumType::from_static(kind)),
            ..Default::default()
        })
    }

    async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let input = request.input;
        let bytes = read(input.body, input.checksum_crc32.as_deref()).await?;
        let (etag, crc32) = (etag(&bytes, ""), STANDARD.encode(crc(&bytes)));
        let mut data = self.data();
        let upload =
            data.uploads.get_mut(&input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        Self::unlock(&upload.said, input.sse_customer_key_md5.as_ref())?;
        upload.parts.insert(input.part_number, (bytes, etag.clone(), crc32.clone()));
        let checksum_crc32 = (self.sums != Sums::Without).then_some(crc32);
        let said = upload.said.encryption.clone();
        let server_side_encryption = said.filter(|_| !data.tells_no_encryption);
        done(UploadPartOutput {
            e_tag: Some(etag),
            checksum_crc32,
            server_side_encryption,
            ..Default::default()
        })
    }

    async fn upload_part_copy(
        &self,
        request: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        let input = request.input;
        let source = self.source(&input.copy_source, input.copy_source_if_match.as_ref())?;
        let range = input.copy_source_range.ok_or_else(|| s3_error!(NotImplemented))?;
        let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        let bytes = source.bytes.slice(first.parse::<usize>().unwrap()..=last.parse().unwrap());
        let (etag, crc32) = (etag(&bytes, ""), STANDARD.encode(crc(&bytes)));
        let mut data = self.data();
        let upload =
            data.uploads.get_mut(&input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        upload.parts.insert(input.part_number, (bytes, etag.clone(), crc32));
        let copied = CopyPartResult { e_tag: Some(etag), ..Default::default() };
        done(UploadPartCopyOutput { copy_part_result: Some(copied), ..Default::default() })
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = request.input;
        self.may_write(&input.key, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        let mut data = self.data();
        let upload = data.uploads.get(&input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        let mut whole =
            Vec::with_capacity(upload.parts.values().map(|(bytes, ..)| bytes.len()).sum());
        let mut sums = Vec::new();
        let mut lengths = Vec::new();
        let named = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let count = named.len();
        for part in named {
            let number = part.part_number.unwrap_or_default();
            let (bytes, etag, crc32) =
                upload.parts.get(&number).ok_or_else(|| s3_error!(InvalidPart))?;
            if part.e_tag.as_ref() != Some(etag) || part.checksum_crc32.is_some_and(|s| s != *crc32)
            {
                return Err(s3_error!(InvalidPart));
            }
            lengths.push(length(bytes.len()));
            whole.extend_from_slice(bytes);
            sums.extend_from_slice(&crc(bytes));
        }
        let sum = match upload.full {
            true => STANDARD.encode(crc(&whole)),
            false => format!("{}-{count}", STANDARD.encode(crc(&sums))),
        };
        if input.checksum_crc32.is_some_and(|told| told != sum) {
            return Err(s3_error!(BadDigest));
        }
        if input.mpu_object_size.is_some_and(|size| size != length(whole.len())) {
            return Err(s3_error!(InvalidRequest));
        }
        let object = Object {
            etag: etag(&whole, &format!("-{count}")),
            bytes: whole.into(),
            crc32: (self.sums != Sums::Without).then_some(sum),
            full: upload.full,
            parts: Some(lengths),
            said: upload.said.clone(),
        };
        let key = upload.key.clone();
        let (checksum_crc32, e_tag) = (object.crc32.clone(), Some(object.etag.clone()));
        data.objects.insert(key, object);
        data.uploads.remove(&input.upload_id);
        done(CompleteMultipartUploadOutput { checksum_crc32, e_tag, ..Default::default() })
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let gone = self.data().uploads.remove(&request.input.upload_id);
        gone.ok_or_else(|| s3_error!(NoSuchUpload))?;
        done(AbortMultipartUploadOutput::default())
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let prefix = request.input.prefix.unwrap_or_default();
        let data = self.data();
        let uploads = data.uploads.iter().filter(|(_, upload)| upload.key.starts_with(&prefix));
        let encoded = request.input.encoding_type.as_ref().is_some_and(|e| e.as_str() == "url");
        let told = |key: &str| if encoded { url_encoded(key) } else { key.to_owned() };
        let uploads = uploads.map(|(id, upload)| MultipartUpload {
            upload_id: Some(id.clone()),
            key: Some(told(&upload.key)),
            initiated: Some(upload.initiated.clone()),
            checksum_algorithm: upload.algorithm.clone(),
            storage_class: upload.said.storage_class.clone(),
            ..Default::default()
        });
        let uploads = Some(uploads.collect());
        let encoding_type = request.input.encoding_type;
        done(ListMultipartUploadsOutput { uploads, encoding_type, ..Default::default() })
    }

    /// Pages of four, so that somebody has to ask for the next.
    async fn list_parts(
        &self,
        request: S3Request<ListPartsInput>,
    ) -> S3Result<S3Response<ListPartsOutput>> {
        let input = request.input;
        let after: i32 =
            input.part_number_marker.map_or(0, |text| text.to_string().parse().unwrap());
        let data = self.data();
        let upload = data.uploads.get(&input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        Self::unlock(&upload.said, input.sse_customer_key_md5.as_ref())?;
        let all: Vec<_> = upload.parts.range(after + 1..).collect();
        let parts = all.iter().take(4).map(|&(&number, (bytes, etag, crc32))| Part {
            part_number: Some(number),
            size: Some(length(bytes.len())),
            e_tag: Some(etag.clone()),
            checksum_crc32: (self.sums != Sums::Without).then(|| crc32.clone()),
            ..Default::default()
        });
        let parts: Vec<_> = parts.collect();
        let last = parts.last().and_then(|part| part.part_number);
        let kind = if upload.full { ChecksumType::FULL_OBJECT } else { ChecksumType::COMPOSITE };
        done(ListPartsOutput {
            is_truncated: Some(all.len() > parts.len()),
            next_part_number_marker: last,
            parts: Some(parts),
            checksum_type: (self.sums != Sums::Without).then(|| ChecksumType::from_static(kind)),
            ..Default::default()
        })
    }

    async fn list_buckets(
        &self,
        _: S3Request<ListBucketsInput>,
    ) -> S3Result<S3Response<ListBucketsOutput>> {
        done(ListBucketsOutput::default())
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        let prefix = input.prefix.unwrap_or_default();
        let after = input.continuation_token.as_deref().map(url_decoded).or(input.start_after);
        let most = usize::try_from(input.max_keys.unwrap_or(1_000)).unwrap();
        let data = self.data();
        let (mut contents, mut folders) = (Vec::new(), Vec::<String>::new());
        let (mut last, mut more) = (None, false);
        for (key, object) in &data.objects {
            let Some(rest) = key.strip_prefix(&prefix) else { continue };
            let folder = input.delimiter.as_ref().and_then(|d| {
                let (folder, _) = rest.split_once(d.as_str())?;
                Some(format!("{prefix}{folder}{d}"))
            });
            let entry = folder.as_ref().unwrap_or(key);
            if after.as_ref().is_some_and(|after| entry <= after) || folders.last() == Some(entry) {
                continue;
            }
            if contents.len() + folders.len() == most {
                more = true;
                break;
            }
            last = Some(entry.clone());
            match folder {
                Some(folder) => folders.push(folder),
                None => contents.push(s3s::dto::Object {
                    key: Some(key.clone()),
                    size: Some(length(object.bytes.len())),
                    e_tag: Some(object.etag.clone()),
                    ..Default::default()
                }),
            }
        }
        // As AWS, when asked to: XML cannot hold every key.
        let encoded = input.encoding_type.as_ref().is_some_and(|e| e.as_str() == "url");
        let told = |text: String| if encoded { url_encoded(&text) } else { text };
        for object in &mut contents {
            object.key = object.key.take().map(told);
        }
        let common = folders.into_iter().map(|folder| CommonPrefix { prefix: Some(told(folder)) });
        done(ListObjectsV2Output {
            contents: Some(contents),
            common_prefixes: Some(common.collect()),
            is_truncated: Some(more),
            next_continuation_token: last.filter(|_| more).map(|key| url_encoded(&key)),
            encoding_type: input.encoding_type,
            ..Default::default()
        })
    }

    /// Keys that begin with `locked/` may not be deleted.
    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let objects = request.input.delete.objects;
        if objects.len() > 1_000 {
            return Err(s3_error!(MalformedXML));
        }
        let mut errors = Vec::new();
        for object in objects {
            if object.key.starts_with("locked/") {
                let code = Some("AccessDenied".to_owned());
                let key = Some(object.key);
                errors.push(s3s::dto::Error { code, key, ..Default::default() });
            } else {
                self.data().objects.remove(&object.key);
            }
        }
        done(DeleteObjectsOutput { errors: Some(errors), ..Default::default() })
    }

    async fn copy_object(
        &self,
        request: S3Request<CopyObjectInput>,
    ) -> S3Result<S3Response<CopyObjectOutput>> {
        // The conditions on the target are newer than s3s.
        let condition = |name| {
            let value = request.headers.get(name)?;
            ETagCondition::parse_http_header(value.as_bytes()).ok()
        };
        let (if_match, if_none_match) = (condition("if-match"), condition("if-none-match"));
        let input = request.input;
        let source = self.source(&input.copy_source, input.copy_source_if_match.as_ref())?;
        Self::unlock(&source.said, input.copy_source_sse_customer_key_md5.as_ref())?;
        self.may_write(&input.key, if_match.as_ref(), if_none_match.as_ref())?;
        let replaces = |directive: Option<&str>| directive == Some("REPLACE");
        let meta = replaces(input.metadata_directive.as_ref().map(MetadataDirective::as_str));
        let tagged = replaces(input.tagging_directive.as_ref().map(TaggingDirective::as_str));
        let own = said!(input);
        let mut said = if meta { own.clone() } else { source.said.clone() };
        said.tags = if tagged { own.tags } else { source.said.tags };
        said.storage_class = own.storage_class;
        said.encryption = own.encryption;
        said.key_md5 = own.key_md5;
        let copy = self.store(&input.key, source.bytes, said);
        let result = CopyObjectResult { e_tag: Some(copy.etag), ..Default::default() };
        done(CopyObjectOutput { copy_object_result: Some(result), ..Default::default() })
    }

    async fn get_object_tagging(
        &self,
        request: S3Request<GetObjectTaggingInput>,
    ) -> S3Result<S3Response<GetObjectTaggingOutput>> {
        let tag_set =
            self.find(&request.input.key, request.input.version_id.as_deref(), None)?.said.tags;
        done(GetObjectTaggingOutput { tag_set, ..Default::default() })
    }

    async fn put_object_tagging(
        &self,
        request: S3Request<PutObjectTaggingInput>,
    ) -> S3Result<S3Response<PutObjectTaggingOutput>> {
        let input = request.input;
        let mut data = self.data();
        let object = data.objects.get_mut(&input.key).ok_or_else(|| s3_error!(NoSuchKey))?;
        object.said.tags = input.tagging.tag_set;
        done(PutObjectTaggingOutput::default())
    }
}
