//! Connections between agents and the server: messages in flight, which arrive when the network lets them.
//!
//! Invariant: what one end sends arrives at the other in its order, or the connection ends; an end that is dropped is heard
//! of behind what it sent.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::{Sink, Stream};
use tokio_tungstenite::tungstenite::{Error, Message};

/// Messages in flight in one direction: who sends more waits.
const ROOM: usize = 24;

#[derive(Debug, Default)]
struct Lane {
    flight: VecDeque<Message>,
    arrived: VecDeque<Message>,
    /// The sender hung up; heard of when everything has arrived.
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Debug, Default)]
struct Shared {
    /// To the server, and to the agent.
    lanes: [Lane; 2],
    cut: bool,
    frozen: bool,
    /// The agent's end broke; the server has not heard of it.
    broken: bool,
}

/// A connection as the network sees it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Connection(Arc<Mutex<Shared>>);

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the agent to the server.
    ToServer = 0,
    /// From the server to the agent.
    ToAgent = 1,
}

/// One end: what comes this way is read, what goes the other way is written.
#[derive(Debug)]
pub(crate) struct End {
    connection: Connection,
    reads: usize,
}

impl Connection {
    /// A new connection with its ends: the server's and the agent's.
    #[must_use]
    pub(crate) fn open() -> (Self, End, End) {
        let connection = Self::default();
        let end = |reads: Way| End { connection: connection.clone(), reads: reads as usize };
        (connection.clone(), end(Way::ToServer), end(Way::ToAgent))
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something could arrive.
    #[must_use]
    pub(crate) fn has_flight(&self, way: Way) -> bool {
        let shared = self.lock();
        !shared.frozen && !shared.cut && !shared.lanes[way as usize].flight.is_empty()
    }

    /// Whether the agent says who it is next.
    #[must_use]
    pub(crate) fn says_hello(&self) -> bool {
        let shared = self.lock();
        let next = shared.lanes[Way::ToServer as usize].flight.front();
        next.is_some_and(|next| next.to_text().is_ok_and(|text| text.contains("\"type\":\"hello\"")))
    }

    /// Whether both are the same.
    #[must_use]
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether something could arrive anywhere.
    #[must_use]
    pub(crate) fn has_any_flight(&self) -> bool {
        self.has_flight(Way::ToServer) || self.has_flight(Way::ToAgent)
    }

    /// Lets the next message arrive and gives it.
    pub(crate) fn deliver(&self, way: Way) -> Option<Message> {
        let mut shared = self.lock();
        let lane = &mut shared.lanes[way as usize];
        let message = lane.flight.pop_front()?;
        lane.arrived.push_back(message.clone());
        wake(&mut lane.reader);
        wake(&mut lane.writer);
        Some(message)
    }

    /// Ends it: what is in flight never arrives.
    pub(crate) fn cut(&self) {
        let mut shared = self.lock();
        shared.cut = true;
        for lane in &mut shared.lanes {
            lane.flight.clear();
            wake(&mut lane.reader);
            wake(&mut lane.writer);
        }
    }

    /// Has the agent's end break: it hears of that, and the server only behind what is in flight.
    pub(crate) fn leave(&self) {
        let mut shared = self.lock();
        shared.broken = true;
        for lane in &mut shared.lanes {
            wake(&mut lane.reader);
            wake(&mut lane.writer);
        }
    }

    /// Whether the agent has left it.
    #[must_use]
    pub(crate) fn is_left(&self) -> bool {
        let shared = self.lock();
        shared.broken || shared.lanes[Way::ToServer as usize].closed
    }

    /// Has nothing arrive, or everything again. Neither end hears of it.
    pub(crate) fn freeze(&self, frozen: bool) {
        let mut shared = self.lock();
        shared.frozen = frozen;
        shared.lanes.iter_mut().for_each(|lane| wake(&mut lane.reader));
    }

    /// Whether neither end is at work any more.
    #[must_use]
    pub(crate) fn is_over(&self) -> bool {
        let shared = self.lock();
        shared.cut || !shared.frozen && shared.lanes.iter().all(|lane| lane.closed && lane.flight.is_empty())
    }

    /// Whether nothing arrives.
    #[must_use]
    pub(crate) fn is_frozen(&self) -> bool {
        self.lock().frozen
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

fn reset() -> Error {
    Error::Io(io::Error::from(io::ErrorKind::ConnectionReset))
}

impl Stream for End {
    type Item = Result<Message, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut shared = self.connection.lock();
        if self.is_broken(&shared) {
            return Poll::Ready(Some(Err(reset())));
        }
        let cut = shared.cut;
        let frozen = shared.frozen;
        let lane = &mut shared.lanes[self.reads];
        if let Some(message) = lane.arrived.pop_front() {
            return Poll::Ready(Some(Ok(message)));
        }
        if cut {
            return Poll::Ready(Some(Err(reset())));
        }
        if lane.closed && lane.flight.is_empty() && !frozen {
            return Poll::Ready(None);
        }
        lane.reader = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Sink<Message> for End {
    type Error = Error;

    fn poll_ready(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let mut shared = self.connection.lock();
        if shared.cut || self.is_broken(&shared) {
            return Poll::Ready(Err(reset()));
        }
        let lane = &mut shared.lanes[1 - self.reads];
        if lane.flight.len() < ROOM {
            return Poll::Ready(Ok(()));
        }
        lane.writer = Some(context.waker().clone());
        Poll::Pending
    }

    fn start_send(self: Pin<&mut Self>, message: Message) -> Result<(), Error> {
        let mut shared = self.connection.lock();
        if shared.cut || self.is_broken(&shared) {
            return Err(reset());
        }
        shared.lanes[1 - self.reads].flight.push_back(message);
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(if self.connection.lock().cut { Err(reset()) } else { Ok(()) })
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.hang_up();
        Poll::Ready(Ok(()))
    }
}

impl End {
    fn is_broken(&self, shared: &Shared) -> bool {
        shared.broken && self.reads == Way::ToAgent as usize
    }

    fn hang_up(&self) {
        let mut shared = self.connection.lock();
        let lane = &mut shared.lanes[1 - self.reads];
        lane.closed = true;
        wake(&mut lane.reader);
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.hang_up();
        // What the other end still sends goes nowhere.
        let mut shared = self.connection.lock();
        let lane = &mut shared.lanes[self.reads];
        lane.flight.clear();
        lane.closed = true;
        wake(&mut lane.writer);
    }
}
