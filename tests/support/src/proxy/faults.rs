use std::time::Duration;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Requests,
    /// From the server to the client.
    Replies,
}

/// Everything that goes wrong at the moment; nothing by default.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// What happens to new connections.
    pub accept: Accept,
    /// What happens on the way to the server.
    pub requests: Flow,
    /// What happens on the way back.
    pub replies: Flow,
    /// Where the draws of a connection's jitter start.
    pub seed: u64,
}

impl Faults {
    /// Nothing goes through, either way, and nobody is told.
    pub const fn hold(&mut self) {
        self.requests.hold = true;
        self.replies.hold = true;
    }

    pub(super) const fn flow(&self, direction: Direction) -> &Flow {
        match direction {
            Direction::Requests => &self.requests,
            Direction::Replies => &self.replies,
        }
    }
}

/// What happens to a connection when it is accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Accept {
    /// It is forwarded. One that the server does not take is reset.
    #[default]
    Forward,
    /// It is closed at once.
    Close,
    /// It is reset at once.
    Reset,
    /// Whatever it sends is read, and never answered.
    Silent,
    /// It is forwarded after this time.
    Delay(Duration),
}

/// What happens to bytes that go one way. Offsets are those of one connection in this direction.
#[derive(Debug, Clone, Default)]
pub struct Flow {
    /// Everything comes later by this.
    pub latency: Duration,
    /// And by up to this, drawn anew for every read; order is kept.
    pub jitter: Duration,
    /// At most so many bytes per second.
    pub rate: Option<u32>,
    /// In pieces of so many bytes, a millisecond apart so that they are read apart.
    pub slice: Option<usize>,
    /// Nothing moves until this is taken back.
    pub hold: bool,
    /// When so many bytes have gone through, this happens.
    pub after: Option<(u64, End)>,
    /// The byte at this offset arrives with every bit turned.
    pub flip: Option<u64>,
}

impl Flow {
    pub(super) fn delay(&self, draw: &mut fastrand::Rng) -> Duration {
        self.latency + self.jitter.mul_f64(draw.f64())
    }

    /// How much of so many bytes goes out at once.
    pub(super) fn piece(&self, sent: u64, length: usize) -> usize {
        let mut piece = length;
        if let Some(slice) = self.slice {
            piece = piece.min(slice.max(1));
        }
        if let Some(rate) = self.rate {
            // What goes in 50 ms.
            piece = piece.min((rate as usize / 20).max(1));
        }
        if let Some((limit, _)) = self.after {
            piece = piece.min(usize::try_from(limit - sent).unwrap_or(usize::MAX));
        }
        piece
    }
}

/// How a connection that was forwarded stops being so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both sides are reset.
    Reset,
    /// Both sides are closed.
    Close,
    /// This direction is closed, as by a peer that has said all it will say: what comes later is lost,
    /// and the other direction goes on.
    HalfClose,
    /// Nothing more moves in this direction, until the fault is taken back.
    Hang,
}
