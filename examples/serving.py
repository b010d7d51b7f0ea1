"""Serve a searched model over HTTP: single requests are grouped into batches, and excess requests are refused.

    uv run --group serving python examples/serving.py runs/cifar10 --operating-point cheapest-lossless --port 8000

    curl -s localhost:8000/predict -H 'Content-Type: application/json' \
        -d "{\"inputs\": \"$(base64 -w0 cat.jpg)\"}"
    curl -s localhost:8000/stats

LitServe does the batching: it is made for models in Python, groups images of any sizes (our experts take a list of
images, not one tensor), starts a worker process for each device, and needs only pip. Triton and TorchServe expect an
exported graph or an archive, which does not suit a model that decides while it runs; Ray Serve needs a cluster.

LitServe does not limit the load. `Gate` therefore admits a limited number of requests at a time, answers the others
with 503 instead of letting a queue grow without end, and counts which experts answered and what they cost.
"""

import argparse
import base64
import io
import json

from fastapi import HTTPException
from litserve import LitAPI, LitServer

from pertinence import PertinenceError, PertinenceForImageClassification, PertinenceImageProcessor
from pertinence.data.decoding import open_image
from pertinence.utils.errors import first_line


EXPECTED = 'expected {"inputs": an image file in base64}'


class ImageClassification(LitAPI):
    """`{"inputs": image in base64}` to `{"labels": [{"label", "score"}, ...], "expert", "gmacs", "batch_size"}`."""

    def __init__(self, model: str, load: dict, operating_point: str | None, top_k: int, **options):
        super().__init__(**options)
        self.name, self.load = model, load
        self.operating_point, self.top_k = operating_point, top_k

    def setup(self, device):
        self.model = PertinenceForImageClassification.from_pretrained(self.name, **self.load).to(device)
        self.processor = PertinenceImageProcessor()

    def decode_request(self, request):
        try:
            content = base64.b64decode(request["inputs"], validate=True)
            return self.processor(open_image(io.BytesIO(content)))["images"][0]
        except Exception as error:  # Pillow may raise anything
            raise HTTPException(400, f"{EXPECTED}, got no image that can be read ({first_line(error)})") from error

    def batch(self, inputs):
        return inputs  # images of any sizes, which cannot be stacked

    def predict(self, images):
        out = self.model(images, operating_point=self.operating_point)
        scores, labels = out.logits.softmax(1).topk(min(self.top_k, out.logits.shape[1]))
        names, experts = self.model.config.id2label, self.model.config.expert_names
        return [
            {
                "labels": [{"label": names[i], "score": s} for i, s in zip(label, score, strict=True)],
                "expert": experts[expert],
                "gmacs": gmacs,
                "batch_size": len(images),
            }
            for label, score, expert, gmacs in zip(
                labels.tolist(), scores.tolist(), out.expert_indices.tolist(), out.gmacs.tolist(), strict=True
            )
        ]


class Gate:
    """ASGI middleware: admits at most `most` requests at a time, others get 503; GET /stats shows counts.

    A body that is larger than `largest` bytes, or not what is expected, gets 413 or 400.
    """

    def __init__(self, app, most: int, largest: int):
        self.app, self.most, self.largest = app, most, largest
        self.inside = self.answered = self.turned_away = 0
        self.gmacs, self.experts, self.batch_sizes = 0.0, {}, {}

    async def __call__(self, scope, receive, send):
        path = scope.get("path")
        if path == "/stats":
            await _answer(send, 200, self.stats())
        elif path != "/predict":
            await self.app(scope, receive, send)
        elif self.inside >= self.most:
            self.turned_away += 1
            detail = f"{self.most} requests are being answered already: try again in a second"
            await _answer(send, 503, {"detail": detail}, [(b"retry-after", b"1")])
        else:
            self.inside += 1
            try:
                if scope["method"] == "POST":
                    scope, receive = await self.checked(scope, receive)
                await self.app(scope, receive, self.counting(send))
            except HTTPException as error:
                await _answer(send, error.status_code, {"detail": error.detail}, [(b"connection", b"close")])
            finally:
                self.inside -= 1

    async def checked(self, scope, receive):
        """The request again, once its body is known to be JSON of the expected form."""
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.largest:
                raise HTTPException(413, f"{EXPECTED}, of at most {self.largest} bytes")
        try:
            values = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, f"{EXPECTED}, got no JSON") from error
        if not (isinstance(values, dict) and isinstance(values.get("inputs"), str)):
            raise HTTPException(400, f"{EXPECTED}, got other JSON")
        others = [header for header in scope["headers"] if header[0] != b"content-type"]
        scope = scope | {"headers": [*others, (b"content-type", b"application/json")]}

        async def again():
            nonlocal body
            if body is None:
                return await receive()
            message, body = {"type": "http.request", "body": body}, None
            return message

        return scope, again

    def counting(self, send):
        """`send` that also counts what was answered."""
        status, body = 0, b""

        async def counted(message):
            nonlocal status, body
            status = message.get("status", status)
            body += message.get("body", b"")
            if message["type"] == "http.response.body" and not message.get("more_body") and status == 200:
                answer = json.loads(body)
                self.answered += 1
                self.gmacs += answer["gmacs"]
                self.experts[answer["expert"]] = self.experts.get(answer["expert"], 0) + 1
                size = answer["batch_size"]
                self.batch_sizes[size] = self.batch_sizes.get(size, 0) + 1
            await send(message)

        return counted

    def stats(self) -> dict:
        answered = max(self.answered, 1)
        return {
            "answered": self.answered,
            "turned_away": self.turned_away,
            "inside": self.inside,
            "gmacs_per_request": self.gmacs / answered,
            "expert_shares": {name: count / answered for name, count in sorted(self.experts.items())},
            "requests_by_batch_size": {str(size): count for size, count in sorted(self.batch_sizes.items())},
        }


async def _answer(send, status: int, values: dict, headers: list = ()) -> None:
    headers = [(b"content-type", b"application/json"), *headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(values).encode()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Folder or Hub id of a searched model.")
    parser.add_argument("--operating-point", help="Default: the model's.")
    parser.add_argument("--top-k", type=int, default=5)
    parser.add_argument("--max-batch-size", type=int, default=32)
    parser.add_argument("--batch-timeout", type=float, default=0.005, help="Seconds to wait for a batch to fill.")
    parser.add_argument("--max-requests", type=int, default=256, help="Requests at a time; the others get a 503.")
    parser.add_argument("--max-body", type=int, default=32 << 20, help="Bytes of a request; larger ones get a 413.")
    parser.add_argument("--max-memory", help="Load experts lazily, within this limit, like 2GiB.")
    parser.add_argument("--trust-remote-code", action="store_true", help="Run the code that experts bring with them.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    load = {"trust_remote_code": options.trust_remote_code}
    if options.max_memory is not None:
        load |= {"lazy": True, "max_memory": options.max_memory}
    # What is wrong with the model is said here in one sentence, before there are worker processes.
    PertinenceForImageClassification.from_pretrained(options.model, **load | {"lazy": True})
    api = ImageClassification(
        options.model,
        load,
        options.operating_point,
        options.top_k,
        max_batch_size=options.max_batch_size,
        batch_timeout=options.batch_timeout,
    )
    server = LitServer(api, middlewares=[(Gate, {"most": options.max_requests, "largest": options.max_body})])
    # One process admits all requests, so that one count covers all of them.
    server.run(host=options.host, port=options.port, num_api_servers=1, generate_client_file=False)


if __name__ == "__main__":
    try:
        main()
    except (PertinenceError, OSError) as error:  # such as no connection
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None
