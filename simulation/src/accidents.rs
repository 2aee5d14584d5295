//! What chance brings about, and what it does.

use drover_kernel::db::direct::{Fate, Moment};

use crate::faults::Accident;
use crate::world::{HOSTS, World};

impl World {
    /// Something goes wrong.
    pub(crate) fn accident(&mut self) {
        let weights: Vec<u64> = self.may.iter().map(|(_, weight)| *weight).collect();
        let (what, _) = self.may[self.chance.weighed(&weights)];
        self.apart |= !matches!(what, Accident::KillSupervisor | Accident::Refusal | Accident::Silence);
        let mut host = self.chance.below(HOSTS);
        if matches!(what, Accident::KillSupervisor | Accident::Reboot) {
            // Where something is at work, if it is anywhere.
            host = (0..HOSTS)
                .map(|next| (host + next) % HOSTS)
                .find(|one| self.hosts[*one].supervisors() > 0)
                .unwrap_or(host);
        }
        let until = self.now_ms + *self.chance.one_of(&[10, 200, 2_000, 20_000, 60_000]);
        let done = match what {
            Accident::KillServer | Accident::KillAtCommit | Accident::TornLog | Accident::FullLog => {
                self.hit_server(what, until)
            }
            Accident::Refusal | Accident::Silence => self.hit_database(what),
            Accident::Cut | Accident::HalfOpen | Accident::Freeze => self.hit_connection(what, host, until),
            _ => self.hit_host(what, host, until),
        };
        if done {
            self.faults.met(what);
        }
        self.say(&format!("accident: {what:?} {}", self.hosts[host].name()));
    }

    /// True when it happened by now; else it counts when it does.
    fn hit_server(&mut self, what: Accident, until: u64) -> bool {
        match what {
            Accident::KillServer => {
                let was_up = self.server.take().is_some();
                if was_up {
                    self.server_at_ms = self.now_ms + self.chance.between(1, 8_000);
                }
                return was_up;
            }
            Accident::KillAtCommit => {
                let fate = *self.chance.one_of(&[Fate::EndBefore, Fate::EndAfter]);
                self.arm(Moment::Commit, fate);
            }
            Accident::TornLog => self.faults.tear(),
            _ => self.log_full_until_ms = until,
        }
        false
    }

    fn hit_database(&mut self, what: Accident) -> bool {
        if what == Accident::Silence {
            self.arm(Moment::Commit, Fate::Unanswered);
        } else {
            let moment = *self.chance.one_of(&[Moment::Begin, Moment::Statement, Moment::Commit]);
            self.arm(moment, Fate::Refused);
        }
        false
    }

    fn arm(&mut self, moment: Moment, fate: Fate) {
        let after = self.faults.arm(moment, fate);
        self.say(&format!("at the {after}th {moment:?} from now: {fate:?}"));
    }

    fn hit_connection(&mut self, what: Accident, host: usize, until: u64) -> bool {
        let mut met = false;
        for (_, connection, thaws) in self.connections.iter_mut().filter(|(of, ..)| *of == host) {
            if connection.is_over() || what == Accident::HalfOpen && connection.is_left() {
                continue;
            }
            met = true;
            match what {
                Accident::Cut => connection.cut(),
                Accident::HalfOpen => connection.leave(),
                _ => {}
            }
            if what != Accident::Cut {
                connection.freeze(true);
                *thaws = until;
            }
        }
        met
    }

    fn hit_host(&mut self, what: Accident, host: usize, until: u64) -> bool {
        match what {
            Accident::KillAgent => {
                let was_up = self.hosts[host].is_up();
                self.hosts[host].kill();
                let most = *self.chance.one_of(&[50, 3_000, 30_000]);
                self.hosts[host].paused_until_ms = self.now_ms + self.chance.between(1, most);
                return was_up;
            }
            Accident::KillSupervisor => {
                let count = self.hosts[host].supervisors();
                let which = self.chance.below(count);
                let Some(key) = self.hosts[host].kill_supervisor(which, &mut self.truth) else { return false };
                self.say(&format!("the supervisor of {key} is killed"));
            }
            Accident::Reboot => {
                for lost in self.hosts[host].reboot(self.now_ms, &mut self.truth) {
                    self.faults.met(lost);
                }
                self.hosts[host].paused_until_ms = self.now_ms + self.chance.between(500, 5_000);
                // Nobody answers any more: the server hears of that some time.
                self.hit_connection(Accident::Cut, host, until);
            }
            Accident::Pause => self.hosts[host].paused_until_ms = until,
            Accident::FullHost => self.hosts[host].full_until_ms = until,
            _ => self.now_ms += self.chance.between(5_000, 90_000),
        }
        true
    }
}
