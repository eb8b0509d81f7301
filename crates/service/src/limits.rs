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
    /// Largest message with images, in bytes (coordinator, extractor).
    pub images_bytes: usize,
    /// Largest content of one of these images, in bytes (coordinator). One that is larger is answered with that as its reason.
    pub image_bytes: usize,
    /// Most images of such a message (coordinator). Embeddings of 4096 values still fit what clients take at once by default.
    pub images: usize,
    /// Room for all images that wait for an extractor, in bytes (coordinator).
    pub images_waiting: usize,
    /// Most streams of images (coordinator).
    pub image_streams: usize,
    /// Most batches of images that wait or are embedded (extractor).
    pub embeds: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: 4 << 20,
            streams: 1000,
            requests: 1000,
            queue: 100,
            watchers: 10_000,
            page_connections: 1000,
            images_bytes: 16 << 20,
            image_bytes: 12 << 20,
            images: 128,
            images_waiting: 256 << 20,
            image_streams: 100,
            embeds: 4,
        }
    }
}
