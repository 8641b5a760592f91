"""Exchanges checkpoints with PyPI's eai-sparsify in both directions, and compares what both sides compute.

    python sparsify_roundtrip.py CHECKPOINT ENCODE_VECTORS [--rows 512] [--seed 0]

CHECKPOINT is a folder that sae-train wrote; ENCODE_VECTORS the executable of sae-core's example of that name. Every
autoencoder below CHECKPOINT, and those that sparsify writes here (f32, bf16 with keys left to their defaults, and a transcoder
with a skip connection in either), encode and decode the same vectors three times: in numpy in f64, in sparsify, in Rust. The sets of active latents must be the same,
activations and reconstructions equal to 1e-5 of the row's largest number. Exit code 1 otherwise.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # Its decoder without a GPU; read when sparsify is imported.

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig

TOLERANCE = 1e-5
# A row whose k-th and next activation are closer than this share of the largest has no top k that f32 could agree on.
TIE = 1e-5
# What msae's `SaeConfig(**cfg)` takes, beside d_in, which it removes before; any other key would be a TypeError there.
MSAE_KEYS = {"expansion_factor", "normalize_decoder", "num_latents", "k", "multi_topk", "signed"}


def vectors(tensors, rows, generator):
    """Half noise around the bias, half mixtures of decoder directions, over four orders of magnitude."""
    decoder, bias = tensors["W_dec"].float(), tensors["b_dec"].float()
    noise = torch.randn(rows // 2, bias.numel(), generator=generator)
    weights = torch.zeros(rows - rows // 2, decoder.shape[0])
    chosen = torch.rand(weights.shape, generator=generator).topk(min(12, decoder.shape[0])).indices
    weights.scatter_(1, chosen, torch.rand(chosen.shape, generator=generator))
    scale = 10 ** torch.empty(rows, 1).uniform_(-2, 2, generator=generator)
    return bias + scale * torch.cat([noise, weights @ decoder])


def numpy_side(tensors, config, x):
    """Dense activations [n, L], reconstructions, and which rows have a clear top k."""
    weight, bias, decoder, centre = (
        tensors[name].double().numpy() for name in ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
    )
    x, k = x.double().numpy(), config["k"]
    pre = np.maximum((x if config.get("transcode") else x - centre) @ weight.T + bias, 0)
    order = np.argsort(-pre, axis=1, kind="stable")
    activations = np.zeros_like(pre)
    kept = order[:, :k]
    np.put_along_axis(activations, kept, np.take_along_axis(pre, kept, axis=1), axis=1)
    ranked = np.take_along_axis(pre, order[:, : k + 1], axis=1)
    last = ranked[:, k] if ranked.shape[1] > k else np.zeros(len(pre))
    # Neither may an activation be so small that its sign is a matter of rounding.
    smallest = np.where(activations > 0, activations, np.inf).min(axis=1)
    floor = TIE * ranked[:, 0]
    clear = (smallest > floor) & ((ranked[:, k - 1] - last > floor) | (ranked[:, k - 1] == 0))
    result = activations @ decoder + centre
    if config.get("skip_connection"):
        result += x @ tensors["W_skip"].double().numpy().T
    return activations, result, clear


def sparsify_side(folder, x):
    coder = SparseCoder.load_from_disk(folder).float()
    coder.cfg.multi_topk = False  # Of training: its forward pass would return 4k codes.
    with torch.inference_mode():
        out = coder(x)
    activations = torch.zeros(len(x), coder.num_latents).scatter_(1, out.latent_indices, out.latent_acts)
    return activations.double().numpy(), out.sae_out.double().numpy()


def rust_side(executable, folder, x, num_latents):
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch, "in.safetensors"), Path(scratch, "out.safetensors")
        save_file({"x": x.contiguous()}, source)
        subprocess.run([executable, folder, source, target], check=True)
        out = load_file(target)
    latents, values = out["latents"], out["activations"]
    # Column 0 takes the fill of short rows (latent -1, activation 0) and is cut off.
    activations = torch.zeros(len(x), num_latents + 1).scatter_(1, latents + 1, values)[:, 1:]
    return activations.double().numpy(), out["reconstruction"].double().numpy()


def error(got, expected):
    """The largest difference, relative to the largest number of its row."""
    scale = np.maximum(np.abs(expected).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return float((np.abs(got - expected) / scale).max())


def check(folder, name, executable, rows, generator):
    tensors = load_file(folder / "sae.safetensors")
    config = json.loads((folder / "cfg.json").read_text())
    num_latents, k = len(tensors["encoder.bias"]), config["k"]
    x = vectors(tensors, rows, generator)
    expected, expected_back, clear = numpy_side(tensors, config, x)
    sides = {
        "numpy": (expected, expected_back),
        "sparsify": sparsify_side(folder, x),
        "rust": rust_side(executable, folder, x, num_latents),
    }
    dtype = str(tensors["encoder.weight"].dtype).removeprefix("torch.")
    print(f"{name}: d_in {x.shape[1]}, {num_latents} latents, k {k}, {dtype}")
    print(f"  {clear.sum()} of {rows} rows have a clear top k, with {(expected[clear] > 0).sum(axis=1).mean():.2f} codes")
    good = bool(clear.sum() > rows // 2)
    for one, other in [("sparsify", "numpy"), ("rust", "numpy"), ("rust", "sparsify")]:
        (a, a_back), (b, b_back) = ([part[clear] for part in sides[side]] for side in (one, other))
        sets = int(((a > 0) == (b > 0)).all(axis=1).sum())
        activation, back = error(a, b), error(a_back, b_back)
        good &= sets == len(a) and activation <= TOLERANCE and back <= TOLERANCE
        print(f"  {one:8} - {other:8}: {sets} equal sets, activations {activation:.1e}, reconstructions {back:.1e}")
    return good


def written_by_sparsify(root, generator):
    """Checkpoints with every tensor random, as sparsify saves them."""
    transcoder = {"transcode": True, "skip_connection": True}
    for name, d_in, config, dtype in [
        ("f32", 48, SparseCoderConfig(num_latents=200, k=8), torch.float32),
        ("bf16", 40, SparseCoderConfig(expansion_factor=6, multi_topk=True), torch.bfloat16),
        ("transcoder f32", 48, SparseCoderConfig(num_latents=200, k=8, **transcoder), torch.float32),
        ("transcoder bf16", 300, SparseCoderConfig(num_latents=500, k=16, **transcoder), torch.bfloat16),
    ]:
        coder = SparseCoder(d_in, config, dtype=dtype)
        with torch.no_grad():
            for parameter in coder.parameters():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        coder.save_to_disk(root / name)
        yield root / name


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("encode_vectors", type=Path)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    executable = args.encode_vectors.resolve()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(args.seed)
    print(f"eai-sparsify {version('eai-sparsify')}, torch {torch.__version__}, numpy {np.__version__}")

    folders = sorted(path.parent for path in args.checkpoint.rglob("cfg.json"))
    good = bool(folders)
    for folder in folders:
        good &= check(folder, folder.relative_to(args.checkpoint), executable, args.rows, generator)
        keys = set(json.loads((folder / "cfg.json").read_text())) - {"d_in"}
        unknown = sorted(keys - MSAE_KEYS)
        print(f"  keys that msae would refuse: {unknown or 'none'}")
        good &= not unknown
    with tempfile.TemporaryDirectory() as root:
        for folder in written_by_sparsify(Path(root), generator):
            good &= check(folder, f"sparsify's own, {folder.name}", executable, args.rows, generator)
    print("all equal" if good else "NOT equal")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
