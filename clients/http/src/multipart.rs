//! `multipart/form-data` (RFC 7578), in memory so that it can be sent again.

use bytes::{Bytes, BytesMut};
use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// A form with files. It is put together in memory, so a request with it is repeated like any
/// other; stream a single large file instead.
///
/// # Examples
/// ```no_run
/// # async fn main_(api: mainstay_http::HttpClient) -> Result<(), mainstay_policy::Error> {
/// use mainstay_http::Multipart;
///
/// let form = Multipart::new().text("title", "Report").file("file", "r.csv", "text/csv", "a,b\n");
/// api.put("reports/7").multipart(form).await?;
/// # Ok(()) }
/// ```
#[derive(Default)]
#[must_use]
pub struct Multipart {
    parts: Vec<(String, Bytes)>,
}

impl fmt::Debug for Multipart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Multipart").field("parts", &self.parts.len()).finish()
    }
}

impl Multipart {
    /// No parts yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a field.
    pub fn text(mut self, name: &str, value: impl Into<String>) -> Self {
        let head = format!("content-disposition: form-data; name=\"{}\"\r\n", quoted(name));
        self.parts.push((head, value.into().into()));
        self
    }

    /// Adds a file: the field's name, the file's name, its type such as `text/csv`, its bytes.
    pub fn file(
        mut self,
        name: &str,
        file_name: &str,
        content_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Self {
        let head = format!(
            "content-disposition: form-data; name=\"{}\"; filename=\"{}\"\r\ncontent-type: {}\r\n",
            quoted(name),
            quoted(file_name),
            // A type has no line breaks; one that was smuggled in would add headers.
            content_type.replace(['\r', '\n'], "")
        );
        self.parts.push((head, bytes.into()));
        self
    }

    /// The content type with its boundary, and the body.
    pub(crate) fn encode(self) -> (String, Bytes) {
        let boundary = random_hex();
        let size = self.parts.iter().map(|(head, body)| head.len() + body.len() + 48).sum();
        let mut bytes = BytesMut::with_capacity(size);
        for (head, body) in &self.parts {
            bytes.extend_from_slice(format!("--{boundary}\r\n{head}\r\n").as_bytes());
            bytes.extend_from_slice(body);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
        (format!("multipart/form-data; boundary={boundary}"), bytes.freeze())
    }
}

/// As browsers do (WHATWG HTML, multipart/form-data encoding).
fn quoted(name: &str) -> String {
    name.replace('"', "%22").replace('\r', "%0D").replace('\n', "%0A")
}

/// 128 bits that nobody guesses or meets again: keyed hashes, whose keys the system drew, of a
/// counter. The generator of the backoff's jitter has 64 bits of state, too few for names that must
/// differ between all processes.
pub(crate) fn random_hex() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let n = NEXT.fetch_add(1, Relaxed);
    let half = |salt: u64| RandomState::new().hash_one((n, salt));
    format!("{:016x}{:016x}", half(0), half(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_end_their_quotes_or_add_headers() {
        let form = Multipart::new().text("a\"\r\nx: y", "1").file(
            "f",
            "r\".csv",
            "text/csv\r\nevil: 1",
            "a,b",
        );
        let (content_type, body) = form.encode();
        let boundary = content_type.split_once("boundary=").unwrap().1;
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert_eq!(
            text,
            format!(
                "--{boundary}\r\ncontent-disposition: form-data; name=\"a%22%0D%0Ax: y\"\r\n\r\n1\r\n\
                 --{boundary}\r\ncontent-disposition: form-data; name=\"f\"; filename=\"r%22.csv\"\r\n\
                 content-type: text/csvevil: 1\r\n\r\na,b\r\n--{boundary}--\r\n"
            )
        );
        let many: std::collections::HashSet<_> = (0..1000).map(|_| random_hex()).collect();
        assert_eq!(many.len(), 1000);
    }
}
