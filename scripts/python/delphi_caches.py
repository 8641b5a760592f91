"""Exchanges activation caches with PyPI's eai-delphi in both directions.

    python delphi_caches.py SAE_CONVERT [--seed 0]

SAE_CONVERT is the executable. delphi's own `LatentCache` caches a small random model and an autoencoder of sparsify's kind and saves the
splits; `sae-convert` makes a native cache of them and exports that to delphi's layout again. delphi's own loader (`LatentDataset`,
`TensorBuffer`) then reads both: every latent must have the same activations at the same places, the same examples must come
out of delphi's constructor, and the files must have the same tensors. Exit code 1 otherwise.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from delphi.config import CacheConfig, ConstructorConfig, SamplerConfig
from delphi.latents import LatentCache, LatentDataset
from delphi.latents.loader import TensorBuffer
from safetensors.numpy import load_file
from transformers import LlamaConfig, LlamaForCausalLM

WIDTH, K, N_SPLITS, LENGTH, SAMPLES = 100, 6, 7, 64, 96


class Tokenizer:
    """What delphi's loader asks of one."""

    bos_token_id = None

    def batch_decode(self, tokens, **_):
        return [str(int(token)) for token in torch.as_tensor(tokens).flatten()]

    def decode(self, tokens, **_):
        return " ".join(self.batch_decode(tokens))


def cached_by_delphi(folder, generator):
    config = LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4
    )
    model = LlamaForCausalLM(config).eval()
    encoder = torch.randn(32, WIDTH, generator=generator)

    def encode(x):
        pre = (x.float() @ encoder).relu()
        top = pre.topk(K, dim=-1)
        return torch.zeros_like(pre).scatter(-1, top.indices, top.values)

    tokens = torch.randint(1, 256, (SAMPLES, LENGTH), generator=generator)
    hooks = {"model.layers.0": encode, "model.layers.1": encode}
    cache = LatentCache(model, hooks, batch_size=8)
    cache.run(SAMPLES * LENGTH, tokens)
    cache.save_splits(N_SPLITS, folder)
    about = CacheConfig(dataset_repo="a/set", dataset_split="train", batch_size=8, cache_ctx_len=LENGTH, n_tokens=SAMPLES * LENGTH, n_splits=N_SPLITS)
    cache.save_config(folder, about, "a/model")
    return list(hooks)


def convert(executable, *flags):
    result = subprocess.run([executable, "-q", "cache", *map(str, flags)], capture_output=True, text=True)
    print("  " + (result.stdout or result.stderr).strip().replace("\n", "\n  "))
    if result.returncode != 0:
        raise SystemExit(1)


def buffers(folder, hook):
    """What delphi's loader gives, by latent: places [n, 3] and activations [n]."""
    found = {}
    for path in (folder / hook).glob("*.safetensors"):
        for data in TensorBuffer(str(path), hook):
            found[data.latent.latent_index] = (data.activation_data.locations, data.activation_data.activations)
    return found


def records(folder, hooks, tokenizer):
    """The examples delphi's constructor and sampler make."""
    dataset = LatentDataset(
        folder,
        SamplerConfig(n_examples_train=4, n_examples_test=4, n_quantiles=2),
        ConstructorConfig(min_examples=8, example_ctx_len=32, n_non_activating=4),
        tokenizer=tokenizer,
        modules=hooks,
    )
    return {str(record.latent): [(e.tokens.tolist(), e.activations.tolist()) for e in record.examples] for record in dataset}


def same(hook, one, other):
    one, other = buffers(one, hook), buffers(other, hook)
    equal = one.keys() == other.keys() and all(
        torch.equal(one[latent][0], other[latent][0]) and torch.equal(one[latent][1], other[latent][1]) for latent in one
    )
    n = sum(len(activations) for _, activations in one.values())
    print(f"  {hook}: {len(one)} latents, {n} activations, {'equal' if equal else 'DIFFERENT'} by delphi's loader")
    return equal


def same_files(hook, one, other):
    names = [sorted(path.name for path in (folder / hook).iterdir()) for folder in (one, other)]
    equal = names[0] == names[1]
    for name in names[0] if equal else []:
        if name.endswith(".safetensors"):
            equal &= (one / hook / name).read_bytes() == (other / hook / name).read_bytes()
        else:
            configs = [json.loads((folder / hook / name).read_text()) for folder in (one, other)]
            equal &= {**configs[0], "batch_size": 0} == {**configs[1], "batch_size": 0}
    print(f"  {hook}: {len(names[0])} files, {'the same bytes (config.json: the same but batch_size)' if equal else 'DIFFERENT'}")
    return equal


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sae_convert", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    executable = args.sae_convert.resolve()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(args.seed)
    print(f"eai-delphi {version('eai-delphi')}, torch {torch.__version__}")

    good = True
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        theirs, native, ours = root / "run" / "latents", root / "native", root / "ours"
        theirs.mkdir(parents=True)
        hooks = cached_by_delphi(theirs, generator)
        print("of delphi, to native and back:")
        convert(executable, root / "run", native, "--to", "native", "--k", K)
        convert(executable, native, ours, "--to", "delphi", "--n-splits", N_SPLITS)
        for hook in hooks:
            good &= same_files(hook, theirs, ours / "latents")
            good &= same(hook, theirs, ours / "latents")
        tokenizer = Tokenizer()
        # Without a list of hook points delphi takes every name in the folder for one.
        one, other = records(theirs, None, tokenizer), records(ours / "latents", None, tokenizer)
        equal = one == other and len(one) > 0
        print(f"  delphi makes {len(one)} records of {sum(map(len, one.values()))} examples, {'equal' if equal else 'DIFFERENT'}")
        good &= equal
        print("native to msae and back, to delphi:")
        convert(executable, native, root / "msae", "--to", "msae", "--n-splits", 3)
        flags = ["--first", 0, "--last-latents-kept", "--n-tokens", LENGTH, "--width", WIDTH]
        convert(executable, root / "msae", root / "native again", "--to", "native", *flags)
        convert(executable, root / "native again", root / "padded", "--to", "delphi", "--without-tokens", "--n-splits", 4)
        for hook in hooks:
            good &= same(hook, theirs, root / "padded" / "latents")
            tokens = load_file(next((root / "padded" / "latents" / hook).glob("*.safetensors")))["tokens"]
            good &= tokens.shape == (SAMPLES, LENGTH) and not tokens.any()
    print("all equal" if good else "NOT equal")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
