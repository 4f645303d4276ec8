//! Channels and conversations between workers, over Arrow Flight. Owns the connections: one per pair of workers, in it one stream
//! per exchange of a generation, and one per conversation of a coordinator with a member. Whoever receives always takes what the
//! wire brings into the channel's buffer; who sends does so only while the channel has credit, marks excepted. So one channel that
//! is held cannot hold another up, whatever window they share.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo,
    HandshakeRequest, HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket,
};
use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use penstock_checkpoint::ids::MemberId;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel as Connection, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use tower::service_fn;

use super::tls::{TlsClient, TlsListener};
use super::wire::{self, Decoder, Encoder, Pair};
use super::{
    CHANNEL_BATCHES, CHANNEL_BYTES, Channel, Exchange, Failing, Inlet, Net, Outlet, Peer, Shared,
    Talk, wake,
};
use crate::error::{EngineError, Result};
use crate::message::Message;

/// Frames of a batch are bounded by rows, not by bytes.
const FRAME_BYTES: usize = 1 << 30;
/// How long a worker may take to be connected to.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a connection is tried, and how long it may be silent then: of a machine that is gone nothing else tells.
const TRIED: Duration = Duration::from_secs(1);
const SILENT: Duration = Duration::from_secs(2);

/// Where the workers of a job find each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Directory {
    /// Sockets in a folder that only its owner may enter: workers of one machine.
    Folder(PathBuf),
    /// Ports behind mutual TLS: workers of a cluster.
    Hosts {
        /// With `{}` where a worker's number stands.
        host: String,
        port: u16,
        /// Where this one listens.
        listen: IpAddr,
        /// A folder with `ca.crt`, `tls.crt` and `tls.key`, made out to all hosts.
        certificate: PathBuf,
    },
}

impl Directory {
    fn host(host: &str, of: MemberId) -> String {
        host.replace("{}", &of.to_string())
    }
}

/// How others are connected to.
enum Ways {
    Folder(PathBuf),
    Hosts {
        host: String,
        port: u16,
        tls: TlsClient,
    },
}

/// What a stream is for: its first frame says so.
#[derive(Debug, Serialize, Deserialize)]
enum Opening {
    Exchange {
        from: Peer,
        /// It is refused by any other.
        to: Peer,
        generation: u64,
        edge: usize,
    },
    Talk {
        from: MemberId,
        about: Bytes,
    },
}

/// How a worker's connections are made.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manner {
    /// Bytes that a connection may have under way; `None`: the library's.
    pub window: Option<u32>,
    /// Batches are compressed.
    pub compress: bool,
}

/// The connections of one worker.
pub struct Flight {
    me: Peer,
    manner: Manner,
    ways: Ways,
    clients: Mutex<BTreeMap<MemberId, FlightServiceClient<Connection>>>,
    links: Mutex<BTreeMap<(u64, usize, MemberId), Weak<Link>>>,
    /// Receiving ends that only one side has asked for yet.
    inlets: Mutex<BTreeMap<Channel, Arc<Buffered>>>,
    /// Who is told, by generation, that it cannot go on.
    failing: Mutex<Option<(u64, Failing)>>,
}

impl Flight {
    /// Listens until the process ends. Conversations that others begin come out of the channel.
    ///
    /// # Errors
    /// When the address cannot be bound, or the certificate is not what it should be.
    pub async fn listen(
        me: Peer,
        directory: &Directory,
        manner: Manner,
    ) -> io::Result<(Arc<Self>, mpsc::UnboundedReceiver<Talk>)> {
        let ways = match directory {
            Directory::Folder(folder) => Ways::Folder(folder.clone()),
            Directory::Hosts {
                host,
                port,
                certificate,
                listen: _,
            } => Ways::Hosts {
                host: host.clone(),
                port: *port,
                tls: TlsClient::new(certificate)?,
            },
        };
        let (talks_to, talks) = mpsc::unbounded_channel();
        let flight = Arc::new(Self {
            me,
            manner,
            ways,
            clients: Mutex::default(),
            links: Mutex::default(),
            inlets: Mutex::default(),
            failing: Mutex::default(),
        });
        let service = FlightServiceServer::new(Door {
            flight: flight.clone(),
            talks: talks_to,
        });
        let server = Server::builder()
            .initial_connection_window_size(manner.window)
            .initial_stream_window_size(manner.window)
            .http2_keepalive_interval(Some(TRIED))
            .http2_keepalive_timeout(Some(SILENT))
            .add_service(service.max_decoding_message_size(FRAME_BYTES));
        match directory {
            Directory::Folder(folder) => {
                let path = folder.join(me.id.to_string());
                // Of a process that was killed.
                match std::fs::remove_file(&path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    Ok(()) | Err(_) => {}
                }
                let listener = UnixListener::bind(path)?;
                let incoming = stream::unfold(listener, |listener| async move {
                    let accepted = listener.accept().await.map(|(stream, _)| stream);
                    Some((accepted, listener))
                });
                tokio::spawn(served(server.serve_with_incoming(incoming)));
            }
            Directory::Hosts {
                host,
                port,
                listen,
                certificate,
            } => {
                let at = SocketAddr::from((*listen, *port));
                // Who has a certificate for this worker's name is one of its job.
                let own = Directory::host(host, me.id);
                let listener = TlsListener::bind(at, certificate, &own).await?;
                let incoming = stream::unfold(listener, |mut listener| async move {
                    let (stream, _) = listener.next().await;
                    Some((Ok::<_, io::Error>(stream), listener))
                });
                tokio::spawn(served(server.serve_with_incoming(incoming)));
            }
        }
        Ok((flight, talks))
    }

