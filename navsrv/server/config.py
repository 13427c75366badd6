"""Owns the configuration: TOML, parsed once into frozen types; unknown keys refused; every fault listed at once."""

from __future__ import annotations

import socket
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from navsrv.kernel.checking import Checker
from navsrv.kernel.errors import ConfigError
from navsrv.server.config_checks import cross_check
from navsrv.server.config_grabber import located
from navsrv.server.config_ndi import inlined
from navsrv.server.config_tables import Config


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a file with ``key=value`` overrides applied.

    Raises
    ------
    ConfigError
        With every fault: file, key, what is wrong, what would be right.
    """
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError([f"{path}: there is no such file; expected a TOML configuration"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read ({error}); expected a TOML configuration"]) from None
    except RecursionError:
        raise ConfigError([f"{path}: nested too deeply; expected tables as in examples/demo.toml"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: not TOML: {error}; expected a complete TOML file"]) from None
    checker = Checker(str(path))
    for override in overrides:
        _apply(checker, data, override)
    config = checker.table(Config, data, "")
    cross_check(checker, data, path.parent)
    if checker.faults or config is None:
        raise ConfigError(checker.faults)
    trackers = {
        name: tracker if tracker.ndi is None else replace(tracker, ndi=inlined(tracker.ndi, path.parent))
        for name, tracker in config.trackers.items()
    }
    imaging = {
        name: source if source.grabber is None else replace(source, grabber=located(source.grabber, path.parent))
        for name, source in config.imaging.items()
    }
    return replace(config, trackers=trackers, imaging=imaging)


def resolved(config: Config) -> Config:
    """Return the configuration with every tracker's host as an address: the loop must never wait for a name.

    Raises
    ------
    ConfigError
        A name that has no address.
    """
    trackers = {}
    for name, tracker in config.trackers.items():
        address = tracker.host
        if tracker.connect == "client":
            try:
                found = socket.getaddrinfo(tracker.host, None, socket.AF_INET, socket.SOCK_STREAM)
                address = str(found[0][4][0])
            except OSError:
                wrong = f"trackers.{name}.host: {tracker.host!r} has no IPv4 address"
                raise ConfigError([f"{wrong}; expected a host's name or address"]) from None
        trackers[name] = replace(tracker, host=address)
    return replace(config, trackers=trackers)


def _apply(checker: Checker, data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        checker.fault(f"--set {override}", "not an assignment", "key=value, such as trackers.main.port=18944")
        return
    table = data
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            checker.fault(f"--set {override}", f"{part!r} is not a table", "a key of the configuration")
            return
    table[parts[-1]] = _literal(text.strip())


def _literal(text: str) -> Any:
    """Return a value as TOML would read it; a bare word is a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
