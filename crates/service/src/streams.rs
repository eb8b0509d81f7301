//! How many streams each connection holds, to refuse what goes beyond. HTTP/2's own limit would let a client wait without a
//! word instead.

use http_body::{Body as HttpBody, Frame, SizeHint};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tonic::body::Body;

/// The streams of all connections of a server. A connection is known by its peer's address.
pub(crate) struct Streams {
    most: usize,
    open: Mutex<HashMap<SocketAddr, usize>>,
}

impl Streams {
    /// Lets each connection hold `most` streams.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, open: Mutex::default() })
    }

    /// A place for one more stream of a connection; none when it holds too many.
    pub(crate) fn open(self: &Arc<Self>, peer: SocketAddr) -> Option<Place> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let held = open.entry(peer).or_default();
        if *held >= self.most {
            return None;
        }
        *held += 1;
        Some(Place { streams: Arc::clone(self), peer })
    }
}

/// Counts as a stream while it lives.
pub(crate) struct Place {
    streams: Arc<Streams>,
    peer: SocketAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.streams.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut held) = open.entry(self.peer) {
            *held.get_mut() -= 1;
            if *held.get() == 0 {
                held.remove();
            }
        }
    }
}

/// An answer that holds its place until all of it is sent or nobody wants it any more.
pub(crate) struct Held {
    pub(crate) body: Body,
    pub(crate) _place: Option<Place>,
}

impl HttpBody for Held {
    type Data = <Body as HttpBody>::Data;
    type Error = <Body as HttpBody>::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
