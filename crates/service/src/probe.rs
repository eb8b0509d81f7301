//! Asking a running service for its health, as container runtimes do by `--probe`.

use crate::config::{Config, Listen};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;
use tonic::transport::Endpoint;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Asks the service of this configuration; 0 when it says that it is ready.
pub fn probe(config: &Config) -> ExitCode {
    let asked = match (config.health, &config.listen) {
        (Some(address), _) => Ok(address),
        (None, Listen::Address(address)) if config.tls.is_none() => Ok(*address),
        _ => Err("a service that speaks TLS, or has no address of its own, is probed at its --health".to_owned()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string());
    let told = asked.and_then(|address| runtime?.block_on(ask(reachable(address))));
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("not ready: {why}");
            ExitCode::FAILURE
        }
    }
}

async fn ask(address: SocketAddr) -> Result<(), String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    let channel = endpoint.connect_timeout(PATIENCE).timeout(PATIENCE).connect_lazy();
    let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
    match answer.map_err(|status| status.message().to_owned())?.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        other => Err(other.as_str_name().to_owned()),
    }
}

/// A service that listens everywhere is reached on this machine.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    address
}
