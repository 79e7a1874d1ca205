mod unsent;

use super::*;
use crate::query::{All, Exists, Get, Ttl, TtlOf};
use std::time::Duration;

fn fallback(server: bool) -> Fallback {
    let config = FallbackConfig::new().max_dirty_entries(50);
    Fallback::new(&config, server)
}

fn put(text: &str) -> Change {
    Change::Put { value: Bytes::copy_from_slice(text.as_bytes()), ttl: None }
}

fn bytes(text: &str) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(text.as_bytes()))
}

fn value<T: Default>(known: Result<Known<T>, Refusal>) -> Result<T, Refusal> {
    Ok(match known? {
        Known::Here { what, .. } => what,
        Known::Absent | Known::Unknown => T::default(),
    })
}

fn ask_read(fallback: &Fallback, slot: &Slot) -> Ticket {
    match fallback.begin_read(&Get(slot.clone()), Instant::now()) {
        BeginRead::Ask(ticket) => ticket,
        _ => panic!("answered here"),
    }
}

/// Of a write that begins.
fn taken(fallback: &Fallback, slot: &Slot) -> (Ticket, Before) {
    match fallback.begin_write(slot, Instant::now()) {
        BeginWrite::Ask(ticket, before) => (ticket, before),
        _ => panic!("kept here"),
    }
}

fn ask_write(fallback: &Fallback, slot: &Slot) -> Ticket {
    taken(fallback, slot).0
}

fn put_back(fallback: &Fallback, slot: &Slot, (ticket, before): (Ticket, Before)) {
    fallback.put_back(std::iter::once((slot, ticket, before)));
}

fn all(fallback: &Fallback, key: &Bytes, now: Instant) -> Result<Pairs, Refusal> {
    let known = fallback.read(&All::new(key.clone()), now);
    value(known).map(|mut pairs: Pairs| {
        pairs.sort();
        pairs
    })
}

fn seen_all(fallback: &Fallback, key: &Bytes, pairs: &Pairs, now: Instant) {
    let all = All::new(key.clone());
    let BeginRead::Ask(ticket) = fallback.begin_read(&all, now) else { panic!("answered here") };
    assert!(fallback.filled(&all, ticket, pairs, now).is_none());
}

fn read(fallback: &Fallback, slot: &Slot, now: Instant) -> Result<Option<Bytes>, Refusal> {
    value(fallback.read(&Get(slot.clone()), now))
}

/// What the caller is told when the server has answered.
fn filled(
    fallback: &Fallback,
    slot: &Slot,
    ticket: Ticket,
    answer: Option<Bytes>,
    sent: Instant,
) -> Result<Option<Bytes>, Refusal> {
    match fallback.filled(&Get(slot.clone()), ticket, &answer, sent) {
        Some(known) => value(known),
        None => Ok(answer),
    }
}

#[test]
fn an_answer_asked_for_before_a_write_is_not_kept() {
    let (fallback, k, now) = (fallback(true), Slot::key("k"), Instant::now());
    let early = ask_read(&fallback, &k);
    let write = ask_write(&fallback, &k);
    fallback.landed(&k, &put("new"), write, now);
    assert_eq!(filled(&fallback, &k, early, bytes("old"), now), Ok(bytes("old")));
    assert_eq!(read(&fallback, &k, now), Ok(bytes("new")));
}

#[test]
fn of_two_writes_in_flight_neither_is_kept_unless_it_was_the_last() {
    let (fallback, k, now) = (fallback(true), Slot::key("k"), Instant::now());
    let first = ask_write(&fallback, &k);
    let second = ask_write(&fallback, &k);
    fallback.landed(&k, &put("2"), second, now);
    assert_eq!(read(&fallback, &k, now), Ok(bytes("2")));
    fallback.landed(&k, &put("1"), first, now);
    assert_eq!(read(&fallback, &k, now), Ok(None));
}

#[test]
fn a_write_that_failed_leaves_no_older_value() {
    let (fallback, k, now) = (fallback(true), Slot::key("k"), Instant::now());
    let asked = ask_read(&fallback, &k);
    filled(&fallback, &k, asked, bytes("old"), now).unwrap();
    ask_write(&fallback, &k);
    assert_eq!(read(&fallback, &k, now), Ok(None));
}

