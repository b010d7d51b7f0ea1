"""A server under mixed load: honest clients, hostile uploads, slow clients, and clients that go away.

    OMP_NUM_THREADS=1 uv run python tests/benchmarks/server_soak.py --minutes 30
    OMP_NUM_THREADS=1 uv run python tests/benchmarks/server_soak.py --model runs/cifar10 --minutes 1

Honest answers are compared with those of the model alone; hostile requests must be refused in one sentence, and no
request may be lost without a status. Memory is that of the server's process.
"""

import argparse
import io
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import torch
from PIL import Image


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from hostile import Sender, is_as_promised, requests
from served import MODEL, send
from servers import free_port, serving

from pertinence import PertinenceForImageClassification


TOLERANCE = 1e-3


class Soak:
    """The clients of one server; each runs in threads of its own until the end."""

    def __init__(self, url: str, folder: str, end: float):
        self.url, self.end, self.counts, self.wrong = url, end, Counter(), []
        model = PertinenceForImageClassification.from_pretrained(folder, trust_remote_code=True)
        generator = torch.Generator().manual_seed(0)
        self.asked = []
        for size in (32, 32, 32, 48, 96, 200):
            image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)
            buffer = io.BytesIO()
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
            for point in model.front:
                best = model([image], operating_point=point.name).logits[0].softmax(0).max()
                self.asked.append((buffer.getvalue(), point.name, best.item()))

    def run(self, clients: list, threads: int) -> None:
        running = [
            threading.Thread(target=self._repeat, args=(client, seed)) for client in clients for seed in range(threads)
        ]
        for one in running:
            one.start()
        for one in running:
            one.join()

    def _repeat(self, client, seed: int) -> None:
        rng = random.Random(f"{client.__name__} {seed}")
        sender = Sender(self.url)
        while time.monotonic() < self.end:
            try:
                problem = client(rng, sender)
            except Exception as error:  # whatever it is, it is no answer
                problem = f"{type(error).__name__}: {error}"
            self.counts[client.__name__] += 1
            if problem:
                self.wrong.append(f"{client.__name__}: {problem}")
        sender.close()

    def honest(self, rng: random.Random, sender: Sender) -> str | None:
        content, point, score = rng.choice(self.asked)
        response = send(f"{self.url}/?operating_point={point}&top_k=1", content)
        self.counts[f"honest {response.status}"] += 1
        if response.status == 503 and "retry-after" in response.headers:
            return None
        if response.status != 200:
            return f"{response.status} {response.body[:100]!r}"
        return None if abs(response.json[0]["score"] - score) < TOLERANCE else f"another answer at {point}"

    def hostile(self, rng: random.Random, sender: Sender) -> str | None:
        (one,) = requests(1, rng.randrange(2**32))
        status, body = sender.send(one)
        self.counts[f"hostile {status}"] += 1
        return None if is_as_promised(status, body, one.method) else f"{one.what}: {status} {body[:100]!r}"

    def gone(self, rng: random.Random, sender: Sender) -> str | None:
        content, _, _ = rng.choice(self.asked)
        head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        sent = (head + content)[: rng.randrange(len(head) + len(content))]
        with socket.create_connection(
            (urlsplit(self.url).hostname, urlsplit(self.url).port), timeout=20
        ) as connection:
            connection.sendall(sent)
        time.sleep(0.05)
        return None

    def slow(self, rng: random.Random, sender: Sender) -> str | None:
        place = urlsplit(self.url)
        with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n" + rng.choice([b"", b"\r\nabc"]))
            answer = connection.recv(65536)
        return None if answer.startswith(b"HTTP/1.1 408") else f"{answer[:60]!r}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--threads", type=int, default=4, help="of each kind of client")
    options = parser.parse_args()
    torch.set_num_threads(1)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    words = [sys.executable, "-m", "pertinence", "serve", options.model, "--port", str(port), "--trust-remote-code"]
    words += ["--request-seconds", "2", "--target-latency-ms", "300"]
    with tempfile.TemporaryDirectory() as folder, serving(words, f"{url}/ready", Path(folder) / "log"):
        (process,) = (p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [])[1:] == words[1:])
        soak = Soak(url, options.model, time.monotonic() + 60 * options.minutes)
        clients = [soak.honest, soak.hostile, soak.gone, soak.slow]
        running = threading.Thread(target=soak.run, args=(clients, options.threads))
        running.start()
        while running.is_alive():
            running.join(6 * options.minutes)
            memory = process.memory_info().rss / 2**20
            print(f"{memory:.0f} MiB, {process.num_threads()} threads, {dict(soak.counts)}", flush=True)
        print(f"wrong: {len(soak.wrong)}", *soak.wrong[:20], sep="\n")
        print("log of the server:", (Path(folder) / "log").read_text()[-1000:])
    sys.exit(bool(soak.wrong))


if __name__ == "__main__":
    main()
