"""Runs commands in forks of one process that has imported everything: a second less for each.

Reads one JSON object a line: ``argv``, ``under``, ``fail_at`` and ``sticky`` (see
failing_writes.c), ``file_limit`` (bytes, or null), ``output`` (a folder for what is printed).
Answers with the exit code and the operations counted.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path


def _run(request: dict) -> int:
    output = Path(request["output"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), number)
    library = ctypes.CDLL(None)
    if request["file_limit"] is not None:
        limit = request["file_limit"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = ["rvos-deploy", *request["argv"]]
    library.fail_writes(
        os.fsencode(request["under"]), ctypes.c_long(request["fail_at"]), request["sticky"]
    )
    from rvos_deploy.cli.app import main

    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    library.count_writes.restype = ctypes.c_long
    count = library.count_writes()
    library.fail_writes(b"", ctypes.c_long(0), 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(int(request["report"]), str(count).encode())
    return code


def main() -> None:
    """Serve until standard input ends."""
    import av  # noqa: F401
    import onnxruntime  # noqa: F401

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            code = 99
            try:
                code = _run({**json.loads(line), "report": writing})
            finally:
                os._exit(code)
        os.close(writing)
        count = os.read(reading, 64)
        os.close(reading)
        _, status = os.waitpid(child, 0)
        answer = {"code": os.waitstatus_to_exitcode(status), "count": int(count or -1)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
