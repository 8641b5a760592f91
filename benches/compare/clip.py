"""CLIP ViT-B/32 beside transformers: pixels, tower, images and texts, in turns on the same numbers.

    cargo build --release -p vision-models --example embed
    python benches/compare/clip.py [--binary target/release/examples/embed] [--images 64] [--texts 64] [--threads 1] [--rounds 5]

The model has the real size and random weights; both sides read the same folder, the same images and texts, and use the same number
of threads, never at once. transformers runs in inference mode with its default attention and the PIL image processor; its best batch
size counts. Ratios are its median time over ours, of calls in turns; on Linux also of processor time, which other programs on the machine
do not lengthen. Also compares what both compute. Needs torch 2.11, transformers 4.57, `safetensors` and Pillow 13.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH = 480, 640
WORDS = "a red striped circle and blue solid ring green dotted triangle to the left of yellow checkered cross photo large".split()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=REPOSITORY / "target/release/examples/embed", type=Path)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--what", nargs="*", default=["pixels", "tower", "images", "texts"])
    parser.add_argument("--folder", type=Path, help="where to write the model; default: memory, if there is room")
    return parser.parse_args()


class Ours:
    """The Rust side: one JSON object per line to and fro."""

    def __init__(self, binary, threads):
        environment = os.environ | {"RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(self, command, **arguments):
        arguments = {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()}
        self.process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "it ended"}
        if "error" in answer:
            sys.exit(f"embed: {command}: {answer['error']}")
        return answer

    def processor_seconds(self):
        """What the process has taken of processors so far, in steps of the kernel's clock; 0 where the kernel is no Linux."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def write_model(folder):
    """CLIP ViT-B/32 with random weights, and the small tokenizer of the parity fixtures."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    place = REPOSITORY / "tests/parity/fixtures/clip/generate.py"
    spec = importlib.util.spec_from_file_location("fixtures", place)
    fixtures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fixtures)
    torch.manual_seed(1)
    words = fixtures.tokenizer()
    words.model_max_length = 77
    # All sizes are the class's defaults; the tokenizer's last id is the end token.
    config = CLIPConfig(text_config={"eos_token_id": words.eos_token_id})
    CLIPModel(config).save_pretrained(folder)
    CLIPProcessor(image_processor=CLIPImageProcessor(), tokenizer=words).save_pretrained(folder)


def main():
    args = arguments()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    import numpy
    import torch
    import transformers
    from PIL import Image
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    memory = Path("/dev/shm")
    base = args.folder or (memory if memory.is_dir() else None)
    with tempfile.TemporaryDirectory(dir=base) as folder:
        folder = Path(folder)
        write_model(folder / "model")
        rng = numpy.random.default_rng(1)
        # Smooth noise, as pictures are smooth.
        coarse = rng.integers(0, 256, (args.images, HEIGHT // 16, WIDTH // 16, 3), dtype=numpy.uint8)
        arrays = numpy.stack([numpy.array(Image.fromarray(one).resize((WIDTH, HEIGHT))) for one in coarse])
        (folder / "images.bin").write_bytes(arrays.tobytes())
        pictures = [Image.fromarray(array) for array in arrays]
        texts = [" ".join(rng.choice(WORDS, rng.integers(3, 16))) for _ in range(args.texts)]

        model = CLIPModel.from_pretrained(folder / "model").eval()
        processor = CLIPImageProcessor.from_pretrained(folder / "model")
        tokenizer = CLIPTokenizerFast.from_pretrained(folder / "model")
        ours = Ours(args.binary, args.threads)
        print("ours:", ours("open", folder=folder / "model"), "transformers:", torch.get_num_threads(), "threads")
        ours("images", path=folder / "images.bin", count=args.images, height=HEIGHT, width=WIDTH)
        ours("texts", texts=texts)
        ready = processor(pictures, return_tensors="pt")["pixel_values"]
        lengths = [len(row) for row in tokenizer(texts)["input_ids"]]
        print(f"texts of {min(lengths)} to {max(lengths)} tokens, {statistics.mean(lengths):.1f} on average")

        def unit(features):
            return features / features.norm(dim=-1, keepdim=True)

        def in_batches(size, items, function):
            parts = [function(items[start : start + size]) for start in range(0, len(items), size)]
            return torch.cat(parts)

        pixels = lambda some: processor(some, return_tensors="pt")["pixel_values"]
        tower = lambda some: unit(model.get_image_features(some))
        read = lambda some: unit(
            model.get_text_features(**tokenizer(some, padding=True, truncation=True, return_tensors="pt"))
        )
        theirs = {
            "pixels": {"": lambda: pixels(pictures)},
            "tower": {f"by {n}": lambda n=n: in_batches(n, ready, tower) for n in (16, args.images)},
            "images": {f"by {n}": lambda n=n: in_batches(n, pictures, lambda s: tower(pixels(s))) for n in (16, args.images)},
            "texts": {f"by {n}": lambda n=n: in_batches(n, texts, read) for n in (16, args.texts)},
        }
        print(f"{args.images} images of {HEIGHT} x {WIDTH}, {args.texts} texts, {args.threads} threads, f32; medians of {args.rounds}")
        with torch.inference_mode():
            for what in args.what:
                variants = theirs[what]
                # Wall and processor seconds of each call.
                times, mine = {name: [] for name in variants}, []
                results = {name: run() for name, run in variants.items()}
                ours("time", what=what, calls=1)
                for _ in range(args.rounds):
                    for name, run in variants.items():
                        started, spent = time.perf_counter(), time.process_time()
                        run()
                        times[name].append((time.perf_counter() - started, time.process_time() - spent))
                    spent = ours.processor_seconds()
                    seconds = ours("time", what=what, calls=1)["seconds"][0]
                    mine.append((seconds, ours.processor_seconds() - spent))
                middle = lambda calls, clock: statistics.median(call[clock] for call in calls)
                best = min(times, key=lambda name: middle(times[name], 1))
                ours("output", what=what, path=folder / "out")
                want = results[best].float()
                got = torch.from_numpy(numpy.fromfile(folder / "out", dtype="<f4")).view_as(want)
                off = ((got - want).abs().max() / want.abs().max()).item()
                print(f"{what:7} largest difference {off:.0e}", end="")
                for clock, name in enumerate(("wall", "processor")):
                    theirs_, ours_ = middle(times[best], clock), middle(mine, clock)
                    ratio = theirs_ / ours_ if ours_ else float("nan")
                    print(f"; {name}: transformers {1e3 * theirs_:.0f} ms {best}, ours {1e3 * ours_:.0f} ms, ratio {ratio:.2f}", end="")
                print(flush=True)
        ours.close()


if __name__ == "__main__":
    main()
