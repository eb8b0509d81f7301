//! What lies in `deploy/`, as far as it can be checked without running it.

use crate::support::python;
use std::path::Path;

#[test]
fn the_kubernetes_manifests_are_valid_and_belong_together() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    python("kubernetes.py", [&deploy.join("kubernetes")]);
}

#[test]
fn the_dashboard_shows_what_there_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    python("monitoring.py", [&root.join("deploy/monitoring"), &root.join("crates/service/src/metrics.rs")]);
}
