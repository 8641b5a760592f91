"""Times `sae-cache images` end to end against PyTorch and transformers doing what multimodal-sae does, in turns, and compares codes.

    cargo build --release -p sae-data -p sae-train -p sae-cache
    python benches/compare/caching.py [--images 1000] [--rounds 3] [--batch-sizes 1 8 32] [--output FILE.json]

Both read the same parquet file of shapes-world scenes, run assets/shapes-lmm-s in f32 on the CPU and encode layer 2 with the same
autoencoder, which `sae-train` trains first, as the demo does (or `--sae` names). The Python side is multimodal-sae's loop: a
DataLoader of pictures without workers, the processor with the prompt `<image>`, the whole model with a forward hook, BOS dropped,
TopK scattered into a dense tensor, what exceeds 1e-5 kept in lists, one safetensors file per range of latents at the end. Its
default batch size is 32; shorter prompts are padded on the right and padding is dropped (multimodal-sae does neither). Each call
is a process of its own. Ours is timed as a whole process, start and merge included; Python's import and start are left out, and
given beside. Needs torch 2.11, transformers 4.57, datasets and Pillow.
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
MODEL = ROOT / "assets/shapes-lmm-s"
HOOK = "model.layers.2"
THRESHOLD = 1e-5
# Of a row's largest activation: codes closer than this to the smallest that is kept may differ.
MARGIN = 1e-4
TRAIN = (
    "--layers 2 --num-latents 512 --k 24 --epochs 3 --lr 2e-3 --auxk-alpha 0.03125 --dead-feature-threshold 20000 "
    "--eval-examples 200"
)


def python_side(args):
    """Runs in a process of its own: caches, saves the splits, prints a JSON line; then writes all codes to `--codes`."""
    started = time.perf_counter()
    import torch
    from datasets import load_dataset
    from safetensors.torch import load_file, save_file
    from torch.utils.data import DataLoader
    from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor

    torch.set_num_threads(args.threads)
    model = LlavaNextForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32).eval()
    processor = LlavaNextProcessor.from_pretrained(MODEL, use_fast=args.fast_processor)
    processor.tokenizer.padding_side = "right"
    dataset = load_dataset("parquet", data_files=sorted(map(str, args.data.glob("**/*.parquet"))), split="train")
    weights = load_file(args.sae / HOOK / "sae.safetensors")
    config = json.loads((args.sae / HOOK / "cfg.json").read_text())
    w_enc, b_enc, b_dec, k = weights["encoder.weight"], weights["encoder.bias"], weights["b_dec"], config["k"]
    layer = model.model.language_model.layers[int(HOOK.rsplit(".", 1)[1])]

    loop = time.perf_counter()
    loader = DataLoader(
        dataset, batch_size=args.batch_size, shuffle=False, num_workers=0,
        collate_fn=lambda rows: [row["image"].convert("RGB") for row in rows],
    )
    all_locations, all_activations = [], []
    for number, images in enumerate(loader):
        inputs = processor(text=["<image>"] * len(images), images=images, padding=True, return_tensors="pt")
        states = {}
        handle = layer.register_forward_hook(
            lambda module, _, out: states.update(x=out[0] if isinstance(out, tuple) else out)
        )
        try:
            with torch.no_grad():
                model(**inputs)
        finally:
            handle.remove()
        with torch.no_grad():
            pre = torch.relu((states["x"][:, 1:] - b_dec) @ w_enc.T + b_enc)
            top = torch.topk(pre, k=k, dim=-1)
            dense = torch.zeros_like(pre).scatter_(-1, top.indices, top.values)
            if len(images) > 1:
                dense *= inputs["attention_mask"][:, 1:, None]
            locations = torch.nonzero(dense.abs() > THRESHOLD)
            activations = dense[dense.abs() > THRESHOLD]
        locations[:, 0] += number * args.batch_size
        all_locations.append(locations)
        all_activations.append(activations)
    locations, activations = torch.cat(all_locations), torch.cat(all_activations)
    edges = torch.linspace(0, len(b_enc), 6).long()
    for start, end in zip(edges[:-1], edges[1:] - 1):
        # `<=`, where multimodal-sae loses the last latent of every file.
        mask = (locations[:, 2] >= start) & (locations[:, 2] <= end)
        file = args.codes.parent / f"{start}_{end}.safetensors"
        save_file({"locations": locations[mask], "activations": activations[mask]}, file)
    ended = time.perf_counter()
    print(
        json.dumps(
            {
                "seconds": ended - loop,
                "whole_seconds": ended - started,
                "images": len(dataset),
                "activations": len(activations),
                "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "processor": type(processor.image_processor).__name__,
            }
        )
    )
    save_file({"locations": locations, "activations": activations}, args.codes)


def run_python(args, folder, batch_size):
    command = [sys.executable, __file__, "--side", "--data", args.data, "--sae", args.sae, "--threads", args.threads]
    command += ["--batch-size", batch_size, "--codes", folder / "python.safetensors"]
    command += ["--fast-processor"] if args.fast_processor else []
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the Python side failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def run_ours(args, folder):
    out = folder / "ours"
    command = [args.binaries / "sae-cache", "images", MODEL, args.data, "--sae", args.sae, "--save-dir", out, "--overwrite"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "RAYON_NUM_THREADS": str(args.threads)}
    started = time.perf_counter()
    child = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True, env=environment)
    log = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"sae-cache failed:\n{log}")
    counts = json.loads((out / "run.json").read_text())["counts"]
    peak = usage.ru_maxrss / 1024
    return {"seconds": seconds, "images": counts["images"], "activations": counts["activations"], "peak_rss_mib": peak}


def compare(folder):
    """Codes by place, ours against Python's; sets may differ at the edge of TopK only."""
    import torch
    from safetensors.torch import load_file

    theirs = load_file(folder / "python.safetensors")
    place = (theirs["locations"][:, 0] << 20) + theirs["locations"][:, 1] + 1
    theirs = ((place << 20) + theirs["locations"][:, 2]).numpy(), theirs["activations"].double().numpy()
    keys, values = [], []
    for file in sorted((folder / "ours" / HOOK).glob("*.safetensors"), key=lambda f: int(f.stem.split("_")[0])):
        split = load_file(file)
        start, counts = int(file.stem.split("_")[0]), split["latent_offsets"].to(torch.int64).diff()
        latents = torch.repeat_interleave(torch.arange(start, start + len(counts)), counts)
        place = (split["sample"].to(torch.int64) << 20) + split["token"].to(torch.int64)
        keys.append((place << 20) + latents)
        values.append(split["activation"].double())
    import numpy

    ours = torch.cat(keys).numpy(), torch.cat(values).numpy()
    # What Python leaves out is below its threshold.
    kept = ours[1] > THRESHOLD
    ours = ours[0][kept], ours[1][kept]
    both, at_ours, at_theirs = numpy.intersect1d(ours[0], theirs[0], return_indices=True)
    places = {}
    for keys, values in (ours, theirs):
        rows = keys >> 20
        for row, low, high in zip(*edges_of_rows(numpy, rows, values)):
            old = places.get(row, (low, high))
            places[row] = (max(old[0], low), max(old[1], high))
    beyond = 0
    only = numpy.setdiff1d(ours[0], both), numpy.setdiff1d(theirs[0], both)
    for keys, (all_keys, all_values) in zip(only, (ours, theirs)):
        order = numpy.argsort(all_keys)
        found = all_values[order[numpy.searchsorted(all_keys[order], keys)]]
        for key, value in zip(keys, found):
            smallest, largest = places[key >> 20]
            beyond += abs(value - smallest) > MARGIN * largest
    apart = numpy.abs(ours[1][at_ours] - theirs[1][at_theirs])
    scale = numpy.array([places[key >> 20][1] for key in both])
    return {
        "codes": len(both),
        "only_ours": len(only[0]),
        "only_python": len(only[1]),
        "beyond_margin": int(beyond),
        "largest_difference": float((apart / scale).max()),
    }


