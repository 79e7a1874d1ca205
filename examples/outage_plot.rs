//! What do callers, and the server, see when PostgreSQL is killed under load?
//!
//! A private PostgreSQL answers 500 calls a second, is killed after 5 s and comes back 5 s later. Three
//! clients live through the same story one after the other: sqlx as it comes, the stack that a careful
//! user builds by hand (timeout > backon > recloser > sqlx), and `PgDatabase` with its defaults. Prints a
//! table and draws three strips: how long callers waited, what reached the server, what was answered.
//!
//! `cargo run --release --features test-servers --example outage_plot [FILE.svg]` (65 s)
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use backon::{ExponentialBuilder, Retryable};
use mainstay::{PgDatabase, sqlx};
use mainstay_test_support::{Postgres, Proxy};
use recloser::{AsyncRecloser, Recloser};
use sqlx::{PgPool, postgres::PgPoolOptions};
use std::{
    fmt::Write as _,
    future::Future,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};
use tokio::time::{sleep_until, timeout};

const CALLS_A_SECOND: u32 = 500;
const DOWN: f64 = 5.0;
const UP: f64 = 10.0;
const END: f64 = 20.0;
/// The width of a column of the strips.
const STEP: f64 = 0.25;
const COLUMNS: usize = (END / STEP) as usize;
const POOL: u32 = 10;

const WAYS: [(&str, &str); 3] =
    [("sqlx", "#888888"), ("by hand", "#d95f02"), ("PgDatabase", "#1b7837")];

/// One call: when it began, how long its caller waited, and whether it was answered.
struct Call {
    began: f64,
    waited: f64,
    answered: bool,
}

/// What one client made of the story.
struct Seen {
    calls: Vec<Call>,
    /// Connections that reached the server's address, by column; a statement needs one.
    connections: Vec<f64>,
}

impl Seen {
    fn in_column(&self, column: usize) -> impl Iterator<Item = &Call> {
        self.calls.iter().filter(move |call| (call.began / STEP) as usize == column)
    }

    fn p99(&self, column: usize) -> f64 {
        p99(self.in_column(column).map(|call| call.waited).collect())
    }

    /// Statements and connections.
    fn attempts(&self, column: usize) -> f64 {
        (self.answers(column) + self.connections[column]) / STEP
    }

    /// By the time of the answer.
    fn answers(&self, column: usize) -> f64 {
        let at = |call: &&Call| ((call.began + call.waited) / STEP) as usize == column;
        self.calls.iter().filter(|call| call.answered).filter(at).count() as f64
    }

    fn outage(&self) -> impl Iterator<Item = &Call> {
        self.calls.iter().filter(|call| (DOWN..UP).contains(&call.began))
    }

    fn print(&self, name: &str) {
        let lost = self.calls.iter().filter(|call| !call.answered).count();
        let connections: f64 =
            self.connections[(DOWN / STEP) as usize..(UP / STEP) as usize].iter().sum();
        let back = self.calls.iter().filter(|call| call.answered && call.began + call.waited > UP);
        let first = back.map(|call| call.began + call.waited).fold(f64::INFINITY, f64::min) - UP;
        let late = self.calls.iter().filter(|call| call.began > UP).map(|call| call.waited);
        println!(
            "{name:<12} {:>12.1} {:>14} {:>14} {:>16.0} {:>14.1}",
            1_000.0 * p99(self.outage().map(|call| call.waited).collect()),
            lost,
            connections,
            1_000.0 * first.max(0.0),
            1_000.0 * p99(late.collect()),
        );
    }
}

