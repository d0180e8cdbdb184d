"""Serve a model with plain uvicorn and onnxruntime in one process, as the comparison of benchmarks.serving_cost.

There is no front, jail, lease or retry. The program prints its port, then serves until its stdin is closed.
"""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import uvicorn

from bundle.contract import Contract
from device_agent.runtime.bundle_fds import BundleFds, create_sealed_memfd
from device_agent.runtime.inference import Inference
from device_agent.runtime.session import OnnxModel
from device_agent.runtime.wire import NO_JSON


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    bundle = BundleFds({"m": create_sealed_memfd("m", arguments.model.read_bytes())}, "m")
    model = OnnxModel.load(bundle, threads=arguments.threads)
    inference = Inference(model, Contract(model.inputs, model.outputs), "m", "1")

    async def app(
        scope: Mapping[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        sizes = [int(value) for name, value in scope["headers"] if name == b"inference-header-content-length"]
        response = inference.handle_request(memoryview(body), sizes[0] if sizes else NO_JSON)
        headers = [(b"content-length", b"%d" % response.size)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"".join(response.parts)})

    async def run() -> None:
        config = uvicorn.Config(
            app, port=0, http="httptools", lifespan="off", log_config=None, access_log=False, interface="asgi3"
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        print(server.servers[0].sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)
        server.should_exit = True
        await serving

    asyncio.run(run())


if __name__ == "__main__":
    main()
