use super::*;
use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Answers what it reads with what this makes of it.
fn server(answer: impl Fn(&[u8]) -> Vec<u8> + Send + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let answer = answer.clone();
            thread::spawn(move || {
                let mut buffer = [0; 65536];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&answer(&buffer[..length])).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn echo() -> SocketAddr {
    server(<[u8]>::to_vec)
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.addr()).unwrap();
    // A test that waits for what does not come fails.
    stream.set_read_timeout(Some(ms(10_000))).unwrap();
    stream
}

fn asked(proxy: &Proxy, request: &[u8]) -> TcpStream {
    let mut stream = connect(proxy);
    stream.write_all(request).unwrap();
    stream
}

/// What comes before the end, and how it ends.
fn rest(mut stream: TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes);
    (bytes, end.err().map(|error| error.kind()))
}

fn read<const N: usize>(stream: &mut TcpStream) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn without_faults_both_ways_pass_and_each_connection_is_accounted_for() {
    let proxy = Proxy::in_front_of(echo());
    let data: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    for _ in 0..2 {
        let stream = connect(&proxy);
        let mut sender = stream.try_clone().unwrap();
        let sent = data.clone();
        let sending = thread::spawn(move || {
            sender.write_all(&sent).unwrap();
            // Half of a connection closes; what is on its way back still comes.
            sender.shutdown(Shutdown::Write).unwrap();
        });
        assert!(rest(stream) == (data.clone(), None));
        sending.join().unwrap();
    }
    proxy.until("both ended", |proxy| proxy.live() == 0).await;
    assert_eq!((proxy.accepted(), proxy.lost()), (2, 0));
    for direction in [Direction::Requests, Direction::Replies] {
        assert_eq!(proxy.bytes(direction), 2_000_000);
        assert_eq!(proxy.arrived(direction), 2_000_000);
    }
    let events = proxy.events();
    let of_first: Vec<_> = events.iter().filter(|event| event.connection == 1).collect();
    assert_eq!([of_first[0].what, of_first[1].what], [What::Accepted, What::Ended]);
    assert!(of_first[0].at < of_first[1].at);
    assert_eq!(events.len(), 4);
}

#[tokio::test]
async fn a_connection_can_fail_as_it_is_accepted() {
    let proxy = Proxy::in_front_of(echo());
    proxy.set(|faults| faults.accept = Accept::Close);
    assert_eq!(rest(connect(&proxy)), (vec![], None));

    proxy.set(|faults| faults.accept = Accept::Reset);
    // The reset may come before the connect has returned.
    let reset = TcpStream::connect(proxy.addr()).and_then(|mut stream| stream.read(&mut [0]));
    assert_eq!(reset.unwrap_err().kind(), ErrorKind::ConnectionReset);

    proxy.set(|faults| faults.accept = Accept::Silent);
    let silent = asked(&proxy, b"hello?");
    proxy.until("it is accepted", |proxy| proxy.accepted() == 3 && proxy.live() == 1).await;
    silent.set_read_timeout(Some(ms(50))).unwrap();
    assert_eq!(rest(silent.try_clone().unwrap()), (vec![], Some(ErrorKind::WouldBlock)));
    silent.set_read_timeout(Some(ms(10_000))).unwrap();
    proxy.cut();
    assert_eq!(rest(silent), (vec![], Some(ErrorKind::ConnectionReset)));

    proxy.set(|faults| faults.accept = Accept::Delay(ms(60)));
    let started = Instant::now();
    assert_eq!(&read(&mut asked(&proxy, b"late")), b"late");
    assert!(started.elapsed() >= ms(60));

    proxy.heal();
    assert_eq!(&read(&mut asked(&proxy, b"well")), b"well");
    proxy.until("all ended", |proxy| proxy.live() == 0).await;
    assert_eq!(proxy.accepted(), 5);
}

#[test]
fn latency_is_added_once_however_much_comes() {
    let proxy = Proxy::in_front_of(echo());
    proxy.set(|faults| {
        faults.requests.latency = ms(50);
        faults.replies.latency = ms(100);
    });
    let data = vec![7; 500_000];
    let (sent, mut stream) = (data.clone(), connect(&proxy));
    let mut sender = stream.try_clone().unwrap();
    let started = Instant::now();
    let sending = thread::spawn(move || sender.write_all(&sent).unwrap());
    assert_eq!(read::<1>(&mut stream), [7]);
    assert!(started.elapsed() >= ms(150));
    let mut rest = vec![0; data.len() - 1];
    stream.read_exact(&mut rest).unwrap();
    // Thirty reads of 16 KiB, one after the other, would take 4.5 s.
    assert!(started.elapsed() < ms(2_000), "{:?}", started.elapsed());
    sending.join().unwrap();
}

