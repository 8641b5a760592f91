"""Reads the event files of a folder as TensorBoard does, and checks that every curve is one line.

    python events_in_tensorboard.py FOLDER

Prints the number of points of each curve with its first and last; exit code 1 when there is no curve or one goes back.
"""

import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def main():
    events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()["scalars"]
    broken = not tags
    for tag in tags:
        points = events.Scalars(tag)
        steps = [point.step for point in points]
        goes_back = any(later <= earlier for earlier, later in zip(steps, steps[1:]))
        broken |= goes_back
        first, last = points[0], points[-1]
        note = ", GOES BACK" if goes_back else ""
        print(f"{tag}: {len(points)} points, {first.value:g} at {first.step} to {last.value:g} at {last.step}{note}")
    sys.exit(broken)


main()
