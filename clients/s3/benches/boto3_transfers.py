"""The same files by boto3, as a footnote: CPU s/GiB and wall s of its upload_file and download_file.

python3 -m venv venv && venv/bin/pip install boto3
mainstay-s3-benches 256 up serve    # prints the endpoint
venv/bin/python boto3_transfers.py ENDPOINT [MiB] [rounds]
"""

import os, statistics, sys, tempfile, time

import boto3

endpoint = sys.argv[1]
mib = int(sys.argv[2]) if len(sys.argv) > 2 else 256
rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
client = boto3.client(
    "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
)
with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
    path, to = os.path.join(directory, "from"), os.path.join(directory, "to")
    with open(path, "wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1024 * 1024))
    for name, move in (
        ("up", lambda: client.upload_file(path, "bucket", str(mib))),
        ("down", lambda: client.download_file("bucket", str(mib), to)),
    ):
        took = []
        for round in range(rounds + 1):
            cpu, wall = time.process_time(), time.perf_counter()
            move()
            if round > 0:
                took.append((time.process_time() - cpu, time.perf_counter() - wall))
        cpu, wall = (statistics.median(values) for values in zip(*took))
        print(f"{name}: {cpu * 1024 / mib:.2f} CPU s/GiB, {wall:.3f} s wall")