#[test]
fn jitter_is_the_same_for_the_same_seed() {
    let flow = Flow { latency: ms(10), jitter: ms(20), ..Flow::default() };
    let delays = |seed| {
        let mut draw = fastrand::Rng::with_seed(seed);
        (0..100).map(|_| flow.delay(&mut draw)).collect::<Vec<_>>()
    };
    assert_eq!(delays(1), delays(1));
    assert_ne!(delays(1), delays(2));
    assert!(delays(1).iter().all(|delay| (ms(10)..=ms(30)).contains(delay)));
}

#[test]
fn a_rate_is_kept() {
    let proxy = Proxy::in_front_of(echo());
    proxy.set(|faults| faults.replies.rate = Some(10_000));
    let started = Instant::now();
    assert_eq!(read(&mut asked(&proxy, &[7; 4_000])), [7; 4_000]);
    // All but the last 50 ms of it have been waited for.
    assert!(started.elapsed() >= ms(350), "{:?}", started.elapsed());
}

#[test]
fn slices_are_read_apart() {
    let proxy = Proxy::in_front_of(echo());
    proxy.set(|faults| faults.replies.slice = Some(10));
    let started = Instant::now();
    let mut stream = asked(&proxy, &[7; 1_000]);
    let (mut reads, mut bytes) = (0, 0);
    while bytes < 1_000 {
        bytes += stream.read(&mut [0; 1_000]).unwrap();
        reads += 1;
    }
    assert!(reads > 1);
    assert!(started.elapsed() >= ms(99), "{:?}", started.elapsed());
}

#[tokio::test]
async fn what_is_held_arrives_when_healed() {
    let proxy = Proxy::in_front_of(echo());
    proxy.set(|faults| faults.replies.hold = true);
    let mut first = asked(&proxy, b"first");
    proxy.until("the reply waits", |proxy| proxy.arrived(Direction::Replies) == 5).await;
    assert_eq!((proxy.bytes(Direction::Requests), proxy.bytes(Direction::Replies)), (5, 0));

    proxy.set(Faults::hold);
    let mut second = asked(&proxy, b"second");
    proxy.until("the request waits", |proxy| proxy.arrived(Direction::Requests) == 11).await;
    assert_eq!(proxy.bytes(Direction::Requests), 5);

    proxy.heal();
    assert_eq!((&read(&mut first), &read(&mut second)), (b"first", b"second"));
}

#[tokio::test]
async fn after_so_many_bytes_it_is_reset_closed_or_hangs() {
    let proxy = Proxy::in_front_of(echo());
    for (end, told) in [(End::Reset, Some(ErrorKind::ConnectionReset)), (End::Close, None)] {
        proxy.set(|faults| faults.replies.after = Some((3, end)));
        assert_eq!(rest(asked(&proxy, b"abcdef")), (b"abc".to_vec(), told));
        proxy.set(|faults| faults.replies.after = Some((0, end)));
        assert_eq!(rest(asked(&proxy, b"abcdef")), (vec![], told));
    }
    proxy.heal();
    let before = proxy.bytes(Direction::Requests);
    proxy.set(|faults| faults.requests.after = Some((3, End::Hang)));
    let mut stream = asked(&proxy, b"abcdef");
    assert_eq!(&read(&mut stream), b"abc");
    assert_eq!(proxy.bytes(Direction::Requests), before + 3);
    proxy.heal();
    assert_eq!(&read(&mut stream), b"def");
}

#[tokio::test]
async fn a_half_that_is_closed_leaves_the_other_open() {
    let proxy = Proxy::in_front_of(echo());
    proxy.set(|faults| faults.replies.after = Some((3, End::HalfClose)));
    let mut stream = asked(&proxy, b"abcdef");
    // The end comes after what went through, and is no reset.
    assert_eq!(rest(stream.try_clone().unwrap()), (b"abc".to_vec(), None));
    let through = proxy.bytes(Direction::Requests);
    stream.write_all(b"more").unwrap();
    proxy.until("requests still go", |p| p.bytes(Direction::Requests) == through + 4).await;
    assert_eq!(proxy.live(), 1);
    drop(stream);
    proxy.until("it ended", |proxy| proxy.live() == 0).await;
}

