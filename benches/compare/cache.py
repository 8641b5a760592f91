"""Picks the top images of every feature of a cache: act-cache beside msae's method in PyTorch, on the same activations.

    python benches/compare/cache.py [--images 10000] [--features 5000] [--sample 100] [--output FILE.json]

Builds `cache` of this package, which makes a seeded cache of as many features as asked of an autoencoder with 131,072
latents and k = 256, on the 576 tokens of a base tile per image, in the native layout and in msae's, bf16 and 128 splits in both:
1.7 GB by default, deleted afterwards. Ours is a process of its own, from start to the finished list of all features, with files out
of the page cache and with files in it. PyTorch takes `--sample` features, spread over all splits, and is extrapolated to
all. Per feature it does what msae does: a mask over the split, a dense [images, 8000] matrix, its mean, top-k; and, as a
leaner way, the mean over the 576 base tokens of that matrix only. Both sides must name the same images.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASE = 576
# msae's stand-in for the length of the longest sequence.
LENGTH = 8000
TOP = 5
GIB = 2**30


def build():
    command = ["cargo", "build", "--release", "-p", "lmm-sae-benches", "--bin", "cache", "--message-format=json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    return [message["executable"] for message in messages if message.get("executable")][-1]


def measured(command):
    """Runs a command; its answer, its seconds from start to exit, and its peak resident bytes, mapped files included."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    answer = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{command[0]} ended with status {status}")
    return json.loads(answer), seconds, usage.ru_maxrss * 1024


def forget(folder):
    """Drops the files of a folder from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def splits(folder):
    """(first latent, last latent, path) of each of msae's files."""
    files = folder.rglob("*.safetensors")
    return sorted((*map(int, path.stem.split("_")), path) for path in files)


