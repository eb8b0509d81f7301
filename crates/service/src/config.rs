//! Configuration: raw flags and `DC_*` variables become a checked [`Config`], all mistakes reported at once.

use crate::door::Tokens;
use crate::limits::Limits;
use crate::threads::ThreadCount;
use crate::tls::{ServerFiles, ServerTls};
use crate::tokens::TokenFile;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::AsFd;
use std::path::PathBuf;

/// The flags that every service has, unchecked.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Where to listen, as HOST:PORT; or "stdin" for a listening socket that was handed over as standard input
    #[arg(long, env = "DC_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Root of the shared volume
    #[arg(long, env = "DC_VOLUME", value_name = "DIR")]
    pub volume: Option<String>,
    /// Folder below which all images lie
    #[arg(long, env = "DC_IMAGES", value_name = "DIR", default_value = "/")]
    pub images: String,
    /// CPU threads to compute with; 0 for as many as affinity and CPU quota allow
    #[arg(long, env = "DC_THREADS", value_name = "N", default_value = "0")]
    pub threads: String,
    /// What to log: error, warn, info, debug, or filters like deepcluster_trainer=debug
    #[arg(long, env = "DC_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// How to log: text or json
    #[arg(long, env = "DC_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: String,
    /// Where Prometheus finds the numbers of this service, as HOST:PORT; nowhere unless given
    #[arg(long, env = "DC_METRICS", value_name = "ADDRESS", default_value = "")]
    pub metrics: String,
    /// Where the service's health is told a second time, without TLS and to everybody, as HOST:PORT; nowhere unless given
    #[arg(long, env = "DC_HEALTH", value_name = "ADDRESS", default_value = "")]
    pub health: String,
    /// Only ask the service of these settings for its health: exit code 0 when it is ready
    #[arg(long)]
    pub probe: bool,
    /// Speak TLS with this certificate (PEM, with those between it and the authority), read anew when it changes
    #[arg(long, env = "DC_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<String>,
    /// The private key of --tls-cert (PEM)
    #[arg(long, env = "DC_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<String>,
    /// Callers must show a certificate of this authority (PEM)
    #[arg(long, env = "DC_TLS_CLIENT_CA", value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<String>,
    /// A file with the token that the coordinator shows to the workers, and that workers demand
    #[arg(long, env = "DC_WORKER_TOKEN_FILE", value_name = "FILE")]
    pub worker_token_file: Option<String>,
    /// Stop when the process of this number, which started this one, ends
    #[arg(long, hide = true, value_name = "PID")]
    pub die_with_parent: Option<i32>,
}

/// Checked configuration of a service.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub listen: Listen,
    /// Root of the shared volume.
    pub volume: PathBuf,
    /// Folder below which all images lie.
    pub images: PathBuf,
    /// CPU threads to compute with.
    pub threads: ThreadCount,
    /// Log filter.
    pub log: String,
    /// Log format.
    pub log_json: bool,
    /// Where its numbers are served.
    pub metrics: Option<SocketAddr>,
    /// Where its health is told without TLS.
    pub health: Option<SocketAddr>,
    /// Only ask a running service for its health.
    pub probe: bool,
    /// Certificates, if it speaks TLS.
    pub tls: Option<ServerFiles>,
    /// What callers must show. A worker's are those of its coordinator, unless somebody sets others.
    pub tokens: Tokens,
    /// The token between coordinator and workers.
    pub worker_token: Option<TokenFile>,
    /// How much it takes on at once.
    pub limits: Limits,
    /// The parent process, if this one shall end with it.
    pub die_with_parent: Option<i32>,
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A socket of our own.
    Address(SocketAddr),
    /// A listening socket that the parent keeps open across our deaths, so that the address never changes.
    Stdin,
}

/// Every mistake of a configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct ConfigError(pub Vec<String>);

impl Options {
    /// Checks everything. `default_listen` counts when no address is given.
    ///
    /// # Errors
    /// One clause for every mistake.
    pub fn check(&self, default_listen: &str) -> Result<Config, ConfigError> {
        let mut mistakes = Vec::new();
        let listen = parse_listen(self.listen.as_deref().unwrap_or(default_listen)).unwrap_or_else(|mistake| {
            mistakes.push(mistake);
            Listen::Stdin
        });
        let volume = self.volume.clone().unwrap_or_default();
        if volume.is_empty() {
            mistakes.push("--volume (DC_VOLUME) is missing".to_owned());
        }
        let images = PathBuf::from(&self.images);
        if !images.is_dir() {
            mistakes.push(format!("--images '{}' is not a folder", self.images));
        }
        let threads = self.threads.parse().unwrap_or_else(|_| {
            mistakes.push(format!("--threads '{}' is not a number", self.threads));
            1
        });
        if !["text", "json"].contains(&self.log_format.as_str()) {
            mistakes.push(format!("--log-format '{}' is neither text nor json", self.log_format));
        }
        if let Err(error) = self.log.parse::<tracing_subscriber::EnvFilter>() {
            mistakes.push(format!("--log '{}': {error}", self.log));
        }
        let metrics = optional_address("metrics", &self.metrics, &mut mistakes);
        let health = optional_address("health", &self.health, &mut mistakes);
        let tls = self.server_files();
        if let Some(Err(mistake)) = tls.clone().map(ServerTls::new) {
            mistakes.push(format!("--tls-cert: {mistake}"));
        }
        let worker_token = token_file("worker-token-file", self.worker_token_file.as_deref(), &mut mistakes);
        if !mistakes.is_empty() {
            return Err(ConfigError(mistakes));
        }
        Ok(Config {
            listen,
            volume: volume.into(),
            images,
            threads: ThreadCount::new(threads),
            log: self.log.clone(),
            log_json: self.log_format == "json",
            metrics,
            health,
            probe: self.probe,
            tls,
            tokens: Tokens { read: None, write: worker_token.clone() },
            worker_token,
            limits: Limits::default(),
            die_with_parent: self.die_with_parent,
        })
    }

