"""Turns what compare.py measured into shares of the machine's peaks and a Markdown text."""

import math


def best(peaks, name, *keys):
    """The larger of what was measured before and after."""
    values = []
    for measured in peaks:
        value = measured[name]
        for key in keys:
            value = value[key]
        values.append(value)
    return max(value for value in values if value is not None) if any(values) else None


def encode_bound(shape, dtype, tokens):
    """What bounds encoding: reading the weights once, or multiply-adds."""
    return {"of": "read" if tokens < 16 else f"{dtype}_flop", "row_bytes": 0}


def decode_bound(shape, dtype):
    return {"of": "gather", "row_bytes": shape["d_in"] * (4 if dtype == "f32" else 2)}


def gradients_bound():
    return {"of": "read", "row_bytes": 0}


def shares(result):
    """Adds to each row its work, and which share it reached of the peak that was measured beside it."""
    shapes = {shape["name"]: shape for shape in result["ours"]["shapes"]}
    for row in result["rows"]:
        shape, bound = shapes[row["shape"]], row["bound"]
        size = 4 if row["dtype"] == "f32" else 2
        matrix = shape["d_in"] * shape["latents"]
        if row["operation"] == "encode":
            work = matrix * size if bound["of"] == "read" else 2 * row["tokens"] * matrix
        elif row["operation"] == "decode":
            work = row["codes"] * bound["row_bytes"]
        else:
            # Each distinct row of both matrices is read, and each of its gradients written, at least once.
            work = 4 * row["distinct"] * shape["d_in"] * 4
        rate = work / row["ours"]["min"]
        bound |= {"work": work, "per_second": rate, "share": rate / max(bound["peaks"])}


def number(seconds):
    """Milliseconds with three significant digits."""
    value = seconds * 1e3
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 - math.floor(math.log10(value))}f}"


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]


def unsteady(row):
    """Whether calls differed so much that something else must have run beside them."""
    both = [row["ours"], row["pytorch"][row["pytorch_best"]]]
    return any(side["median"] > 1.3 * side["min"] for side in both)


def times(rows, extra):
    """Lines of a table of one operation and dtype."""
    header = ["shape", "tokens", *extra, "PyTorch ms", "its best way", "ours ms", "ratio", "medians", "rounds", "no copies"]
    header += ["share of peak", "largest difference"]
    body = []
    for row in rows:
        rounds = row["ratio_by_round"]
        without = row["ratio_without_copies"]
        body.append([
            row["shape"], f"{row['tokens']:,}", *(extra[name](row) for name in extra),
            number(row["pytorch"][row["pytorch_best"]]["min"]), row["pytorch_best"], number(row["ours"]["min"]),
            f"{row['ratio']:.2f}{' †' if unsteady(row) else ''}", f"{row['ratio_of_medians']:.2f}", f"{min(rounds):.2f} to {max(rounds):.2f}",
            f"{without:.2f}" if without else "", f"{row['bound']['share']:.0%}", f"{row['check']['largest_difference']:.1e}",
        ])
    return table(header, body)


def per_second(value, unit):
    return f"{value / 1e9:,.1f} {unit}"


