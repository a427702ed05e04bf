//! Addresses that servers listen at, and the URIs that clients take.

use std::fmt::{self, Write};
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes that a socket address has for a path, without the NUL.
pub(crate) const MAX_SOCKET_PATH: usize = 107;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// A socket file: `unix:PATH`; the path is made absolute.
    Unix(PathBuf),
    /// `tcp:HOST:PORT`; an IPv6 host stands in brackets. Port 0 is any free one.
    Tcp {
        /// Name or number, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: expected unix:PATH or tcp:HOST:PORT");
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => absolute(path),
            Some(("tcp", rest)) => {
                let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
                let port = port.parse().map_err(|_| wrong())?;
                let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
                let sound = bare.map_or(!host.contains(':'), |h| h.contains(':'));
                let host = bare.unwrap_or(host).to_owned();
                let sound = sound && !host.is_empty() && !host.contains(['[', ']']);
                sound.then_some(Self::Tcp { host, port }).ok_or_else(wrong)
            }
            _ => Err(wrong()),
        }
    }
}

fn absolute(path: &str) -> Result<Address, String> {
    let path = std::path::absolute(path).map_err(|e| format!("unix:{path}: {e}"))?;
    let bytes = path.as_os_str().len();
    if bytes > MAX_SOCKET_PATH {
        return Err(format!(
            "{}: path of a socket: expected at most {MAX_SOCKET_PATH} bytes, found {bytes}",
            path.display()
        ));
    }
    Ok(Address::Unix(path))
}

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

impl Address {
    /// True if only this machine can connect.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { host, .. } => {
                let number = host.parse::<IpAddr>();
                host == "localhost" || number.is_ok_and(|ip| ip.is_loopback())
            }
        }
    }

    /// The URI of an export.
    pub fn uri(&self, export: &str) -> String {
        let export = escape(export.as_bytes(), b"/");
        match self {
            Self::Unix(path) => {
                let socket = escape(path.as_os_str().as_bytes(), b"/");
                format!("nbd+unix:///{export}?socket={socket}")
            }
            Self::Tcp { host, port } if host.contains(':') => {
                format!("nbd://[{host}]:{port}/{export}")
            }
            Self::Tcp { host, port } => format!("nbd://{host}:{port}/{export}"),
        }
    }
}

/// Percent-encodes everything but unreserved characters and those of `keep`.
fn escape(bytes: &[u8], keep: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || keep.contains(byte) {
            out.push(char::from(*byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_print_as_they_parse() {
        for text in ["unix:/run/a b.sock", "tcp:localhost:10809", "tcp:[::1]:0"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "unix:",
            "tcp:",
            "tcp:a",
            "tcp::1",
            "tcp:a:99999",
            "tcp:::1:5",
            "tcp:[a]:5",
            "/run/a",
            "tcp:[::1:5",
            "http:a:1",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn uris_are_escaped() {
        let uri = |address: &str, name| address.parse::<Address>().unwrap().uri(name);
        assert_eq!(
            uri("unix:/run/a&b.sock", "vol 1/x?"),
            "nbd+unix:///vol%201/x%3F?socket=/run/a%26b.sock"
        );
        assert_eq!(uri("tcp:[::1]:7", ""), "nbd://[::1]:7/");
        assert_eq!(uri("tcp:h:7", "ä"), "nbd://h:7/%C3%A4");
    }

    #[test]
    fn local_is_what_no_other_machine_reaches() {
        let local = |address: &str| address.parse::<Address>().unwrap().is_local();
        assert!(local("unix:/a") && local("tcp:127.0.0.2:1") && local("tcp:[::1]:1"));
        assert!(!local("tcp:0.0.0.0:1") && !local("tcp:[::]:1") && !local("tcp:example.org:1"));
    }
}
