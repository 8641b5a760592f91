"""Trains the objectives side by side on shapes-world and prints what each reaches on held-out scenes.

    cargo build --release -p sae-data -p sae-train
    python benches/compare/objectives.py [--binaries target/release] [--scenes 4000] [--epochs 2] [--output FILE.json]

Nothing of Python is needed but Python. The same model, scenes, width, k, learning rate and number of tokens for all.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OBJECTIVES = {
    "TopK": [],
    "TopK + AuxK": ["--auxk-alpha", "0.03125"],
    "Multi-TopK + AuxK": ["--auxk-alpha", "0.03125", "--multi-topk"],
    "BatchTopK": ["--activation", "batch-topk"],
    "BatchTopK + AuxK": ["--activation", "batch-topk", "--auxk-alpha", "0.03125"],
    "Matryoshka + AuxK": ["--matryoshka", "0.125,0.25,0.5", "--auxk-alpha", "0.03125"],
    "BatchTopK, Matryoshka + AuxK": ["--activation", "batch-topk", "--matryoshka", "0.125,0.25,0.5", "--auxk-alpha", "0.03125"],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binaries", type=Path, default=ROOT / "target/release")
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--latents", type=int, default=512)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--lr", default="2e-3")
    parser.add_argument("--threshold", type=int, default=20_000)
    parser.add_argument("--only", nargs="+", default=list(OBJECTIVES), choices=OBJECTIVES)
    parser.add_argument("--extra", nargs="*", default=[], help="further flags for every run")
    parser.add_argument("--output", type=Path, help="also write the numbers as JSON")
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        subprocess.run(
            [args.binaries / "sae-data", "shapes", "--count", str(args.scenes), "--seed", "1", "--split", "train",
             "--save-dir", data, "-q"],
            check=True,
        )
        print("| objective | FVU | image / text | L0 | dead | CE recovered | KL | seconds |\n|---|---|---|---|---|---|---|---|")
        for name in args.only:
            out = Path(folder, "sae")
            start = time.time()
            subprocess.run(
                [args.binaries / "sae-train", ROOT / "assets/shapes-lmm-s", data, "--layers", "2",
                 "--num-latents", str(args.latents), "--k", str(args.k), "--epochs", str(args.epochs), "--lr", args.lr,
                 "--dead-feature-threshold", str(args.threshold), "--eval-examples", str(args.held_out),
                 "--save-every", "0", "--save-dir", out, "--overwrite", "-q", *OBJECTIVES[name],
                 *(f"--{flag}" for flag in args.extra)],
                check=True, stdout=subprocess.DEVNULL,
            )
            seconds = time.time() - start
            measured = json.loads(Path(out, "evaluation.json").read_text())["model.layers.2"]
            results[name] = {**measured, "seconds": seconds}
            print(
                f"| {name} | {measured['fvu']:.4f} | {measured['fvu_image']:.4f} / {measured['fvu_text']:.4f}"
                f" | {measured['l0']:.1f} | {100 * measured['dead_share']:.1f} % | {100 * measured['ce_recovered']:.2f} %"
                f" | {measured['kl']:.4f} | {seconds:.0f} |",
                flush=True,
            )
    if args.output:
        args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
