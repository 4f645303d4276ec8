//! Why a client and its brokers do not come together: the login is refused, or TLS does not begin. Owns the sentences that
//! people read. The client says of a certificate only that it could not be verified, so the broker is asked for it once more.

use std::collections::BTreeMap;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::types::RDKafkaErrorCode;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, ClientConnection, RootCertStore};

use crate::error::{EngineError, ErrorKind};

/// What looking at a broker's certificate may take.
const LOOK: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Login,
    Tls,
}

/// A broker and this client do not accept each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    step: Step,
    /// `host:port`, if the client said it.
    broker: Option<String>,
    /// It is one of `bootstrapServers`, of which another may do, and none that holds partitions.
    bootstrap: bool,
    /// The client's words, without the place and the time.
    words: String,
}

/// Who a client says it is, and whom it believes.
#[derive(Debug, Default)]
pub(crate) struct Identity {
    user: Option<String>,
    mechanism: Option<String>,
    authorities: Option<String>,
}

impl Identity {
    pub(crate) fn of(client: &BTreeMap<String, String>) -> Self {
        let get = |name: &str| client.get(name).cloned();
        Self {
            user: get("sasl.username"),
            mechanism: get("sasl.mechanism").or_else(|| get("sasl.mechanisms")),
            authorities: get("ssl.ca.pem"),
        }
    }
}

impl Refusal {
    /// Of an event of the client; `None` for what passes by itself.
    pub(crate) fn of(code: RDKafkaErrorCode, reason: &str) -> Option<Self> {
        use RDKafkaErrorCode as C;
        let step = match code {
            C::Authentication
            | C::SaslAuthenticationFailed
            | C::UnsupportedSASLMechanism
            | C::IllegalSASLState => Step::Login,
            C::SSL => Step::Tls,
            _ => return None,
        };
        // `sasl_ssl://127.0.0.1:9094/bootstrap: what happened (after 3ms in state SSL_HANDSHAKE)`
        let reason = reason
            .rsplit_once(" (after ")
            .map_or(reason, |(front, _)| front);
        let place = reason
            .split_once("://")
            .and_then(|(_, r)| r.split_once('/'));
        let (broker, bootstrap, words) = match place {
            Some((broker, rest)) => {
                let words = rest.split_once(": ").map_or(rest, |(_, words)| words);
                (
                    Some(broker.to_owned()),
                    rest.starts_with("bootstrap"),
                    words,
                )
            }
            None => (None, false, reason),
        };
        Some(Self {
            step,
            broker,
            bootstrap,
            words: words
                .trim_start_matches("SASL authentication error: ")
                .to_owned(),
        })
    }

    /// By a broker that the client cannot do without.
    pub(crate) fn by_needed(&self) -> bool {
        !self.bootstrap
    }

    /// The engine's error. Asks the broker for its certificate, so it may block for some seconds.
    pub(crate) fn error(&self, object: &str, who: &Identity) -> EngineError {
        let broker = self.broker.as_deref().unwrap_or("the broker");
        let (code, text) = match self.step {
            Step::Login => ("PR0211", self.login(broker, who)),
            Step::Tls => {
                let seen = who.authorities.as_deref().and_then(|authorities| {
                    look(self.broker.as_deref()?, authorities).and_then(|e| fault(broker, &e))
                });
                let said = || format!("no TLS connection to {broker}: {}", self.words);
                ("PR0212", seen.unwrap_or_else(said))
            }
        };
        EngineError::new(ErrorKind::Refused, code, object, text)
    }

    fn login(&self, broker: &str, who: &Identity) -> String {
        let user = match &who.user {
            Some(user) => format!("the login of user {user}"),
            None => "the login".to_owned(),
        };
        let by = match &who.mechanism {
            Some(mechanism) => format!(" by {mechanism}"),
            None => String::new(),
        };
        format!("{broker} refuses {user}{by}: {}", self.words)
    }
}

/// What is wrong with a certificate, in one sentence; `None` where the client's own words say as much.
fn fault(broker: &str, error: &CertificateError) -> Option<String> {
    use CertificateError as E;
    let host = broker.rsplit_once(':').map_or(broker, |(host, _)| host);
    Some(match error {
        E::Expired => format!("the certificate of {broker} has expired"),
        E::ExpiredContext { not_after, .. } => {
            format!(
                "the certificate of {broker} has expired at {}",
                instant(*not_after)
            )
        }
        E::NotValidYet => format!("the certificate of {broker} is not valid yet"),
        E::NotValidYetContext { not_before, .. } => {
            format!(
                "the certificate of {broker} is not valid before {}",
                instant(*not_before)
            )
        }
        E::NotValidForName => format!("the certificate of {broker} is not made out to {host}"),
        E::NotValidForNameContext { presented, .. } => format!(
            "the certificate of {broker} is not made out to {host}, but to {}",
            names(presented)
        ),
        E::UnknownIssuer => {
            format!("no authority of ssl.ca.pem has signed the certificate of {broker}")
        }
        _ => return None,
    })
}