def markdown(result):
    host, peaks = result["host"], result["peaks"]
    load = host["load_at_start"]
    lines = ["# sae-core beside PyTorch", ""]
    lines += [
        f"{host['date']}, commit {host['commit']}. {host['cpu']} (family, model, stepping "
        f"{'/'.join(map(str, host['family_model_stepping']))}), {host['cores']} cores, L3 {host['l3']}, "
        f"{host['memory_gib']} GiB, {host['kernel']}.",
        f"sae-core {result['ours']['version']}, kernel {result['ours']['kernel']}, {host['rustc']}, {host['profile']}, "
        f"RUSTFLAGS `{host['rustflags']}`; PyTorch {host['torch']} ({host['torch_capability']}). {result['threads']} threads "
        f"each, {result['rounds']} rounds, load {load:.1f} at the start, {result['seconds'] / 60:.1f} minutes in all.",
        "",
        "Times are the best call. `ratio` is PyTorch's best over ours; `medians` the ratio of the medians, `rounds` the smallest",
        "and largest ratio of the paired rounds, `no copies` against PyTorch's best that needs no second copy of the weights.",
        "`share of peak` is of a peak measured in the same rounds. Differences are shares of the row's largest number (encode: of the activation; gradients: of the tensor's largest).",
        f"† {sum(map(unsteady, result['rows']))} of {len(result['rows'])} rows: the median call took over 1.3 times the best one, "
        "on one side or the other.",
        "",
        "## Peaks",
        "",
    ]
    rows = [["multiply-add, f32", per_second(best(peaks, "f32_flop_per_second"), "GFLOP/s")]]
    if (bf16 := best(peaks, "bf16_flop_per_second")) is not None:
        rows.append(["multiply-add, pairs of bf16", per_second(bf16, "GFLOP/s")])
    rows.append(["reading in order, 1 GiB", per_second(best(peaks, "read_bytes_per_second"), "GB/s")])
    for row_bytes in sorted(peaks[0]["gather_bytes_per_second"], key=int):
        rate = best(peaks, "gather_bytes_per_second", row_bytes)
        rows.append([f"reading rows of {int(row_bytes):,} bytes in random order", per_second(rate, "GB/s")])
    shapes = {shape["name"]: shape for shape in result["ours"]["shapes"]}
    for mapped in result["mapped"]:
        shape = shapes[mapped["shape"]]
        if shape["d_in"] * shape["latents"] < 1 << 25:
            continue  # Stays in the caches.
        rate = per_second(mapped["read_bytes_per_second"], "GB/s")
        rows.append([f"reading the mapped W_enc of {mapped['shape']}, {mapped['dtype']}", rate])
    lines += table(["what", "measured"], rows)

    def pick(operation, dtype):
        return [row for row in result["rows"] if (row["operation"], row["dtype"]) == (operation, dtype)]

    for dtype in ("f32", "bf16"):
        if rows := pick("encode", dtype):
            lines += ["", f"## Encode and top-k, {dtype}", ""]
            lines += times(rows, {
                "equal sets": lambda row: f"{row['check']['equal_sets']:.1%}",
                "shared latents": lambda row: f"{row['check']['shared_latents']:.3%}",
            })
            lines += ["", "Share of the peak: of reading for 1 token, of multiply-adds from 16 tokens on."]
            exact = [row for row in rows if "shared_with_f32_sums" in row["check"]]
            if exact:
                ours, theirs = (
                    [row["check"]["shared_with_f32_sums"][side] for row in exact] for side in ("ours", "pytorch")
                )
                lines += [
                    "Latents shared with the top k of f32 sums of the same bf16 operands, smallest row of the table: "
                    f"ours {min(ours):.3%}, PyTorch {min(theirs):.3%} (it rounds pre-activations to bf16, which makes ties)."
                ]
    for dtype in ("f32", "bf16"):
        if rows := pick("decode", dtype):
            lines += ["", f"## Decode, {dtype}", ""]
            lines += times(rows, {
                "codes": lambda row: row["source"], "distinct rows": lambda row: f"{row['distinct'] / row['codes']:.0%}",
            })
            lines += ["", "Share of the peak: of gathering rows of that length, a row as often as codes name it; above 100 % where"]
            lines += ["rows are shared or stay in the caches."]
    if rows := pick("gradients", "f32"):
        lines += ["", "## Gradients, f32", ""]
        lines += times(rows, {"latents that are on": lambda row: f"{row['distinct']:,}"})
        lines += ["", "Share of the peak: of reading, as if each row and each gradient of a row passed the memory once."]
    if result["memory"]:
        lines += ["", "## Memory of encoding 2,048 tokens, above the mapped weights", ""]
        mib = lambda value: "" if value is None else f"{value / 2**20:.1f} MiB"
        header = ["shape", "dtype", "buffers and codes", "second call adds", "input and biases", "process, allocated at most"]
        header += ["process, anonymous pages"]
        names = ["kernel_peak_bytes", "second_call_peak_bytes", "inputs_bytes", "process_peak_bytes", "anonymous_resident_bytes"]
        lines += table(header, [[row["shape"], row["dtype"], *(mib(row[name]) for name in names)] for row in result["memory"]])
    return "\n".join(lines) + "\n"
