"""The peer in benchmarks/service.py: what one writes first. FastAPI, eager torch, NumPy.

    python benchmarks/service_naive.py --model model/ --vectors vectors.npy

The same network with the same weights, decoded and resized by the same rule, against the same
vectors by one matrix product, in the thread pool of FastAPI with torch as it comes.
"""

from __future__ import annotations

import argparse
import io
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image
from service_setup import load_network

K = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--vectors", type=Path, required=True)
    arguments = parser.parse_args()
    network = load_network(arguments.model)
    card = json.loads((arguments.model / "model.json").read_text())
    vectors = np.load(arguments.vectors)
    app = FastAPI()

    @app.get("/health/ready")
    def ready() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/search")
    def search(file: UploadFile, k: int = K) -> dict[str, Any]:
        image = Image.open(io.BytesIO(file.file.read())).convert("RGB")
        image = image.resize((card["width"], card["height"]), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image).transpose(2, 0, 1)[None].copy())
        with torch.inference_mode():
            query = network(pixels)[0].numpy()
        scores = vectors @ query
        nearest = np.argsort(-scores)[:k]
        return {"results": [{"id": int(n) + 1, "score": float(scores[n])} for n in nearest]}

    listener = socket.create_server(("127.0.0.1", 0))
    print(f"port {listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main()