#[test]
fn a_write_kept_here_leaves_no_value_read_while_it_was_in_flight() {
    let (fallback, k, now) = (fallback(true), Slot::key("k"), Instant::now());
    ask_write(&fallback, &k);
    let asked = ask_read(&fallback, &k);
    filled(&fallback, &k, asked, bytes("old"), now).unwrap();
    fallback.write(&k, &put("new"), now).unwrap();
    fallback.drain(9).acknowledge(&[true; 9]);
    assert_eq!(read(&fallback, &k, now), Ok(None));
}

#[test]
fn a_read_in_flight_gives_the_value_written_here_meanwhile() {
    let (fallback, k, now) = (fallback(true), Slot::key("k"), Instant::now());
    let asked = ask_read(&fallback, &k);
    assert_eq!(fallback.write(&k, &put("local"), now), Ok(0));
    assert_eq!(filled(&fallback, &k, asked, bytes("old"), now), Ok(bytes("local")));
}

#[test]
fn dirty_keys_are_answered_here_until_acknowledged() {
    let (fallback, k, now) = (fallback(true), Slot::key("k"), Instant::now());
    fallback.write(&k, &put("1"), now).unwrap();
    let is_local = || {
        matches!(
            fallback.begin_read(&Get(k.clone()), now),
            BeginRead::Local(Ok(Known::Here { .. }))
        )
    };
    assert!(is_local());
    let drain = fallback.drain(9);
    assert!(is_local());
    assert!(matches!(fallback.begin_write(&k, Instant::now()), BeginWrite::Draining));
    drop(drain);
    assert!(is_local(), "not acknowledged");
    assert!(matches!(fallback.begin_write(&k, Instant::now()), BeginWrite::Local));
    assert!(!fallback.drain(9).acknowledge(&[true; 9]));
    assert!(!is_local());
    assert_eq!(fallback.dirty_keys(), 0);
    assert_eq!(read(&fallback, &k, now), Ok(None), "nothing older comes back");
}

#[test]
fn a_deleted_key_is_known_to_be_gone() {
    let (fallback, k, now) = (fallback(true), Slot::key("k"), Instant::now());
    let write = ask_write(&fallback, &k);
    fallback.landed(&k, &put("1"), write, now);
    assert_eq!(fallback.write(&k, &Change::Remove, now), Ok(1));
    assert_eq!(read(&fallback, &k, now), Ok(None));
    assert_eq!(fallback.write(&k, &Change::Remove, now), Ok(0));
}

#[test]
fn types_are_kept_apart_as_redis_does() {
    for server in [true, false] {
        let (fallback, k, f, now) =
            (fallback(server), Slot::key("k"), Slot::field("k", "f"), Instant::now());
        fallback.write(&k, &put("1"), now).unwrap();
        assert_eq!(fallback.write(&f, &put("2"), now), Err(Refusal::WrongType));
        assert_eq!(read(&fallback, &f, now), Err(Refusal::WrongType));
        assert_eq!(fallback.write(&k, &Change::Remove, now), Ok(1));
        fallback.write(&f, &put("2"), now).unwrap();
        assert_eq!(read(&fallback, &f, now), Ok(bytes("2")));
        assert_eq!(read(&fallback, &k, now), Err(Refusal::WrongType));
        fallback.write(&k, &put("3"), now).unwrap();
        assert_eq!(read(&fallback, &k, now), Ok(bytes("3")));
    }
}

#[test]
fn without_a_server_nothing_gets_dirty_or_full() {
    let (fallback, now) = (fallback(false), Instant::now());
    for n in 0..1000 {
        fallback.write(&Slot::key(format!("k{n}")), &put("v"), now).unwrap();
    }
    assert_eq!(fallback.dirty_keys(), 0);
    let tomorrow = now + Duration::from_secs(86_400);
    assert_eq!(read(&fallback, &Slot::key("k999"), tomorrow), Ok(bytes("v")));
}

