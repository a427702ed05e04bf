//! Where an NBD server listens, as text: `unix:PATH` or `tcp:HOST:PORT`.

use std::fmt;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes that a socket address has for a path, without the NUL.
pub(super) const MAX_SOCKET_PATH: usize = 107;

/// An address of an NBD server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NbdAddress {
    /// A unix socket at an absolute path.
    Unix(PathBuf),
    /// A TCP port.
    Tcp {
        /// Name or number of an address of this host; numbers of IPv6 without brackets.
        host: String,
        /// Port; 0 takes a free one.
        port: u16,
    },
}

impl NbdAddress {
    /// True if no other host reaches it. NBD without TLS has neither secrecy nor passwords.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { host, port } => match host.parse::<IpAddr>() {
                Ok(address) => address.is_loopback(),
                Err(_) => (host.as_str(), *port).to_socket_addrs().is_ok_and(|all| {
                    let mut all = all.peekable();
                    all.peek().is_some() && all.all(|address| address.ip().is_loopback())
                }),
            },
        }
    }
}

impl FromStr for NbdAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("NBD address: expected unix:PATH or tcp:HOST:PORT, found {text:?}");
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => absolute(path),
            Some(("tcp", rest)) => {
                let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
                let host = host.trim_start_matches('[').trim_end_matches(']');
                let port = port.parse().map_err(|_| wrong())?;
                if host.is_empty() {
                    return Err(wrong());
                }
                let host = host.to_owned();
                Ok(Self::Tcp { host, port })
            }
            _ => Err(wrong()),
        }
    }
}

fn absolute(path: &str) -> Result<NbdAddress, String> {
    let path = std::path::absolute(path).map_err(|e| format!("unix:{path}: {e}"))?;
    let bytes = path.as_os_str().len();
    if bytes > MAX_SOCKET_PATH {
        return Err(format!(
            "{}: path of a socket: expected at most {MAX_SOCKET_PATH} bytes, found {bytes}",
            path.display()
        ));
    }
    Ok(NbdAddress::Unix(path))
}

impl TryFrom<String> for NbdAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<NbdAddress> for String {
    fn from(address: NbdAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_and_written() {
        for text in ["unix:/run/a.sock", "tcp:127.0.0.1:10809", "tcp:[::1]:0"] {
            let address: NbdAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            assert!(address.is_local(), "{text}");
        }
        let long = format!("unix:/{}", "a".repeat(MAX_SOCKET_PATH));
        for bad in [
            "", "unix:", "tcp:", "tcp:1", "tcp::1", "tcp:a:b", "/a", "udp:a:1", &long,
        ] {
            assert!(bad.parse::<NbdAddress>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn other_hosts_reach_what_is_no_loopback() {
        for text in ["tcp:0.0.0.0:1", "tcp:[::]:1", "tcp:192.0.2.1:1"] {
            assert!(!text.parse::<NbdAddress>().unwrap().is_local(), "{text}");
        }
    }
}
