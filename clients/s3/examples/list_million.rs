//! How much memory does it take to list a bucket? As much for a million keys as for ten thousand.
//!
//! The store is made up: it answers every page with 1,000 keys that it has just invented. Give the
//! number of keys as an argument (default 1,000,000); Linux only, for the peak of the memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use futures_util::TryStreamExt;
use mainstay_s3::S3Client;
use std::{fmt::Write, fs, pin::pin};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let total: usize = std::env::args().nth(1).map_or(Ok(1_000_000), |text| text.parse())?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket, total));
        }
    });
    let s3 = S3Client::builder().endpoint_url(endpoint).credentials("key", "secret").build()?;

    let mut keys = pin!(s3.list("bucket", "").stream());
    let mut seen = 0;
    while let Some(object) = keys.try_next().await? {
        assert_eq!(object.key, name(seen));
        seen += 1;
        if seen == total.min(10_000) || seen == total {
            println!("{seen} keys, peak {} KiB", peak());
        }
    }
    assert_eq!(seen, total);
    Ok(())
}

fn name(n: usize) -> String {
    format!("2026/a-key-of-the-usual-length-{n:09}.parquet")
}

/// The most memory that this process has held, the made-up store included.
fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or_default()
}

async fn serve(socket: TcpStream, total: usize) -> std::io::Result<()> {
    let mut socket = BufReader::new(socket);
    loop {
        let mut from = 0;
        let mut line = String::new();
        // GET has no body: the empty line is the end.
        while socket.read_line(&mut line).await? > 2 {
            if let Some((_, rest)) = line.split_once("continuation-token=") {
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                from = digits.parse().unwrap_or_default();
            }
            line.clear();
        }
        let to = total.min(from + 1_000);
        let mut xml = String::from("<ListBucketResult>");
        for n in from..to {
            let key = name(n);
            let _ = write!(xml, "<Contents><Key>{key}</Key><Size>{n}</Size></Contents>");
        }
        let more = to < total;
        let _ = write!(
            xml,
            "<IsTruncated>{more}</IsTruncated><NextContinuationToken>{to}</NextContinuationToken>\
             </ListBucketResult>"
        );
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", xml.len());
        socket.write_all(head.as_bytes()).await?;
        socket.write_all(xml.as_bytes()).await?;
        socket.flush().await?;
    }
}
