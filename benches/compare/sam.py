"""Times Segment Anything beside transformers on one picture, in turns, and compares what both make of it.

    cargo build --release -p vision-models --example speed_sam
    python benches/compare/sam.py [--model base] [--rounds 3] [--runs 2] [--boxes 16] [--threads N] [--output FILE.json]

Both sides read one folder with random weights of the real size (`--folder` keeps it) and one picture, in float32 on the CPU, with
the same number of threads: preparation of the picture, its embedding, and the full-size masks of boxes. transformers runs
its default attention (SDPA) and the PIL processor. Each call is a process of its own; calls take turns, so that a machine whose
speed drifts slows both. Ours keeps freed memory, as this project's binaries do; `--give-memory-back` leaves glibc's allocator as it
is. Needs torch 2.11, transformers 4.57, safetensors and Pillow.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Width, layers, heads, layers with global attention.
MODELS = {
    "base": (768, 12, 12, [2, 5, 8, 11]),
    "large": (1024, 24, 16, [5, 11, 17, 23]),
    "huge": (1280, 32, 16, [7, 15, 23, 31]),
}
STAGES = ("prepare", "embed", "masks")


def boxes(count, width, height):
    """The first cells of the smallest square grid that has as many, as the Rust side cuts them."""
    side = math.ceil(math.sqrt(count))
    wide, high = width / side, height / side
    cells = ((index // side, index % side) for index in range(count))
    return [[column * wide, row * high, (column + 1) * wide, (row + 1) * high] for row, column in cells]


def inputs(folder, model, size):
    """The model and the picture, unless they are there."""
    if (folder / "picture.png").exists():
        return
    import numpy
    import torch
    from PIL import Image
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor, SamVisionConfig

    width, layers, heads, indexes = MODELS[model]
    torch.manual_seed(1)
    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, global_attn_indexes=indexes
        )
    )
    random = SamModel(config)
    with torch.no_grad():
        for name, tensor in random.named_parameters():
            if "norm" in name:
                tensor.normal_(float(name.endswith("weight")), 0.1)
            elif tensor.dim() == 1:
                tensor.normal_(0, 0.1)
            else:
                tensor.normal_(0, 0.3 if "rel_pos" in name or "embed" in name else tensor[0].numel() ** -0.5)
        random.shared_image_embedding.positional_embedding.normal_()
    random.tie_weights()
    random.save_pretrained(folder)
    SamProcessor(SamImageProcessor()).save_pretrained(folder)
    coarse = numpy.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=numpy.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / "picture.png")


def python_side(args):
    """Runs in a process of its own; prints a JSON line per run."""
    import torch
    from PIL import Image
    from safetensors.torch import save_file
    from transformers import SamModel, SamProcessor

    torch.set_num_threads(args.threads)
    model = SamModel.from_pretrained(args.folder, dtype=torch.float32).eval()
    processor = SamProcessor.from_pretrained(args.folder, use_fast=False)
    picture = Image.open(args.folder / "picture.png").convert("RGB")
    prompts = [boxes(args.boxes, *picture.size)]
    for run in range(args.runs + 1):
        with torch.inference_mode():
            clock = lambda: (time.perf_counter(), time.process_time())
            times = [clock()]
            prepared = processor(picture, return_tensors="pt")
            times.append(clock())
            embedding = model.get_image_embeddings(prepared["pixel_values"])
            times.append(clock())
            # The processor scales boxes only beside a picture; its own function does it alone.
            size = prepared["original_sizes"][0].tolist()
            scaled = processor._normalize_coordinates(1024, torch.tensor(prompts).numpy(), size, is_bounding_box=True)
            found = model(image_embeddings=embedding, input_boxes=torch.from_numpy(scaled)[None], multimask_output=False)
            masks = processor.post_process_masks(
                found.pred_masks, prepared["original_sizes"], prepared["reshaped_input_sizes"]
            )[0]
            times.append(clock())
        if run:
            laps = zip(STAGES, times, times[1:])
            print(json.dumps({stage: [b - a for a, b in zip(*pair)] for stage, *pair in laps}), flush=True)
    if args.codes:
        results = {
            "embedding": embedding, "low_res_masks": found.pred_masks[0], "iou_scores": found.iou_scores[0],
            "masks": masks[:, 0].to(torch.uint8),
        }
        save_file({name: tensor.contiguous().clone() for name, tensor in results.items()}, args.codes)
    print(json.dumps({"peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def run(side, args, folder, codes):
    """The lines a side prints: one per run, then its peak memory."""
    if side == "ours":
        command = [args.binary, folder, folder / "picture.png", "--output", codes]
        command += ["--give-memory-back"] if args.give_memory_back else []
    else:
        command = [sys.executable, __file__, "--side", side, "--folder", folder, "--codes", codes]
    command += ["--boxes", args.boxes, "--runs", args.runs, "--threads", args.threads]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "RAYON_NUM_THREADS": str(args.threads)}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    peak = next(line["peak_rss_mib"] for line in lines if "peak_rss_mib" in line)
    return [line for line in lines if "embed" in line], peak


def compare(folder):
    """How far the two sides' results lie apart."""
    from safetensors.torch import load_file

    ours, theirs = (load_file(folder / f"{side}.safetensors") for side in ("ours", "transformers"))
    differences = {
        name: float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max())
        for name in ("embedding", "low_res_masks", "iou_scores")
    }
    differences["share of differing mask pixels"] = float((ours["masks"] != theirs["masks"]).float().mean())
    return differences


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="base", choices=MODELS)
    parser.add_argument("--binary", default=ROOT / "target/release/examples/speed_sam", type=Path)
    parser.add_argument("--folder", type=Path, help="where the model is, or will be; a temporary folder unless given")
    parser.add_argument("--size", nargs=2, type=int, default=[1024, 768], help="width and height of the picture")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=2, help="measured runs of a process, after one to warm up")
    parser.add_argument("--boxes", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--give-memory-back", action="store_true")
    parser.add_argument("--output", type=Path, help="also write the numbers as JSON")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--codes", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return python_side(args)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        inputs(folder, args.model, args.size)
        sides = ("ours", "transformers")
        seconds, peaks = {side: {stage: [] for stage in STAGES} for side in sides}, {side: 0 for side in sides}
        for _ in range(args.rounds):
            for side in sides:
                lines, peak = run(side, args, folder, folder / f"{side}.safetensors")
                for stage in STAGES:
                    # On the wall, and on processors.
                    both = [statistics.median(line[stage][clock] for line in lines) for clock in (0, 1)]
                    seconds[side][stage].append(both)
                peaks[side] = max(peaks[side], peak)
        differences = compare(folder)
    print(f"SAM-ViT-{args.model}, {args.size[0]} x {args.size[1]} pixels, {args.boxes} boxes, {args.threads} threads, "
          f"{args.rounds} rounds, the median of {args.runs} runs of each")
    for clock, title in enumerate(("wall", "processors")):
        for stage in STAGES:
            laps = {side: [pair[clock] for pair in of[stage]] for side, of in seconds.items()}
            ratios = sorted(b / a for a, b in zip(laps["ours"], laps["transformers"]) if a)
            spans = {side: f"{min(lap):.3f} to {max(lap):.3f} s" for side, lap in laps.items()}
            ratio = f"{statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})" if ratios else "-"
            print(f"  {title:10} {stage:8} ours {spans['ours']}, transformers {spans['transformers']}: {ratio}")
    print("  peak memory: " + ", ".join(f"{side} {peak / 1024:.2f} GiB" for side, peak in peaks.items()))
    print("  apart, of the largest value: " + ", ".join(f"{name} {value:.1e}" for name, value in differences.items()))
    if args.output:
        results = {"seconds": seconds, "peak_rss_mib": peaks, "differences": differences}
        args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
