"""The files that deploy a server give flags and paths that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml
from served import MODEL
from starlette.routing import Route

from pertinence import PertinenceForImageClassification
from pertinence.commands.main import parse
from pertinence.serving.app import make_app, make_service
from pertinence.serving.engine import ModelEngine


DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "serve"


def test_the_container_and_the_manifest_fit_the_server():
    (entry,) = re.findall(r"^ENTRYPOINT (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    program, *words = json.loads(entry)
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert program == "pertinence"
    _, (model, points, args, _) = parse([*words, *container["args"]])
    assert model == "/model"
    assert points.target_latency_ms == 100
    assert (args.host, args.port) == ("0.0.0.0", container["ports"][0]["containerPort"])
    (mount,) = container["volumeMounts"]
    assert Path(args.api_key_file).parent == Path(mount["mountPath"])
    pod = deployment["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > args.drain_seconds
    routes = make_app(make_service("x", ModelEngine(PertinenceForImageClassification.from_pretrained(MODEL)))).routes
    paths = {route.path for route in routes if isinstance(route, Route)}
    probes = {container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert probes <= paths
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
