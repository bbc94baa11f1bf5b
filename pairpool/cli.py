"""The command `pairpool`, with its subcommands. Each subcommand imports its modules only when it runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr

__all__ = ["main"]


def _at_least(least: int, text: str) -> int:
    number = int(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, not {number}")
    return number


def whole_number(text: str) -> int:
    return _at_least(1, text)


def count(text: str) -> int:
    return _at_least(0, text)


def duration(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, not {text}")
    return number


def _add_stress(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "stress",
        help="run a seeded mix of tasks while another process kills workers, and check every outcome",
        description="Run a seeded mix of tasks in one pool while another process kills, stops and ends its workers, "
        "then check that every task ended as its seed predicts and that nothing is left behind. "
        "Exit status: 0 passed, 1 failed, 2 bad usage, 130 interrupted.",
        epilog="example: pairpool stress --workers 16 --tasks 50000 --kills 200 --live",
    )
    parser.add_argument("--workers", type=whole_number, default=8, metavar="N", help="processes of the pool (8)")
    parser.add_argument("--tasks", type=whole_number, default=200_000, metavar="N", help="tasks to run (200000)")
    parser.add_argument("--kills", type=count, default=500, metavar="N", help="signals to send (500)")
    parser.add_argument("--seed", type=count, default=1, metavar="N", help="seed of the random mix (1)")
    parser.add_argument(
        "--start-method", choices=("fork", "forkserver", "direct"), default="fork", help="as for Pool (fork)"
    )
    parser.add_argument("--chunksize", type=whole_number, metavar="N", help="items per batch (automatic)")
    parser.add_argument("--clients", type=whole_number, default=3, metavar="N", help="threads that call the pool (3)")
    parser.add_argument("--seconds", type=duration, metavar="S", help="start no new tasks after this time")
    parser.add_argument(
        "--hang", type=duration, default=60.0, metavar="S", help="fail if no task starts or ends for this time (60)"
    )
    parser.add_argument("--live", action="store_true", help="show the live view of the pool meanwhile")
    _add_hostile(parser)
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON")
    parser.add_argument(
        "--memory-log", metavar="FILE", help="write seconds, rss, descriptors and tasks ended as CSV, once a second"
    )
    parser.set_defaults(run=_stress)


def _add_hostile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hostile",
        action="store_true",
        help="let tasks attack the pool instead, and check that they harm nothing else",
    )
    parser.add_argument(
        "--packets", type=count, default=100_000, metavar="N", help="with --hostile: packets to send (100000)"
    )
    parser.add_argument(
        "--boards",
        type=count,
        default=10_000,
        metavar="N",
        help="with --hostile: times to scribble on the scoreboard (10000)",
    )


def _stress(arguments: argparse.Namespace) -> int:
    from pairpool.stress.campaign import CampaignOptions, run

    if arguments.hostile:
        return _besiege(arguments)
    options = CampaignOptions(
        workers=arguments.workers,
        tasks=arguments.tasks,
        kills=arguments.kills,
        seed=arguments.seed,
        start_method=arguments.start_method,
        chunksize=arguments.chunksize,
        clients=arguments.clients,
        seconds=arguments.seconds,
        hang=arguments.hang,
        live=arguments.live,
    )
    try:
        for path in filter(None, (arguments.json, arguments.memory_log)):
            open(path, "a").close()  # fail now, and not after the run
    except OSError as error:
        print(f"pairpool stress: {error}", file=sys.stderr)
        return 2
    return run(options, arguments.json, arguments.memory_log)


def _besiege(arguments: argparse.Namespace) -> int:
    from pairpool.stress.hostile.siege import HostileOptions, besiege

    names = ("workers", "packets", "boards", "seed", "start_method", "seconds", "hang")
    return besiege(HostileOptions(**{name: getattr(arguments, name) for name in names}), arguments.json)


_STATUSES = """exit status:
  0    success
  1    there is no such pool
  2    bad usage, several pools and none named, or no room for the output
  3    the pool belongs to another user
  141  the reader of the output has gone"""


def _add_top(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "top",
        help="show what a running pool is doing, from outside",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Show a running pool of yours on this machine. It is read from its scoreboard in\n"
        "shared memory, so this works for a stuck pool, too. Press q to quit. Without a\n"
        "terminal, print one line per interval.",
        epilog="examples:\n"
        "  pairpool top                  the only pool there is, or a list to choose from\n"
        "  pairpool top 4711             the pool of this process, master or worker\n"
        "  pairpool top crawler --once   one picture of the pool with this name\n"
        "  pairpool top --json | jq '.[].done'\n\n" + _STATUSES,
    )
    parser.add_argument("pool", nargs="?", metavar="PID|NAME", help="a process, a pool's name, or PID:NAME")
    parser.add_argument("--once", action="store_true", help="print one picture and end")
    parser.add_argument(
        "--json", action="store_true", help="print the status as JSON and end; if no pool is named, all in a list"
    )
    parser.add_argument("--interval", type=duration, default=0.5, metavar="S", help="seconds between pictures (0.5)")
    parser.set_defaults(run=_top)


def _top(arguments: argparse.Namespace) -> int:
    from pairpool.view import top

    return top.run(arguments.pool, once=arguments.once, as_json=arguments.json, interval=arguments.interval)


def _add_stack(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "stack",
        help="show the Python stacks of a pool's tasks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Show the Python stack of each worker's task, the most recent call first. No task\n"
        "ends or fails because of it. This includes endless loops and native code.",
        epilog="examples:\n"
        "  pairpool stack 4711        all workers of this pool, or this one worker\n"
        "  pairpool stack crawler 3   worker 3\n\n" + _STATUSES,
    )
    parser.add_argument("pool", nargs="?", metavar="PID|NAME", help="a process, a pool's name, or PID:NAME")
    parser.add_argument("worker", nargs="?", type=count, metavar="WORKER", help="number of the only worker to show")
    parser.add_argument("--timeout", type=duration, default=1.0, metavar="S", help="seconds to wait for stacks (1)")
    parser.set_defaults(run=_stack)


def _stack(arguments: argparse.Namespace) -> int:
    from pairpool.view import stack

    return stack.run(arguments.pool, arguments.worker, arguments.timeout)


def _pixels(text: str) -> int:
    number = _at_least(300, text)
    if number > 20_000:
        raise argparse.ArgumentTypeError(f"must be at most 20000, not {number}")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds, not {text}")
    return number


def _add_timeline(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "timeline",
        help="draw a trace of Pool(trace=...) as an SVG picture",
        description="Draw a trace as an SVG picture: one lane per worker, tasks coloured by function, idle time white. "
        "Failures, deaths and replacements are marked, and the share of busy workers is drawn below. "
        "Exit status: 0 drawn, 1 nothing to draw, 2 bad usage or a file that cannot be read or written.",
        epilog="example: pairpool timeline run.json -o run.svg --from 2 --to 5.5",
    )
    parser.add_argument("trace", metavar="FILE", help="a trace of pairpool, or any file in the Chrome trace format")
    parser.add_argument("-o", "--output", metavar="FILE", help="the picture; - is stdout (the trace's name, with .svg)")
    parser.add_argument("--width", type=_pixels, default=1200, metavar="N", help="pixels (1200)")
    parser.add_argument("--from", type=_seconds, dest="begin", metavar="S", help="first second to show (the first)")
    parser.add_argument("--to", type=_seconds, dest="end", metavar="S", help="last second to show (the last)")
    parser.set_defaults(run=_timeline)


def _timeline(arguments: argparse.Namespace) -> int:
    from pairpool.view.timeline import run

    begin, end = arguments.begin, arguments.end
    if end is not None and end <= (begin or 0.0):
        print(f"pairpool timeline: --to {end:g} is not after --from {begin or 0:g}", file=sys.stderr)
        return 2
    return run(arguments.trace, arguments.output, arguments.width, begin, end)


def _version() -> str:
    return f"pairpool {sys.modules['pairpool'].__version__}, Python {sys.version.split()[0]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (by default those of the process), and return the exit status."""
    if sys.stderr is None:  # it was closed, and `print` would write error messages to standard output
        with open(os.devnull, "w") as null, redirect_stderr(null):
            return _run(argv)
    return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="pairpool", description="Watch, trace and test the process pools of pairpool."
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_top(commands)
    _add_stack(commands)
    _add_timeline(commands)
    _add_stress(commands)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
