//! Every fault of the network, each ready to be switched on.

use crate::subject::ms;
use mainstay_test_support::{
    Proxy,
    proxy::{Accept, End, Faults},
};
use std::time::Duration;

/// Longer than any deadline here.
const LATE: Duration = ms(800);

pub(crate) struct Fault {
    pub(crate) name: &'static str,
    /// It meets open connections; otherwise they are reset first, and new ones meet it.
    warm: bool,
    on: fn(&mut Faults),
}

const fn cold(name: &'static str, on: fn(&mut Faults)) -> Fault {
    Fault { name, warm: false, on }
}

const fn warm(name: &'static str, on: fn(&mut Faults)) -> Fault {
    Fault { name, warm: true, on }
}

pub(crate) const REFUSED: Fault = cold("refused", |_| {});
pub(crate) const RESET: Fault = cold("reset at accept", |faults| faults.accept = Accept::Reset);
pub(crate) const CLOSED: Fault = cold("closed at accept", |faults| faults.accept = Accept::Close);
pub(crate) const MUTE: Fault = cold("accepted in silence", |f| f.accept = Accept::Silent);
pub(crate) const HELD: Fault = warm("held", Faults::hold);
pub(crate) const CORRUPT: Fault = cold("a corrupt byte", |f| f.replies.flip = Some(0));

pub(crate) const ALL: &[Fault] = &[
    REFUSED,
    RESET,
    CLOSED,
    MUTE,
    HELD,
    CORRUPT,
    cold("held from the start", Faults::hold),
    cold("accepted late", |faults| faults.accept = Accept::Delay(LATE)),
    warm("late replies", |faults| faults.replies.latency = LATE),
    warm("dripping", |faults| {
        faults.replies.rate = Some(20);
        faults.replies.slice = Some(1);
    }),
    warm("half-closed", |f| f.replies.after = Some((0, End::HalfClose))),
    cold("half-closed within the reply", |f| f.replies.after = Some((20, End::HalfClose))),
    cold("half-closed within the request", |f| f.requests.after = Some((20, End::HalfClose))),
    cold("closed within the reply", |f| f.replies.after = Some((20, End::Close))),
    cold("reset within the reply", |f| f.replies.after = Some((20, End::Reset))),
    cold("hung within the reply", |f| f.replies.after = Some((20, End::Hang))),
    cold("closed within the request", |f| f.requests.after = Some((20, End::Close))),
    cold("hung within the request", |f| f.requests.after = Some((20, End::Hang))),
    cold("a corrupt byte later", |faults| faults.replies.flip = Some(30)),
];

impl Fault {
    pub(crate) fn start(&self, proxy: &Proxy) {
        if self.name == REFUSED.name {
            proxy.refuse();
        }
        proxy.set(self.on);
        if !self.warm {
            proxy.cut();
        }
    }

    pub(crate) fn end(proxy: &Proxy) {
        proxy.heal();
        proxy.cut();
        proxy.listen();
    }
}
