//! Heap allocations of a call. A program of its own, since to count them slows them down.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs, unreachable_pub)]
#![allow(missing_debug_implementations)]

#[allow(dead_code)]
mod cases;

const CALLS: u64 = 1_000;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    let _inside = runtime.enter();
    println!("{:<40} {:>12}", "allocations of a call", "");
    for case in cases::all() {
        let mut run = case.run();
        run(CALLS);
        let seen = allocation_counter::measure(|| {
            run(CALLS);
        });
        println!("{:<40} {:>12}", case.name, seen.count_total / CALLS);
        if case.name.contains("ours") {
            assert_eq!(seen.count_total, 0, "{} allocates", case.name);
        }
    }
}