#[test]
fn an_answer_that_comes_after_the_write_it_was_asked_before_is_not_kept() {
    let (fallback, k, now) = (fallback(true), Slot::key("k"), Instant::now());
    let write = ask_write(&fallback, &k);
    // Asked while the write was on its way, and answered before it at the server.
    let asked = ask_read(&fallback, &k);
    fallback.landed(&k, &put("new"), write, now);
    assert_eq!(filled(&fallback, &k, asked, bytes("old"), now), Ok(bytes("old")));
    assert_eq!(read(&fallback, &k, now), Ok(bytes("new")));
}

#[test]
fn what_only_the_server_does_leaves_nothing_behind_here() {
    let (fallback, k, now) = (fallback(true), Slot::key("k"), Instant::now());
    let keys = [k.key.clone()];
    let write = ask_write(&fallback, &k);
    fallback.landed(&k, &put("1"), write, now);
    assert!(fallback.begin_direct(&keys, OnKeys::Reads).is_some());
    assert_eq!(read(&fallback, &k, now), Ok(bytes("1")));
    assert!(fallback.begin_direct(&keys, OnKeys::MayChange).is_some());
    let asked = ask_read(&fallback, &k);
    // It may never be sent.
    assert_eq!(read(&fallback, &k, now), Ok(bytes("1")));
    fallback.end_direct(&keys, OnKeys::MayChange);
    assert_eq!(read(&fallback, &k, now), Ok(None));
    filled(&fallback, &k, asked, bytes("1"), now).unwrap();
    assert_eq!(read(&fallback, &k, now), Ok(None));
    fallback.write(&k, &put("2"), now).unwrap();
    assert!(
        fallback.begin_direct(&keys, OnKeys::Reads).is_none(),
        "the server does not know of it yet"
    );
}

#[test]
fn a_lifetime_on_its_way_brings_nothing_back_that_was_replaced_or_gone_meanwhile() {
    let (k, now) = (Slot::key("k"), Instant::now());
    for (meanwhile, known) in [
        (vec![], bytes("old")),
        (vec![bytes("another client's")], None),
        (vec![None], None),
        (vec![bytes("another client's"), None], None),
    ] {
        let fallback = fallback(true);
        let seen = |answer| {
            let asked = ask_read(&fallback, &k);
            filled(&fallback, &k, asked, answer, now).unwrap();
        };
        seen(bytes("old"));
        let (ticket, before) = taken(&fallback, &k);
        meanwhile.iter().cloned().for_each(seen);
        fallback.landed_life(&k, &before, None, ticket, now);
        assert_eq!(read(&fallback, &k, now), Ok(known), "{meanwhile:?}");
    }
}

#[test]
fn what_was_only_seen_gets_stale_whatever_lifetime_it_is_given() {
    let (k, now, secs) = (Slot::key("k"), Instant::now(), Duration::from_secs);
    for ttl in [Some(secs(3600)), None] {
        let fallback = fallback(true);
        let asked = ask_read(&fallback, &k);
        filled(&fallback, &k, asked, bytes("others"), now).unwrap();
        fallback.write(&k, &Change::Expire(Some(secs(7200))), now + secs(20)).unwrap();
        fallback.write(&k, &Change::Expire(ttl), now + secs(30)).unwrap();
        assert_eq!(read(&fallback, &k, now + secs(60)), Ok(bytes("others")));
        assert_eq!(read(&fallback, &k, now + secs(61)), Ok(None));
        fallback.write(&k, &put("own"), now + secs(62)).unwrap();
        fallback.write(&k, &Change::Expire(ttl), now + secs(63)).unwrap();
        assert_eq!(read(&fallback, &k, now + secs(600)), Ok(bytes("own")));
    }
}

