"""Memory of a training step of the composed model, by batch size."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time

from benchmarks.quality.composed import SMALL, keep


def run(sizes: tuple[int, ...] = (32, 256)) -> None:
    """Take one step per batch size, each in a process of its own, and read its peak memory."""
    rows = {}
    for size in sizes:
        command = [sys.executable, "-m", __name__, str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows[str(size)] = json.loads(done.stdout.splitlines()[-1])
    first, last = rows[str(sizes[0])], rows[str(sizes[-1])]
    keep({"memory": {
        "batches": rows,
        "ratio of peaks": last["peak_mib"] / first["peak_mib"],
        "ratio of what the step took": last["step_mib"] / first["step_mib"],
    }})  # fmt: skip


def one_step(size: int) -> dict[str, float]:
    """Take one step with a batch of so many pairs of full length; return memory in MiB."""
    import resource

    import torch
    from sentence_transformers import SentenceTransformer

    from llama_index_embeddings_adapted.composed.training import ComposedLoss
    from llama_index_embeddings_adapted.training.options import ComposedOptions

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    model = SentenceTransformer(SMALL, device="cpu")
    model.train()
    model.encode("warm up")
    draw = random.Random(0)
    texts = [
        " ".join(draw.choices(["red", "blue", "old", "new", "car", "sea"], k=300))
        for _ in range(size)
    ]
    features = [model.preprocess(["what is that?"] * size), model.preprocess(texts)]
    eye = torch.eye(size)
    judged = {
        "frozen": eye,
        "pairs": torch.arange(size).repeat(2, 1).T,
        "relevant": eye.bool(),
    }
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # its state exists before the step measured
    before, began = peak(), time.perf_counter()
    torch.autograd.backward(ComposedLoss(model, ComposedOptions())(features, judged))
    optimizer.step()
    seconds = time.perf_counter() - began
    return {"before_mib": before, "peak_mib": peak(), "step_mib": peak() - before,
            "seconds": seconds}  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(one_step(int(sys.argv[1]))))
