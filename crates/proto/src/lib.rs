//! The gRPC types of `proto/deepcluster/v1`, and their way to and from the domain's.
#![forbid(unsafe_code)]

mod convert;

pub use convert::{FieldError, device_choice, network_of, retry_later, run_spec_to_wire, tags_of};

/// Package `deepcluster.v1`, generated.
#[allow(missing_docs, clippy::all, clippy::unwrap_used, reason = "generated; the documentation stands in proto/")]
pub mod v1 {
    tonic::include_proto!("deepcluster.v1");
}

/// The compiled proto files, for server reflection.
pub const DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("deepcluster");
