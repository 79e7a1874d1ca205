//! What do thousands of clients do to a dependency that is down for a minute?
//!
//! `cargo run -p mainstay-policy --features test-util --example storm [plot.svg]`
//!
//! Time is virtual: half an hour passes in less than 30 s of a debug build, nothing sleeps, and one
//! seed gives one history. Each client has a policy of its own, as if in a process of its own. The
//! claims below the tables are checked; the program fails if one does not hold.
#![allow(missing_docs, clippy::cast_precision_loss, clippy::cast_possible_truncation)]

use mainstay_policy::{BreakerState, Deadline, Event, Kind, Policy, observe};
use std::{
    cell::RefCell,
    collections::HashMap,
    fmt::Write as _,
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    task::{LocalSet, spawn_local},
    time::Instant,
};

type AnyError = Box<dyn std::error::Error>;

const SEED: u64 = 20_261_124;
const DOWN: f64 = 5.0;
const UP: f64 = 65.0;
/// The longest break is 30 s, give or take 15 %.
const END: f64 = 115.0;

/// How clients call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    NoPolicy,
    RetryOnly,
    Ours,
    OursWithoutBreaker,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::NoPolicy => "no policy",
            Self::RetryOnly => "retry only",
            Self::Ours => "ours",
            Self::OursWithoutBreaker => "ours, breaker off",
        }
    }

    fn policy(self, name: &str) -> Option<Policy> {
        let builder = Policy::builder(Kind::Database, name);
        let builder = match self {
            Self::NoPolicy => return None,
            Self::RetryOnly => builder.enable_circuit_breaker(false).enable_budget(false),
            Self::Ours => builder,
            Self::OursWithoutBreaker => builder.enable_circuit_breaker(false),
        };
        builder.build().ok()
    }
}

/// Clients, and how they are made to suffer.
#[derive(Clone, Copy)]
struct Scene {
    way: Way,
    clients: u32,
    /// Calls a second of each client.
    rate: f64,
    /// The share of attempts that fail when the dependency is not down.
    errors: f64,
    outage: bool,
    end: f64,
}

/// What was seen, second by second.
#[derive(Default)]
struct Seen {
    calls: Vec<u32>,
    admitted: Vec<u32>,
    attempts: Vec<u32>,
    failed: u32,
    /// For each client that succeeded again: when, after the dependency was back.
    recovered: HashMap<u32, f64>,
    /// For each breaker that opened: when, after the dependency went down.
    opened: HashMap<String, f64>,
}

fn add(counts: &mut Vec<u32>, at: f64) {
    let second = at as usize;
    if counts.len() <= second {
        counts.resize(second + 1, 0);
    }
    counts[second] += 1;
}

fn sum(counts: &[u32], from: f64, to: f64) -> f64 {
    counts.iter().take(to as usize).skip(from as usize).map(|n| f64::from(*n)).sum()
}

async fn play(scene: Scene) -> Seen {
    let seen = Rc::new(RefCell::new(Seen::default()));
    let opened = Arc::new(Mutex::new(HashMap::new()));
    let start = Instant::now();
    let log = Arc::clone(&opened);
    let subscription = observe(move |event: &Event| {
        if let Event::Changed { dependency, to: BreakerState::Open, .. } = event
            && let Ok(mut log) = log.lock()
        {
            let at = start.elapsed().as_secs_f64() - DOWN;
            log.entry(dependency.to_string()).or_insert(at);
        }
    });
    let local = LocalSet::new();
    for client in 0..scene.clients {
        let seen = Rc::clone(&seen);
        local.spawn_local(async move {
            let name =
                format!("storm:{}:{}:{}:{client}", scene.way.name(), scene.rate, scene.errors);
            let policy = scene.way.policy(&name);
            loop {
                let wait = -fastrand::f64().max(1e-12).ln() / scene.rate;
                tokio::time::sleep(Duration::from_secs_f64(wait)).await;
                if start.elapsed().as_secs_f64() >= scene.end {
                    return;
                }
                spawn_local(call(scene, client, policy.clone(), start, Rc::clone(&seen)));
            }
        });
    }
    local.await;
    drop(subscription);
    let mut seen = seen.take();
    seen.opened = opened.lock().map(|mut log| std::mem::take(&mut *log)).unwrap_or_default();
    seen
}