#[test]
fn lifetimes_move_with_what_memory_knows_and_with_nothing_else() {
    for server in [true, false] {
        let (fallback, k, now) = (fallback(server), Slot::key("k"), Instant::now());
        let (secs, at) = (Duration::from_secs, |seconds| now + Duration::from_secs(seconds));
        let ttl = |slot: &Slot, now| value(fallback.read(&TtlOf::new(slot.clone()), now));
        let expire = |ttl, now| fallback.write(&k, &Change::Expire(ttl), now);
        let unknown = if server { Err(Refusal::Unavailable) } else { Ok(Ttl::Missing) };
        assert_eq!(ttl(&k, now), unknown, "the server may have it");
        assert_eq!(expire(Some(secs(1)), now), Err(Refusal::Unavailable), "the server may have it");
        fallback.write(&k, &put("1"), now).unwrap();
        assert_eq!(ttl(&k, now), Ok(Ttl::Forever));
        assert_eq!(expire(None, now), Ok(0));
        assert_eq!(expire(Some(secs(10)), now), Ok(1));
        assert_eq!(ttl(&k, at(4)), Ok(Ttl::Left(secs(6))));
        assert_eq!(expire(None, at(4)), Ok(1));
        assert_eq!(read(&fallback, &k, at(20)), Ok(bytes("1")));
        assert_eq!(expire(Some(secs(10)), now), Ok(1));
        assert_eq!(read(&fallback, &k, at(10)), Ok(None));
        let h = Slot::field("h", "f");
        fallback.write(&h, &put("1"), now).unwrap();
        assert_eq!(ttl(&Slot::key("h"), now), Err(Refusal::Unavailable));
    }
}

#[test]
fn a_text_seen_at_the_server_has_a_lifetime_once_that_was_asked_for() {
    let (fallback, k, now) = (fallback(true), Slot::key("k"), Instant::now());
    let asked = ask_read(&fallback, &k);
    filled(&fallback, &k, asked, bytes("1"), now).unwrap();
    assert_eq!(fallback.read(&TtlOf::new(k.clone()), now), Err(Refusal::Unavailable));
    let left = Duration::from_secs(9);
    let BeginRead::Ask(ticket) = fallback.begin_read(&TtlOf::new(k.clone()), now) else { panic!() };
    assert!(fallback.filled(&TtlOf::new(k.clone()), ticket, &Ttl::Left(left), now).is_none());
    assert_eq!(value(fallback.read(&TtlOf::new(k.clone()), now)), Ok(Ttl::Left(left)));
    assert_eq!(read(&fallback, &k, now + left), Ok(None));
}

#[test]
fn a_hash_is_told_whole_or_not_at_all() {
    let (fallback, key, now) = (fallback(true), Bytes::from("h"), Instant::now());
    let pair = |f: &str, v: &str| {
        (Bytes::copy_from_slice(f.as_bytes()), Bytes::copy_from_slice(v.as_bytes()))
    };
    let all = || {
        let known = fallback.read(&All::new(key.clone()), now);
        value(known).map(|mut pairs| {
            pairs.sort();
            pairs
        })
    };
    assert_eq!(all(), Ok(Vec::new()), "nothing is known");
    fallback.write(&Slot::field("h", "f"), &put("1"), now).unwrap();
    assert_eq!(all(), Err(Refusal::Unavailable), "the server may hold more");
    assert!(matches!(fallback.begin_read(&All::new(key.clone()), now), BeginRead::Mixed));
    assert!(matches!(fallback.begin_read(&Exists::new(Slot::key("h")), now), BeginRead::Local(_)));
    fallback.drain(9).acknowledge(&[true; 9]);
    let BeginRead::Ask(ticket) = fallback.begin_read(&All::new(key.clone()), now) else { panic!() };
    let seen = vec![pair("a", "1"), pair("b", "2")];
    assert!(fallback.filled(&All::new(key.clone()), ticket, &seen, now).is_none());
    assert_eq!(all(), Ok(seen));
    fallback.write(&Slot::field("h", "b"), &Change::Remove, now).unwrap();
    fallback.write(&Slot::field("h", "c"), &put("3"), now).unwrap();
    assert_eq!(
        all(),
        Err(Refusal::Unavailable),
        "what was seen of the rest is gone with the write"
    );
    fallback.write(&Slot::key("h"), &Change::Remove, now).unwrap();
    assert_eq!(all(), Ok(Vec::new()));
    fallback.write(&Slot::field("h", "d"), &put("4"), now).unwrap();
    assert_eq!(all(), Ok(vec![pair("d", "4")]), "made here, so that all of it is known");
}

