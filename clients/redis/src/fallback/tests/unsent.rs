//! What a write that was not sent leaves of what was known, and what writes of one call leave.

use super::*;

fn counting() -> Fallback {
    Fallback::new(&FallbackConfig::new().count_offline(), true)
}

fn see(fallback: &Fallback, slot: &Slot, answer: Option<Bytes>, now: Instant) {
    let asked = ask_read(fallback, slot);
    filled(fallback, slot, asked, answer, now).unwrap();
}

fn add_after(
    fallback: &Fallback,
    slot: &Slot,
    (ticket, before): &(Ticket, Before),
    now: Instant,
) -> Result<i64, Refusal> {
    fallback.write_after(slot, &Change::Add(1), Some((*ticket, before)), now)
}

#[test]
fn a_field_that_was_seen_gone_stays_so_when_its_write_was_never_sent() {
    let (fallback, now) = (fallback(true), Instant::now());
    let (f, g) = (Slot::field("h", "f"), Slot::field("h", "g"));
    see(&fallback, &g, bytes("beside"), now);
    see(&fallback, &f, bytes("old"), now);
    let write = taken(&fallback, &f);
    put_back(&fallback, &f, write);
    assert_eq!(read(&fallback, &f, now), Ok(bytes("old")));
    for seen in [bytes("another client's"), None] {
        let write = taken(&fallback, &f);
        see(&fallback, &f, seen.clone(), now);
        put_back(&fallback, &f, write);
        assert_eq!(read(&fallback, &f, now), Ok(seen));
        assert_eq!(read(&fallback, &g, now), Ok(bytes("beside")));
    }
}

#[test]
fn a_counter_that_was_seen_gone_while_it_waited_begins_anew() {
    let now = Instant::now();
    for slot in [Slot::key("k"), Slot::field("h", "f")] {
        for (seen_gone, sum) in [(false, 6), (true, 1)] {
            let fallback = counting();
            see(&fallback, &Slot::field("h", "g"), bytes("beside"), now);
            see(&fallback, &slot, bytes("5"), now);
            let write = taken(&fallback, &slot);
            if seen_gone {
                see(&fallback, &slot, None, now);
            }
            assert_eq!(add_after(&fallback, &slot, &write, now), Ok(sum), "{seen_gone}");
        }
    }
}

#[test]
fn a_hash_of_which_nothing_recent_is_known_is_no_other_type() {
    let (k, f) = (Slot::key("h"), Slot::field("h", "f"));
    for (emptied, age) in [(true, 0), (false, 61)] {
        let config = FallbackConfig::new().count_offline().max_stale(Duration::from_secs(60));
        let (fallback, now) = (Fallback::new(&config, true), Instant::now());
        see(&fallback, &f, bytes("1"), now);
        if emptied {
            // Its caller does not wait for the answer.
            ask_write(&fallback, &f);
        }
        let write = taken(&fallback, &k);
        let now = now + Duration::from_secs(age);
        assert_eq!(add_after(&fallback, &k, &write, now), Ok(1), "emptied {emptied}");
    }
    let (fallback, now) = (counting(), Instant::now());
    see(&fallback, &f, bytes("1"), now);
    let write = taken(&fallback, &k);
    assert_eq!(add_after(&fallback, &k, &write, now), Err(Refusal::WrongType));
}

/// They have places of 64, so that some share one.
#[test]
fn of_many_writes_of_one_call_all_are_known_once_they_land() {
    let (fallback, now) = (fallback(true), Instant::now());
    let mut writes: Vec<_> = (0..300).map(|n| (Slot::key(format!("k{n}")), put("new"))).collect();
    // Named twice: the last stands.
    writes.push((writes[0].0.clone(), put("newest")));
    let begin = || {
        let asked = writes.iter().map(|(slot, change)| (slot, change, ask_write(&fallback, slot)));
        asked.collect::<Vec<_>>()
    };
    let known = || {
        let is_new = |slot: &Slot| read(&fallback, slot, now) == Ok(bytes("new"));
        writes.iter().filter(|(slot, _)| is_new(slot)).count()
    };
    fallback.landed_together(&begin(), now);
    assert_eq!(known(), 299);
    assert_eq!(read(&fallback, &writes[0].0, now), Ok(bytes("newest")));
    let begun = begin();
    // Of those that share its place nobody knows whose the server holds.
    ask_write(&fallback, &writes[1].0);
    fallback.landed_together(&begun, now);
    assert!((250..299).contains(&known()), "{}", known());
    assert_eq!(read(&fallback, &writes[1].0, now), Ok(None));
}
