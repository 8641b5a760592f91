"""Times and compares training steps: sae-trainer, PyPI's eai-sparsify, and a plain PyTorch step with autograd, in turns.

    cargo build --release -p sae-trainer --example train_vectors
    python benches/compare/training.py [--shapes gpt2-small llama-8b] [--rounds 3] [--steps 8] [--output FILE.json]
    python benches/compare/training.py --curves [--curve-steps 400]

All three train the same TopK autoencoder with Adam from the same initial weights on the same seeded vectors, in f32 on a CPU.
Each call is a process of its own; calls take turns, so that a machine whose speed drifts slows all three. `--curves` compares
the losses step by step instead of the times. Needs torch 2.11 and eai-sparsify 1.3.3.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Width, latents, k, tokens of a step.
SHAPES = {
    "gpt2-small": (768, 24_576, 32, 2048),
    "llama-8b": (4096, 16_384, 64, 512),
    "small": (256, 4096, 16, 1024),
}
SIDES = ("sae-trainer", "sparsify", "autograd")


def vectors(d_in, rows, seed):
    """Sparse mixtures of 4 d_in directions, frequent ones first, an offset common to all, and noise: [rows, d_in]."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(torch.randn(4 * d_in, d_in, generator=generator), dim=1)
    offset = torch.randn(d_in, generator=generator)
    weight = 1.0 / torch.arange(1, 4 * d_in + 1) ** 0.7
    out = torch.empty(rows, d_in)
    for start in range(0, rows, 4096):
        n = min(4096, rows - start)
        chosen = torch.multinomial(weight.expand(n, -1), 24, generator=generator)
        strength = torch.rand(n, 24, 1, generator=generator) + 0.5
        noise = 0.02 * torch.randn(n, d_in, generator=generator)
        out[start : start + n] = (atoms[chosen] * strength).sum(1) + offset + noise
    return out


def inputs(folder, shape, batches, seed):
    """One file that every side reads: x, and the encoder's initial weights."""
    import torch
    from safetensors.torch import save_file

    d_in, latents, _, tokens = shape
    generator = torch.Generator().manual_seed(seed + 1)
    bound = d_in**-0.5
    w_enc = torch.empty(latents, d_in).uniform_(-bound, bound, generator=generator)
    path = folder / f"{d_in}-{latents}-{batches}.safetensors"
    save_file({"x": vectors(d_in, tokens * batches, seed), "w_enc": w_enc}, path)
    return path


def rate(latents):
    return 2e-4 / (latents / 2**14) ** 0.5


