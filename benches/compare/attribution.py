"""One pass for all features (`sae-attribute run`) beside multimodal-sae's loop over features in PyTorch.

The loop is written as `sae_auto_interp/features/patching/attribution.py` at 60265c3 runs it, in float32 on the CPU: for each
feature two forward passes with the reconstruction spliced in, one of them with the feature masked before TopK, and a
backward pass of the latter. It is run for a few features and extrapolated to all of them. Needs torch 2.11, transformers
4.57, safetensors and Pillow.

    python benches/compare/attribution.py --binary target/debug/sae-attribute --model assets/shapes-lmm-s --features 20
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import tempfile
import time

import numpy
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaNextForConditionalGeneration

HOOK = "model.layers.2"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--latents", type=int, default=16384)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--features", type=int, default=20, help="features the loop is run for")
    parser.add_argument("--rounds", type=int, default=5, help="runs of the one pass; the median counts")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def make_sae(folder, width, latents, k):
    generator = torch.Generator().manual_seed(1)
    encoder = torch.nn.functional.normalize(torch.randn(latents, width, generator=generator), dim=1)
    tensors = {
        "encoder.weight": encoder,
        "encoder.bias": torch.zeros(latents),
        "W_dec": encoder.clone(),
        "b_dec": torch.zeros(width),
    }
    place = folder / HOOK
    place.mkdir(parents=True)
    save_file(tensors, place / "sae.safetensors")
    config = {"d_in": width, "num_latents": latents, "k": k, "expansion_factor": latents // width}
    config |= {"normalize_decoder": True, "multi_topk": False, "signed": False}
    (place / "cfg.json").write_text(json.dumps(config))
    return tensors


def loop(model, inputs, sae, k, answer, baseline, features):
    """Seconds per feature, and the effects [features, tokens]."""
    layer = model.model.language_model.layers[int(HOOK.split(".")[-1])]
    kept = {}

    def splice(off):
        def hook(_module, _inputs, outputs):
            hidden = outputs[0] if isinstance(outputs, tuple) else outputs
            batch, tokens, width = hidden.shape
            latents = torch.relu((hidden.flatten(0, 1) - sae["b_dec"]) @ sae["encoder.weight"].T + sae["encoder.bias"])
            if off is not None:
                mask = torch.ones_like(latents)
                mask[:, off] = 0
                latents = latents * mask
            values, indices = latents.topk(k, sorted=False)
            decoded = torch.nn.functional.embedding_bag(
                indices, sae["W_dec"], per_sample_weights=values, mode="sum"
            )
            kept[off is None] = (decoded + sae["b_dec"]).view(batch, tokens, width)
            if off is not None:
                # Parameters are frozen: the graph begins here, which is the least that the loop can do.
                kept[False].requires_grad_()
            return (kept[off is None],) + tuple(outputs[1:]) if isinstance(outputs, tuple) else kept[off is None]

        return hook

    def forward(off):
        handle = layer.register_forward_hook(splice(off))
        try:
            return model(**inputs).logits[:, -1]
        finally:
            handle.remove()

    seconds, effects = [], []
    for feature in features:
        started = time.perf_counter()
        forward(None)
        logits = forward(feature)
        (logits[:, answer] - logits[:, baseline]).mean().backward()
        effects.append(((kept[True] - kept[False]) * kept[False].grad).detach().sum(-1)[0])
        seconds.append(time.perf_counter() - started)
    return seconds, torch.stack(effects)


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model = LlavaNextForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval()
        model.requires_grad_(False)
        processor = AutoProcessor.from_pretrained(args.model, use_fast=False)
        sae = make_sae(folder / "sae", model.config.text_config.hidden_size, args.latents, args.k)
        picture = Image.fromarray(
            numpy.random.default_rng(1).integers(0, 255, (96, 192, 3), dtype=numpy.uint8)
        )
        picture.save(folder / "picture.png")
        prompt = "user : <image> what colour is the circle ? assistant :"
        question = {"prompt": prompt, "answer": "red", "baseline": "blue", "image": "picture.png"}
        (folder / "data.json").write_text(json.dumps([question] * args.rounds))

        step = max(1, args.latents // args.features)
        features = range(0, step * args.features, step)

        def ours(name, *flags):
            command = [args.binary, "run", args.model, "--sae", folder / "sae", "--data", folder / f"{name}.json"]
            environment = {"OMP_NUM_THREADS": str(args.threads), "PATH": "/usr/bin:/bin"}
            command += ["--save-dir", folder / name, *flags]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            log = re.sub(r"\x1b\[[0-9;]*m", "", done.stderr)
            return statistics.median(float(found) for found in re.findall(r"seconds=([0-9.e-]+)", log))

        one_pass = ours("data")
        (folder / "one.json").write_text(json.dumps([question]))
        ours("one", "--compat", "msae", "--dense", "--features", ",".join(map(str, features)))
        dense = next((folder / "one").glob("*_model_layers_2.safetensors"))
        got = load_file(dense)[HOOK][list(features)]

        tokens = dict(processor(images=picture, text=prompt, return_tensors="pt"))
        if tokens["input_ids"][0, 0] == processor.tokenizer.bos_token_id:
            # multimodal-sae's prompts have no BOS.
            for name in ("input_ids", "attention_mask"):
                tokens[name] = tokens[name][:, 1:]
        ids = [processor.tokenizer.convert_tokens_to_ids(word) for word in ("red", "blue")]
        seconds, expected = loop(model, tokens, sae, args.k, *ids, features)
        per_feature = statistics.median(seconds)
        whole = per_feature * args.latents
        off = float((got - expected).abs().max() / expected.abs().max())
        print(f"--compat msae against the loop: largest difference {off:.1e} of the largest effect, "
              f"{int((expected != 0).any(1).sum())} of {len(features)} features on")
        print(f"tokens {tokens['input_ids'].shape[1]}, latents {args.latents}, k {args.k}, threads {args.threads}")
        print(f"loop: {1e3 * per_feature:.1f} ms a feature (median of {len(seconds)}), {whole:.0f} s for all, extrapolated")
        print(f"one pass: {1e3 * one_pass:.1f} ms (median of {args.rounds})")
        print(f"ratio: {whole / one_pass:.0f}")


if __name__ == "__main__":
    main()
