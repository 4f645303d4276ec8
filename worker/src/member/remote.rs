//! Members in other processes: what coordinator and member say to each other as words of a conversation, and the heartbeats that
//! tell that the other is there. Liveness only: who owns the job is the log's to say.

use std::time::Duration;

use bytes::Bytes;
use penstock_checkpoint::ids::{Generation, MemberId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::protocol::{FromMember, ToMember};
use super::team::Line;
use crate::error::{EngineError, Result};
use crate::network::Talk;
use crate::process;

/// How long a coordinator that is not heard of may still be there.
pub const LEASE: Duration = Duration::from_millis(500);
/// Heartbeats in a lease.
const BEATS: u32 = 4;
/// Leases after which who is silent counts as lost.
pub const LOST: u32 = 3;

/// Of the coordinator.
#[derive(Debug, Serialize, Deserialize)]
pub enum Word {
    Tell(ToMember),
    Beat,
}

/// Of the member.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    Say(FromMember),
    Beat,
}

/// # Errors
/// `PR0304`, when there is no such text.
pub fn encode<T: Serialize>(words: &T) -> Result<Bytes> {
    let mut bytes = Vec::new();
    ciborium::into_writer(words, &mut bytes).map_err(|e| {
        EngineError::fail("PR0304", "conversation of workers", "it cannot be written").caused_by(e)
    })?;
    Ok(bytes.into())
}

/// # Errors
/// `PR0320`, when the other speaks otherwise: another version of the engine.
pub fn decode<T: DeserializeOwned>(bytes: &Bytes) -> Result<T> {
    ciborium::from_reader(&bytes[..]).map_err(|e| {
        EngineError::retry("PR0320", "conversation of workers", "it is not understood").caused_by(e)
    })
}

/// The coordinator's line to a member elsewhere. The conversation begins with the first message, by `begin`.
pub fn line<F>(member: MemberId, begin: impl FnOnce(Generation) -> F + Send + 'static) -> Line
where
    F: Future<Output = Result<Talk>> + Send,
{
    let (to, mut inbox) = mpsc::unbounded_channel::<ToMember>();
    let (outbox, from) = mpsc::unbounded_channel();
    process::spawn(async move {
        let Some(first) = inbox.recv().await else {
            return;
        };
        let generation = match &first {
            ToMember::Start(start) => start.generation,
            _ => Generation::ZERO,
        };
        let ended = async {
            let talk = begin(generation).await?;
            let _ = talk.to.send(encode(&Word::Tell(first))?);
            speak(talk, &mut inbox, &outbox).await
        };
        if let Err(error) = ended.await {
            let object = format!("worker {member}");
            let _ = outbox.send(FromMember::Failed(EngineError { object, ..error }));
        }
    });
    Line { to, from }
}

/// Until the coordinator has no more to say, or the member is silent.
async fn speak(
    mut talk: Talk,
    inbox: &mut mpsc::UnboundedReceiver<ToMember>,
    outbox: &mpsc::UnboundedSender<FromMember>,
) -> Result<()> {
    let mut beat = tokio::time::interval(LEASE / BEATS);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            message = inbox.recv() => match message {
                Some(message) => {
                    // Whether it is there the answers tell.
                    let _ = talk.to.send(encode(&Word::Tell(message))?);
                }
                None => return Ok(()),
            },
            answer = talk.from.recv() => {
                let answer = answer.ok_or_else(|| lost("the connection broke"))?;
                heard = Instant::now();
                if let Answer::Say(said) = decode(&answer)? {
                    let _ = outbox.send(said);
                }
            }
            _ = beat.tick() => {
                let _ = talk.to.send(encode(&Word::Beat)?);
                if heard.elapsed() > LEASE * LOST {
                    return Err(lost("it does not answer"));
                }
            }
        }
    }
}

/// The member's side: hands messages to and fro until the coordinator ends the conversation, or is silent: it may be stopped and
/// still hold it. `beat` is called for each word of the coordinator, `saying` for each message of the member.
pub async fn attend(
    talk: &mut Talk,
    to: &mpsc::UnboundedSender<ToMember>,
    from: &mut mpsc::UnboundedReceiver<FromMember>,
    beat: impl Fn(),
    saying: impl Fn(&FromMember),
) -> Result<()> {
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(heard + LEASE * LOST) => {
                return Err(lost("the coordinator is silent"));
            }
            word = talk.from.recv() => {
                let Some(word) = word else { return Ok(()) };
                heard = Instant::now();
                beat();
                match decode(&word)? {
                    Word::Tell(message) => {
                        // A member that has ended has said why.
                        let _ = to.send(message);
                    }
                    Word::Beat => {
                        let _ = talk.to.send(encode(&Answer::Beat)?);
                    }
                }
            }
            said = from.recv() => {
                let Some(said) = said else { return Ok(()) };
                saying(&said);
                let _ = talk.to.send(encode(&Answer::Say(said))?);
            }
        }
    }
}

fn lost(text: &str) -> EngineError {
    EngineError::retry("PR0320", "worker", text)
}

/// An error on its way to another process: its cause stays behind, in words.
pub mod error {
    use penstock_crds::codes;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::error::{EngineError, ErrorKind};

    #[derive(Serialize, Deserialize)]
    struct Plain {
        kind: ErrorKind,
        code: String,
        object: String,
        message: String,
    }

    pub fn serialize<S: Serializer>(e: &EngineError, to: S) -> Result<S::Ok, S::Error> {
        let EngineError {
            kind,
            code,
            object,
            message,
            source: _,
        } = e.in_words();
        let plain = Plain {
            kind,
            code: code.to_owned(),
            object,
            message,
        };
        plain.serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<EngineError, D::Error> {
        let Plain {
            kind,
            code,
            object,
            message,
        } = Plain::deserialize(from)?;
        // One that this version does not know is told in words.
        let known = codes::explain(&code).map(|entry| entry.code.as_str());
        Ok(EngineError::new(
            kind,
            known.unwrap_or("PR0304"),
            object,
            message,
        ))
    }
}