    /// Connects at the first call.
    fn client(&self, with: MemberId) -> Result<FlightServiceClient<Connection>> {
        let mut clients = self.clients.lock();
        if let Some(client) = clients.get(&with) {
            return Ok(client.clone());
        }
        let connection = match &self.ways {
            Ways::Folder(folder) => {
                let path = folder.join(with.to_string());
                self.endpoint(with, format!("unix://{}", path.display()))?
                    .connect_lazy()
            }
            Ways::Hosts { host, port, tls } => {
                let (host, port, tls) = (Directory::host(host, with), *port, tls.clone());
                let endpoint = self.endpoint(with, format!("http://{host}:{port}"))?;
                endpoint.connect_with_connector_lazy(service_fn(move |_| {
                    let (host, tls) = (host.clone(), tls.clone());
                    async move { tls.connect(host, port).await.map(TokioIo::new) }
                }))
            }
        };
        let client = FlightServiceClient::new(connection).max_decoding_message_size(FRAME_BYTES);
        clients.insert(with, client.clone());
        Ok(client)
    }

    fn endpoint(&self, with: MemberId, at: String) -> Result<Endpoint> {
        let endpoint = Endpoint::from_shared(at).map_err(|e| away(with, &e.to_string()))?;
        Ok(endpoint
            .connect_timeout(PATIENCE)
            .http2_keep_alive_interval(TRIED)
            .keep_alive_timeout(SILENT)
            .keep_alive_while_idle(true)
            .initial_connection_window_size(self.manner.window)
            .initial_stream_window_size(self.manner.window))
    }

    /// The stream of an exchange to another worker; all its channels share it.
    fn link(self: &Arc<Self>, channel: Channel, to: Peer) -> Result<Arc<Link>> {
        let key = (channel.generation, channel.edge, to.id);
        let mut links = self.links.lock();
        links.retain(|_, link| link.strong_count() > 0);
        if let Some(link) = links.get(&key).and_then(Weak::upgrade) {
            return Ok(link);
        }
        let (frames, outgoing) = mpsc::unbounded_channel();
        let link = Arc::new(Link {
            generation: channel.generation,
            with: to.id,
            frames,
            credits: Mutex::default(),
            flight: Arc::downgrade(self),
        });
        links.insert(key, Arc::downgrade(&link));
        let opening = Opening::Exchange {
            from: self.me,
            to,
            generation: channel.generation,
            edge: channel.edge,
        };
        let client = self.client(to.id)?;
        let weak = Arc::downgrade(&link);
        tokio::spawn(async move {
            if let Err(text) = carry(client, &opening, outgoing, &weak).await
                // Nobody asks for it when the generation is over already.
                && let Some(link) = weak.upgrade()
            {
                link.break_off(text);
            }
        });
        Ok(link)
    }

    /// A stream broke: what runs of the generation is told.
    fn broke(&self, generation: u64, with: MemberId, text: &str) {
        if let Some((of, failing)) = &*self.failing.lock()
            && *of == generation
        {
            failing(away(with, text));
        }
    }

    /// The receiving end; its second asker takes it out.
    fn buffered(&self, channel: Channel) -> Arc<Buffered> {
        let mut open = self.inlets.lock();
        // Those of generations that are over: nobody asks for them again.
        open.retain(|c, _| c.generation >= channel.generation);
        open.remove(&channel)
            .unwrap_or_else(|| Arc::clone(open.entry(channel).or_default()))
    }
}

