//! The hub's part in what several hubs have to say to each other.

use super::bus::{Address, Invite, Said, Standing, Watchable, Word};
use super::gathers::{Gather, What, merged};
use super::leg::{Conn, Peer};
use super::machine::{Asker, Hub, Output};
use super::shards::Shard;
use super::wire::{Answer, Code, Message, Tag};
use crate::clock::Now;
use std::collections::HashMap;

impl Hub {
    /// Takes a word of another hub.
    pub fn handle_word(&mut self, now: Now, word: Word) {
        match word.0 {
            // Whatever it was on its way, it has its whole time from now on.
            Said::Heard(heard) => self.handle_message(Asker { now, ..heard.0 }, heard.1),
            Said::Invite(invite) => {
                let asker = Asker { now, ..invite.asker };
                self.invite(Invite { asker, ..*invite });
            }
            Said::Left { peer } => self.leave(now, peer),
            Said::Dropped { peer } => drop(self.registry.remove_peer(peer)),
            Said::Ended { peer, by } => {
                if self.away.get(&peer) == Some(&by) {
                    self.away.remove(&peer);
                }
            }
            Said::Moved { peer, admin, realm, by } => self.note_tag(now, peer, by, (admin, realm)),
            Said::Offline { tag, peer } => self.fail_calls(now, &tag, peer),
            Said::Withdrawn { tag } => self.withdraw(now, &tag),
            Said::Text { conn, text } if self.webs.contains_key(&conn) => {
                self.outputs.push_back(Output::Text { conn, text });
            }
            Said::Text { .. } => {}
            Said::Close { conn } => self.hang_up(now, conn),
            Said::Watch { id, by, wanted } => self.subscribe(id, by, wanted),
            Said::States { id, by, standing } => self.take_states(now, (id, by), standing),
            Said::Unwatch { by, ended } => ended.iter().for_each(|what| self.subscriptions.end(what, by)),
            Said::Presence { standing } => {
                self.gathers.note(&standing);
                self.note_standing(now.mono, standing);
            }
            Said::Page { id, by, page } => {
                let (tags, more) = self.registry.page(&page);
                let own = self.shards.own();
                self.say(Address::Hub(by), Said::Paged { id, by: own, tags, more });
            }
            Said::Paged { id, by, tags, more } => self.take_page(now, (id, by), (tags, more)),
        }
        self.tell_changes(now.mono);
    }

    /// Takes back a word that the bus had no room for: whoever began it is told to come later.
    pub fn handle_refused(&mut self, now: Now, word: Word) {
        match word.0 {
            Said::Heard(heard) => {
                let (asker, message) = *heard;
                // A datagram more would not help who floods; its client repeats what it wants.
                if let (Message::Request(request), Peer::Web(_)) = (message, asker.leg.peer) {
                    self.fail(asker, request.body.t(), request.mid, Code::TooMany);
                }
            }
            Said::Invite(invite) => self.fail(invite.asker, 4, invite.mid, Code::TooMany),
            Said::Watch { id, .. } | Said::Page { id, .. } => {
                if let Some(gather) = self.gathers.give_up(id) {
                    self.give_up(gather);
                }
            }
            _ => {}
        }
        self.tell_changes(now.mono);
    }

    fn subscribe(&mut self, id: u64, by: Shard, wanted: Vec<Watchable>) {
        let states = wanted.into_iter().map(|what| {
            let online = self.registry.is_online(&what);
            (what, online)
        });
        let standing: Standing = states.collect();
        for (what, _) in &standing {
            self.subscriptions.begin(what.clone(), by);
        }
        let own = self.shards.own();
        self.say(Address::Hub(by), Said::States { id, by: own, standing });
    }

    fn take_states(&mut self, now: Now, (id, by): (u64, Shard), standing: Standing) {
        let told: Vec<Watchable> = standing.iter().map(|(what, _)| what.clone()).collect();
        let learn = |what: &mut What| match what {
            What::Watch { known, .. } => known.extend(standing),
            What::List { .. } => {}
        };
        let done = self.gathers.take(id, by, learn);
        if done.is_none() {
            // Where nobody waits for it any more, nobody is to be told of it.
            return self.watches.forsake(told);
        }
        self.finish(now, done);
    }

    fn take_page(&mut self, now: Now, (id, by): (u64, Shard), part: (Vec<Tag>, bool)) {
        let done = self.gathers.take(id, by, |what| match what {
            What::List { parts, .. } => parts.push(part),
            What::Watch { .. } => {}
        });
        self.finish(now, done);
    }

    fn finish(&mut self, now: Now, gather: Option<Gather>) {
        let Some(Gather { asker, mid, what, .. }) = gather else { return };
        let asker = Asker { now, ..asker };
        match what {
            What::List { page, parts } => {
                let (tags, more) = merged(parts, page.most());
                self.answer(asker, 3, mid, Ok(Answer::Listed { tags, more }));
            }
            What::Watch { conn, wanted, known } => {
                let answered = self.begin_watch_of(conn, &wanted, &known);
                self.watches.forsake(wanted);
                self.answer(asker, 60, mid, answered);
            }
        }
    }

    fn begin_watch_of(
        &mut self,
        conn: Conn,
        wanted: &[Watchable],
        known: &HashMap<Watchable, bool>,
    ) -> Result<Answer, Code> {
        // It may have ended, or have come into another realm.
        let is_there =
            self.webs.get(&conn).is_some_and(|web| wanted.iter().all(|(realm, _)| *realm == web.realm));
        if is_there { self.begin_watch(conn, wanted.to_vec(), known) } else { Err(Code::UnknownTag) }
    }

    fn give_up(&mut self, gather: Gather) {
        let Gather { asker, mid, what, .. } = gather;
        let t = match what {
            What::List { .. } => 3,
            What::Watch { wanted, .. } => {
                self.watches.forsake(wanted);
                60
            }
        };
        self.fail(asker, t, mid, Code::TooMany);
    }
}
