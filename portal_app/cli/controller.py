"""``vpn-portal controller``: the process beside the web portal."""

import argparse
import logging
import sys

from portal_app.controller import loop
from portal_app.settings import Settings


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "controller",
        help="watch the nodes and keep house (a service)",
        description="One per portal host; one of them leads. Runs until it gets SIGTERM.",
    )
    parser.set_defaults(run=run)


def run(_arguments: argparse.Namespace, settings: Settings) -> int:
    # The journal has the time of each line.
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    return loop.run(settings)