async fn served(serving: impl Future<Output = std::result::Result<(), tonic::transport::Error>>) {
    if let Err(error) = serving.await {
        tracing::error!(%error, "no worker can reach this one any more");
    }
}

/// Carries an exchange's frames out and its credits in, until the last outlet is gone.
async fn carry(
    mut client: FlightServiceClient<Connection>,
    opening: &Opening,
    outgoing: mpsc::UnboundedReceiver<FlightData>,
    link: &Weak<Link>,
) -> std::result::Result<(), String> {
    let first = opening_frame(opening);
    let frames = stream::once(async { first }).chain(UnboundedReceiverStream::new(outgoing));
    let begun = tokio::time::timeout(PATIENCE, client.do_exchange(frames)).await;
    let begun = begun.map_err(|_| "no answer in time")?;
    let mut credits = begun.map_err(words)?.into_inner();
    loop {
        match credits.message().await {
            Ok(Some(credit)) => {
                let Some(link) = link.upgrade() else {
                    return Ok(());
                };
                link.grant(credit.app_metadata)
                    .ok_or("a credit is cut short")?;
            }
            Ok(None) => return Err("it ended the stream".to_owned()),
            Err(e) => return Err(words(e)),
        }
    }
}

#[async_trait]
impl Net for Arc<Flight> {
    fn me(&self) -> Peer {
        self.me
    }

    async fn talk(&self, with: MemberId, about: Bytes) -> Result<Talk> {
        let away = |e: Status| away(with, e.message());
        let mut client = self.client(with)?;
        let (to, outgoing) = mpsc::unbounded_channel();
        let opening = Opening::Talk {
            from: self.me.id,
            about: about.clone(),
        };
        let first = opening_frame(&opening);
        let frames =
            stream::once(async { first }).chain(UnboundedReceiverStream::new(outgoing).map(frame));
        let begun = tokio::time::timeout(PATIENCE, client.do_exchange(frames)).await;
        let begun = begun.map_err(|_| away(Status::deadline_exceeded("no answer in time")))?;
        let from = pump(begun.map_err(away)?.into_inner());
        Ok(Talk {
            with,
            about,
            to,
            from,
        })
    }
}

impl Exchange for Arc<Flight> {
    fn begin(&self, generation: u64, failing: Failing) {
        *self.failing.lock() = Some((generation, failing));
    }

    fn outlet(&self, channel: Channel, to: Peer, slot: Arc<Notify>) -> Result<Box<dyn Outlet>> {
        let link = self.link(channel, to)?;
        let pair = pair(channel);
        let credit = Arc::new(Credit {
            slot,
            bytes: AtomicUsize::new(0),
            batches: AtomicUsize::new(0),
            starved: AtomicBool::new(false),
        });
        link.credits.lock().insert(pair, credit.clone());
        Ok(Box::new(FlightOutlet {
            encoder: Encoder::new(pair, self.manner.compress)?,
            link,
            credit,
        }))
    }

    fn inlet(&self, channel: Channel, _: Peer, slot: Arc<Notify>) -> Result<Box<dyn Inlet>> {
        let buffered = self.buffered(channel);
        // Nobody asks twice for the same end.
        let _ = buffered.shared.receiver.set(slot);
        Ok(Box::new(FlightInlet {
            pair: pair(channel),
            buffered,
        }))
    }
}

fn pair(channel: Channel) -> Pair {
    let number =
        |slot: usize| u16::try_from(slot).expect("a job has at most as many slots as key groups");
    (number(channel.from), number(channel.to))
}

/// The sending side of an exchange's stream.
struct Link {
    generation: u64,
    with: MemberId,
    frames: mpsc::UnboundedSender<FlightData>,
    credits: Mutex<BTreeMap<Pair, Arc<Credit>>>,
    flight: Weak<Flight>,
}

impl Link {
    /// What is sent from now on goes nowhere: the generation is to end.
    fn break_off(&self, text: String) {
        if let Some(flight) = self.flight.upgrade() {
            flight.broke(self.generation, self.with, &text);
        }
    }

    /// The receiver has taken in so much; `None`: it does not say how much.
    fn grant(&self, mut credit: Bytes) -> Option<()> {
        if credit.remaining() < 12 {
            return None;
        }
        let pair = (credit.get_u16(), credit.get_u16());
        let (bytes, batches) = (credit.get_u32() as usize, credit.get_u32() as usize);
        let credits = self.credits.lock();
        if let Some(credit) = credits.get(&pair) {
            credit.bytes.fetch_sub(bytes, Ordering::AcqRel);
            credit.batches.fetch_sub(batches, Ordering::AcqRel);
            if credit.starved.swap(false, Ordering::AcqRel) {
                credit.slot.notify_one();
            }
        }
        Some(())
    }
}

