//! Which failures of a worker another try may not have, and how long to wait before it.

use crate::workers::Call;
use deepcluster_service::requests::is_no_room;
use std::error::Error;
use std::time::Duration;
use tonic::{Code, Status};
use tracing::warn;

/// First and longest pause before a call is tried again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How often a call may end in INTERNAL, DATA_LOSS or a limit of the worker before the run fails. A file that was published a
/// moment ago may not be seen yet through a network file system.
const FAULTY_TRIES: u32 = 5;

/// How often in a row a worker may go away in the middle of the same work before the run fails: by then it is the work that
/// kills it, as when the memory does not suffice. A worker that is merely not there is waited for as long as it takes.
const BROKEN_TRIES: u32 = 20;

/// What the tries of one piece of work have seen so far.
#[derive(Default)]
pub struct Retry {
    pause: Duration,
    faulty: u32,
    broken: u32,
    /// The last failure's message.
    told: String,
}

impl Retry {
    /// How long to wait before the next try after this failure, which `call` is told of.
    ///
    /// # Errors
    /// The failure, when another try is no use.
    pub fn after(&mut self, status: Status, call: &Call<'_>) -> Result<Duration, Status> {
        if call.stop.is_cancelled() || is_no_room(&status) || !is_transient(status.code()) {
            return Err(status);
        }
        self.faulty += u32::from(matches!(status.code(), Code::Internal | Code::DataLoss | Code::ResourceExhausted));
        self.broken = if status.code() == Code::Aborted { self.broken + 1 } else { 0 };
        if self.faulty >= FAULTY_TRIES {
            return Err(status);
        }
        if self.broken >= BROKEN_TRIES {
            return Err(Status::internal(format!("{BROKEN_TRIES} times in a row, {}", status.message())));
        }
        warn!(code = ?status.code(), message = status.message(), "call failed, trying again");
        // A worker that stays away for days is one fault.
        let lasts = matches!(status.code(), Code::Unavailable | Code::Unauthenticated);
        if !lasts || self.told != status.message() {
            (call.fault)(&status);
        }
        status.message().clone_into(&mut self.told);
        self.pause = (self.pause * 2).clamp(BACK_OFF.0, BACK_OFF.1);
        Ok(jittered(self.pause))
    }

    /// The work has got further: what killed its worker before is not the work itself.
    pub fn moved_on(&mut self) {
        *self = Self::default();
    }
}

/// A pause that many do not take in step.
pub(crate) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..1.5))
}

/// A worker that was lost while it worked.
pub(crate) fn broken(why: &str) -> Status {
    Status::aborted(format!("the worker was lost in the middle of its work: {why}"))
}

/// An error before an answer has begun: the worker's own word, or that it cannot be reached.
pub(crate) fn at_the_start(status: Status) -> Status {
    match status.source() {
        Some(_) => Status::unavailable(status.message()),
        None => status,
    }
}

/// An error inside an answer: the worker's own word, or the end of its connection.
pub(crate) fn in_the_middle(status: Status) -> Status {
    match status.code() {
        Code::Unknown | Code::Cancelled => broken(status.message()),
        // Made by the transport of the loss of a connection, or of a stream that the other side has reset.
        _ if status.source().is_some() => broken(status.message()),
        _ => status,
    }
}

/// Faults that another try, or another worker, may not have. A killed worker shows as UNKNOWN or CANCELLED.
fn is_transient(code: Code) -> bool {
    match code {
        Code::Unavailable
        | Code::Unknown
        | Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        // New tokens do not reach all machines at the same time.
        | Code::Unauthenticated
        // A limit of the worker, as of its threads; a full volume is told apart before.
        | Code::ResourceExhausted
        | Code::DataLoss => true,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented => false,
    }
}