/// `DnsName("a"), IpAddress(::1)` as people write it.
fn names(presented: &[String]) -> String {
    let plain = |name: &String| {
        let inner = name.split_once('(').map_or(name.as_str(), |(_, n)| n);
        inner.trim_end_matches(')').trim_matches('"').to_owned()
    };
    presented.iter().map(plain).collect::<Vec<_>>().join(", ")
}

fn instant(at: UnixTime) -> String {
    i64::try_from(at.as_secs())
        .ok()
        .and_then(|s| chrono::DateTime::from_timestamp(s, 0))
        .map_or_else(String::new, |t| t.format("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// Shakes hands with a broker as a client that believes `authorities`, and answers what is wrong with its certificate.
fn look(broker: &str, authorities: &str) -> Option<CertificateError> {
    let (host, _) = broker.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
        roots.add(root.ok()?).ok()?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .ok()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).ok()?;
    let mut connection = ClientConnection::new(Arc::new(config), name).ok()?;
    let address = broker.to_socket_addrs().ok()?.next()?;
    let mut socket = TcpStream::connect_timeout(&address, LOOK).ok()?;
    socket.set_read_timeout(Some(LOOK)).ok()?;
    socket.set_write_timeout(Some(LOOK)).ok()?;
    while connection.is_handshaking() {
        if let Err(e) = connection.complete_io(&mut socket) {
            return certificate(&e);
        }
    }
    None
}

fn certificate(error: &io::Error) -> Option<CertificateError> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(e) => Some(e.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who() -> Identity {
        Identity::of(&BTreeMap::from([
            ("sasl.username".to_owned(), "penstock".to_owned()),
            ("sasl.password".to_owned(), "hidden".to_owned()),
            ("sasl.mechanism".to_owned(), "SCRAM-SHA-512".to_owned()),
        ]))
    }

    #[test]
    fn a_refused_login_names_the_broker_the_user_and_the_mechanism() {
        let reason = "sasl_ssl://kafka-0.example:9094/1: SASL authentication error: Authentication failed during authentication due to invalid credentials with SASL mechanism SCRAM-SHA-512 (after 312ms in state AUTH_REQ, 3 identical error(s) suppressed)";
        let refusal = Refusal::of(RDKafkaErrorCode::Authentication, reason).unwrap();
        let error = refusal.error("source flights", &who());
        assert_eq!(error.kind, ErrorKind::Refused);
        assert_eq!(error.code, "PR0211");
        assert_eq!(
            error.to_string(),
            "source flights: kafka-0.example:9094 refuses the login of user penstock by SCRAM-SHA-512: Authentication failed during authentication due to invalid credentials with SASL mechanism SCRAM-SHA-512"
        );
    }

    #[test]
    fn tls_that_cannot_be_looked_at_keeps_the_clients_words() {
        let reason = "ssl://[::1]:1/bootstrap: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed (after 3ms in state SSL_HANDSHAKE)";
        let refusal = Refusal::of(RDKafkaErrorCode::SSL, reason).unwrap();
        assert_eq!(
            refusal.error("sink hourly", &who()).to_string(),
            "sink hourly: no TLS connection to [::1]:1: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed"
        );
    }

    #[test]
    fn of_several_bootstrap_servers_another_may_do() {
        let by = |place: &str| {
            let reason = format!("sasl_ssl://b:9094/{place}: SSL handshake failed: why");
            Refusal::of(RDKafkaErrorCode::SSL, &reason)
                .unwrap()
                .by_needed()
        };
        assert!(!by("bootstrap"));
        assert!(by("1"));
    }

    #[test]
    fn what_passes_by_itself_is_no_refusal() {
        for code in [
            RDKafkaErrorCode::BrokerTransportFailure,
            RDKafkaErrorCode::AllBrokersDown,
            RDKafkaErrorCode::OperationTimedOut,
        ] {
            assert_eq!(Refusal::of(code, "ssl://b:1/1: Disconnected"), None);
        }
    }

    #[test]
    fn a_fault_of_a_certificate_says_whose_it_is_and_which() {
        let not_after = UnixTime::since_unix_epoch(Duration::from_secs(1_000_000_000));
        let expired = CertificateError::ExpiredContext {
            time: not_after,
            not_after,
        };
        assert_eq!(
            fault("b:9094", &expired).unwrap(),
            "the certificate of b:9094 has expired at 2001-09-09T01:46:40Z"
        );
        let name = CertificateError::NotValidForNameContext {
            expected: ServerName::try_from("b").unwrap(),
            presented: vec!["DnsName(\"c\")".to_owned(), "IpAddress(::1)".to_owned()],
        };
        assert_eq!(
            fault("b:9094", &name).unwrap(),
            "the certificate of b:9094 is not made out to b, but to c, ::1"
        );
        assert_eq!(fault("b:9094", &CertificateError::BadEncoding), None);
    }
}
