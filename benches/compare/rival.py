"""The PyTorch side of compare.py: for each operation, every way of writing it that gives the same result.

A variant is named for what it calls. Those in `COPIES` need the weights a second time in another layout or dtype, made
beforehand and not timed; the others work on the mapped weights as our kernels do.
"""

import json
import warnings

import torch
import torch.nn.functional as F

warnings.filterwarnings("ignore", message="Sparse ")

# What a gather may materialise at a time, in numbers: more only costs page faults.
CHUNK = 1 << 24
COPIES = {"addmm with W.T", "oneDNN packed", "oneDNN packed, sorted", "embedding_bag, f32 copy", "compiled, frozen"}


class Weights:
    """The tensors of a checkpoint folder, mapped, and what variants made of them."""

    def __init__(self, folder):
        path = folder / "sae.safetensors"
        data = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
        length = int.from_bytes(bytes(data[:8].tolist()), "little")
        header = json.loads(bytes(data[8 : 8 + length].tolist()))
        dtypes = {"F32": torch.float32, "BF16": torch.bfloat16}

        def tensor(name):
            start, end = (8 + length + offset for offset in header[name]["data_offsets"])
            return data[start:end].view(dtypes[header[name]["dtype"]]).view(header[name]["shape"])

        self.encoder, self.encoder_bias = tensor("encoder.weight"), tensor("encoder.bias")
        self.decoder, self.decoder_bias = tensor("W_dec"), tensor("b_dec")
        self.copies = {}

    def copy(self, name, make):
        """What `make` makes of the weights, once."""
        if name not in self.copies:
            self.copies[name] = make()
        return self.copies[name]

    def forget(self):
        self.copies.clear()


def encode(weights, k, x, compile_too=False):
    """{name: make}, where make() prepares and returns what is timed; that returns activations and latents, [n, k] each."""
    W, b, b_dec = weights.encoder, weights.encoder_bias, weights.decoder_bias
    n = len(x)

    def sparsify(x, W, b, b_dec):
        return F.linear(x - b_dec, W, b).relu().topk(k, dim=1)

    def relu_in_place():
        return F.linear(x - b_dec, W, b).relu_().topk(k, dim=1, sorted=False)

    # ReLU of the k kept gives the same codes, and saves a pass over [n, latents].
    def late_relu(ordered):
        values, latents = F.linear(x - b_dec, W, b).topk(k, dim=1, sorted=ordered)
        return values.relu_(), latents

    def transposed():
        Wt = weights.copy("W.T", lambda: W.t().contiguous())

        def run():
            values, latents = torch.addmm(b, x - b_dec, Wt).topk(k, dim=1, sorted=False)
            return values.relu_(), latents

        return run

    def packed(ordered):
        # What torch.compile turns a linear layer into when it may freeze the weights.
        pack = torch.ops.mkldnn._reorder_linear_weight
        W_packed = weights.copy("oneDNN", lambda: pack(W, n))

        def run():
            pre = torch.ops.mkldnn._linear_pointwise(x - b_dec, W_packed, b, "none", [], "")
            values, latents = pre.topk(k, dim=1, sorted=ordered)
            return values.relu_(), latents

        return run

    variants = {
        "linear, relu, topk": lambda: lambda: sparsify(x, W, b, b_dec),
        "linear, relu_, topk unsorted": lambda: relu_in_place,
        "linear, topk, relu": lambda: lambda: late_relu(True),
        "linear, topk unsorted, relu": lambda: lambda: late_relu(False),
        "addmm with W.T": transposed,
        "oneDNN packed": lambda: packed(False),
        "oneDNN packed, sorted": lambda: packed(True),
    }
    if compile_too:
        variants["compiled"] = lambda: (lambda f: lambda: f(x, W, b, b_dec))(torch.compile(sparsify))
    return variants


def exact_pre_activations(weights, x):
    """[n, latents] in f32 of operands as they are stored, centred as a bf16 model centres; a part of the weights at a time."""
    centred = (x - weights.decoder_bias).float()
    parts = [
        F.linear(centred, W.float(), b.float())
        for W, b in zip(weights.encoder.split(8192), weights.encoder_bias.split(8192))
    ]
    return torch.cat(parts, dim=1)


class Codes:
    """Codes as our library makes them, and padded to k per row, as PyTorch needs them for anything dense."""

    def __init__(self, offsets, latents, values, k):
        self.offsets, self.latents, self.values, self.k = offsets, latents, values, k
        self.n = len(offsets) - 1
        self.counts = offsets.diff()
        self.rows = torch.repeat_interleave(torch.arange(self.n), self.counts)
        place = torch.arange(len(latents)) - offsets[:-1][self.rows]
        self.padded_latents = torch.zeros(self.n, k, dtype=torch.int64)
        self.padded_values = torch.zeros(self.n, k, dtype=values.dtype)
        self.padded_latents[self.rows, place] = latents
        self.padded_values[self.rows, place] = values
        self.place = place


