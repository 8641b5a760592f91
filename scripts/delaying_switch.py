"""A network switch between tap devices that delivers every frame late, for kernels without tc netem.

    delaying_switch.py SECONDS FOLDER DEVICE...

Makes the devices and writes "ready"; netns.sh then moves each into a namespace. While FOLDER/cut-I exists, nothing
goes to or comes from device I, as with a cut cable. Ends when it is killed, and the devices end with it.
"""

import collections
import fcntl
import os
import select
import struct
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
# Longer than a frame of an Ethernet without jumbo frames.
FRAME_BYTES = 4096
# What waits, in frames; more is dropped, as a switch does.
QUEUE = 20_000
# How often the cables are looked at, in seconds.
LOOK = 0.02


def tap(name):
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
    return device


def main():
    delay, folder, names = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
    ports = [tap(name) for name in names]
    poller = select.poll()
    for port in ports:
        poller.register(port, select.POLLIN)
    print("ready", flush=True)
    number = {port: i for i, port in enumerate(ports)}
    waiting = collections.deque()
    learned = {}
    cut, looked = set(), 0.0
    while True:
        now = time.monotonic()
        if now - looked >= LOOK:
            cut = {i for i in range(len(ports)) if os.path.exists(os.path.join(folder, f"cut-{i}"))}
            looked = now
        while waiting and waiting[0][0] <= now:
            _, source, frame = waiting.popleft()
            target = learned.get(frame[:6])
            for i, port in enumerate(ports):
                if i != source and i not in cut and target in (None, i):
                    try:
                        os.write(port, frame)
                    except OSError:
                        pass  # The device is down, or its queue full.
        timeout = min(LOOK, waiting[0][0] - now) if waiting else LOOK
        # poll() counts in milliseconds; what is due earlier is spun for.
        for port, _ in poller.poll(int(timeout * 1000)):
            source = number[port]
            for _ in range(64):
                try:
                    frame = os.read(port, FRAME_BYTES)
                except OSError:
                    break
                if source in cut or len(waiting) >= QUEUE:
                    continue
                learned[frame[6:12]] = source
                waiting.append((time.monotonic() + delay, source, frame))


main()