#[test]
fn counters_count_here_only_if_they_may() {
    let now = Instant::now();
    let k = Slot::key("k");
    assert_eq!(fallback(true).write(&k, &Change::Add(1), now), Err(Refusal::Unavailable));
    assert_eq!(fallback(false).write(&k, &Change::Add(1), now), Err(Refusal::Unavailable));
    let counting = Fallback::new(&FallbackConfig::new().count_offline(), true);
    let add = |n| counting.write(&k, &Change::Add(n), now);
    assert_eq!(add(5), Ok(5));
    assert_eq!(add(-7), Ok(-2));
    assert_eq!(read(&counting, &k, now), Ok(bytes("-2")));
    assert_eq!(add(i64::MIN), Err(Refusal::NotANumber), "too small");
    for text in ["", " 1", "+1", "01", "1.5", "x", "9223372036854775808"] {
        counting.write(&k, &put(text), now).unwrap();
        assert_eq!(add(1), Err(Refusal::NotANumber), "{text:?}");
    }
    counting.write(&Slot::field("h", "f"), &Change::Add(2), now).unwrap();
    assert_eq!(counting.write(&Slot::field("h", "f"), &Change::Add(2), now), Ok(4));
    assert_eq!(counting.write(&Slot::key("h"), &Change::Add(2), now), Err(Refusal::WrongType));
}

#[test]
fn read_only_takes_no_write() {
    // Nor does it count, though counters may be counted here.
    for config in [FallbackConfig::read_only(), FallbackConfig::read_only().count_offline()] {
        let fallback = Fallback::new(&config, true);
        let (k, now) = (Slot::key("k"), Instant::now());
        let minute = Some(Duration::from_secs(60));
        for change in [put("1"), Change::Remove, Change::Expire(minute), Change::Add(1)] {
            assert!(!fallback.takes(&change));
            assert_eq!(fallback.write(&k, &change, now), Err(Refusal::Unavailable));
        }
        let asked = ask_read(&fallback, &k);
        filled(&fallback, &k, asked, bytes("1"), now).unwrap();
        assert_eq!(read(&fallback, &k, now), Ok(bytes("1")));
        ask_write(&fallback, &k);
        assert_eq!(read(&fallback, &k, now), Ok(None), "a write that failed leaves no older value");
    }
}

#[test]
fn a_write_that_was_never_sent_leaves_what_was_known() {
    let (fallback, k, now) = (fallback(true), Slot::key("k"), Instant::now());
    let asked = ask_read(&fallback, &k);
    filled(&fallback, &k, asked, bytes("old"), now).unwrap();
    let write = taken(&fallback, &k);
    put_back(&fallback, &k, write);
    assert_eq!(read(&fallback, &k, now), Ok(bytes("old")));
    // Unless something was seen since.
    for seen in [bytes("another client's"), None] {
        let write = taken(&fallback, &k);
        let asked = ask_read(&fallback, &k);
        filled(&fallback, &k, asked, seen.clone(), now).unwrap();
        put_back(&fallback, &k, write);
        assert_eq!(read(&fallback, &k, now), Ok(seen));
    }
}

#[test]
fn a_write_that_was_never_sent_brings_nothing_back_that_another_replaces() {
    let (k, now) = (Slot::key("k"), Instant::now());
    let seen = || {
        let fallback = fallback(true);
        let asked = ask_read(&fallback, &k);
        filled(&fallback, &k, asked, bytes("old"), now).unwrap();
        fallback
    };
    // One that began later and is under way, has landed or was kept here.
    let under_way = seen();
    let write = taken(&under_way, &k);
    ask_write(&under_way, &k);
    put_back(&under_way, &k, write);
    assert_eq!(read(&under_way, &k, now), Ok(None));
    let landed = seen();
    let write = taken(&landed, &k);
    let later = ask_write(&landed, &k);
    landed.landed(&k, &put("new"), later, now);
    put_back(&landed, &k, write);
    assert_eq!(read(&landed, &k, now), Ok(bytes("new")));
    let kept = seen();
    let write = taken(&kept, &k);
    kept.write(&k, &put("new"), now).unwrap();
    kept.drain(9).acknowledge(&[true]);
    put_back(&kept, &k, write);
    assert_eq!(read(&kept, &k, now), Ok(None));
    // One that began before, whose end then decides.
    let before = seen();
    let first = ask_write(&before, &k);
    let asked = ask_read(&before, &k);
    filled(&before, &k, asked, bytes("old"), now).unwrap();
    let write = taken(&before, &k);
    put_back(&before, &k, write);
    before.landed(&k, &put("new"), first, now);
    assert_eq!(read(&before, &k, now), Ok(None));
    // What only the server can do, under way before and ended since.
    for ended in [false, true] {
        let direct = seen();
        direct.begin_direct(std::slice::from_ref(&k.key), OnKeys::MayChange).unwrap();
        let write = taken(&direct, &k);
        if ended {
            direct.end_direct(std::slice::from_ref(&k.key), OnKeys::MayChange);
            put_back(&direct, &k, write);
        } else {
            put_back(&direct, &k, write);
            direct.end_direct(std::slice::from_ref(&k.key), OnKeys::MayChange);
        }
        assert_eq!(read(&direct, &k, now), Ok(None), "ended {ended}");
    }
}

