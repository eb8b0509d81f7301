//! Every limit of a server, in one place. What goes beyond is refused with RESOURCE_EXHAUSTED.

/// How much a server takes on at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest request, in bytes.
    pub message_bytes: usize,
    /// Most streams of one connection.
    pub streams: usize,
    /// Most requests that wait for an answer to begin, over all connections.
    pub requests: usize,
    /// Most runs that wait for their turns (coordinator).
    pub queue: usize,
    /// Most streams that follow runs (coordinator).
    pub watchers: usize,
    /// Most connections to the live page (coordinator).
    pub page_connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { message_bytes: 4 << 20, streams: 1000, requests: 1000, queue: 100, watchers: 10_000, page_connections: 1000 }
    }
}
