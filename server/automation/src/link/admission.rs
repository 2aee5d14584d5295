//! Who may shake hands with the server, and when.
//!
//! Invariant: the peers of one address never have all the turns, so that whoever dawdles from there keeps nobody else
//! out; what is known of an address is forgotten with its last peer.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Handshakes.
    pub(super) turns: usize,
    /// Handshakes with peers of one address.
    pub(super) turns_of_one: usize,
    /// Peers of one address that are no agents yet.
    pub(super) visitors_of_one: usize,
}

/// All peers that are no agents yet.
pub(super) struct Admission {
    bounds: Bounds,
    turns: Arc<Semaphore>,
    addresses: Mutex<HashMap<IpAddr, Address>>,
}

struct Address {
    turns: Arc<Semaphore>,
    visitors: usize,
}

/// A peer that is no agent yet.
pub(super) struct Visitor {
    admission: Arc<Admission>,
    address: IpAddr,
    /// Turns of its address.
    turns: Arc<Semaphore>,
}

/// A peer's turn; it ends with the value.
pub(super) struct Turn {
    _of_one: Option<OwnedSemaphorePermit>,
    _of_all: Option<OwnedSemaphorePermit>,
}

impl Admission {
    pub(super) fn new(bounds: Bounds) -> Arc<Self> {
        let turns = Arc::new(Semaphore::new(bounds.turns));
        Arc::new(Self { bounds, turns, addresses: Mutex::default() })
    }

    /// A peer is there; none when too many of its address are.
    pub(super) fn arrive(self: &Arc<Self>, address: IpAddr) -> Option<Visitor> {
        let address = network(address);
        let mut addresses = self.lock();
        let known = addresses
            .entry(address)
            .or_insert_with(|| Address { turns: Arc::new(Semaphore::new(self.bounds.turns_of_one)), visitors: 0 });
        if known.visitors >= self.bounds.visitors_of_one {
            return None;
        }
        known.visitors += 1;
        let turns = Arc::clone(&known.turns);
        drop(addresses);
        Some(Visitor { admission: Arc::clone(self), address, turns })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Address>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Visitor {
    /// Waits for its turn: first among the peers of its address, then among all.
    pub(super) async fn turn(&self) -> Turn {
        // Nobody closes these, so that there always is a permit.
        let of_one = Arc::clone(&self.turns).acquire_owned().await.ok();
        let of_all = Arc::clone(&self.admission.turns).acquire_owned().await.ok();
        Turn { _of_one: of_one, _of_all: of_all }
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let mut addresses = self.admission.lock();
        if let Some(known) = addresses.get_mut(&self.address) {
            known.visitors -= 1;
            if known.visitors == 0 {
                addresses.remove(&self.address);
            }
        }
    }
}

/// Whose address it is: of IPv6 everybody has at least all of a /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt as _;
    use futures_util::future::join_all;
    use tokio::task::unconstrained;

    use super::super::listener::ADMITTED_MAX;
    use super::*;

    const BOUNDS: Bounds = Bounds { turns: 3, turns_of_one: 2, visitors_of_one: 4 };

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn one_address_never_has_every_turn() {
        let admission = Admission::new(BOUNDS);
        let crowd: Vec<Visitor> = (0..4).filter_map(|_| admission.arrive(address("192.0.2.1"))).collect();
        let turns: Vec<Turn> = crowd.iter().filter_map(|visitor| visitor.turn().now_or_never()).collect();
        assert_eq!((crowd.len(), turns.len()), (4, 2));
        assert!(admission.arrive(address("192.0.2.1")).is_none(), "no more of them are kept waiting than that");
        let other = admission.arrive(address("192.0.2.2")).expect("another address");
        let turn = other.turn().now_or_never().expect("its turn");
        let third = admission.arrive(address("192.0.2.3")).expect("another address");
        assert!(third.turn().now_or_never().is_none(), "three at a time");
        drop(turn);
        assert!(third.turn().now_or_never().is_some());
        drop(turns);
        assert!(crowd[3].turn().now_or_never().is_some(), "who waits gets a turn when one ends");
    }

    /// All the agents of a server that was away come back at the same moment, many of them by way of one address.
    #[tokio::test]
    async fn of_two_thousand_that_come_at_once_a_few_shake_hands_at_a_time() {
        let admission = Admission::new(ADMITTED_MAX);
        let (now, most, admitted) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let comes = |number: u32| {
            let visitor = admission.arrive(IpAddr::from([192, 0, 2, u8::try_from(number % 4).expect("few")]));
            let (now, most, admitted) = (&now, &most, &admitted);
            async move {
                let visitor = visitor.expect("nobody is turned away");
                let _turn = visitor.turn().await;
                most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                // As long as all others have been looked at.
                tokio::task::yield_now().await;
                now.fetch_sub(1, Ordering::Relaxed);
                admitted.fetch_add(1, Ordering::Relaxed);
            }
        };
        // By one task, which would else pause of its own accord.
        unconstrained(join_all((0..2_000).map(comes))).await;
        assert_eq!(most.into_inner(), ADMITTED_MAX.turns, "so many at a time, and no more");
        assert_eq!(admitted.into_inner(), 2_000, "everybody has a turn");
        assert!(admission.lock().is_empty());
        // One address alone has half of them.
        let crowd: Vec<Visitor> = (0..2_000).filter_map(|_| admission.arrive(address("192.0.2.9"))).collect();
        let turns: Vec<Turn> =
            crowd.iter().filter_map(|visitor| unconstrained(visitor.turn()).now_or_never()).collect();
        assert_eq!((crowd.len(), turns.len()), (2_000, ADMITTED_MAX.turns_of_one));
    }

    #[test]
    fn an_address_is_forgotten_with_its_last_peer() {
        let admission = Admission::new(BOUNDS);
        let first = admission.arrive(address("2001:db8::1")).expect("a peer");
        let second = admission.arrive(address("2001:db8::ffff:0:0:2")).expect("a peer of the same network");
        assert_eq!(admission.lock().len(), 1);
        let mapped = admission.arrive(address("::ffff:192.0.2.1")).expect("a peer");
        let plain = admission.arrive(address("192.0.2.1")).expect("the same peer");
        assert_eq!(admission.lock().len(), 2);
        drop((first, second, mapped));
        assert_eq!(admission.lock().len(), 1);
        drop(plain);
        assert!(admission.lock().is_empty());
    }
}