#[test]
fn a_hash_is_whole_again_when_a_write_of_it_was_never_sent() {
    let (fallback, key, now) = (fallback(true), Bytes::from("h"), Instant::now());
    let (f, new, whole) = (Slot::field("h", "f"), Slot::field("h", "new"), Slot::key("h"));
    let pair = |f: &'static str, v: &'static str| (Bytes::from(f), Bytes::from(v));
    for seen in [vec![pair("f", "1"), pair("g", "2")], vec![pair("f", "1")]] {
        seen_all(&fallback, &key, &seen, now);
        for slot in [&f, &new, &whole, &f] {
            let write = taken(&fallback, slot);
            assert_ne!(all(&fallback, &key, now).as_ref(), Ok(&seen));
            put_back(&fallback, slot, write);
            assert_eq!(all(&fallback, &key, now).as_ref(), Ok(&seen));
        }
    }
    // Not when another write of it has landed since it was.
    let landed = ask_write(&fallback, &new);
    fallback.landed(&new, &put("3"), landed, now);
    let write = taken(&fallback, &f);
    put_back(&fallback, &f, write);
    assert_eq!(all(&fallback, &key, now), Err(Refusal::Unavailable));
    assert_eq!(read(&fallback, &f, now), Ok(bytes("1")));
    // Nor is what was seen of all since.
    let write = taken(&fallback, &f);
    let seen = vec![pair("g", "3")];
    seen_all(&fallback, &key, &seen, now);
    put_back(&fallback, &f, write);
    assert_eq!(all(&fallback, &key, now), Ok(seen));
    let write = taken(&fallback, &f);
    seen_all(&fallback, &key, &Pairs::new(), now);
    put_back(&fallback, &f, write);
    assert_eq!(all(&fallback, &key, now), Ok(Pairs::new()));
}

/// They have places of 64, so that some share one.
#[test]
fn of_many_writes_of_one_call_all_are_put_back() {
    let (fallback, now) = (fallback(true), Instant::now());
    let slots: Vec<_> = (0..300).map(|n| Slot::key(format!("k{n}"))).collect();
    for slot in &slots {
        let asked = ask_read(&fallback, slot);
        filled(&fallback, slot, asked, bytes("old"), now).unwrap();
    }
    let begin = || slots.iter().map(|slot| (slot, taken(&fallback, slot))).collect::<Vec<_>>();
    let back = |all: Vec<(&Slot, (Ticket, Before))>| {
        fallback.put_back(all.into_iter().map(|(slot, (ticket, before))| (slot, ticket, before)));
        slots.iter().filter(|slot| read(&fallback, slot, now) == Ok(bytes("old"))).count()
    };
    assert_eq!(back(begin()), 300);
    let begun = begin();
    // Of those that share its place none was the last to begin.
    ask_write(&fallback, &slots[0]);
    assert!((250..300).contains(&back(begun)));
    assert_eq!(read(&fallback, &slots[0], now), Ok(None));
}

