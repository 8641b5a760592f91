"""Asks Python transformers what `train-shapes-lmm evaluate --dump` asked, and compares the greedy answers word for word.

    python answers_in_transformers.py MODEL DUMP

MODEL is a model folder, used unchanged; DUMP holds answers.jsonl and {scene}.png. Float32, CPU, one thread, one question
at a time. Exit code 1 when an answer differs or transformers warns about the folder.
"""

import argparse
import json
import logging
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers import AutoProcessor, LlavaNextForConditionalGeneration


class Warned(logging.Handler):
    """Keeps what transformers says at level warning and above."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def load(folder):
    processor = AutoProcessor.from_pretrained(folder, use_fast=False)
    model, report = LlavaNextForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    for kind, names in report.items():
        if names:
            sys.exit(f"{folder}: transformers reports {kind}: {sorted(map(str, names))}")
    return processor, model.eval()


@torch.inference_mode()
def answer(processor, model, image, question):
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=image, text=prompt, return_tensors="pt")
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=32)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("dump", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warned = Warned()
    transformers.utils.logging.get_logger("transformers").addHandler(warned)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")

    with warnings.catch_warnings(record=True) as python_warnings:
        warnings.simplefilter("always", UserWarning)
        processor, model = load(args.model)
        lines = [json.loads(line) for line in (args.dump / "answers.jsonl").open()]
        asked, right, equal = Counter(), Counter(), 0
        for line in lines:
            image = Image.open(args.dump / f"{line['scene']}.png").convert("RGB")
            given = answer(processor, model, image, line["question"])
            asked[line["kind"]] += 1
            right[line["kind"]] += given == line["expected"]
            equal += given == line["given"]
            if given != line["given"]:
                print(f"scene {line['scene']}, {line['question']!r}: {given!r}, the dump has {line['given']!r}")

    said = sorted({*warned.lines, *(str(w.message) for w in python_warnings if w.category is UserWarning)})
    for warning in said:
        print(f"warning: {warning}")
    for kind in sorted(asked):
        share = 100 * right[kind] / asked[kind]
        print(f"{kind:10} {right[kind]:6} of {asked[kind]:6} exact  {share:6.2f} %")
    print(f"{equal} of {len(lines)} answers are equal")
    return 0 if lines and equal == len(lines) and not said else 1


if __name__ == "__main__":
    sys.exit(main())
