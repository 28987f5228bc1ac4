"""Run one sparseshot command as N processes on this machine.

python scripts/launch_local_processes.py --processes 4 --devices 2 -- train configs/unet_demo.py

On a machine with GPUs each process gets the next --devices of them; elsewhere (or with --fake) each gets that
many fake CPU devices. Every line of output begins with the number of its process. SIGTERM and Ctrl-C go to
all of them. When one fails, the others have --grace seconds to end by themselves; the exit status is that of
the first that failed.
"""

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from types import FrameType


def main() -> int:
    """Start, watch, end; returns the exit status."""
    options = _options()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{options.port or free.getsockname()[1]}"
    gpus = [] if options.fake else _gpus()
    if gpus and len(gpus) < options.processes * options.devices:
        print(
            f"error: {options.processes} processes x {options.devices} devices need that many GPUs; there "
            f"are {len(gpus)}. Try fewer, or --fake.",
            file=sys.stderr,
        )
        return 2
    started: list[subprocess.Popen[str]] = []
    _forward_signals(started)
    for index in range(options.processes):
        started.append(_start(index, coordinator, gpus, options))
    printers = [
        threading.Thread(target=_print_lines, args=(index, process), daemon=True)
        for index, process in enumerate(started)
    ]
    for printer in printers:
        printer.start()
    status = _wait(started, options.grace)
    for printer in printers:
        printer.join(5.0)
    return status


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2, help="how many (2)")
    parser.add_argument("--devices", type=int, default=1, help="devices for each (1)")
    parser.add_argument("--fake", action="store_true", help="CPU devices, also where there are GPUs")
    parser.add_argument("--port", type=int, default=0, help="of process 0 (a free one)")
    parser.add_argument(
        "--grace", type=float, default=60.0, help="seconds to end after the first failure (60)"
    )
    parser.add_argument("command", nargs="+", help="after --: a verb of sparseshot and its arguments")
    options = parser.parse_args()
    if options.processes < 1 or options.devices < 1:
        parser.error("--processes and --devices must be at least 1")
    return options


def _start(
    index: int, coordinator: str, gpus: list[str], options: argparse.Namespace
) -> subprocess.Popen[str]:
    environment = os.environ | {
        "SPARSESHOT_COORDINATOR": coordinator,
        "SPARSESHOT_PROCESSES": str(options.processes),
        "SPARSESHOT_PROCESS": str(index),
        "PYTHONUNBUFFERED": "1",
    }
    if gpus:
        own = gpus[index * options.devices : (index + 1) * options.devices]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    else:
        environment["JAX_PLATFORMS"] = "cpu"
        known = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
        environment["XLA_FLAGS"] = f"{known} --xla_force_host_platform_device_count={options.devices}".strip()
    return subprocess.Popen(
        [sys.executable, "-c", "from sparseshot_jax.cli import main; main()", *options.command],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C comes once, through us
    )


def _gpus() -> list[str]:
    """Numbers of the GPUs that this process may use."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:  # "" and "-1" hide all of them
        return [one for one in visible.split(",") if one not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(at) for at, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU")]


def _print_lines(index: int, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        sys.stdout.write(f"[{index}] {line}")
        sys.stdout.flush()


def _forward_signals(started: list[subprocess.Popen[str]]) -> None:
    def forward(signum: int, frame: FrameType | None) -> None:
        for process in started:
            if process.poll() is None:
                process.send_signal(signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, forward)


def _wait(started: list[subprocess.Popen[str]], grace_s: float) -> int:
    """Until all ended; what is left after a failure and the grace is killed."""
    status, until = 0, float("inf")
    left = list(started)
    while left:
        for process in [process for process in left if process.poll() is not None]:
            left.remove(process)
            code = process.returncode
            if code and not status:
                status = code if code > 0 else 128 - code
                until = time.monotonic() + grace_s
        if time.monotonic() > until:
            for process in left:
                process.kill()
        time.sleep(0.05)
    return status


if __name__ == "__main__":
    sys.exit(main())