#[test]
fn what_changes_all_keys_leaves_nothing_that_was_seen_before_its_end() {
    let (fallback, k, now) = (fallback(true), Slot::key("k"), Instant::now());
    let before = ask_read(&fallback, &k);
    assert!(fallback.begin_direct(&[], OnKeys::MayChangeAll).is_some());
    filled(&fallback, &k, before, bytes("old"), now).unwrap();
    assert_eq!(read(&fallback, &k, now), Ok(None), "asked before it began");
    let meanwhile = [ask_read(&fallback, &k), ask_read(&fallback, &k)];
    filled(&fallback, &k, meanwhile[0], bytes("old"), now).unwrap();
    fallback.end_direct(&[], OnKeys::MayChangeAll);
    assert_eq!(read(&fallback, &k, now), Ok(None));
    filled(&fallback, &k, meanwhile[1], bytes("old"), now).unwrap();
    assert_eq!(read(&fallback, &k, now), Ok(None), "asked before it ended");
    fallback.write(&k, &put("1"), now).unwrap();
    assert!(fallback.begin_direct(&[], OnKeys::MayChangeAll).is_none(), "a key is dirty");
}

#[tokio::test(start_paused = true)]
async fn one_batch_of_the_recovery_at_a_time_unless_it_takes_too_long() {
    let (fallback, k, now) = (fallback(true), Slot::key("k"), Instant::now());
    fallback.write(&k, &put("1"), now).unwrap();
    let first = fallback.drain_where(9, |_| true).await;
    {
        let mut second = std::pin::pin!(fallback.drain_where(9, |_| true));
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        drop(first);
        let second = second.await;
        assert_eq!(second.tasks.len(), 1);
    }
    assert!(matches!(fallback.begin_write(&k, now), BeginWrite::Local), "none is under way");
    // One whose runtime is not polled; another's does its work.
    let stuck = fallback.drain(9);
    let later = now + Duration::from_secs(60);
    assert!(matches!(fallback.begin_write(&k, now), BeginWrite::Draining));
    assert!(matches!(fallback.begin_write(&k, later), BeginWrite::Local), "it takes too long");
    let other = fallback.drain(9);
    drop(stuck);
    assert!(matches!(fallback.begin_write(&k, now), BeginWrite::Draining), "that is the other's");
    assert!(!other.acknowledge(&[true]));
    assert_eq!(fallback.dirty_keys(), 0);
}

/// Ten million keys in a release build are `examples/fallback_cost.rs`; this is the same for a
/// forty thousand, which would take 90 MB if they were all kept.
#[test]
fn distinct_keys_without_end_stay_within_the_bytes() {
    fn resident() -> u64 {
        let status = std::fs::read_to_string("/proc/self/statm").unwrap();
        status.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }
    const MIB: u64 = 1024 * 1024;
    let config = FallbackConfig::new().max_bytes(8 * MIB).max_entries(1_000_000);
    let (fallback, value, before) = (Fallback::new(&config, true), "x".repeat(2000), resident());
    let now = Instant::now();
    for n in 0..40_000 {
        let slot = Slot::key(format!("k{n}"));
        let ticket = ask_write(&fallback, &slot);
        fallback.landed(&slot, &put(&value), ticket, now);
    }
    fallback.tidy();
    let (entries, bytes) = fallback.size();
    assert!(bytes <= 8 * MIB, "{bytes}");
    assert!(entries > 3_000, "{entries}");
    // The other tests of this process take some meanwhile.
    let grown = resident().saturating_sub(before);
    assert!(grown < 40 * MIB, "{grown} bytes for {bytes}");
    let last = Slot::key("k39999");
    assert_eq!(read(&fallback, &last, now), Ok(Some(value.into())));
}

#[test]
fn a_hash_that_was_seen_too_long_ago_says_nothing() {
    let config = FallbackConfig::new().max_stale(Duration::from_secs(60));
    let (fallback, now) = (Fallback::new(&config, true), Instant::now());
    let (field, key) = (Slot::field("h", "f"), Slot::key("h"));
    let ticket = ask_read(&fallback, &field);
    filled(&fallback, &field, ticket, bytes("v"), now).unwrap();
    let exists = |at| fallback.read(&Exists::new(key.clone()), at);
    assert!(matches!(exists(now), Ok(Known::Here { what: true, .. })));
    let later = now + Duration::from_secs(61);
    assert!(!matches!(exists(later), Ok(Known::Here { what: true, .. })));
    assert_ne!(read(&fallback, &key, later), Err(Refusal::WrongType));
}
