"""Runs PyTorch and sae-core side by side on the same numbers, and prints times, ratios and shares of the machine's peaks.

    python benches/compare/compare.py [--quick] [--shapes ...] [--tokens ...] [--operations ...] [--rounds N]

Needs PyTorch. Builds `measure` of this package, which makes weights, vectors and codes; both sides map the same weights,
with the same number of threads, in turn: PyTorch, ours, PyTorch, ours, never at once. Ratios are PyTorch's time over ours.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

import torch

import report
import rival

REPOSITORY = Path(__file__).resolve().parents[2]
# A variant this much slower than the best is not timed again, and not tried with more tokens where that takes long. The best
# that needs no second copy of the weights always is.
HOPELESS = 1.4
# Calls longer than this are made twice at most, and only by the best variants.
LONG = 5.0
# Between the two sides: threads of the one may still spin.
PAUSE = 0.03


class Measure:
    """The Rust side: one JSON object per line to and fro."""

    def __init__(self, executable, threads):
        environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [executable], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(self, command, **arguments):
        arguments = {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()}
        self.process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"measure ended at {command}")
        answer = json.loads(line)
        if "error" in answer:
            sys.exit(f"measure: {command}: {answer['error']}")
        return answer

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def build():
    """The executable of `measure`, built in release."""
    command = ["cargo", "build", "--release", "-p", "lmm-sae-benches", "--bin", "measure", "--message-format=json"]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    return [message["executable"] for message in messages if message.get("executable")][-1]


def read(folder, name, dtype, shape=(-1,)):
    path = folder / name
    count = path.stat().st_size // torch.empty((), dtype=dtype).element_size()
    return torch.from_file(str(path), shared=False, size=count, dtype=dtype).clone().view(shape)


def seconds(run):
    start = time.perf_counter()
    out = run()
    return time.perf_counter() - start, out


def summary(times):
    return {"min": min(times), "median": statistics.median(times), "calls": len(times)}


def best_plain(ranked):
    """The first that needs no second copy of the weights."""
    return next((name for name in ranked if name not in rival.COPIES), None)


class Cell:
    """One shape, dtype, operation and number of tokens: both sides in turn."""

    def __init__(self, args, measure, operation, precision, history, tokens, bound):
        self.args, self.measure, self.history, self.tokens = args, measure, history, tokens
        self.bound = bound
        self.command = {"operation": operation, "precision": precision}

    def guess(self, name):
        """Seconds of a call, from the last number of tokens; none if the variant was not tried."""
        before = self.history.get(name)
        return before and before["seconds"] * max(1, self.tokens / before["tokens"])

    def choose(self, variants):
        guesses = {name: self.guess(name) for name in variants}
        if not any(guesses.values()):
            return dict(variants)
        # Variants without a time were dropped before.
        ranked = sorted((name for name in variants if guesses[name]), key=guesses.get)
        best = guesses[ranked[0]]
        copies = [name for name in ranked if name in rival.COPIES]
        leaders = {best_plain(ranked), *copies[:1]}
        near = {name for name in ranked if guesses[name] < 0.3 or guesses[name] < HOPELESS * best}
        return {name: variants[name] for name in (leaders if best > LONG else leaders | near) if name}

    def pilot(self, variants):
        """Prepares the variants: what to run, first times, what failed, and what the fastest made."""
        runs, times, failed, result = {}, {}, {}, None
        for name, make in variants.items():
            try:
                run = make()
                if (self.guess(name) or 0) < 1:
                    seconds(run)
                spent, out = seconds(run)
                # The best of a few: a thread that loses its core once must not decide which variant is timed.
                end = time.perf_counter() + 0.05
                for _ in range(10):
                    if time.perf_counter() + spent > end:
                        break
                    spent = min(spent, seconds(run)[0])
            except (RuntimeError, NotImplementedError) as error:
                failed[name] = str(error).splitlines()[0][:200]
                continue
            if not times or spent < min(times.values()):
                result = out
            runs[name], times[name] = run, spent
        return runs, times, failed, result

    def run(self, variants):
        """Seconds of both sides, and what PyTorch made."""
        chosen = self.choose(variants)
        runs, pilots, failed, result = self.pilot(chosen)
        ranked = sorted(pilots, key=pilots.get)
        shortest = pilots[ranked[0]]
        long = shortest > LONG
        # Pilots of long calls are the first round.
        times = {name: [pilot] for name, pilot in pilots.items()}
        if long:
            fast = ranked[:1]
        else:
            # Short pilots are less sure, and cost little to repeat.
            near = [name for name in ranked if pilots[name] < max(HOPELESS * shortest, 1e-3)]
            fast = near + [name for name in {best_plain(ranked)} if name and name not in near]
            times |= {name: [] for name in fast}
            self.measure("time", calls=1, **self.command)
        # As many calls as fit; of the slower ones fewer.
        budget = {name: self.args.seconds / (1 if pilots[name] < HOPELESS * shortest else 4) for name in fast}
        calls = {name: max(1, min(200, int(budget[name] / pilots[name]))) for name in fast}
        ours, ratios, peaks = [], [], []
        for number in range(2 if long else self.args.rounds):
            round_times = {}
            for name in fast:
                if long and number == 0:
                    round_times[name] = times[name][:]
                else:
                    round_times[name] = [seconds(runs[name])[0] for _ in range(calls[name])]
                    times[name] += round_times[name]
            time.sleep(PAUSE)
            answer = self.measure("time", calls=calls[ranked[0]], **self.command)
            # In the same round, because a neighbour on the machine takes from both.
            peaks.append(self.measure("peak", **self.bound)["per_second"])
            time.sleep(PAUSE)
            ours += answer["seconds"]
            ratios.append(min(map(min, round_times.values())) / min(answer["seconds"]))
        self.history.clear()
        self.history.update({name: {"seconds": min(t), "tokens": self.tokens} for name, t in times.items()})
        ranked = sorted(times, key=lambda name: min(times[name]))
        best, plain = ranked[0], best_plain(ranked)
        row = {
            "pytorch": {name: summary(t) for name, t in times.items()},
            "pytorch_best": best,
            "pytorch_best_without_copies": plain,
            "failed": failed,
            "skipped": [name for name in variants if name not in chosen],
            "ours": summary(ours),
            "ratio": min(times[best]) / min(ours),
            "ratio_of_medians": statistics.median(times[best]) / statistics.median(ours),
            "ratio_by_round": ratios,
            "ratio_without_copies": plain and min(times[plain]) / min(ours),
            "threads": answer["threads"],
            "bound": {**self.bound, "peaks": peaks},
        }
        return row, result


def relative(a, b, per_row=True):
    """The largest difference, as a share of the largest number, of its row or of all."""
    a, b = a.float(), b.float()
    scale = b.abs().amax(dim=-1, keepdim=True) if per_row else b.abs().max()
    return ((a - b).abs() / scale.clamp_min(1e-30)).max().item()


def keys(rows, latents, values):
    """One sorted number per code, and the activations in that order."""
    on = values > 0
    codes, order = (rows[on] * (1 << 32) + latents[on]).sort()
    return codes, values[on][order].float()


def dense_keys(values, latents):
    rows = torch.arange(len(values))[:, None].expand_as(latents)
    return keys(rows, latents, values)


def agreement(a, b, n):
    """How many of `n` rows have the same latents in both, how many latents are shared, and how activations differ."""
    (codes_a, values_a), (codes_b, values_b) = a, b
    in_b, in_a = torch.isin(codes_a, codes_b), torch.isin(codes_b, codes_a)
    differing = torch.cat([codes_a[~in_b], codes_b[~in_a]]) >> 32
    difference = (values_a[in_b] - values_b[in_a]).abs() / values_b[in_a]
    return {
        "equal_sets": 1 - len(differing.unique()) / n,
        "shared_latents": in_a.sum().item() / max(1, len(codes_b)),
        "largest_difference": difference.max().item() if len(difference) else 0.0,
    }


class Runner:
    def __init__(self, args, measure, folder):
        self.args, self.measure, self.folder = args, measure, folder
        self.rows, self.memory, self.mapped = [], [], []

    def read_codes(self, k):
        folder = self.folder
        offsets, latents = read(folder, "offsets", torch.int64), read(folder, "latents", torch.int32)
        return rival.Codes(offsets, latents.long(), read(folder, "values", torch.float32), k)

    def shape(self, shape, dtype):
        started = time.perf_counter()
        self.measure("write", shape=shape["name"], dtype=dtype, folder=self.folder)
        self.measure("open", folder=self.folder)
        self.weights = rival.Weights(self.folder)
        self.mapped.append({"shape": shape["name"], "dtype": dtype, **self.measure("read_weights")})
        self.history = {}
        tokens_list = sorted(set(self.args.tokens or self.args.table_tokens + [64] * (shape["d_in"] > 4000)))
        for operation in ("encode", "decode", "gradients"):
            if operation not in self.args.operations:
                continue
            for tokens in tokens_list:
                known = {"shape": shape["name"], "dtype": dtype, "tokens": tokens}
                self.measure("vectors", tokens=tokens, rounded=dtype == "bf16", folder=self.folder)
                self.x = read(self.folder, "x", torch.float32, (tokens, -1))
                self.d_out = read(self.folder, "d_out", torch.float32, (tokens, -1))
                getattr(self, operation)(shape, dtype, known)
            self.weights.forget()
        self.measure("vectors", tokens=2048, rounded=dtype == "bf16", folder=self.folder)
        if "encode" in self.args.operations and not self.args.no_memory:
            answer = self.measure("memory", operation="encode", precision="bf16" if dtype == "bf16" else None)
            self.memory.append({"shape": shape["name"], "dtype": dtype, "tokens": 2048, **answer})
        self.measure("close")
        self.weights = self.x = self.d_out = None
        for name in ("sae.safetensors", "x", "d_out"):
            (self.folder / name).unlink()
        print(f"{shape['name']} {dtype}: {time.perf_counter() - started:.0f} s", file=sys.stderr)

    def keep(self, known, row):
        self.rows.append({**known, **row})
        share = f"{row['ratio']:.2f} times as fast as {row['pytorch_best']}"
        print(" ".join(map(str, known.values())), f"{row['ours']['min'] * 1e3:.3f} ms, {share}", file=sys.stderr)

    def encode(self, shape, dtype, known):
        k, precision = shape["k"], "bf16" if dtype == "bf16" else None
        x = self.x.bfloat16() if precision else self.x
        cell = self.cell("encode", precision, known, report.encode_bound(shape, dtype, known["tokens"]))
        row, theirs = cell.run(rival.encode(self.weights, k, x, self.args.compile))
        self.measure("output", operation="encode", folder=self.folder)
        ours = self.read_codes(k)
        mine = keys(ours.rows, ours.latents, ours.values)
        pytorch = dense_keys(*theirs)
        check = agreement(mine, pytorch, len(x))
        if precision and len(x) * shape["latents"] < 1e7:
            exact = dense_keys(*rival.exact_pre_activations(self.weights, x).topk(k, dim=1))
            sides = {"ours": mine, "pytorch": pytorch}
            shared = {side: agreement(codes, exact, len(x))["shared_latents"] for side, codes in sides.items()}
            check["shared_with_f32_sums"] = shared
        if self.weights.encoder.nbytes > 1 << 30:
            self.weights.copies.pop("W.T", None)
        self.keep({"operation": "encode", **known}, {**row, "check": check})

    def decode(self, shape, dtype, known):
        precision = "bf16" if dtype == "bf16" else None
        for source in ("encoder", "uniform", "zipf"):
            made = self.measure("codes", source=source, precision=precision, folder=self.folder)
            codes = self.read_codes(shape["k"])
            cell = self.cell(f"decode, {source}", None, known, report.decode_bound(shape, dtype))
            cell.command["operation"] = "decode"
            row, theirs = cell.run(rival.decode(self.weights, codes))
            self.measure("output", operation="decode", folder=self.folder)
            ours = read(self.folder, "decoded", torch.float32, (len(self.x), -1))
            check = {"largest_difference": relative(ours, theirs)}
            self.keep({"operation": "decode", **known, "source": source}, {**row, **made, "check": check})

    def gradients(self, shape, dtype, known):
        # What a gather materialises, and what the sparse gradients take.
        if dtype != "f32" or len(self.x) * shape["k"] * shape["d_in"] > 7e7:
            return
        made = self.measure("codes", source="encoder", precision=None, folder=self.folder)
        codes = self.read_codes(shape["k"])
        cell = self.cell("gradients", None, known, report.gradients_bound())
        row, theirs = cell.run(rival.gradients(self.weights, codes, self.x, self.d_out))
        self.measure("output", operation="gradients", folder=self.folder)
        d_in = shape["d_in"]
        ours = [
            read(self.folder, "gradient_encoder_weight", torch.float32, (-1, d_in)),
            read(self.folder, "gradient_encoder_bias", torch.float32),
            read(self.folder, "gradient_decoder_weight", torch.float32, (-1, d_in)),
            read(self.folder, "gradient_decoder_bias", torch.float32),
            read(self.folder, "gradient_codes", torch.float32),
        ]
        latents = read(self.folder, "gradient_latents", torch.int32).long()
        check = {
            "equal_latents": torch.equal(latents, theirs[0]),
            "largest_difference": max(relative(a, b, per_row=False) for a, b in zip(ours, theirs[1:])),
        }
        for path in self.folder.glob("gradient_*"):
            path.unlink()
        self.keep({"operation": "gradients", **known}, {**row, **made, "check": check})

    def cell(self, kind, precision, known, bound):
        history = self.history.setdefault(kind, {})
        return Cell(self.args, self.measure, kind, precision, history, known["tokens"], bound)


def host():
    """Where and with what this ran."""

    def ask(*command):
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
        return done.stdout.strip()

    lscpu = dict(line.split(":", 1) for line in ask("lscpu").splitlines() if ":" in line)
    lscpu = {name.strip(): value.strip() for name, value in lscpu.items()}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    changed = " with changes" if ask("git", "status", "--porcelain", "--untracked-files=no") else ""
    return {
        "cpu": lscpu.get("Model name", "unknown"),
        "family_model_stepping": [lscpu.get(name) for name in ("CPU family", "Model", "Stepping")],
        "cores": len(os.sched_getaffinity(0)),
        "l3": lscpu.get("L3 cache"),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": ask("uname", "-sr"),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": ask("git", "rev-parse", "--short=12", "HEAD") + changed,
        "rustc": ask("rustc", "--version"),
        "rustflags": os.environ.get("RUSTFLAGS", ""),
        "profile": "release, thin LTO",
        "torch": torch.__version__,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "load_at_start": os.getloadavg()[0],
    }


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the two small shapes with few tokens, as a smoke test")
    parser.add_argument("--shapes", nargs="+", help="default: all of the table")
    parser.add_argument("--tokens", nargs="+", type=int, help="default: those of the table, and 64 of the largest shape")
    operations = ["encode", "decode", "gradients"]
    parser.add_argument("--operations", nargs="+", choices=operations, default=operations)
    parser.add_argument("--dtypes", nargs="+", choices=["f32", "bf16"], default=["f32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3, help="how often the two sides take turns")
    parser.add_argument("--seconds", type=float, default=0.1, help="of a variant in a round, if a call is shorter")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each side")
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which needs a C++ compiler and minutes")
    parser.add_argument("--no-memory", action="store_true", help="skip the memory of 2,048 tokens")
    parser.add_argument("--measure", type=Path, help="the executable, if it is not to be built")
    parser.add_argument("--folder", type=Path, help="for the shared files, up to 4.4 GB; default: memory, if there is room")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "target" / "compare", help="for results.md and .json")
    args = parser.parse_args()
    if args.quick:
        args.shapes = args.shapes or ["shapes-lmm-s", "gpt2-small"]
        args.tokens = args.tokens or [1, 16, 64]
        args.seconds = min(args.seconds, 0.05)
    return args


def shared_folder(args):
    if args.folder:
        return args.folder
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 6e9
    return memory if roomy else None


def main():
    args = arguments()
    started = time.perf_counter()
    torch.set_num_threads(args.threads)
    measure = Measure(args.measure or build(), args.threads)
    about = measure("about")
    args.table_tokens = about["tokens"]
    names = [shape["name"] for shape in about["shapes"]]
    unknown = set(args.shapes or []) - set(names)
    if unknown:
        sys.exit(f"no shapes {sorted(unknown)}; there are {names}")
    shapes = [shape for shape in about["shapes"] if not args.shapes or shape["name"] in args.shapes]
    row_bytes = sorted({shape["d_in"] * size for shape in shapes for size in (2, 4)})
    result = {"host": host(), "ours": about, "threads": args.threads, "rounds": args.rounds}
    peaks = [measure("roofline", row_bytes=row_bytes)]
    with tempfile.TemporaryDirectory(dir=shared_folder(args)) as folder, torch.inference_mode():
        runner = Runner(args, measure, Path(folder))
        for shape in shapes:
            for dtype in args.dtypes:
                runner.shape(shape, dtype)
    # Once more at the end: a neighbour on the machine may have slowed the first.
    peaks.append(measure("roofline", row_bytes=row_bytes))
    measure.close()
    result |= {"peaks": peaks, "rows": runner.rows, "memory": runner.memory, "mapped": runner.mapped}
    result["seconds"] = time.perf_counter() - started
    report.shares(result)
    text = report.markdown(result)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.output / "results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
