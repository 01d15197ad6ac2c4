use super::*;
use crate::net::time::now;
use crate::signaling::Realms;
use crate::signaling::client_addr::ConnId;
use crate::signaling::tag_id::TAG_LEN;
use std::net::SocketAddr;

fn registry(cap: usize, per_network: usize) -> Registry {
    Registry::new(&Times::default(), Quota::new(cap, per_network))
}

/// Names in the order of their letters.
fn name(letter: &str) -> TagId {
    TagId::of(&tag(letter)).unwrap()
}

fn tag(letter: &str) -> Tag {
    Tag::new(format!("{}{}", &letter[..1], "a".repeat(TAG_LEN - 1))).unwrap()
}

fn entry(letter: &str, route: ClientRoute, network: NetworkPrefix) -> NewRegistration {
    NewRegistration { name: name(letter), route, network, realm: Realm::default(), admin: false, epoch: None }
}

fn enter(registry: &mut Registry, now: Instant, letter: &str, address: &str) -> Result<(), Exceeded> {
    let address: SocketAddr = address.parse().unwrap();
    let network = NetworkPrefix::subscriber(address.ip());
    let entry = entry(letter, ClientRoute::udp(NodeId::default(), address, None), network);
    registry.insert(now, entry).map(|left| assert!(left.is_empty()))
}

#[test]
fn one_network_cannot_take_all_tags() {
    let (mut registry, start) = (registry(10, 2), now().mono);
    assert_eq!(enter(&mut registry, start, "a", "192.0.2.1:1"), Ok(()));
    assert_eq!(enter(&mut registry, start, "b", "192.0.2.1:2"), Ok(()));
    assert_eq!(enter(&mut registry, start, "c", "192.0.2.1:3"), Err(Exceeded::Key));
    assert_eq!(enter(&mut registry, start, "c", "192.0.2.2:3"), Ok(()));
    registry.remove_tag(name("a"));
    assert_eq!(enter(&mut registry, start, "d", "192.0.2.1:3"), Ok(()));
}

#[test]
fn clients_that_never_used_their_tag_are_evicted_first_after_the_grace_period() {
    let (mut registry, start) = (registry(2, 10), now().mono);
    let address: SocketAddr = "192.0.2.1:1".parse().unwrap();
    enter(&mut registry, start, "used", "192.0.2.1:1").unwrap();
    enter(&mut registry, start, "never used", "192.0.2.1:2").unwrap();
    assert!(registry.touch(start, &tag("used"), ClientAddr::Udp(address)).is_some());
    assert_eq!(enter(&mut registry, start, "late", "192.0.2.1:3"), Err(Exceeded::Total));
    let later = start + Duration::from_secs(10);
    assert_eq!(enter(&mut registry, later, "late", "192.0.2.1:3"), Ok(()));
    assert!(registry.by_tag(&tag("never used")).is_none() && registry.by_tag(&tag("used")).is_some());
    assert_eq!(registry.len(), 2);
}

#[test]
fn using_a_tag_proves_the_address_only_if_no_other_client_got_the_tag() {
    let (mut registry, start) = (registry(9, 9), now().mono);
    let addr = |text: &str| ClientAddr::Udp(text.parse().unwrap());
    enter(&mut registry, start, "a", "192.0.2.1:1").unwrap();
    enter(&mut registry, start, "b", "192.0.2.1:2").unwrap();
    assert!(registry.touch(start, &tag("a"), addr("192.0.2.1:1")).unwrap().proven);
    assert_eq!(registry.page(&page("a", None, 100)), (vec![tag("b")], false));
    assert!(!registry.touch(start, &tag("b"), addr("192.0.2.1:2")).unwrap().proven);
    registry.prove(addr("192.0.2.1:2"));
    assert!(registry.by_tag(&tag("b")).unwrap().proven);
}

#[test]
fn a_websocket_clients_tag_does_not_expire_while_connected() {
    let (mut registry, start) = (registry(9, 9), now().mono);
    let network = NetworkPrefix::subscriber([192, 0, 2, 1].into());
    let route = ClientRoute::websocket(NodeId::default(), ConnId(1));
    registry.insert(start, entry("web", route, network)).unwrap();
    enter(&mut registry, start, "udp", "192.0.2.1:1").unwrap();
    let later = start + Duration::from_secs(60);
    assert_eq!(registry.expire(later).map(|gone| gone.name), Some(name("udp")));
    assert!(registry.expire(later).is_none() && registry.by_tag(&tag("web")).is_some());
}

fn page(own: &str, after: Option<&str>, max_len: usize) -> ListPage {
    ListPage { realm: Realm::default(), own: tag(own), after: after.map(tag), max_len }
}

#[test]
fn pages_are_sorted_and_continue_where_the_last_one_ended() {
    let (mut registry, start) = (registry(9, 9), now().mono);
    for (port, name) in ["d", "a", "c", "b"].iter().enumerate() {
        enter(&mut registry, start, name, &format!("192.0.2.1:{}", port + 1)).unwrap();
    }
    let max_len = 2 * (TAG_LEN + 3);
    assert_eq!(registry.page(&page("b", None, max_len)), (vec![tag("a"), tag("c")], true));
    assert_eq!(registry.page(&page("b", Some("c"), max_len)), (vec![tag("d")], false));
}

#[test]
fn tags_of_another_realm_are_not_listed_or_online_and_a_client_may_change_realms() {
    let (mut registry, start) = (registry(9, 9), now().mono);
    let address: SocketAddr = "192.0.2.1:1".parse().unwrap();
    let there = Realms::default().named("there");
    let network = NetworkPrefix::subscriber(address.ip());
    let mut one = entry("a", ClientRoute::udp(NodeId::default(), address, None), network);
    registry.insert(start, one.clone()).unwrap();
    assert!(registry.is_online(&(Realm::default(), tag("a"))));
    one.realm = there;
    registry.renew(one);
    assert!(!registry.is_online(&(Realm::default(), tag("a"))) && registry.is_online(&(there, tag("a"))));
    assert_eq!(registry.take_changes().len(), 3);
    assert_eq!(registry.page(&page("b", None, 100)), (Vec::new(), false));
    let page = ListPage { realm: there, ..page("b", None, 100) };
    assert_eq!(registry.page(&page), (vec![tag("a")], false));
}

#[test]
fn a_client_that_replaces_another_needs_no_free_tag_and_leaves_no_state_of_it() {
    let (mut registry, start) = (registry(1, 1), now().mono);
    enter(&mut registry, start, "a", "192.0.2.1:1").unwrap();
    let address: SocketAddr = "192.0.2.2:2".parse().unwrap();
    let network = NetworkPrefix::subscriber(address.ip());
    let moved = entry("a", ClientRoute::udp(NodeId::default(), address, None), network);
    assert_eq!(registry.insert(start, moved).unwrap().len(), 1);
    assert!(registry.by_addr(ClientAddr::Udp("192.0.2.1:1".parse().unwrap())).is_none());
    assert_eq!((registry.len(), registry.quota.total()), (1, 1));
    registry.expire(start + Duration::from_secs(60)).unwrap();
    assert_eq!((registry.len(), registry.quota.total(), registry.next_expiry()), (0, 0, None));
    assert!(
        registry.by_tag_id.ids.is_empty()
            && registry.by_addr.ids.is_empty()
            && registry.unconfirmed.is_empty()
    );
}
