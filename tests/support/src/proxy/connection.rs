use super::{Accept, Direction, End, Flow, Passing, Shared, What};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

/// Bytes on their way.
struct Chunk {
    bytes: Vec<u8>,
    due: Instant,
    lost: bool,
}

/// One direction of one connection.
struct Lane<'a> {
    shared: &'a Shared,
    number: u64,
    direction: Direction,
    /// Set when the request whose reply is to be lost has come, read by the replies.
    doomed: &'a AtomicBool,
}

pub(super) async fn serve(
    shared: Arc<Shared>,
    number: u64,
    mut client: TcpStream,
    accept: Accept,
    mut cut: watch::Receiver<()>,
) {
    let mut server = None;
    let end = tokio::select! {
        // What is cut passes nothing on any more, though it may lie there already.
        biased;
        _ = cut.changed() => End::Reset,
        end = forward(&shared, number, accept, &mut client, &mut server) => end,
    };
    if end == End::Reset {
        // With nothing to linger for, closing is a reset.
        for stream in [Some(&client), server.as_ref()].into_iter().flatten() {
            let _ = stream.set_zero_linger();
        }
    }
    drop((client, server));
    shared.tell(number, Passing::Ended);
    shared.record(number, What::Ended);
}

async fn forward(
    shared: &Shared,
    number: u64,
    accept: Accept,
    client: &mut TcpStream,
    server: &mut Option<TcpStream>,
) -> End {
    match accept {
        Accept::Forward => {}
        Accept::Close => return End::Close,
        Accept::Reset => return End::Reset,
        Accept::Silent => {
            let _ = tokio::io::copy(client, &mut tokio::io::sink()).await;
            return End::Close;
        }
        Accept::Delay(time) => sleep(time).await,
    }
    let upstream = *shared.upstream.lock().unwrap();
    let Ok(connected) = TcpStream::connect(upstream).await else { return End::Reset };
    let server = server.insert(connected);
    // Pieces go out as they are.
    let _ = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
    let doomed = AtomicBool::new(false);
    let lane = |direction| Lane { shared, number, direction, doomed: &doomed };
    let (requests, replies) = (lane(Direction::Requests), lane(Direction::Replies));
    let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
    let both = tokio::try_join!(
        requests.pump(from_client, to_server),
        replies.pump(from_server, to_client)
    );
    both.err().unwrap_or(End::Close)
}

impl Lane<'_> {
    /// Until one side has closed and all it sent has gone through, or until the connection ends.
    async fn pump(&self, from: ReadHalf<'_>, to: WriteHalf<'_>) -> Result<(), End> {
        let (queue, chunks) = mpsc::channel(64);
        tokio::try_join!(self.read(from, queue), self.write(to, chunks)).map(drop)
    }

    async fn read(&self, mut from: ReadHalf<'_>, queue: mpsc::Sender<Chunk>) -> Result<(), End> {
        let seed = self.shared.faults.borrow().seed;
        let mut draw = fastrand::Rng::with_seed(seed + 2 * self.number + self.direction as u64);
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let read = from.read(&mut buffer).await;
            if let (Direction::Requests, Ok(0) | Err(_)) = (self.direction, &read) {
                self.shared.tell(self.number, Passing::Left);
            }
            let length = read.map_err(|_| End::Reset)?;
            if length == 0 {
                return Ok(());
            }
            let lost = match self.direction {
                Direction::Requests => {
                    self.shared.tell(self.number, Passing::Request(&buffer[..length]));
                    if self.shared.lose_next_reply.swap(false, SeqCst) {
                        self.doomed.store(true, SeqCst);
                    }
                    false
                }
                Direction::Replies => self.doomed.load(SeqCst),
            };
            let due = Instant::now() + self.flow().delay(&mut draw);
            self.count(&self.shared.arrived, length);
            let chunk = Chunk { bytes: buffer[..length].to_vec(), due, lost };
            if queue.send(chunk).await.is_err() {
                return Ok(());
            }
        }
    }

    async fn write(
        &self,
        mut to: WriteHalf<'_>,
        mut chunks: mpsc::Receiver<Chunk>,
    ) -> Result<(), End> {
        match self.forward(&mut to, &mut chunks).await {
            Err(End::HalfClose) => {}
            end => end?,
        }
        to.shutdown().await.map_err(|_| End::Reset)?;
        // What comes after a half is closed goes nowhere.
        while chunks.recv().await.is_some() {}
        Ok(())
    }

    async fn forward(
        &self,
        to: &mut WriteHalf<'_>,
        chunks: &mut mpsc::Receiver<Chunk>,
    ) -> Result<(), End> {
        let mut sent = 0;
        let mut next = Instant::now();
        while let Some(mut chunk) = chunks.recv().await {
            if chunk.due > Instant::now() {
                sleep_until(chunk.due).await;
            }
            if chunk.lost {
                self.shared.record(self.number, What::ReplyLost);
                return Err(End::Reset);
            }
            let mut rest = &mut chunk.bytes[..];
            while !rest.is_empty() {
                let flow = self.passable(sent).await?;
                let (piece, later) = rest.split_at_mut(flow.piece(sent, rest.len()));
                rest = later;
                if let Some(at) = flow.flip.and_then(|at| at.checked_sub(sent))
                    && let Some(byte) = usize::try_from(at).ok().and_then(|at| piece.get_mut(at))
                {
                    *byte = !*byte;
                }
                to.write_all(piece).await.map_err(|_| End::Reset)?;
                if self.direction == Direction::Replies {
                    self.shared.tell(self.number, Passing::Reply(piece));
                }
                sent += piece.len() as u64;
                self.count(&self.shared.forwarded, piece.len());
                match flow.after {
                    Some((limit, End::Hang)) if sent >= limit => {}
                    Some((limit, end)) if sent >= limit => return Err(end),
                    _ => {}
                }
                if let Some(rate) = flow.rate {
                    let time = Duration::from_secs_f64(piece.len() as f64 / f64::from(rate.max(1)));
                    next = next.max(Instant::now()) + time;
                    sleep_until(next).await;
                }
                if flow.slice.is_some() {
                    sleep(Duration::from_millis(1)).await;
                }
            }
        }
        self.passable(sent).await.map(drop)
    }

    /// Waits until something may go through.
    async fn passable(&self, sent: u64) -> Result<Flow, End> {
        let mut faults = self.shared.faults.subscribe();
        loop {
            let flow = faults.borrow_and_update().flow(self.direction).clone();
            match flow.after {
                Some((limit, end)) if sent >= limit => match end {
                    End::Hang => {}
                    end => return Err(end),
                },
                _ if flow.hold => {}
                _ => return Ok(flow),
            }
            // The sender is in `shared`.
            let _ = faults.changed().await;
        }
    }

    fn flow(&self) -> Flow {
        self.shared.faults.borrow().flow(self.direction).clone()
    }

    fn count(&self, counters: &[std::sync::atomic::AtomicU64; 2], length: usize) {
        counters[self.direction as usize].fetch_add(length as u64, SeqCst);
        self.shared.changed.send_replace(());
    }
}