def python_side(side, file, shape, steps, warmup, multi_topk):
    """Runs in a process of its own; prints a JSON line per step."""
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(os.cpu_count())
    d_in, latents, k, tokens = shape
    data = load_file(file)
    x, w_enc = data["x"], data.pop("w_enc")
    if side == "sparsify":
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
        from sparsify import SparseCoder, SparseCoderConfig

        coder = SparseCoder(d_in, SparseCoderConfig(num_latents=latents, k=k, multi_topk=multi_topk))
        with torch.no_grad():
            coder.encoder.weight.copy_(w_enc)
            coder.W_dec.copy_(w_enc)
            coder.set_decoder_norm_to_unit_norm()
        forward = lambda batch: (out := coder(batch), out.fvu + out.multi_topk_fvu / 8)
        parameters, decoder, b_dec = list(coder.parameters()), coder.W_dec, coder.b_dec
    else:
        from torch.nn import Parameter
        from torch.nn.functional import linear, normalize

        weight, bias = Parameter(w_enc.clone()), Parameter(torch.zeros(latents))
        decoder, b_dec = Parameter(normalize(w_enc, dim=1)), Parameter(torch.zeros(d_in))
        parameters = [weight, bias, decoder, b_dec]

        def forward(batch):
            values, indices = linear(batch - b_dec, weight, bias).relu().topk(k, sorted=False)
            codes = torch.zeros(len(batch), latents).scatter(1, indices, values)
            error = codes @ decoder + b_dec - batch
            variance = (batch - batch.mean(0)).square().sum()
            fvu = error.square().sum() / variance
            return None, fvu

    optimizer = torch.optim.Adam(parameters, lr=rate(latents))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup)) if warmup else (steps - step) / steps,
    )
    for step in range(steps):
        batch = x[(step * tokens) % len(x) :][:tokens]
        if step == 0:
            with torch.no_grad():
                b_dec.copy_(batch.mean(0))
        start = time.perf_counter()
        # sparsify's Trainer.fit, in its order: rows to length 1, forward, backward, parallel part away, Adam.
        with torch.no_grad():
            decoder /= decoder.norm(dim=1, keepdim=True) + torch.finfo(torch.float32).eps
        out, loss = forward(batch)
        loss.backward()
        with torch.no_grad():
            decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True) * decoder
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        seconds = time.perf_counter() - start
        fvu = (out.fvu if out is not None else loss).item()
        print(json.dumps({"step": step, "fvu": fvu, "loss": loss.item(), "seconds": seconds}), flush=True)
    print(json.dumps({"peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def run(side, binary, file, shape, steps, warmup, extra=(), multi_topk=False):
    """The lines a side prints: one per step, then its peak memory."""
    d_in, latents, k, tokens = shape
    if side == "sae-trainer":
        command = [binary, file, "--latents", latents, "-k", k, "--batch", tokens, "--steps", steps]
        command += ["--lr", rate(latents), "--warmup", warmup, "--bias", "mean"]
        command += ["--multi-topk"] if multi_topk else []
        command += extra
    else:
        command = [sys.executable, __file__, "--side", side, "--file", file, "--shape", *shape]
        command += ["--steps", steps, "--warmup", warmup] + (["--multi-topk"] if multi_topk else [])
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr}")
    # sparsify says a word on stdout.
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    peak = next(l["peak_rss_mib"] for l in lines if "peak_rss_mib" in l) * 2**20
    return [line for line in lines if "step" in line], peak


def timing(args, folder):
    results = {}
    for name in args.shapes:
        shape = SHAPES[name]
        file = inputs(folder, shape, 4, args.seed)
        sides = [side for side in SIDES if side in args.sides]
        seconds, peaks = {side: [] for side in sides}, {side: 0 for side in sides}
        for _ in range(args.rounds):
            for side in sides:
                lines, peak = run(side, args.binary, file, shape, args.steps, 2)
                # The first two steps touch memory for the first time.
                seconds[side].append(statistics.median(line["seconds"] for line in lines[2:]))
                peaks[side] = max(peaks[side], peak)
        file.unlink()
        d_in, latents, k, tokens = shape
        print(f"\n{name}: d {d_in}, {latents:,} latents, k {k}, {tokens:,} tokens; median step of each of {args.rounds} rounds")
        ours = seconds["sae-trainer"]
        for side in sides:
            ratios = sorted(theirs / own for theirs, own in zip(seconds[side], ours))
            print(
                f"  {side:12} {1e3 * min(seconds[side]):8.0f} to {1e3 * max(seconds[side]):6.0f} ms a step,"
                f" {statistics.median(ratios):5.2f} times ours ({ratios[0]:.2f} to {ratios[-1]:.2f}),"
                f" peak memory {peaks[side] / 2**30:.2f} GiB"
            )
        results[name] = {"seconds": seconds, "peak_bytes": peaks}
    return results


def memory(args, folder):
    """Peak memory of our side with more and more tokens a step, above that with the fewest."""
    results = {}
    for name in args.shapes:
        d_in, latents, k, _ = SHAPES[name]
        rows = []
        for tokens in (64, 512, 2048, 8192):
            file = inputs(folder, (d_in, latents, k, tokens), 1, args.seed)
            _, peak = run("sae-trainer", args.binary, file, (d_in, latents, k, tokens), 3, 1)
            file.unlink()
            rows.append((tokens, peak))
        parameters = 4 * (2 * latents * d_in + latents + d_in)
        print(f"\n{name}: peak memory, of which {4 * parameters / 2**30:.2f} GiB parameters, two moments and gradients")
        for tokens, peak in rows:
            dense = 4 * tokens * latents
            print(f"  {tokens:6,} tokens: {peak / 2**30:.3f} GiB (a dense [tokens, latents] matrix: {dense / 2**30:.3f} GiB)")
        results[name] = rows
    return results


def curves(args, folder):
    results = {}
    for name in args.shapes:
        shape = SHAPES[name]
        file = inputs(folder, shape, args.curve_steps, args.seed)
        lines = {}
        for side in ("sae-trainer", "sparsify"):
            lines[side], _ = run(side, args.binary, file, shape, args.curve_steps, args.curve_steps // 10, (), args.multi_topk)
        file.unlink()
        ours, theirs = ([line["loss"] for line in lines[side]] for side in ("sae-trainer", "sparsify"))
        apart = [abs(a / b - 1) for a, b in zip(ours, theirs)]
        late = apart[50:] or apart
        tail = max(1, len(ours) // 20)
        final = [statistics.mean(line["fvu"] for line in lines[side][-tail:]) for side in ("sae-trainer", "sparsify")]
        print(
            f"\n{name}: {len(ours)} steps. Losses apart by {100 * max(late):.3f} % at most after the first 50 steps"
            f" ({100 * statistics.mean(late):.3f} % on average; {100 * max(apart):.3f} % at most in all)."
            f"\n  FVU of the last {tail} steps: ours {final[0]:.5f}, sparsify {final[1]:.5f}"
        )
        results[name] = {"ours": ours, "sparsify": theirs, "final_fvu": final}
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["gpt2-small", "llama-8b"], choices=SHAPES)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--binary", default=ROOT / "target/release/examples/train_vectors", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--curves", action="store_true", help="compare losses instead of times")
    parser.add_argument("--memory", action="store_true", help="peak memory by number of tokens instead of times")
    parser.add_argument("--curve-steps", type=int, default=400)
    parser.add_argument("--multi-topk", action="store_true")
    parser.add_argument("--output", type=Path, help="also write the numbers as JSON")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    parser.add_argument("--shape", nargs=4, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--warmup", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        python_side(args.side, args.file, args.shape, args.steps, args.warmup, args.multi_topk)
        return
    with tempfile.TemporaryDirectory() as folder:
        results = (curves if args.curves else memory if args.memory else timing)(args, Path(folder))
    if args.output:
        args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
