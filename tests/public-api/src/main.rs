//! Compares what each crate offers with `tests/public-api/CRATE.txt`, or writes it (`--bless`).
//! `tests/public-api/run` calls it, with the folder in which rustdoc has left its JSON.

use std::{error::Error, fs, path::Path};

const CRATES: [&str; 7] = [
    "mainstay",
    "mainstay_policy",
    "mainstay_macros",
    "mainstay_database",
    "mainstay_http",
    "mainstay_redis",
    "mainstay_s3",
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let docs = arguments.next().ok_or("the folder of rustdoc's JSON?")?;
    let bless = arguments.next().as_deref() == Some("--bless");
    let (mut compared, mut different) = (0, 0);
    for name in CRATES {
        let json = Path::new(&docs).join(name).with_extension("json");
        let api = public_api::Builder::from_rustdoc_json(json)
            .omit_blanket_impls(true)
            .omit_auto_trait_impls(true)
            .build();
        let now = match api {
            Ok(api) => api.to_string(),
            // The JSON's format changes with rustc; the crate that reads it follows later.
            Err(public_api::Error::SerdeJsonError(error)) => {
                println!("NOT COMPARED: {name}: this rustdoc writes another JSON: {error}");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        compared += 1;
        let list = Path::new(env!("CARGO_MANIFEST_DIR")).join(name).with_extension("txt");
        if bless {
            fs::write(list, &now)?;
            continue;
        }
        let was = fs::read_to_string(list)?;
        let only = |here: &str, there: &str, sign: char| {
            let there: Vec<&str> = there.lines().collect();
            let only = here.lines().filter(|line| !there.contains(line));
            only.inspect(|line| println!("{sign} {line}")).count()
        };
        println!("{name}: {} public items", now.lines().count());
        different += only(&was, &now, '-') + only(&now, &was, '+');
    }
    // Somebody's own toolchain may be ahead of that crate; what decides about a change must compare.
    if compared < CRATES.len() && std::env::var_os("CI").is_some() {
        let toolchain = "use a toolchain whose JSON it reads, or update public-api and rustdoc-types";
        return Err(format!("{compared} of {} crates compared: {toolchain}", CRATES.len()).into());
    }
    if different > 0 {
        println!("If that is meant: tests/public-api/run --bless, and say it in CHANGELOG.md.");
        return Err(format!("the public API differs in {different} lines").into());
    }
    Ok(())
}