/// What a channel has under way.
struct Credit {
    slot: Arc<Notify>,
    bytes: AtomicUsize,
    batches: AtomicUsize,
    /// The sender saw no room: it is woken when there is.
    starved: AtomicBool,
}

impl Credit {
    fn room(&self) -> bool {
        self.bytes.load(Ordering::Acquire) < CHANNEL_BYTES
            && self.batches.load(Ordering::Acquire) < CHANNEL_BATCHES
    }
}

struct FlightOutlet {
    encoder: Encoder,
    link: Arc<Link>,
    credit: Arc<Credit>,
}

impl Outlet for FlightOutlet {
    fn send(&mut self, message: Message) {
        let (frames, bytes) = match self.encoder.frames(&message) {
            Ok(frames) => frames,
            Err(error) => return self.link.break_off(error.to_string()),
        };
        if bytes > 0 {
            self.credit.bytes.fetch_add(bytes, Ordering::AcqRel);
            self.credit.batches.fetch_add(1, Ordering::AcqRel);
        }
        for frame in frames {
            // Whoever carries them has said that the stream broke.
            let _ = self.link.frames.send(frame);
        }
    }

    fn has_room(&self) -> bool {
        if self.credit.room() {
            return true;
        }
        self.credit.starved.store(true, Ordering::Release);
        // The credit may have come between the look and the word.
        self.credit.room()
    }
}

/// The receiving side of a channel.
#[derive(Default)]
struct Buffered {
    shared: Shared,
    /// Where credit goes, once the sender has come.
    back: Mutex<Option<mpsc::UnboundedSender<FlightData>>>,
}

struct FlightInlet {
    pair: Pair,
    buffered: Arc<Buffered>,
}

impl Inlet for FlightInlet {
    fn receive(&mut self) -> Option<Message> {
        let mut queue = self.buffered.shared.queue.lock();
        let (message, bytes) = queue.messages.pop_front()?;
        queue.bytes -= bytes;
        queue.taken.0 += bytes;
        queue.taken.1 += usize::from(bytes > 0);
        let enough = queue.taken.0 >= CHANNEL_BYTES / 8
            || queue.taken.1 >= CHANNEL_BATCHES / 8
            || queue.messages.is_empty();
        let taken = match enough && queue.taken.1 > 0 {
            true => std::mem::take(&mut queue.taken),
            false => return Some(message),
        };
        drop(queue);
        let mut credit = BytesMut::with_capacity(12);
        credit.put_u16(self.pair.0);
        credit.put_u16(self.pair.1);
        credit.put_u32(u32::try_from(taken.0).unwrap_or(u32::MAX));
        credit.put_u32(u32::try_from(taken.1).unwrap_or(u32::MAX));
        if let Some(back) = &*self.buffered.back.lock() {
            // A sender that is gone needs none.
            let _ = back.send(frame(credit.freeze()));
        }
        Some(message)
    }

    fn queued(&self) -> (usize, usize) {
        self.buffered.shared.queue.lock().waiting()
    }
}

/// Where the others come in.
struct Door {
    flight: Arc<Flight>,
    talks: mpsc::UnboundedSender<Talk>,
}

type Answer<T> = std::result::Result<Response<T>, Status>;
type Frames = BoxStream<'static, std::result::Result<FlightData, Status>>;

/// Takes in an exchange's frames until its sender is done.
async fn drain(
    flight: &Flight,
    generation: u64,
    edge: usize,
    mut incoming: Streaming<FlightData>,
    back: mpsc::UnboundedSender<FlightData>,
) -> std::result::Result<(), String> {
    let mut decoder = Decoder::default();
    let mut channels: BTreeMap<Pair, Arc<Buffered>> = BTreeMap::new();
    while let Some(frame) = incoming.message().await.map_err(words)? {
        let bytes = wire::credit(&frame);
        let (pair, message) = decoder.message(&frame).map_err(|e| e.to_string())?;
        let Some(message) = message else { continue };
        let buffered = channels.entry(pair).or_insert_with(|| {
            let buffered = flight.buffered(Channel {
                generation,
                edge,
                from: usize::from(pair.0),
                to: usize::from(pair.1),
            });
            *buffered.back.lock() = Some(back.clone());
            buffered
        });
        let mut queue = buffered.shared.queue.lock();
        queue.messages.push_back((message, bytes));
        queue.bytes += bytes;
        drop(queue);
        wake(&buffered.shared.receiver);
    }
    Ok(())
}

