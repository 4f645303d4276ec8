//! One controller of several acts: the holder of a Lease. Behind it stands each job's log, which fences whoever acts too late.

use std::time::Duration;

use chrono::{DateTime, Utc};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};

use crate::clock::in_time;

/// The Lease, in the controller's own namespace.
const LEASE: &str = "penstock-operator";
/// A holder that did not renew for so long has lost it.
const TERM: Duration = Duration::from_secs(15);
/// How often it is renewed, or looked at.
const PERIOD: Duration = Duration::from_secs(4);

/// What to do about a Lease that looks like this. Pure.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Write that it is mine from now on; the number of changes of hands.
    Take(i32),
    Renew,
    /// Somebody else holds it.
    Wait,
}

fn step(lease: Option<&Lease>, me: &str, now: DateTime<Utc>) -> Step {
    let Some(spec) = lease.and_then(|l| l.spec.as_ref()) else {
        return Step::Take(0);
    };
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    if holder == me {
        return Step::Renew;
    }
    let renewed = spec.renew_time.as_ref().map(|t| t.0.as_second());
    let term = i64::from(spec.lease_duration_seconds.unwrap_or(0));
    let over = renewed.is_none_or(|at| now.timestamp() > at + term);
    if holder.is_empty() || over {
        Step::Take(spec.lease_transitions.unwrap_or(0) + 1)
    } else {
        Step::Wait
    }
}

pub struct Election {
    leases: Api<Lease>,
    me: String,
}

impl Election {
    /// `me`: the pod's name.
    pub fn new(client: Client, namespace: &str, me: String) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            me,
        }
    }

    /// Waits until this one leads.
    pub async fn won(&self) {
        loop {
            // An answer may never end; with the next one it may be won.
            match in_time(TERM, self.try_once()).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "the lease cannot be read or written"),
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Renews until it is lost: to somebody else, or because it could not be renewed in time.
    pub async fn lost(&self) {
        // A little before others may take it.
        const SAFE: Duration = Duration::from_secs(11);
        let mut renewed = tokio::time::Instant::now();
        loop {
            tokio::time::sleep(PERIOD).await;
            let began = tokio::time::Instant::now();
            // An answer that does not come is no reason to go on acting.
            match tokio::time::timeout_at(renewed + SAFE, self.try_once()).await {
                Ok(Ok(true)) => renewed = began,
                Ok(Ok(false)) | Err(_) => return,
                Ok(Err(error)) => tracing::warn!(%error, "the lease cannot be renewed"),
            }
        }
    }

    /// Gives it up, so that another need not wait for its end.
    pub async fn resign(&self) {
        let resigned = async {
            let mut lease = self.leases.get(LEASE).await?;
            if let Some(spec) = &mut lease.spec
                && spec.holder_identity.as_deref() == Some(&self.me)
            {
                spec.holder_identity = Some(String::new());
                self.leases
                    .replace(LEASE, &PostParams::default(), &lease)
                    .await?;
            }
            Ok::<(), kube::Error>(())
        };
        if let Err(error) = in_time(PERIOD, resigned).await {
            tracing::warn!(%error, "the lease was not given up; it ends by itself");
        }
    }

    /// Whether it is held after this try.
    async fn try_once(&self) -> Result<bool, kube::Error> {
        let lease = self.leases.get_opt(LEASE).await?;
        let now = crate::clock::now();
        let transitions = match step(lease.as_ref(), &self.me, now) {
            Step::Wait => return Ok(false),
            Step::Take(transitions) => Some(transitions),
            Step::Renew => None,
        };
        let time = Timestamp::from_microsecond(now.timestamp_micros()).unwrap_or_default();
        let mut wanted = lease.clone().unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(LEASE.to_owned()),
                ..ObjectMeta::default()
            },
            ..Lease::default()
        });
        let spec = wanted.spec.get_or_insert_with(LeaseSpec::default);
        spec.holder_identity = Some(self.me.clone());
        spec.lease_duration_seconds = i32::try_from(TERM.as_secs()).ok();
        spec.renew_time = Some(MicroTime(time));
        if let Some(transitions) = transitions {
            spec.lease_transitions = Some(transitions);
            spec.acquire_time = Some(MicroTime(time));
        }
        let written = match &lease {
            // With its resource version: who was slower is refused.
            Some(_) => {
                self.leases
                    .replace(LEASE, &PostParams::default(), &wanted)
                    .await
            }
            None => self.leases.create(&PostParams::default(), &wanted).await,
        };
        match written {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(e)) if e.code == 409 => Ok(false),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use kube::client::Body;
    use serde_json::json;

    fn lease(holder: &str, renewed: &str) -> Lease {
        serde_json::from_value(json!({"spec": {
            "holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": 15, "leaseTransitions": 3,
        }}))
        .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_never_ends_is_not_waited_for() {
        let (begun, mut asked) = tokio::sync::mpsc::unbounded_channel();
        let server = tower::service_fn(move |request: Request<Body>| {
            begun.send(request.method().clone()).unwrap();
            async { Ok::<_, std::convert::Infallible>(crate::observe::tests::stalled()) }
        });
        let election = Election::new(Client::new(server, "penstock"), "penstock", "a".to_owned());
        let won = tokio::time::timeout(TERM * 4, election.won()).await;
        assert!(won.is_err());
        let mut tries = 0;
        while asked.try_recv().is_ok() {
            tries += 1;
        }
        assert!(tries > 1, "it is tried again");
        let resigned = tokio::time::timeout(TERM, election.resign()).await;
        assert!(resigned.is_ok());
    }

    #[test]
    fn a_lease_is_taken_when_it_is_free_over_or_new_and_never_before() {
        let now: DateTime<Utc> = "2026-01-01T00:00:20Z".parse().unwrap();
        assert_eq!(step(None, "a", now), Step::Take(0));
        let renewed = "2026-01-01T00:00:10.000000Z";
        assert_eq!(step(Some(&lease("b", renewed)), "a", now), Step::Wait);
        assert_eq!(step(Some(&lease("a", renewed)), "a", now), Step::Renew);
        assert_eq!(step(Some(&lease("", renewed)), "a", now), Step::Take(4));
        let long_ago = "2026-01-01T00:00:00.000000Z";
        assert_eq!(step(Some(&lease("b", long_ago)), "a", now), Step::Take(4));
    }
}
