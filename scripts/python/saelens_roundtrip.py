"""Exchanges autoencoders with PyPI's sae-lens in both directions, and compares what both sides compute.

    python saelens_roundtrip.py SAE_CONVERT [--checkpoint FOLDER] [--rows 256] [--seed 0]

SAE_CONVERT is the executable. Autoencoders in sparsify's files (made here, and those below FOLDER) are converted to SAELens 6 and
to SAELens before 6, loaded by `SAE.load_from_disk`, and must encode and reconstruct as plain torch in f64 does. Then sae-lens
saves autoencoders of its own (topk with and without its switches, BatchTopK saved for inference as a jumprelu, a
transcoder), which are converted to sparsify's files and must compute the same again. Exit code 1 otherwise.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sae_lens import SAE
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.saes.transcoder import JumpReLUSkipTranscoder, JumpReLUSkipTranscoderConfig

TOLERANCE = 1e-5
# A row whose cut runs closer than this share of its largest activation past a latent has no codes that f32 could agree on.
TIE = 1e-5


def sparsify_files(folder, d_in, latents, k, generator, **keys):
    folder.mkdir(parents=True)
    draw = lambda *shape: 0.3 * torch.randn(*shape, generator=generator)
    save_file(
        {
            "encoder.weight": draw(latents, d_in),
            "encoder.bias": draw(latents),
            "W_dec": draw(latents, d_in),
            "b_dec": draw(d_in),
        },
        folder / "sae.safetensors",
    )
    config = {"d_in": d_in, "num_latents": latents, "k": k, "normalize_decoder": False, **keys}
    (folder / "cfg.json").write_text(json.dumps(config))


def plain(folder, x):
    """Dense activations, outputs, and which rows have a clear cut, of sparsify's files in f64."""
    config = json.loads((folder / "cfg.json").read_text())
    tensors = {name: tensor.double() for name, tensor in load_file(folder / "sae.safetensors").items()}
    x = x.double()
    centre = 0 if config.get("transcode") else tensors["b_dec"]
    pre = ((x - centre) @ tensors["encoder.weight"].T + tensors["encoder.bias"]).relu()
    if config.get("activation") == "batch_topk":
        cut = torch.full((len(x), 1), config["threshold"], dtype=torch.float64)
        acts = pre * (pre > cut)
    else:
        top = pre.topk(config["k"] + 1)
        acts = torch.zeros_like(pre).scatter(1, top.indices[:, :-1], top.values[:, :-1])
    kept = torch.where(acts > 0, acts, torch.inf).min(dim=1, keepdim=True).values
    dropped = torch.where(acts > 0, -torch.inf, pre).max(dim=1, keepdim=True).values
    scale = TIE * acts.max(dim=1, keepdim=True).values
    clear = (kept - dropped > scale) & (kept > scale)
    if config.get("activation") == "batch_topk":
        clear &= (kept - cut > scale) & (cut - dropped > scale)
    out = acts @ tensors["W_dec"] + tensors["b_dec"]
    if config.get("skip_connection"):
        out = out + x @ tensors["W_skip"].T
    return acts, out, clear.squeeze(1)


def theirs(sae, x):
    with torch.inference_mode():
        acts = sae.encode(x)
        return acts.double(), sae(x).double()


def error(got, expected):
    scale = expected.abs().max(dim=1, keepdim=True).values.clamp(min=1e-30)
    return float(((got - expected).abs() / scale).max())


def check(name, ours, other, x):
    acts, out, clear = plain(ours, x)
    their_acts, their_out = theirs(other, x)
    sets = ((acts > 0) == (their_acts > 0)).all(dim=1)[clear]
    a, o = error(their_acts[clear], acts[clear]), error(their_out[clear], out[clear])
    good = bool(sets.all()) and a <= TOLERANCE and o <= TOLERANCE and int(clear.sum()) > len(x) // 2
    print(f"  {name}: {int(sets.sum())} of {int(clear.sum())} clear rows with equal codes, "
          f"activations {a:.1e}, reconstructions {o:.1e}{'' if good else '  DIFFERENT'}")
    return good


