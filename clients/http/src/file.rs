//! A file as the body of a request, read piece by piece on threads that may block.

use crate::body::RequestBody;
use bytes::Bytes;
use futures_core::Stream;
use mainstay_policy::Error;
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::task::{JoinHandle, spawn_blocking};

/// In bytes.
const PIECE: u64 = 128 * 1024;

impl RequestBody {
    /// A file, opened anew for each attempt, so that the request may be repeated as one with plain
    /// bytes would be. Its length is looked at now; a file that has another when it is sent fails the
    /// request.
    ///
    /// # Errors
    /// A file that cannot be opened.
    ///
    /// # Panics
    /// Outside a tokio runtime, as tokio does.
    ///
    /// # Cancel safety
    /// Nothing is left behind.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn main_(api: mainstay_http::HttpClient) -> Result<(), mainstay_policy::Error> {
    /// use mainstay_http::{Multipart, RequestBody};
    ///
    /// api.put("exports/7").body(RequestBody::file("export.csv").await?).await?;
    /// let file = RequestBody::file("export.csv").await?;
    /// let form = Multipart::new().text("title", "Export").file("f", "e.csv", "text/csv", file);
    /// api.put("reports/7").multipart(form).await?;
    /// # Ok(()) }
    /// ```
    pub async fn file(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path: Arc<Path> = path.into().into();
        let opened = Arc::clone(&path);
        let length = spawn_blocking(move || {
            let about = File::open(opened)?.metadata()?;
            if about.is_dir() { Err(io::ErrorKind::IsADirectory.into()) } else { Ok(about.len()) }
        });
        let length = length.await.unwrap_or_else(|lost| Err(io::Error::other(lost)));
        match length {
            Ok(length) => {
                let pieces =
                    move || FilePieces { left: length, state: State::Closed(Arc::clone(&path)) };
                Ok(Self::streamed_by(pieces).with_length(length))
            }
            Err(error) => Err(Error::invalid(format!(
                "the file {} cannot be sent: {}; check the path",
                path.display(),
                error.kind()
            ))),
        }
    }
}

struct FilePieces {
    /// Of the length that was announced. That there is no more is read with the last piece.
    left: u64,
    state: State,
}

enum State {
    Closed(Arc<Path>),
    Open(File),
    Reading(JoinHandle<io::Result<(File, Bytes)>>),
    Ended,
}

impl Stream for FilePieces {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let left = this.left;
        loop {
            let state = std::mem::replace(&mut this.state, State::Ended);
            this.state = match state {
                State::Ended => return Poll::Ready(None),
                State::Closed(path) => {
                    State::Reading(spawn_blocking(move || read(File::open(path)?, left)))
                }
                State::Open(file) => State::Reading(spawn_blocking(move || read(file, left))),
                State::Reading(mut reading) => {
                    let Poll::Ready(read) = Pin::new(&mut reading).poll(cx) else {
                        this.state = State::Reading(reading);
                        return Poll::Pending;
                    };
                    match read.unwrap_or_else(|lost| Err(io::Error::other(lost))) {
                        Ok((_, piece)) if piece.is_empty() => return Poll::Ready(None),
                        Ok((file, piece)) => {
                            this.left -= piece.len() as u64;
                            if this.left > 0 {
                                this.state = State::Open(file);
                            }
                            return Poll::Ready(Some(Ok(piece)));
                        }
                        Err(error) => return Poll::Ready(Some(Err(error))),
                    }
                }
            };
        }
    }
}

fn read(file: File, left: u64) -> io::Result<(File, Bytes)> {
    let mut piece = Vec::new();
    let most = if left > PIECE { PIECE } else { left + 1 };
    (&file).take(most).read_to_end(&mut piece)?;
    if piece.len() as u64 > left {
        return Err(io::Error::other("the file is longer than it was"));
    }
    Ok((file, piece.into()))
}