#[tonic::async_trait]
impl FlightService for Door {
    type HandshakeStream = BoxStream<'static, std::result::Result<HandshakeResponse, Status>>;
    type ListFlightsStream = BoxStream<'static, std::result::Result<FlightInfo, Status>>;
    type DoGetStream = Frames;
    type DoPutStream = BoxStream<'static, std::result::Result<PutResult, Status>>;
    type DoActionStream = BoxStream<'static, std::result::Result<arrow_flight::Result, Status>>;
    type ListActionsStream = BoxStream<'static, std::result::Result<ActionType, Status>>;
    type DoExchangeStream = Frames;

    async fn do_exchange(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Answer<Self::DoExchangeStream> {
        let mut incoming = request.into_inner();
        let first = incoming.message().await?;
        let first = first.ok_or_else(|| Status::invalid_argument("a stream without a word"))?;
        let opening: Opening = ciborium::from_reader(&first.app_metadata[..])
            .map_err(|e| Status::invalid_argument(format!("not understood: {e}")))?;
        match opening {
            Opening::Talk { from, about } => {
                let (to, outgoing) = mpsc::unbounded_channel();
                let _ = self.talks.send(Talk {
                    with: from,
                    about,
                    to,
                    from: pump(incoming),
                });
                let frames = UnboundedReceiverStream::new(outgoing).map(frame).map(Ok);
                Ok(Response::new(frames.boxed()))
            }
            Opening::Exchange { to, .. } if to != self.flight.me => {
                let text = "another process is this worker now";
                Err(Status::failed_precondition(text))
            }
            Opening::Exchange {
                from,
                to: _,
                generation,
                edge,
            } => {
                let (to, outgoing) = mpsc::unbounded_channel();
                let flight = self.flight.clone();
                tokio::spawn(async move {
                    if let Err(text) = drain(&flight, generation, edge, incoming, to).await {
                        flight.broke(generation, from.id, &text);
                    }
                });
                Ok(Response::new(
                    UnboundedReceiverStream::new(outgoing).map(Ok).boxed(),
                ))
            }
        }
    }

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Answer<Self::HandshakeStream> {
        Err(not_here())
    }
    async fn list_flights(&self, _: Request<Criteria>) -> Answer<Self::ListFlightsStream> {
        Err(not_here())
    }
    async fn get_flight_info(&self, _: Request<FlightDescriptor>) -> Answer<FlightInfo> {
        Err(not_here())
    }
    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Answer<PollInfo> {
        Err(not_here())
    }
    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Answer<SchemaResult> {
        Err(not_here())
    }
    async fn do_get(&self, _: Request<Ticket>) -> Answer<Self::DoGetStream> {
        Err(not_here())
    }
    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Answer<Self::DoPutStream> {
        Err(not_here())
    }
    async fn do_action(&self, _: Request<Action>) -> Answer<Self::DoActionStream> {
        Err(not_here())
    }
    async fn list_actions(&self, _: Request<Empty>) -> Answer<Self::ListActionsStream> {
        Err(not_here())
    }
}

fn not_here() -> Status {
    Status::unimplemented("workers speak to each other by DoExchange alone")
}

/// What a person is told of a stream that broke.
fn words(status: Status) -> String {
    status.message().to_owned()
}

fn away(with: MemberId, text: &str) -> EngineError {
    EngineError::retry("PR0320", format!("worker {with}"), text)
}

fn frame(words: Bytes) -> FlightData {
    FlightData {
        app_metadata: words,
        ..FlightData::default()
    }
}

fn opening_frame(opening: &Opening) -> FlightData {
    let mut words = Vec::new();
    ciborium::into_writer(opening, &mut words)
        .expect("a vector takes all, and the words are plain");
    frame(words.into())
}

/// The words of a stream, until it ends or breaks: for whom it is the same.
fn pump(mut incoming: Streaming<FlightData>) -> mpsc::UnboundedReceiver<Bytes> {
    let (to, from) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                heard = incoming.message() => match heard {
                    Ok(Some(frame)) => {
                        if to.send(frame.app_metadata).is_err() {
                            return;
                        }
                    }
                    Ok(None) | Err(_) => return,
                },
                () = to.closed() => return,
            }
        }
    });
    from
}
