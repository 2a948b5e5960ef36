//! The bytes of an object on their way from the threads of the runtime to the thread of a caller.
//!
//! A client passes the bytes of an answer in many small pieces. A thread that waits for each of them
//! is woken for each of them, which costs more than the bytes of a piece. So a task collects pieces,
//! without copying them, and passes some hundred kilobytes at a time.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use futures_util::StreamExt;
use object_store::{Error, GetOptions, GetRange, ObjectStore, path::Path};
use tokio::{sync::mpsc, task::JoinHandle};

/// Bytes that are passed on together, at least, except at the end.
const TOGETHER_BYTES: usize = 256 << 10;

/// Portions that wait for the caller, at most. More would only be memory.
const WAITING_MAX: usize = 2;

/// Pieces that are passed on together.
type Portion = Result<Vec<Bytes>, Error>;

/// An object that is being read. Dropped, the request is cancelled.
#[derive(Debug)]
pub(crate) struct ObjectPieces {
    portions: mpsc::Receiver<Portion>,
    /// Present until it has ended.
    request: Option<JoinHandle<()>>,
}

impl ObjectPieces {
    /// Starts the request on the runtime of the caller, for all bytes or some.
    pub(crate) fn read(
        objects: &Arc<dyn ObjectStore>,
        path: Path,
        range: Option<Range<u64>>,
    ) -> ObjectPieces {
        let objects = Arc::clone(objects);
        let (sender, portions) = mpsc::channel(WAITING_MAX);
        let request = tokio::spawn(async move {
            let request = GetOptions {
                range: range.map(GetRange::Bounded),
                ..GetOptions::default()
            };
            if let Err(error) = pass(&*objects, (&path, request), &sender).await {
                // A caller that waits no more needs no error.
                let _ = sender.send(Err(error)).await;
            }
        });
        ObjectPieces {
            portions,
            request: Some(request),
        }
    }

    /// The next pieces; `None` after the last ones, or after an error.
    ///
    /// # Panics
    /// If the client panicked: the pieces so far are not the whole object.
    pub(crate) async fn next(&mut self) -> Option<Portion> {
        let portion = self.portions.recv().await;
        if portion.is_none()
            && let Some(request) = self.request.take()
            && let Err(failed) = request.await
            && failed.is_panic()
        {
            std::panic::resume_unwind(failed.into_panic());
        }
        portion
    }
}

impl Drop for ObjectPieces {
    fn drop(&mut self) {
        if let Some(request) = &self.request {
            request.abort();
        }
    }
}

async fn pass(
    objects: &dyn ObjectStore,
    (path, request): (&Path, GetOptions),
    sender: &mpsc::Sender<Portion>,
) -> Result<(), Error> {
    let mut pieces = objects.get_opts(path, request).await?.into_stream();
    let mut portion = Vec::new();
    let mut bytes = 0;
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        bytes += piece.len();
        portion.push(piece);
        if bytes >= TOGETHER_BYTES {
            bytes = 0;
            if sender.send(Ok(std::mem::take(&mut portion))).await.is_err() {
                // The caller needs no more bytes.
                return Ok(());
            }
        }
    }
    // An object without bytes has no portion.
    if !portion.is_empty() {
        let _ = sender.send(Ok(portion)).await;
    }
    Ok(())
}