def convert(executable, source, target, to, *flags):
    command = [executable, "-q", "sae", str(source), str(target), "--to", to, *flags]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        print(result.stderr)
        raise SystemExit(1)


def randomise(sae, generator):
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if name != "threshold":
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return sae


def of_sae_lens(root, generator):
    """Autoencoders as sae-lens saves them: the folder, the flags to read it, and the autoencoder."""
    size = {"d_in": 48, "d_sae": 200}
    for name, keys in [
        ("topk", {}),
        ("topk without b_dec at the input", {"apply_b_dec_to_input": False}),
        ("topk rescaled by the decoder's lengths", {"rescale_acts_by_decoder_norm": True}),
        ("topk with both", {"apply_b_dec_to_input": False, "rescale_acts_by_decoder_norm": True}),
    ]:
        sae = randomise(TopKSAE(TopKSAEConfig(**size, k=8, **keys)), generator)
        sae.save_model(root / name)
        yield name, root / name, [], sae
    sae = randomise(TopKTrainingSAE(TopKTrainingSAEConfig(**size, k=8)), generator)
    sae.save_inference_model(root / "trained topk")
    yield "topk, trained and saved for inference", root / "trained topk", [], SAE.load_from_disk(root / "trained topk")
    sae = randomise(BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**size, k=8)), generator)
    sae.topk_threshold.fill_(2.5)
    sae.save_inference_model(root / "batchtopk")
    yield "batchtopk, saved as a jumprelu", root / "batchtopk", ["--k", "8"], SAE.load_from_disk(root / "batchtopk")
    config = JumpReLUSkipTranscoderConfig(**size, d_out=48, apply_b_dec_to_input=False)
    sae = randomise(JumpReLUSkipTranscoder(config), generator)
    with torch.no_grad():
        sae.threshold.fill_(1.5)
    sae.save_model(root / "transcoder")
    yield "jumprelu skip transcoder", root / "transcoder", ["--k", "8"], sae


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sae_convert", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    executable = args.sae_convert.resolve()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(args.seed)
    vectors = lambda d_in: 3 * torch.randn(args.rows, d_in, generator=generator)
    print(f"sae-lens {version('sae-lens')}, torch {torch.__version__}")

    good = True
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        ours = root / "ours"
        sparsify_files(ours / "model.layers.1", 48, 200, 8, generator)
        sparsify_files(ours / "model.layers.2", 48, 200, 8, generator, transcode=True)
        sparsify_files(ours / "model.layers.3", 48, 200, 8, generator, activation="batch_topk", threshold=2.25)
        sparsify_files(ours / "model.layers.4", 48, 200, 8, generator, activation="batch_topk", threshold=2.25, transcode=True)
        folders = sorted(ours.iterdir())
        if args.checkpoint:
            folders += sorted(path.parent for path in args.checkpoint.rglob("cfg.json"))
        print("written by sae-convert, loaded by sae-lens:")
        for number, folder in enumerate(folders):
            config = json.loads((folder / "cfg.json").read_text())
            kind = config.get("activation", "topk") + (" transcoder" if config.get("transcode") else "")
            for to in ["saelens", "saelens-pre-v6"]:
                target = root / f"{number}-{to}"
                convert(executable, folder, target, to, "--hook-name-out", "model.layers.9.mlp")
                sae = SAE.load_from_disk(target)
                good &= check(f"{folder.name}, {kind}, {to} ({sae.cfg.architecture()})", folder, sae, vectors(config["d_in"]))
        print("saved by sae-lens, converted to sparsify's files:")
        for name, folder, flags, sae in of_sae_lens(root / "theirs", generator):
            target = root / "from" / name
            convert(executable, folder, target, "sparsify", *flags)
            good &= check(name, target, sae, vectors(sae.cfg.d_in))
    print("all equal" if good else "NOT equal")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
