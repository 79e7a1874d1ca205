//! `multipart/form-data` (RFC 7578): in memory, or piece by piece where a part is a stream.

use crate::body::{Pieces, RequestBody};
use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use std::{
    collections::VecDeque,
    fmt,
    hash::{BuildHasher, RandomState},
    io,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Poll, ready},
};

/// A form with files: bytes, or streams such as [`RequestBody::file`], which are never in memory as a
/// whole. A request with it is repeated like any other, unless a part is
/// [there once](RequestBody::streamed_once): then only while nobody has begun to read it.
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
    parts: Vec<(String, RequestBody)>,
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

    /// Adds a file: the field's name, the file's name, its type such as `text/csv`, its bytes or a
    /// stream of them. Where the length of each part is known, that of the form is announced.
    pub fn file(
        mut self,
        name: &str,
        file_name: &str,
        content_type: &str,
        content: impl Into<RequestBody>,
    ) -> Self {
        let head = format!(
            "content-disposition: form-data; name=\"{}\"; filename=\"{}\"\r\ncontent-type: {}\r\n",
            quoted(name),
            quoted(file_name),
            // A type has no line breaks; one that was smuggled in would add headers.
            content_type.replace(['\r', '\n'], "")
        );
        self.parts.push((head, content.into()));
        self
    }

    /// Whether it can be sent in a second attempt after a first has begun to send it.
    #[must_use]
    pub fn is_replayable(&self) -> bool {
        self.parts.iter().all(|(_, content)| content.is_replayable())
    }

    /// The content type with its boundary, and the body.
    pub(crate) fn encode(self) -> (String, RequestBody) {
        let boundary = random_hex();
        let content_type = format!("multipart/form-data; boundary={boundary}");
        let again = self.is_replayable();
        let mut parts = Vec::with_capacity(self.parts.len());
        // What ends a part stands before the next one.
        let mut end = "";
        for (head, content) in self.parts {
            parts.push((Bytes::from(format!("{end}--{boundary}\r\n{head}\r\n")), content));
            end = "\r\n";
        }
        let last = Bytes::from(format!("{end}--{boundary}--\r\n"));
        let length = parts.iter().try_fold(last.len() as u64, |sum, (head, content)| {
            sum.checked_add(head.len() as u64)?.checked_add(content.length()?)
        });
        let body = if parts.iter().all(|(_, content)| content.bytes().is_some()) {
            let pieces = parts.iter().flat_map(|(head, content)| [Some(head), content.bytes()]);
            let mut bytes = BytesMut::new();
            bytes.reserve(length.and_then(|length| usize::try_from(length).ok()).unwrap_or(0));
            pieces.flatten().chain([&last]).for_each(|piece| bytes.extend_from_slice(piece));
            return (content_type, bytes.freeze().into());
        } else if again {
            RequestBody::streamed_by(move || Chain::of(&parts, &last))
        } else {
            RequestBody::streamed_once(Chain::of(&parts, &last))
        };
        let body = match length {
            Some(length) => body.with_length(length),
            None => body,
        };
        (content_type, body)
    }
}

/// Bytes and streams, one after the other.
struct Chain(VecDeque<Link>);

enum Link {
    Bytes(Bytes),
    Pieces(Pieces),
}

impl Chain {
    fn of(parts: &[(Bytes, RequestBody)], last: &Bytes) -> Self {
        let mut links = VecDeque::with_capacity(2 * parts.len() + 1);
        for (head, content) in parts {
            links.push_back(Link::Bytes(head.clone()));
            let bytes = content.bytes().map(|bytes| Link::Bytes(bytes.clone()));
            links.extend(bytes.or_else(|| content.pieces().map(Link::Pieces)));
        }
        links.push_back(Link::Bytes(last.clone()));
        Self(links)
    }
}

impl Stream for Chain {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let piece = match self.0.front_mut() {
                None => return Poll::Ready(None),
                Some(Link::Bytes(bytes)) => Some(Ok(std::mem::take(bytes))),
                Some(Link::Pieces(pieces)) => match ready!(pieces.as_mut().poll_next(cx)) {
                    Some(piece) => return Poll::Ready(Some(piece)),
                    None => None,
                },
            };
            self.0.pop_front();
            if piece.is_some() {
                return Poll::Ready(piece);
            }
        }
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
        let text = String::from_utf8(body.bytes().unwrap().to_vec()).unwrap();
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