async fn call(
    scene: Scene,
    client: u32,
    policy: Option<Policy>,
    start: Instant,
    seen: Rc<RefCell<Seen>>,
) {
    let began = start.elapsed().as_secs_f64();
    let attempt = || {
        let seen = Rc::clone(&seen);
        async move {
            let now = start.elapsed().as_secs_f64();
            add(&mut seen.borrow_mut().attempts, now);
            tokio::time::sleep(Duration::from_millis(5)).await;
            let down = scene.outage && (DOWN..UP).contains(&now);
            if down || fastrand::f64() < scene.errors { Err("unavailable") } else { Ok(()) }
        }
    };
    let (ok, refused) = match policy {
        None => (attempt().await.is_ok(), false),
        Some(policy) => match policy.call(attempt).await {
            Ok(()) => (true, false),
            Err(error) => (false, error.is_rejected()),
        },
    };
    let mut seen = seen.borrow_mut();
    add(&mut seen.calls, began);
    if !refused {
        add(&mut seen.admitted, began);
    }
    if !ok {
        seen.failed += 1;
    } else if began >= UP {
        seen.recovered.entry(client).or_insert(began - UP);
    }
}

/// The middle and the 95th percentile.
fn spread(values: impl Iterator<Item = f64>) -> String {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values.get((values.len() as f64 * share) as usize);
    match (at(0.5), at(0.95)) {
        (Some(middle), Some(most)) => format!("{middle:>5.1} / {most:<5.1}"),
        _ => "    -        ".to_owned(),
    }
}

async fn outages(claims: &mut Claims) -> Vec<(Way, Vec<u32>)> {
    println!("A dependency is down for 60 s. Attempts for each call from 10 s into the outage on;");
    println!("seconds to open and to recover, median / 95th percentile of the clients.\n");
    println!(
        "{:>8} {:>9}  {:<18} {:>8} {:>10}  {:<13} {:<13}",
        "clients", "calls/s", "", "/ call", "/ admitted", "to open", "to recover"
    );
    let mut plot = Vec::new();
    for (clients, rate) in [(2_000, 1.0), (25, 20.0), (1, 1_000.0)] {
        for way in [Way::NoPolicy, Way::RetryOnly, Way::OursWithoutBreaker, Way::Ours] {
            let end = if way == Way::Ours { END } else { UP + 5.0 };
            let scene = Scene { way, clients, rate, errors: 0.0, outage: true, end };
            let seen = play(scene).await;
            let attempts = sum(&seen.attempts, DOWN + 10.0, UP);
            let each = |of: &[u32]| attempts / sum(of, DOWN + 10.0, UP).max(1.0);
            let (per_call, per_admitted) = (each(&seen.calls), each(&seen.admitted));
            println!(
                "{clients:>8} {rate:>9}  {:<18} {per_call:>8.3} {per_admitted:>10.3}  {} {}",
                way.name(),
                spread(seen.opened.values().copied()),
                spread(seen.recovered.values().copied()),
            );
            if way == Way::OursWithoutBreaker {
                let claim = format!("{rate} calls/s, breaker off: at most 1.2 attempts a call");
                claims.check(per_admitted <= 1.2, &claim);
            }
            if way == Way::Ours {
                let all = seen.recovered.len() == clients as usize;
                claims.check(all, &format!("{rate} calls/s: every client recovers"));
            }
            if clients == 2_000 && way != Way::OursWithoutBreaker {
                plot.push((way, seen.attempts));
            }
        }
    }
    plot
}

async fn brownouts(claims: &mut Claims) {
    println!("\nA part of the attempts fails at random for 60 s; 3 attempts a call.\n");
    println!(
        "{:>8} {:>9} {:>7}  {:<18} {:>9} {:>10} {:>8}",
        "clients", "calls/s", "errors", "", "/ call", "failed", "opened"
    );
    for errors in [0.2, 0.3, 0.4] {
        for (clients, rate) in [(20, 10.0), (2, 100.0)] {
            for way in [Way::NoPolicy, Way::RetryOnly, Way::Ours] {
                let scene = Scene { way, clients, rate, errors, outage: false, end: 60.0 };
                let seen = play(scene).await;
                let calls = sum(&seen.calls, 0.0, 60.0);
                let failed = f64::from(seen.failed) / calls;
                println!(
                    "{clients:>8} {rate:>9} {:>6.0}%  {:<18} {:>9.3} {:>9.2}% {:>8}",
                    errors * 100.0,
                    way.name(),
                    sum(&seen.attempts, 0.0, 99.0) / calls,
                    failed * 100.0,
                    seen.opened.len(),
                );
                if way == Way::Ours && errors == 0.2 {
                    let claim = format!("20 % errors, {rate} calls/s: at most 1 % of calls fail");
                    claims.check(failed <= 0.01, &claim);
                    let claim = format!("20 % errors, {rate} calls/s: no breaker opens");
                    claims.check(seen.opened.is_empty(), &claim);
                }
            }
        }
    }
}

