"""One image grounded by `vision-models` beside transformers, in turns, on the same weights.

    cargo build --release -p vision-models --example ground
    python benches/compare/grounding_dino.py [--threads 1] [--rounds 3] [--height 600] [--width 800]

GroundingDINO-tiny in its real size with random weights, in f32 on a CPU; the image is resized to 800 pixels on its shorter edge.
The weights are written once to `--folder`, which both sides read. Both processes stay and take turns, one pass each, so that a
machine whose speed drifts slows both; what counts is the median of the passes after the first. Beside the time on the clock
stands that of the processor, which other programs on the machine lengthen less. Boxes and scores are compared, too.
Needs torch 2.11, transformers 4.57 and Pillow 13.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PHRASE = "a red circle."


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/examples/ground")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/grounding-dino-tiny-random"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--height", type=int, default=600)
    parser.add_argument("--width", type=int, default=800)
    return parser.parse_args()


def write_model(folder):
    """The tiny checkpoint's layout with random numbers; what starts at zero or one gets some, too."""
    import torch
    from transformers import (
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
    )

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    model = GroundingDinoForObjectDetection(GroundingDinoConfig()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    special |= {2000: "a", 2001: "red", 2002: "circle"}
    words = [special.get(index, f"[unused{index}]") for index in range(30_522)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    processor = GroundingDinoProcessor(GroundingDinoImageProcessor(), BertTokenizerFast(str(folder / "vocab.txt")))
    processor.save_pretrained(folder)
    model.save_pretrained(folder)


def main():
    args = arguments()
    # Before torch is loaded here and there.
    os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    import numpy
    import torch
    from PIL import Image
    from transformers import (
        BertTokenizerFast,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
    )

    torch.set_num_threads(args.threads)
    if not (args.folder / "model.safetensors").exists():
        write_model(args.folder)
    random = numpy.random.default_rng(1)
    coarse = Image.fromarray(random.integers(0, 255, (12, 16, 3), dtype=numpy.uint8))
    picture = coarse.resize((args.width, args.height), Image.BICUBIC)
    picture.save(args.folder / "picture.png")

    model = GroundingDinoForObjectDetection.from_pretrained(args.folder, dtype=torch.float32).eval()
    processor = GroundingDinoProcessor(
        GroundingDinoImageProcessor.from_pretrained(args.folder), BertTokenizerFast.from_pretrained(args.folder)
    )
    command = [args.binary, args.folder, args.folder / "picture.png", PHRASE]
    ours = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def processor_seconds(process):
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def own_pass():
        before = processor_seconds(ours.pid)
        ours.stdin.write("again\n")
        ours.stdin.flush()
        result = json.loads(ours.stdout.readline())
        return result | {"processor": processor_seconds(ours.pid) - before}

    @torch.inference_mode()
    def their_pass():
        before, start = processor_seconds("self"), time.perf_counter()
        inputs = processor(images=picture, text=PHRASE, return_tensors="pt")
        prepared = time.perf_counter()
        output = model(**inputs)
        computed = time.perf_counter()
        found = processor.post_process_grounded_object_detection(
            output, inputs["input_ids"], threshold=0.3, text_threshold=0.25, target_sizes=[picture.size[::-1]]
        )[0]
        read = time.perf_counter()
        return {
            "prepare": prepared - start,
            "network": computed - prepared,
            "read": read - computed,
            "processor": processor_seconds("self") - before,
            "found": found,
            "pixels": list(inputs["pixel_values"].shape[2:]),
        }

    sides = {"ours": own_pass, "transformers": their_pass}
    passes = {side: [] for side in sides}
    for number in range(args.rounds + 1):
        for side, run in sides.items():
            result = run()
            if number:
                passes[side].append(result)
    ours.stdin.close()
    ours.wait()

    print(f"{passes['transformers'][0]['pixels']} pixels, {args.threads} thread(s), median of {args.rounds} passes in turns, seconds")
    whole, processor_time = {}, {}
    for side, results in passes.items():
        parts = {part: [result[part] for result in results] for part in ("prepare", "network", "read")}
        whole[side] = [sum(result[part] for part in parts) for result in results]
        processor_time[side] = [result["processor"] for result in results]
        medians = "  ".join(f"{part} {statistics.median(values):.3f}" for part, values in parts.items())
        print(
            f"  {side:12} {medians}  whole {statistics.median(whole[side]):.3f}"
            f" ({min(whole[side]):.3f} to {max(whole[side]):.3f}), processor {statistics.median(processor_time[side]):.2f}"
        )
    for what, seconds in (("clock", whole), ("processor", processor_time)):
        ratios = sorted(theirs / own for theirs, own in zip(seconds["transformers"], seconds["ours"]))
        print(f"ratio by the {what}: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")

    got, want = passes["ours"][-1]["found"], passes["transformers"][-1]["found"]
    order = want["scores"].sort(descending=True, stable=True).indices
    print(f"detections: {len(got)} and {len(order)}")
    if len(got) == len(order) > 0:
        boxes = torch.tensor([found["box"] for found in got])
        scores = torch.tensor([found["score"] for found in got])
        sides = torch.tensor(picture.size).max()
        print(f"  largest difference: scores {(scores - want['scores'][order]).abs().max():.1e}, ", end="")
        print(f"boxes {(boxes - want['boxes'][order]).abs().max() / sides:.1e} of the image's longer side")


if __name__ == "__main__":
    main()
