//! What is printed, in at most 100 columns, and the checks of what it says.

use std::{
    error::Error,
    time::{Duration, Instant},
};

pub(crate) type AnyError = Box<dyn Error + Send + Sync>;

const WIDTH: usize = 100;
/// Where the third column begins.
const INDENT: usize = 18;

pub(crate) struct Timeline {
    started: Instant,
    chapters: u32,
    held: u32,
}

impl Timeline {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), chapters: 0, held: 0 }
    }

    pub(crate) fn head(&self) {
        let (who, saw, latency) = ("who", "what the caller saw", "latency");
        println!("  time  {who:<9} {saw:<47} {latency:>12}  server counted");
    }

    pub(crate) fn chapter(&mut self, title: &str) {
        self.chapters += 1;
        println!("\n{}. {title}", self.chapters);
    }

    /// One line: when, who was called, what the caller saw, how long it took, what the server
    /// counted.
    pub(crate) fn line(&self, who: &str, saw: &str, latency: &str, counted: &str) {
        let at = self.started.elapsed().as_secs_f64();
        println!("{at:>5.2}s  {who:<9} {saw:<47} {latency:>12}  {counted}");
    }

    /// What somebody else said, such as an error, below the line it belongs to.
    pub(crate) fn quote(&self, text: &str) {
        for line in wrapped(text, WIDTH - INDENT - 2) {
            println!("{:INDENT$}| {line}", "");
        }
    }

    pub(crate) fn remark(&self, text: &str) {
        println!("{:INDENT$}{text}", "");
    }

    /// Says what has to hold, if it does; if it does not, the program ends with it.
    pub(crate) fn expect(&mut self, held: bool, what: &str) -> Result<(), AnyError> {
        check(held, what)?;
        self.held += 1;
        for (n, line) in wrapped(what, WIDTH - INDENT - 2).iter().enumerate() {
            println!("{:INDENT$}{} {line}", "", if n == 0 { "=" } else { " " });
        }
        Ok(())
    }

    pub(crate) fn end(&self) {
        let took = self.started.elapsed().as_secs_f64();
        println!("\nAll {} claims held, in {took:.1} s.", self.held);
    }
}

/// The last words of a run that failed.
pub(crate) fn stopped(why: &str) {
    eprintln!();
    for line in format!("quickstart stopped: {why}").lines() {
        for line in wrapped(line, WIDTH) {
            eprintln!("{line}");
        }
    }
}

/// What is not worth a line when it holds.
pub(crate) fn check(held: bool, what: &str) -> Result<(), AnyError> {
    if held { Ok(()) } else { Err(format!("this did not hold: {what}").into()) }
}

/// Microseconds as long as there are less than a thousand.
pub(crate) fn latency(took: Duration) -> String {
    match took.as_micros() {
        us @ 0..1000 => format!("{us} us"),
        _ => format!("{:.1} ms", took.as_secs_f64() * 1000.0),
    }
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let full = |line: &String| !line.is_empty() && line.len() + 1 + word.len() > width;
        if lines.last().is_some_and(full) {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}
