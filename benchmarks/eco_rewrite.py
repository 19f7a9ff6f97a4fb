"""What ECO's rewrite costs the gateway: request body in, body with embeddings out.

    python -m benchmarks.eco_rewrite [--width 4096] [--tokens 256 2048] [--model FOLDER]

Uses the model folder's tokenizer and chat template with a random bf16 table of the given width, and
prints median and spread in milliseconds, and by how much the process grew.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from corruption.eco import Corruptor
from corruption.spec import CorruptSpec

DEMO = Path(__file__).parent.parent / "evaluation" / "models" / "demo"
SPECS = {
    "clean": None,
    "decoy, content": CorruptSpec(function="decoy", tokens="content"),
    "decoy 0.7, content": CorruptSpec(function="decoy", tokens="content", strength=0.7),
    "noise, 1 coordinate": CorruptSpec(function="noise", tokens="content", dims=1, sigma=100),
    "noise, all coordinates": CorruptSpec(function="noise", tokens="content", sigma=2),
}


def folder(model: Path, width: int, where: Path) -> Path:
    """A model folder with the model's tokenizer and a random table."""
    out = where / "model"
    shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    size = len(transformers.AutoTokenizer.from_pretrained(str(model)))
    table = torch.randn(size, width, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    save_file({"model.embed_tokens.weight": table}, out / "model.safetensors")
    return out


def body(corruptor: Corruptor, tokens: int) -> dict[str, object]:
    """A chat request whose content has about so many tokens."""
    words = "Who is the author Basil Mahfouz, born in Kuwait City on 08/09/1956? ".split()
    text = ""
    while corruptor.text.count_tokens({"messages": [{"role": "user", "content": text}]}) < tokens:
        text += " ".join(words) + " "
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


def main() -> None:
    parser = argparse.ArgumentParser(description="What ECO's rewrite costs the gateway.")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--model", type=Path, default=DEMO)
    args = parser.parse_args()
    # As the gateway runs: torch's threads wait for each other longer than the work takes.
    torch.set_num_threads(1)
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python", end=" ")
    print(f"{platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}")
    with tempfile.TemporaryDirectory() as temporary:
        corruptor = Corruptor(folder(args.model, args.width, Path(temporary)), b"benchmark secret")
        started = time.perf_counter()
        _ = corruptor.decoys
        ready_ms = (time.perf_counter() - started) * 1e3
        print(f"decoys of {corruptor.text.size} tokens ready in {ready_ms:.0f} ms")
        before = peak_mib()
        for tokens in args.tokens:
            request = body(corruptor, tokens)
            for name, spec in SPECS.items():
                times = measure(corruptor, request, spec, args.rounds)
                result = {
                    "tokens": corruptor.text.count_tokens(request),
                    "width": args.width,
                    "function": name,
                    "median_ms": round(statistics.median(times), 2),
                    "quartiles_ms": [round(q, 2) for q in statistics.quantiles(times)[::2]],
                }
                print(json.dumps(result))
        print(f"peak memory grew by {peak_mib() - before:.0f} MiB")


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(corruptor: Corruptor, request: dict[str, object], spec: CorruptSpec | None, rounds: int) -> list[float]:
    """Milliseconds of each round, after two unmeasured ones."""
    times = []
    for n in range(rounds + 2):
        started = time.perf_counter()
        corruptor.chat(request, {(0, None): ()}, spec, "benchmark")
        if n >= 2:
            times.append((time.perf_counter() - started) * 1e3)
    return times


if __name__ == "__main__":
    main()