fn p99(mut waits: Vec<f64>) -> f64 {
    waits.sort_by(f64::total_cmp);
    waits.get((waits.len() * 99 / 100).min(waits.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

/// The story, as this client sees it.
async fn play<C, F, Fut>(server: &Arc<Mutex<Postgres>>, connect: C) -> Seen
where
    C: FnOnce(String) -> F,
    F: Fn() -> Fut,
    Fut: Future<Output = bool> + Send + 'static,
{
    let proxy = Proxy::in_front_of(server.lock().unwrap().address());
    let call = connect(Postgres::url_at(proxy.addr()));
    while !call().await {}
    let start = Instant::now();
    let at = |second: f64| start + Duration::from_secs_f64(second);
    let fate = {
        let server = Arc::clone(server);
        let (down, up) = (at(DOWN), at(UP));
        thread::spawn(move || {
            let mut server = server.lock().unwrap();
            thread::sleep(down - Instant::now());
            server.kill();
            thread::sleep(up - Instant::now());
            server.restart();
        })
    };
    let mut running = Vec::new();
    for n in 0..(END * f64::from(CALLS_A_SECOND)) as u32 {
        let began = f64::from(n) / f64::from(CALLS_A_SECOND);
        sleep_until(at(began).into()).await;
        let call = call();
        running.push(tokio::spawn(async move {
            let answered = call.await;
            Call { began, waited: start.elapsed().as_secs_f64() - began, answered }
        }));
    }
    let mut calls = Vec::new();
    for call in running {
        calls.push(call.await.unwrap());
    }
    fate.join().unwrap();
    let mut connections = vec![0.0; COLUMNS];
    for event in proxy.events() {
        let since = event.at.saturating_duration_since(start).as_secs_f64();
        let accepted = event.what == mainstay_test_support::proxy::What::Accepted;
        if let (true, Some(column)) = (accepted, connections.get_mut((since / STEP) as usize)) {
            *column += 1.0;
        }
    }
    Seen { calls, connections }
}

async fn sqlx_alone(server: &Arc<Mutex<Postgres>>) -> Seen {
    play(server, |url| {
        let pool = PgPoolOptions::new().max_connections(POOL).connect_lazy(&url).unwrap();
        move || {
            let pool = pool.clone();
            async move { select(&pool).await.is_ok() }
        }
    })
    .await
}

async fn select(pool: &PgPool) -> Result<i32, sqlx::Error> {
    sqlx::query_scalar("select 1").fetch_one(pool).await
}

async fn by_hand(server: &Arc<Mutex<Postgres>>) -> Seen {
    play(server, |url| {
        let pool = PgPoolOptions::new()
            .max_connections(POOL)
            .acquire_timeout(Duration::from_secs(1))
            .connect_lazy(&url)
            .unwrap();
        let breaker =
            AsyncRecloser::from(Recloser::custom().open_wait(Duration::from_secs(5)).build());
        let retry = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(500))
            .with_max_times(2)
            .with_jitter();
        move || {
            let (pool, breaker) = (pool.clone(), breaker.clone());
            async move {
                let attempt = || async {
                    let guarded = breaker.call(select(&pool));
                    timeout(Duration::from_secs(2), guarded)
                        .await
                        .is_ok_and(|end| end.is_ok())
                        .then_some(())
                        .ok_or(())
                };
                timeout(Duration::from_secs(10), attempt.retry(retry))
                    .await
                    .is_ok_and(|end| end.is_ok())
            }
        }
    })
    .await
}

async fn ours(server: &Arc<Mutex<Postgres>>) -> Seen {
    play(server, |url| {
        let db = PgDatabase::builder().url(url).max_connections(POOL).build().unwrap();
        move || {
            let db = db.clone();
            async move { sqlx::query_scalar::<_, i32>("select 1").fetch_one(&db).await.is_ok() }
        }
    })
    .await
}

struct Strip {
    title: &'static str,
    unit: &'static str,
    logarithmic: bool,
    value: fn(&Seen, usize) -> f64,
}

const STRIPS: [Strip; 3] = [
    Strip {
        title: "How long callers waited: p99 by when they called (logarithmic)",
        unit: " s",
        logarithmic: true,
        value: Seen::p99,
    },
    Strip {
        title: "What reached the server: connections and statements",
        unit: "/s",
        logarithmic: false,
        value: Seen::attempts,
    },
    Strip {
        title: "What was answered",
        unit: "/s",
        logarithmic: false,
        value: |seen, column| seen.answers(column) / STEP,
    },
];

fn draw(seen: &[Seen]) -> String {
    const WIDTH: f64 = 760.0;
    const HEIGHT: f64 = 150.0;
    const LEFT: f64 = 70.0;
    const GAP: f64 = 60.0;
    const TOP: f64 = 78.0;
    let x = |second: f64| LEFT + second / END * WIDTH;
    let bottom = TOP + 3.0 * (HEIGHT + GAP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0}\" height=\"{bottom:.0}\" \
         viewBox=\"0 0 {0:.0} {bottom:.0}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"22\" \
         font-size=\"15\">PostgreSQL is killed at 5 s and started again at 10 s, under \
         {CALLS_A_SECOND} calls/s</text>\n",
        LEFT + WIDTH + 30.0,
    );
    for (n, (name, colour)) in WAYS.iter().enumerate() {
        let x = LEFT + n as f64 * 130.0;
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.0}\" x2=\"{:.0}\" y1=\"40\" y2=\"40\" stroke=\"{colour}\" stroke-width=\"3\"/>\
             <text x=\"{:.0}\" y=\"44\">{name}</text>",
            x + 20.0,
            x + 26.0,
        );
    }
    for (n, strip) in STRIPS.iter().enumerate() {
        let top = TOP + n as f64 * (HEIGHT + GAP);
        let values: Vec<Vec<f64>> = seen
            .iter()
            .map(|seen| (0..COLUMNS).map(|column| (strip.value)(seen, column)).collect())
            .collect();
        let most = values.iter().flatten().copied().fold(f64::MIN_POSITIVE, f64::max);
        // Logarithmic: from 0.1 ms to 100 s.
        let y = |value: f64| {
            let share = if strip.logarithmic {
                ((value.max(1e-4)).log10() + 4.0) / 6.0
            } else {
                value / most
            };
            top + HEIGHT * (1.0 - share.clamp(0.0, 1.0))
        };
        let ticks: Vec<f64> = if strip.logarithmic {
            vec![1e-4, 1e-2, 1.0, 100.0]
        } else {
            vec![0.0, most / 2.0, most]
        };
        let _ = writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"{:.0}\">{}</text>\n<rect x=\"{:.0}\" y=\"{top:.0}\" width=\"{:.0}\" \
             height=\"{HEIGHT}\" fill=\"#f6dcdc\"/>",
            top - 8.0,
            strip.title,
            x(DOWN),
            x(UP) - x(DOWN),
        );
        for tick in ticks {
            let label = if strip.logarithmic { format!("{tick}") } else { format!("{tick:.0}") };
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{1:.0}\" y2=\"{1:.0}\" stroke=\"#ddd\"/>\
                 <text x=\"{2:.0}\" y=\"{3:.0}\" text-anchor=\"end\">{label}{4}</text>",
                LEFT + WIDTH,
                y(tick),
                LEFT - 6.0,
                y(tick) + 4.0,
                strip.unit,
            );
        }
        for (values, (_, colour)) in values.iter().zip(WAYS) {
            let points: Vec<String> = values
                .iter()
                .enumerate()
                .map(|(column, value)| {
                    format!("{:.1},{:.1}", x((column as f64 + 0.5) * STEP), y(*value))
                })
                .collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                points.join(" "),
            );
        }
    }
    for second in [0.0, 5.0, 10.0, 15.0, 20.0] {
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{second} s</text>",
            x(second),
            bottom - GAP + 22.0,
        );
    }
    svg + "</svg>\n"
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "target/outage.svg".to_owned());
    let server = Arc::new(Mutex::new(Postgres::start()));
    let seen = [sqlx_alone(&server).await, by_hand(&server).await, ours(&server).await];
    println!(
        "{:<12} {:>12} {:>14} {:>14} {:>16} {:>14}",
        "", "p99 ms down", "calls failed", "connections", "first answer ms", "p99 ms after"
    );
    for (seen, (name, _)) in seen.iter().zip(WAYS) {
        seen.print(name);
    }
    if let Some(folder) = std::path::Path::new(&path).parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&path, draw(&seen))?;
    println!("\nDown from {DOWN} s to {UP} s; the plot is in {path}.");
    Ok(())
}
