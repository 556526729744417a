"""What a program calls, seen by strace once it is ready: to watch Python start takes longer than all the rest."""

import os
import subprocess

from conftest import need

READY = "print('ready', flush=True); sys.stdin.readline()\n"  # for the program, where the trace is to begin


def traced(path, command, *options, cwd=None):
    """Run *command*, which says READY, with its trace in *path*. A CompletedProcess."""
    need("strace")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, cwd=cwd) as program:
        if program.stdout.readline() != "ready\n":
            raise AssertionError(program.communicate()[1])
        watching = ["strace", "-f", "-o", os.fspath(path), *options, "-p", str(program.pid)]
        with subprocess.Popen(watching, stderr=subprocess.PIPE, text=True) as strace:
            assert "attached" in strace.stderr.readline()
            out, err = program.communicate("\n")
            strace.communicate()
    return subprocess.CompletedProcess(command, program.returncode, out, err)