def decode(weights, codes):
    """As `encode`; what is timed returns [n, d_in]."""
    W, b_dec = weights.decoder, weights.decoder_bias
    num_latents, d_in = W.shape
    values = codes.values.to(W.dtype)
    padded = codes.padded_values.to(W.dtype)
    n, k = codes.n, codes.k

    def bag(table, latents, offsets, values, bias):
        def run():
            out = F.embedding_bag(
                latents, table, offsets, mode="sum", per_sample_weights=values, include_last_offset=True
            )
            return out.add_(bias)

        return run

    def bag_padded():
        return F.embedding_bag(codes.padded_latents, W, mode="sum", per_sample_weights=padded).add_(b_dec)

    def gathered():
        out = torch.empty(n, d_in, dtype=W.dtype)
        step = max(1, CHUNK // (k * d_in))
        for start in range(0, n, step):
            part = slice(start, start + step)
            rows = W.index_select(0, codes.padded_latents[part].flatten()).view(-1, k, d_in)
            out[part] = torch.bmm(padded[part].unsqueeze(1), rows).squeeze(1)
        return out.add_(b_dec)

    def dense():
        activations = torch.zeros(n, num_latents, dtype=W.dtype)
        return torch.addmm(b_dec, activations.scatter_add_(1, codes.padded_latents, padded), W)

    def csr():
        activations = torch.sparse_csr_tensor(
            codes.offsets, codes.latents, values, size=(n, num_latents), check_invariants=False
        )
        return (activations @ W).add_(b_dec)

    variants = {
        "embedding_bag": lambda: bag(W, codes.latents, codes.offsets, values, b_dec),
        "embedding_bag, int32": lambda: bag(W, codes.latents.int(), codes.offsets.int(), values, b_dec),
        "embedding_bag, [n, k]": lambda: bag_padded,
        "index_select, bmm": lambda: gathered,
    }
    # Hopeless where rows are sparse, and then takes gigabytes.
    if n * W.numel() < 5e10 and n * num_latents < 2e8:
        variants["dense addmm"] = lambda: dense
    if W.dtype == torch.float32:
        variants["sparse_csr @ W"] = lambda: csr
    else:
        # No bf16 sum is needed where there is room for the weights in f32; sums are then f32, as ours are.
        def copied():
            table = weights.copy("f32", lambda: W.float())
            return bag(table, codes.latents, codes.offsets, codes.values, b_dec.float())

        variants["embedding_bag, f32 copy"] = copied
    return variants


def gradients(weights, codes, x, d_out):
    """As `encode`; what is timed returns the tensors of our `Gradients`, of the latents that are on."""
    W_enc, W_dec, b_dec = weights.encoder, weights.decoder, weights.decoder_bias
    d_in = W_dec.shape[1]
    latents, values, rows, n, k = codes.latents, codes.values, codes.rows, codes.n, codes.k
    step = max(1, CHUNK // d_in)

    def of_codes():
        d_values = torch.empty(n, k)
        per = max(1, step // k)
        for start in range(0, n, per):
            part = slice(start, start + per)
            gathered = W_dec.index_select(0, codes.padded_latents[part].flatten()).view(-1, k, d_in)
            d_values[part] = torch.bmm(gathered, d_out[part].unsqueeze(2)).squeeze(2)
        return d_values[rows, codes.place]

    def of_bias(distinct, d_bias):
        return d_out.sum(0) - d_bias @ W_enc.index_select(0, distinct)

    def index_add():
        d_values = of_codes()
        distinct, inverse = torch.unique(latents, return_inverse=True)
        centred = x - b_dec
        d_decoder, d_encoder = torch.zeros(len(distinct), d_in), torch.zeros(len(distinct), d_in)
        for start in range(0, len(latents), step):
            part = slice(start, start + step)
            d_decoder.index_add_(0, inverse[part], values[part, None] * d_out[rows[part]])
            d_encoder.index_add_(0, inverse[part], d_values[part, None] * centred[rows[part]])
        d_bias = torch.zeros(len(distinct)).index_add_(0, inverse, d_values)
        return distinct, d_encoder, d_bias, d_decoder, of_bias(distinct, d_bias), d_values

    def csr():
        d_values = of_codes()
        order = latents.argsort(stable=True)
        distinct, counts = torch.unique_consecutive(latents[order], return_counts=True)
        ends = F.pad(counts.cumsum(0), (1, 0))
        size = (len(distinct), n)

        def matrix(values):
            return torch.sparse_csr_tensor(ends, rows[order], values[order], size=size, check_invariants=False)

        d_decoder, d_encoder = matrix(values) @ d_out, matrix(d_values) @ (x - b_dec)
        d_bias = torch.segment_reduce(d_values[order], "sum", lengths=counts)
        return distinct, d_encoder, d_bias, d_decoder, of_bias(distinct, d_bias), d_values

    def autograd():
        # The forward pass through the kept codes, once; what is timed is backward with sparse gradients.
        with torch.inference_mode(False), torch.enable_grad():
            tensors = (W_enc, weights.encoder_bias, W_dec, b_dec)
            leaves = [tensor.detach().requires_grad_() for tensor in tensors]
            centred = x.clone() - leaves[3]
            kept = F.embedding(latents, leaves[0], sparse=True)
            z = (kept * centred[rows]).sum(1) + leaves[1][latents]
            out = F.embedding_bag(
                latents, leaves[2], codes.offsets, mode="sum", sparse=True, per_sample_weights=z, include_last_offset=True
            )
            out = out + leaves[3]
        gradient = d_out.clone()

        def run():
            with torch.inference_mode(False):
                d_enc, d_bias, d_dec, d_b_dec, d_values = torch.autograd.grad(
                    out, [*leaves, z], gradient, retain_graph=True
                )
                d_enc, d_dec = d_enc.coalesce(), d_dec.coalesce()
                distinct = d_dec.indices()[0]
                return distinct, d_enc.values(), d_bias[distinct], d_dec.values(), d_b_dec, d_values

        return run

    variants = {"index_select, bmm, index_add": lambda: index_add, "index_select, bmm, sparse_csr @": lambda: csr}
    # Keeps three matrices [codes, d_in].
    if len(latents) * d_in < 8e7:
        variants["autograd, sparse=True"] = autograd
    return variants