    fn server_files(&self) -> Option<ServerFiles> {
        let (cert, key) = (self.tls_cert.as_ref()?.into(), self.tls_key.as_ref()?.into());
        Some(ServerFiles { cert, key, client_ca: self.tls_client_ca.as_ref().map(PathBuf::from) })
    }
}

/// An address that a flag names, none when it names nothing; a mistake is noted.
pub fn optional_address(flag: &str, text: &str, mistakes: &mut Vec<String>) -> Option<SocketAddr> {
    match text {
        "" => None,
        text => address_of(text).map_err(|why| mistakes.push(format!("--{flag} '{text}' {why}"))).ok(),
    }
}

/// A token's file that a flag names; a mistake is noted.
pub fn token_file(flag: &str, path: Option<&str>, mistakes: &mut Vec<String>) -> Option<TokenFile> {
    match TokenFile::new(path?) {
        Ok(token) => Some(token),
        Err(error) => {
            mistakes.push(format!("--{flag}: {error}"));
            None
        }
    }
}

impl Listen {
    /// Opens the socket.
    ///
    /// # Errors
    /// One sentence that names the address, as when the port is in use.
    pub fn bind(&self) -> Result<TcpListener, String> {
        let listener = match self {
            Self::Address(address) => {
                TcpListener::bind(address).map_err(|error| format!("cannot listen on {address}: {error}"))?
            }
            Self::Stdin => {
                let stdin = std::io::stdin();
                let socket = stdin.as_fd().try_clone_to_owned().map_err(|error| format!("standard input: {error}"))?;
                let listener = TcpListener::from(socket);
                listener.local_addr().map_err(|error| format!("standard input is no listening socket: {error}"))?;
                listener
            }
        };
        listener.set_nonblocking(true).map_err(|error| error.to_string())?;
        Ok(listener)
    }
}

fn parse_listen(text: &str) -> Result<Listen, String> {
    if text == "stdin" {
        return Ok(Listen::Stdin);
    }
    address_of(text).map(Listen::Address).map_err(|why| format!("--listen '{text}' {why}"))
}

fn address_of(text: &str) -> Result<SocketAddr, String> {
    let mut addresses = text.to_socket_addrs().map_err(|error| format!("is not HOST:PORT: {error}"))?;
    addresses.next().ok_or_else(|| "has no address".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options {
            listen: None,
            volume: Some("/tmp".to_owned()),
            images: "/".to_owned(),
            threads: "2".to_owned(),
            log: "info".to_owned(),
            log_format: "text".to_owned(),
            metrics: String::new(),
            health: String::new(),
            probe: false,
            tls_cert: None,
            tls_key: None,
            tls_client_ca: None,
            worker_token_file: None,
            die_with_parent: None,
        }
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let config = options().check("127.0.0.1:7071").unwrap();
        assert_eq!(config.threads.count, 2);
        assert_eq!(config.listen, Listen::Address("127.0.0.1:7071".parse().unwrap()));
        let broken = Options {
            listen: Some("nowhere".to_owned()),
            volume: None,
            images: "/no/such/folder".to_owned(),
            threads: "many".to_owned(),
            log_format: "xml".to_owned(),
            metrics: "9090".to_owned(),
            tls_cert: Some("/no/cert.pem".to_owned()),
            tls_key: Some("/no/key.pem".to_owned()),
            worker_token_file: Some("/no/token".to_owned()),
            ..options()
        };
        let sentence = broken.check("127.0.0.1:1").unwrap_err().to_string();
        for part in
            ["--listen 'nowhere'", "--volume", "/no/such/folder", "many", "xml", "--metrics '9090'", "/no/cert.pem", "/no/token"]
        {
            assert!(sentence.contains(part), "{sentence}");
        }
    }

    #[test]
    fn a_port_in_use_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let sentence = Listen::Address(address).bind().unwrap_err();
        assert!(sentence.contains(&address.to_string()), "{sentence}");
    }
}
