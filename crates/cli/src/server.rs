//! The flags that name a coordinator and what it is shown.

use crate::failure::Failure;
use deepcluster_service::tls::ClientSecurity;
use deepcluster_service::tokens::TokenFile;
use std::path::PathBuf;
use std::time::Duration;
use tonic::transport::{Endpoint, Uri};

/// Which coordinator, what it is shown, and how to print.
#[derive(Clone, Debug, clap::Args)]
pub struct Server {
    /// The coordinator
    #[arg(long, env = "DC_SERVER", default_value = "http://127.0.0.1:7070", value_name = "URL")]
    pub server: String,
    /// A file with the token to show to the coordinator
    #[arg(long, env = "DC_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The authority of an https coordinator's certificate (PEM); those of the system unless one is named
    #[arg(long, env = "DC_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The certificate to show to the coordinator (PEM)
    #[arg(long, env = "DC_CERT", value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// The private key of --cert (PEM)
    #[arg(long, env = "DC_KEY", value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

impl Server {
    /// Where it answers.
    ///
    /// # Errors
    /// One sentence that names the flag.
    pub fn endpoint(&self) -> Result<Endpoint, Failure> {
        let refused = || Failure::usage(format!("--server '{}' is no address like http://127.0.0.1:7070", self.server));
        let uri: Uri = self.server.parse().map_err(|_| refused())?;
        let (scheme, authority, host) = match (uri.scheme_str(), uri.authority(), uri.host()) {
            (Some(scheme @ ("http" | "https")), Some(authority), Some(host)) if !host.is_empty() => (scheme, authority, host),
            _ => return Err(refused()),
        };
        let tls = scheme == "https";
        let default_port = if tls { ":443" } else { ":80" };
        let port = if authority.port().is_none() { default_port } else { "" };
        if !tls && (self.ca.is_some() || self.cert.is_some()) {
            return Err(Failure::usage(format!("--ca and --cert are for https, --server is '{}'", self.server)));
        }
        let identity = self.cert.clone().zip(self.key.clone());
        let security = ClientSecurity { tls, ca: self.ca.clone(), identity, token: None };
        let endpoint = security.endpoint(&format!("{authority}{port}"), host.trim_matches(['[', ']']));
        let endpoint = endpoint.map_err(|why| Failure::usage(format!("--server '{}': {why}", self.server)))?;
        Ok(endpoint.connect_timeout(Duration::from_secs(10)))
    }

    /// What it is shown.
    ///
    /// # Errors
    /// One sentence that names the flag.
    pub fn token(&self) -> Result<Option<TokenFile>, Failure> {
        let read = |path: &PathBuf| TokenFile::new(path).map_err(|why| Failure::usage(format!("--token-file: {why}")));
        self.token_file.as_ref().map(read).transpose()
    }
}