def pytorch_side(folder, images, chosen, threads):
    """msae's method for the features chosen; runs in a process of its own."""
    import torch
    from safetensors.torch import load_file

    warnings.filterwarnings("ignore", message="Sparse invariant checks")
    torch.set_num_threads(threads)
    load, mask, pooled, lean, tops, agree = 0.0, [], [], [], {}, True
    for start, last, path in splits(folder):
        features = [feature for feature in chosen if start <= feature <= last]
        if not features:
            continue
        begin = time.perf_counter()
        data = load_file(path)
        locations, activations = data["locations"], data["activations"].float()
        load += time.perf_counter() - begin
        for feature in features:
            begin = time.perf_counter()
            of_feature = locations[:, 2] == feature
            places, values = locations[of_feature][:, :2], activations[of_feature]
            mask.append(time.perf_counter() - begin)

            begin = time.perf_counter()
            dense = torch.sparse_coo_tensor(places.t(), values, (images, LENGTH)).to_dense()
            means = torch.nn.functional.avg_pool1d(dense, kernel_size=LENGTH, stride=LENGTH).flatten()
            best = means.topk(TOP)
            pooled.append(time.perf_counter() - begin)
            del dense

            begin = time.perf_counter()
            dense = torch.zeros(images, LENGTH)
            dense[places[:, 0], places[:, 1]] = values
            lean_best = dense[:, :BASE].mean(1).topk(TOP)
            lean.append(time.perf_counter() - begin)
            agree &= best.indices.tolist() == lean_best.indices.tolist()
            tops[feature] = list(zip(lean_best.indices.tolist(), lean_best.values.tolist()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({
        "load": load, "mask": mask, "pooled": pooled, "lean": lean, "tops": tops, "agree": agree, "peak": peak,
    }))


def check(ours, theirs):
    """The same images with the same means, in the same order but for means that are equal within f32 sums."""
    for feature, top in theirs.items():
        # Where a feature is on in fewer images, PyTorch goes on with images of mean 0.
        top = {image: mean for image, mean in top if mean > 0}
        mine = dict(ours[feature])
        means = zip(mine.values(), top.values())
        near = len(mine) == len(top) and all(abs(a - b) <= 1e-5 * a for a, b in means)
        # At the edge of the list two images may have the same mean.
        edge = min(top.values(), default=0) * (1 + 1e-5)
        inside = {image for image, mean in top.items() if mean > edge}
        if not near or not inside <= mine.keys():
            sys.exit(f"feature {feature}: {mine} here, {top} there")
    return len(theirs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=5000)
    parser.add_argument("--splits", type=int, default=128)
    parser.add_argument("--sample", type=int, default=100, help="features that PyTorch does")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the cache is made; default: a temporary folder")
    parser.add_argument("--output", type=Path, help="also write the numbers as JSON")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side = json.loads(args.side)
        pytorch_side(Path(side["folder"]), side["images"], side["chosen"], side["threads"])
        return

    executable = build()
    folder = Path(tempfile.mkdtemp(prefix="cache-", dir=args.folder))
    try:
        result = compare(args, executable, folder)
    finally:
        shutil.rmtree(folder)
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


def compare(args, executable, folder):
    make = {"command": "make", "folder": str(folder), "images": args.images, "features": args.features}
    made, seconds, _ = measured([executable, json.dumps({**make, "splits": args.splits, "seed": args.seed})])
    os.sync()
    n, sizes = made["activations"], made["split_bytes"]
    print(
        f"{args.features:,} features, {args.images:,} images, {n:,} activations, made in {seconds:.0f} s. Bytes per activation:"
        f" ours {sizes['native'] / n:.2f}, msae's {sizes['msae'] / n:.2f}"
    )
    out = folder / "top.json"
    top = [executable, json.dumps({"command": "top", "folder": str(folder), "n": TOP, "out": str(out)})]
    runs = {"cold": [], "warm": []}
    peaks = []
    for _ in range(args.rounds):
        forget(folder / "native")
        for state in ("cold", "warm"):
            answer, seconds, peak = measured(top)
            runs[state].append(seconds)
            peaks.append(peak)
    threads = answer["threads"]
    ours = json.loads(out.read_text())

    known = sorted(map(int, ours))
    chosen = known[:: max(1, len(known) // args.sample)][: args.sample]
    forget(folder / "msae")
    side = {"folder": str(folder / "msae"), "images": args.images, "chosen": chosen, "threads": threads}
    theirs, _, _ = measured([sys.executable, __file__, "--side", json.dumps(side)])
    checked = check(ours, theirs["tops"])
    if not theirs["agree"]:
        print("PyTorch's two ways differ in the order of images whose means are equal in f32")

    # Every split is loaded once, whatever the number of features.
    touched = sum(any(start <= feature <= last for feature in chosen) for start, last, _ in splits(folder / "msae"))
    load = theirs["load"] * args.splits / touched
    ways = {way: load + args.features * (statistics.mean(theirs["mask"]) + statistics.mean(theirs[way])) for way in ("pooled", "lean")}
    print(f"{threads} threads. Same top {TOP} for {checked} features. Peak memory: ours {max(peaks) / GIB:.3f} GiB with mapped files,"
          f" PyTorch {theirs['peak'] / GIB:.2f} GiB")
    for state, times in runs.items():
        print(f"ours, {state}: {', '.join(f'{t:.2f}' for t in times)} s")
    names = {"pooled": "PyTorch, msae's method", "lean": "PyTorch, mean over base tokens only"}
    median = {state: statistics.median(times) for state, times in runs.items()}
    for way, seconds in ways.items():
        each = statistics.mean(theirs["mask"]) + statistics.mean(theirs[way])
        print(
            f"{names[way]}: {1e3 * each:.1f} ms per feature of {len(chosen)}, {load:.1f} s to load; {seconds:,.0f} s for all, extrapolated:"
            f" {seconds / median['cold']:,.0f} times ours cold, {seconds / median['warm']:,.0f} times warm"
        )
    return {
        "features": args.features, "images": args.images, "activations": n, "split_bytes": sizes, "threads": threads,
        "ours_seconds": runs, "ours_peak_bytes": max(peaks), "pytorch_seconds": ways, "pytorch_load_seconds": load,
        "pytorch_features": len(chosen), "pytorch_peak_bytes": theirs["peak"], "checked": checked,
        "ratio": {way: {state: seconds / median[state] for state in median} for way, seconds in ways.items()},
    }


if __name__ == "__main__":
    main()
