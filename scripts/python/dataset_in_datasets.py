"""Opens a folder that `sae-data shapes` wrote with PyPI's `datasets`, and checks that what it decodes are the very PNGs.

    python dataset_in_datasets.py FOLDER [--split train]

Every image and mask is decoded by `datasets` and compared with the pixels of the PNG bytes in the parquet file. Exit code
1 on a mismatch.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
from PIL import Image


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png["bytes"])))


def same(decoded, png):
    """`decoded` is the PIL image that `datasets` made of `png`."""
    return decoded.format == "PNG" and np.array_equal(np.asarray(decoded), pixels(png))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="train")
    args = parser.parse_args()
    files = sorted(args.folder.glob(f"data/{args.split}-*.parquet"))
    raw = [row for file in files for row in pyarrow.parquet.read_table(file).to_pylist()]
    with tempfile.TemporaryDirectory() as cache:
        data = datasets.load_dataset(str(args.folder), split=args.split, cache_dir=cache)
        print(f"datasets {datasets.__version__}: {len(data)} rows, {data.features}")
        if len(data) != len(raw) or not raw:
            print(f"expected {len(raw)} rows of {len(files)} files, at least one")
            return 1
        images = masks = wrong = 0
        for number, (row, png) in enumerate(zip(data, raw)):
            good = same(row["image"], png["image"]) and len(row["masks"]) == len(png["masks"])
            for decoded, stored in zip(row["masks"], png["masks"]):
                mask = decoded["mask"]
                good &= same(mask, stored["mask"]) and mask.size == row["image"].size
                good &= decoded["labels"] == stored["labels"] and set(np.unique(mask)) <= {0, 255}
                masks += 1
            good &= all(row[name] == png[name] for name in ("id", "caption", "conversations"))
            images += 1
            wrong += not good
            if not good:
                print(f"row {number} ({png['id']}) differs")
    print(f"{images} images and {masks} masks decoded, {wrong} rows differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