def edges_of_rows(numpy, rows, values):
    """The rows, and the smallest and the largest activation of each."""
    order = numpy.argsort(rows, kind="stable")
    rows, values = rows[order], values[order]
    unique, starts = numpy.unique(rows, return_index=True)
    return unique, numpy.minimum.reduceat(values, starts), numpy.maximum.reduceat(values, starts)


def prepare(args, folder):
    """Draws the scenes and trains the autoencoder, where no flag names them."""

    def call(program, arguments):
        done = subprocess.run([str(args.binaries / program), *map(str, arguments)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{program} failed:\n{done.stderr}")

    if args.data is None:
        args.data = folder / "data"
        call("sae-data", ["shapes", "--count", args.images, "--seed", 2, "--save-dir", args.data])
    if args.sae is None:
        args.sae = folder / "sae"
        call("sae-data", ["shapes", "--count", 1500, "--seed", 1, "--save-dir", folder / "train"])
        call("sae-train", [MODEL, folder / "train", *TRAIN.split(), "--save-dir", args.sae])


def measure(args, folder):
    prepare(args, folder)
    rounds = []
    for number in range(args.rounds):
        ours = run_ours(args, folder)
        python = {size: run_python(args, folder, size) for size in args.batch_sizes}
        best = min(python.values(), key=lambda run: run["seconds"])
        rounds.append({"ours": ours, "python": python, "ratio": best["seconds"] / ours["seconds"]})
        rates = ", ".join(f"batch {size}: {run['images'] / run['seconds']:.1f}" for size, run in python.items())
        print(
            f"round {number + 1}: ours {ours['images'] / ours['seconds']:.1f} images/s, Python {rates}; "
            f"{rounds[-1]['ratio']:.2f} times the best"
        )
    codes = compare(folder)
    ratios = sorted(round["ratio"] for round in rounds)
    peak = lambda runs: max(run["peak_rss_mib"] for run in runs)
    print(f"\n{rounds[0]['ours']['images']} images, {args.threads} threads, f32, {rounds[0]['python'][args.batch_sizes[0]]['processor']}")
    print(f"  ratio of images per second to the best batch size: median {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    for size in args.batch_sizes:
        runs = [round["python"][size] for round in rounds]
        rates = [run["images"] / run["seconds"] for run in runs]
        whole = [run["images"] / run["whole_seconds"] for run in runs]
        print(
            f"  Python, batch {size}: {min(rates):.1f} to {max(rates):.1f} images/s ({min(whole):.1f} to {max(whole):.1f} with its start),"
            f" peak memory {peak(runs):.0f} MiB"
        )
    ours = [round["ours"] for round in rounds]
    rates = [run["images"] / run["seconds"] for run in ours]
    print(f"  sae-cache: {min(rates):.1f} to {max(rates):.1f} images/s with its start, peak memory {peak(ours):.0f} MiB")
    print(
        f"  codes: {codes['codes']:,} in both, {codes['only_ours']} only ours, {codes['only_python']} only Python's, of which "
        f"{codes['beyond_margin']} are further than {MARGIN} from the edge of TopK; values apart by at most "
        f"{codes['largest_difference']:.1e} of the row's largest"
    )
    return {"rounds": rounds, "codes": codes, "threads": args.threads}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each side")
    parser.add_argument("--binaries", type=Path, default=ROOT / "target/release", help="folder of the built binaries")
    parser.add_argument("--data", type=Path, help="a data set of parquet files; default: scenes are drawn")
    parser.add_argument("--sae", type=Path, help="folder with an autoencoder of layer 2; default: one is trained")
    parser.add_argument("--fast-processor", action="store_true", help="transformers' torchvision processor, which gives other pixels")
    parser.add_argument("--output", type=Path, help="also write the numbers as JSON")
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--batch-size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--codes", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        python_side(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        results = measure(args, Path(folder))
    if args.output:
        args.output.write_text(json.dumps(results, indent=1) + "\n")
    if results["codes"]["beyond_margin"]:
        sys.exit("codes differ")


if __name__ == "__main__":
    main()