#[derive(Default)]
struct Claims {
    broken: u32,
    lines: Vec<String>,
}

impl Claims {
    fn check(&mut self, holds: bool, claim: &str) {
        self.broken += u32::from(!holds);
        self.lines.push(format!("{} {claim}", if holds { "holds: " } else { "BROKEN:" }));
    }
}

/// Attempts a second that reach the dependency, one line for each way.
fn draw(series: &[(Way, Vec<u32>)]) -> String {
    const WIDTH: f64 = 760.0;
    const HEIGHT: f64 = 360.0;
    const LEFT: f64 = 60.0;
    const TOP: f64 = 40.0;
    let most = series.iter().flat_map(|(_, counts)| counts).copied().max().unwrap_or(1);
    let most = (f64::from(most) / 2_000.0).ceil() * 2_000.0;
    let x = |second: f64| LEFT + second / END * WIDTH;
    let y = |count: f64| TOP + HEIGHT - count / most * HEIGHT;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" \
         fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"22\" font-size=\"15\">Attempts a second at a \
         dependency that is down for a minute: 2,000 clients, 1 call/s each</text>\n",
        LEFT + WIDTH + 30.0,
        TOP + HEIGHT + 60.0
    );
    let (down, up) = (x(DOWN), x(UP));
    let _ = writeln!(
        svg,
        "<rect x=\"{down:.0}\" y=\"{TOP}\" width=\"{:.0}\" height=\"{HEIGHT}\" fill=\"#f6dcdc\"/>\n\
         <text x=\"{:.0}\" y=\"{:.0}\" fill=\"#a33\">down</text>",
        up - down,
        down + 6.0,
        TOP + 16.0
    );
    for step in 0..=4 {
        let count = most * f64::from(step) / 4.0;
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{1:.0}\" y2=\"{1:.0}\" stroke=\"#ddd\"/>\
             <text x=\"{2:.0}\" y=\"{3:.0}\" text-anchor=\"end\">{count:.0}</text>",
            LEFT + WIDTH,
            y(count),
            LEFT - 6.0,
            y(count) + 4.0
        );
    }
    for second in (0..115).step_by(20) {
        let second = f64::from(second);
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{second:.0} s</text>",
            x(second),
            TOP + HEIGHT + 18.0
        );
    }
    for (n, (way, counts)) in series.iter().enumerate() {
        let colour = ["#888888", "#d95f02", "#1b7837"][n % 3];
        let points: Vec<String> = counts
            .iter()
            .take(END as usize)
            .enumerate()
            .map(|(second, count)| format!("{:.1},{:.1}", x(second as f64), y(f64::from(*count))))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n\
             <text x=\"{:.0}\" y=\"{:.0}\" fill=\"{colour}\">{}</text>",
            points.join(" "),
            LEFT + n as f64 * 140.0,
            TOP + HEIGHT + 44.0,
            way.name()
        );
    }
    svg + "</svg>\n"
}

fn main() -> Result<(), AnyError> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "target/storm.svg".to_owned());
    // One thread, one generator: one history.
    fastrand::seed(SEED);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let mut claims = Claims::default();
    let plot = runtime.block_on(async {
        // The engine counts seconds from its first look at the clock, which should not depend on
        // how fast this machine is.
        let _ = Deadline::within(Duration::ZERO);
        let plot = outages(&mut claims).await;
        brownouts(&mut claims).await;
        plot
    });
    println!("\n{}", claims.lines.join("\n"));
    if let Some(folder) = std::path::Path::new(&path).parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&path, draw(&plot))?;
    println!("\nThe plot is in {path}.");
    if claims.broken > 0 {
        Err(format!("{} claims do not hold", claims.broken).into())
    } else {
        Ok(())
    }
}
