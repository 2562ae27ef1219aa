"""The real ComfyUI server as a subprocess, with a base directory of its own and the pack among its custom nodes.

`COMFYUI_DIR` names the checkout (default: ~/ComfyUI).
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
CHECKOUT = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "ComfyUI")
START_SECONDS = 240
"""A contended machine of two cores may take most of a minute."""
RUN_SECONDS = 600

Graph = dict[str, dict[str, Any]]
"""ComfyUI's API format: by node id, ``class_type`` and ``inputs``."""


@dataclass(frozen=True)
class Run:
    """What came of a queued graph."""

    status: str
    """"success" or "error", as the history has it; "refused" when nothing ran."""
    messages: dict[str, dict[str, Any]]
    """What the executor reported, by kind: execution_cached, execution_error, execution_interrupted, ..."""
    outputs: dict[str, dict[str, Any]]
    """By node id, what the node shows: images, text."""

    @property
    def error(self) -> str:
        """The sentence on the red node, or nothing."""
        message: str = self.messages.get("execution_error", {}).get("exception_message", "")
        return message.strip()

    @property
    def cached(self) -> set[str]:
        """The nodes that were served from the cache."""
        return set(self.messages["execution_cached"]["nodes"])


@dataclass(frozen=True)
class Server:
    """A running ComfyUI."""

    url: str
    base: Path
    """Its --base-directory."""
    log_file: Path
    process: int

    def log(self) -> str:
        """Without its colours."""
        return re.sub(r"\x1b\[\d+m", "", self.log_file.read_text(encoding="utf-8", errors="replace"))

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON answer, also of a refusal."""
        request = urllib.request.Request(
            f"{self.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as refusal:
            status, text = refusal.code, refusal.read()
        return status, json.loads(text) if text else None

    def queue(self, graph: Graph, client_id: str = "tests") -> str:
        """The id of the queued graph, which must be valid."""
        status, answer = self.post("/prompt", {"prompt": graph, "client_id": client_id})
        assert status == 200 and not answer["node_errors"], answer
        return str(answer["prompt_id"])

    def refusal(self, graph: Graph) -> str:
        """What the server says of the nodes that it does not take; the graph's other outputs run to their end."""
        status, answer = self.post("/prompt", {"prompt": graph})
        assert answer["node_errors"], answer
        if status == 200:
            self.wait(answer["prompt_id"])
        else:
            assert status == 400, answer
        return json.dumps(answer["node_errors"], ensure_ascii=False)

    def wait(self, prompt_id: str, seconds: float = RUN_SECONDS) -> Run:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                entry = history[prompt_id]
                status = entry["status"]
                return Run(status["status_str"], dict(status["messages"]), entry["outputs"])
            time.sleep(0.1)
        raise TimeoutError(f"no result within {seconds} s; the log ends:\n{self.log()[-3000:]}")

    def run(self, graph: Graph) -> Run:
        """Queue a graph and wait for it to succeed."""
        run = self.wait(self.queue(graph))
        assert run.status == "success", run.messages
        return run

    def cancel(self, graph: Graph, node: str, total: int, seconds: float = 60) -> Run:
        """Queue a graph and press Cancel when the node has made two of the ``total`` steps of its stage."""
        websocket = importlib.import_module("websocket")
        listener = websocket.create_connection(f"{self.url.replace('http', 'ws')}/ws?clientId=cancels", timeout=120)
        prompt_id = self.queue(graph, "cancels")
        while True:
            said = listener.recv()
            heard = json.loads(said) if isinstance(said, str) else {}
            assert heard.get("type") not in ("execution_error", "execution_success"), heard
            if heard.get("type") == "progress":
                data = heard["data"]
                if data["node"] == node and data["max"] == total and data["value"] >= 2:
                    break
        self.post("/interrupt", {})
        listener.close()
        return self.wait(prompt_id, seconds)

    def files(self, run: Run, node: str) -> list[Path]:
        """The pictures that a node saved or previewed."""
        folders = [(self.base / shown["type"] / shown["subfolder"], shown) for shown in run.outputs[node]["images"]]
        return [folder / shown["filename"] for folder, shown in folders]


def changed(graph: Graph, **inputs: dict[str, Any]) -> Graph:
    """A copy of a graph with other inputs, by node id."""
    graph = copy.deepcopy(graph)
    for node, values in inputs.items():
        graph[node]["inputs"].update(values)
    return graph


@pytest.fixture(scope="session")
def comfyui_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Skips, saying so, where there is no ComfyUI. ``<base>/elsewhere`` is a second models folder."""
    if not (CHECKOUT / "main.py").is_file():
        pytest.skip(f"no ComfyUI in {CHECKOUT}: set COMFYUI_DIR to a checkout")
    yield from serve(tmp_path_factory.mktemp("server"))


def serve(base: Path) -> Iterator[Server]:
    """A server with this base directory, for as long as nobody asks for a second one."""
    for folder in ("custom_nodes", "input", "models/loras", "output", "temp", "user", "elsewhere/owlv2/my-owl"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (base / "elsewhere/owlv2/my-owl" / name).touch()
    if not (base / "custom_nodes" / "mudi").exists():  # a server that is started again
        (base / "custom_nodes" / "mudi").symlink_to(ROOT, target_is_directory=True)
    paths = base / "extra_model_paths.yaml"
    paths.write_text(f"elsewhere:\n  base_path: {base / 'elsewhere'}\n  owlv2: owlv2\n", encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log_file = base / "server.log"
    command = [
        *(sys.executable, str(CHECKOUT / "main.py"), "--cpu", "--listen", "127.0.0.1", "--port", str(port)),
        *("--base-directory", str(base), "--database-url", f"sqlite:///{base / 'user' / 'comfyui.db'}"),
        *("--extra-model-paths-config", str(paths), "--disable-auto-launch", "--disable-api-nodes"),
    ]
    # On contended cores a step of torch's default threads can take many times longer than one thread's.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, cwd=base, env=environment, stdout=log, stderr=subprocess.STDOUT)
    server = Server(f"http://127.0.0.1:{port}", base, log_file, process.pid)
    try:
        _wait_for_start(server, process)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_start(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"ComfyUI did not start:\n{server.log()[-3000:]}"
        try:
            server.get("/system_stats")
            return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(f"ComfyUI did not answer within {START_SECONDS} s; its log ends:\n{server.log()[-3000:]}")
