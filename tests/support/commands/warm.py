"""Processes of autotune that need not import torch, because a server forks them that has.

To import torch, timm and autotune takes 5 CPU seconds, for the launcher and for each of its
workers: longer than most small studies. Where a test starts many processes, and is not about how
one starts, a program takes the place of ``python``. It passes its arguments, environment, folder
and standard streams to the server, passes signals on to the forked process, and ends as that one
does. When the program is killed, the server kills the process.

The program runs Python itself for what is not ``-m autotune...`` and where ``PYTHONPATH`` is not
that of the server. Libraries read some variables when they are imported; those are the server's.

This file is the program, the server and what starts it. The program has to start in milliseconds,
so the others import what they need in their functions.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

#: Signals that the program passes on.
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Modules that the server does not import, because they are programs.
PROGRAMS = ("autotune.__main__", "autotune.study.engine.worker_main")
#: The last byte of a message; JSON has none.
END = b"\n"


@contextmanager
def warm_python(folder: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    """Start a server; yield the path of the program that is called instead of ``python``.

    Args:
        folder: An empty folder with a short path, because a socket lies in it.
        environment: The variables of the server.
    """
    import shlex
    import subprocess

    address, program = folder / "socket", folder / "python"
    words = ("-I", "-S", __file__, address, sys.executable, environment.get("PYTHONPATH", ""))
    start = shlex.join([sys.executable, *map(str, words)])
    program.write_text(f'#!/bin/sh\nexec {start} "$0" "$@"\n')
    program.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, __file__, address],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdin is not None and server.stdout is not None
    with server:
        ready = server.stdout.readline()
        assert ready, "the server has ended"
        try:
            yield program
        finally:
            server.stdin.close()  # it ends, and kills what it has forked


def run_program(address: str, python: str, path: str, program: str, *arguments: str) -> NoReturn:
    """Have the server run ``python`` with these arguments, and end as it does."""
    module = arguments[1] if arguments[:1] == ("-m",) and arguments[1:] else ""
    if module.split(".")[0] != "autotune" or os.environ.get("PYTHONPATH", "") != path:
        os.execv(python, [python, *arguments])
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    request = {
        "program": program,
        "module": module,
        "arguments": arguments[2:],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
    }
    for number in PASSED_ON:
        signal.signal(number, lambda received, _frame: server.sendall(bytes([received])))
    socket.send_fds(server, [b"."], [0, 1, 2])
    server.sendall(json.dumps(request).encode() + END)
    code = int(server.makefile().readline() or "1")
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def serve(address: str) -> NoReturn:
    """Fork a process for every program that connects, until standard input ends."""
    import gc
    import pkgutil
    import selectors
    from importlib import import_module

    sys.path[0] = os.getcwd()  # instead of the folder of this file
    gc.disable()
    import autotune

    for module in pkgutil.walk_packages(autotune.__path__, "autotune."):
        if module.name not in PROGRAMS:
            import_module(module.name)
    gc.enable()
    gc.freeze()  # else the first search for cycles copies all pages that a process shares
    threads = [one.read_text().strip() for one in Path("/proc/self/task").glob("*/comm")]
    # The thread of pyarrow's jemalloc, which is made for forks, is the only other one.
    others = [name for name in threads if name != "jemalloc_bg_thd"]
    assert len(others) == 1, f"a fork would lose a thread: {threads}"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    running: dict[int, socket.socket] = {}
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fd == 0:
                for pid in running:
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)
            if key.fileobj is listener:
                program, _ = listener.accept()
                _, streams, _, _ = socket.recv_fds(program, 1, 3)
                if len(streams) < 3:  # it was killed before it has asked
                    continue
                with program.makefile("rb") as lines:
                    request = json.loads(lines.readline() or b"{}")
                pid = os.fork() if request else 0
                if request and not pid:
                    selector.close()
                    for one in (listener, program, *running.values()):
                        one.close()
                    become(request, streams)
                for stream in streams:
                    os.close(stream)
                if pid:
                    running[pid] = program
                    selector.register(program, selectors.EVENT_READ, pid)
                    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
            elif isinstance(key.fileobj, socket.socket):
                if key.data not in running:  # both have ended since
                    continue
                received = key.fileobj.recv(16)
                for number in received or [signal.SIGKILL]:
                    os.kill(key.data, number)
                if not received:
                    selector.unregister(key.fileobj)
            else:
                _, status = os.waitpid(key.data, 0)
                selector.unregister(key.fileobj)
                os.close(key.fd)
                program = running.pop(key.data)
                if program.fileno() in selector.get_map():
                    selector.unregister(program)
                with suppress(ConnectionError):  # it was killed
                    program.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                program.close()


def become(request: dict[str, Any], streams: list[int]) -> NoReturn:
    """Run a module as its own process would."""
    import runpy
    import traceback

    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.executable = request["program"]
    sys.path[0] = request["folder"]
    sys.argv = [request["module"], *request["arguments"]]
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        run_program(*sys.argv[1:])
    serve(sys.argv[1])
