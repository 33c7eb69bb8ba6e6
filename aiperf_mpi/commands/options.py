# SPDX-License-Identifier: Apache-2.0
"""The command-line options of `run` and `estimate` that choose and change a configuration."""

from __future__ import annotations

import argparse


def add_configuration_options(parser: argparse.ArgumentParser) -> None:
    """Add `--preset`, `--config`, `--set` and `--time-limit`; `config.load` checks their values."""
    parser.add_argument("--preset", help="named configuration: demo, cifar10, imagenet or imagenet-synthetic")
    parser.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="TOML file; may be given several times"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="a.b=c",
        help="set one value, such as train.lr=0.05",
    )
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="length of the core time")