#[test]
fn one_byte_is_flipped() {
    let proxy = Proxy::in_front_of(echo());
    proxy.set(|faults| {
        faults.replies.flip = Some(4);
        faults.replies.slice = Some(3);
    });
    assert_eq!(&read(&mut asked(&proxy, b"abcdef")), b"abcd\x9af");
}

#[test]
fn a_lost_reply_is_that_of_a_request_which_the_server_got() {
    let requests = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&requests);
    let proxy = Proxy::in_front_of(server(move |request| {
        counter.fetch_add(1, SeqCst);
        request.to_vec()
    }));
    let (mut one, mut two) = (asked(&proxy, b"one"), asked(&proxy, b"two"));
    assert_eq!((&read(&mut one), &read(&mut two)), (b"one", b"two"));

    proxy.lose_next_reply();
    one.write_all(b"write").unwrap();
    assert_eq!(rest(one), (vec![], Some(ErrorKind::ConnectionReset)));
    assert_eq!((requests.load(SeqCst), proxy.lost()), (3, 1));
    two.write_all(b"fine").unwrap();
    assert_eq!(&read(&mut two), b"fine");
    assert_eq!(proxy.lost(), 1);

    proxy.lose_next_reply();
    proxy.heal();
    two.write_all(b"good").unwrap();
    assert_eq!(&read(&mut two), b"good");
}

#[test]
fn refusing_spares_open_connections_and_keeps_the_port() {
    let proxy = Proxy::in_front_of(echo());
    let mut open = asked(&proxy, b"open");
    assert_eq!(&read(&mut open), b"open");
    for _ in 0..100 {
        proxy.refuse();
        crate::port::until_refused(proxy.addr());
        proxy.listen();
        connect(&proxy);
    }
    open.write_all(b"still").unwrap();
    assert_eq!(&read(&mut open), b"still");
    assert_eq!(&read(&mut asked(&proxy, b"again")), b"again");
}

#[test]
fn new_connections_go_where_it_points() {
    let proxy = Proxy::in_front_of(server(|_| b"old".to_vec()));
    let mut before = asked(&proxy, b"?");
    assert_eq!(&read(&mut before), b"old");
    proxy.point_at(server(|_| b"new".to_vec()));
    assert_eq!(&read(&mut asked(&proxy, b"?")), b"new");
    before.write_all(b"?").unwrap();
    assert_eq!(&read(&mut before), b"old");

    let nowhere = Port::reserve();
    proxy.point_at(nowhere.address());
    let end = TcpStream::connect(proxy.addr()).and_then(|mut stream| stream.read(&mut [0]));
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_cut_misses_no_connection() {
    let proxy = Proxy::in_front_of(echo());
    for held in [false, true] {
        if held {
            proxy.set(Faults::hold);
        }
        let before = proxy.accepted();
        let streams: Vec<_> = (0..20).map(|_| asked(&proxy, b"x")).collect();
        proxy.until("all are accepted", |proxy| proxy.accepted() == before + 20).await;
        proxy.cut();
        for stream in streams {
            assert_eq!(rest(stream).1, Some(ErrorKind::ConnectionReset));
        }
        proxy.until("all ended", |proxy| proxy.live() == 0).await;
    }
    let last = asked(&proxy, b"x");
    drop(proxy);
    assert_eq!(rest(last).1, Some(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn an_observer_is_told_what_passes_on_each_connection() {
    let proxy = Proxy::in_front_of(echo());
    let told = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&told);
    proxy.observe(move |connection, passing| {
        notes.lock().unwrap().push(format!("{connection} {passing:?}"));
    });
    let mut one = asked(&proxy, b"1");
    read::<1>(&mut one);
    let two = asked(&proxy, b"2");
    drop(one);
    proxy.until("the first ended", |p| p.accepted() == 2 && p.live() == 1).await;
    proxy.cut();
    assert_eq!(rest(two).1, Some(ErrorKind::ConnectionReset));
    proxy.until("both ended", |proxy| proxy.live() == 0).await;
    let told = told.lock().unwrap();
    let of = |connection: &str| {
        told.iter().filter_map(|line| line.strip_prefix(connection)).collect::<Vec<_>>()
    };
    assert_eq!(of("1 "), ["Request([49])", "Reply([49])", "Left", "Ended"]);
    assert_eq!(of("2 ").last(), Some(&"Ended"));
    assert!(!of("2 ").contains(&"Left"), "{told:?}");
}
