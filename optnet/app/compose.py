"""From the command line to a checked configuration: Hydra, and the exit statuses. Trains and evaluates nothing."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import timm
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from optnet.app.config import Data, Evaluate, Train
from optnet.app.trainers import typed, wrong_type
from optnet.errors import AlgorithmError, ConfigError, RequestError
from optnet.language.lookup import find_algorithm, list_algorithms
from optnet.networks.zoo import list_models
from optnet.options import check
from optnet.training.distributed import launched, launched_first

Prepare = Callable[[Any, Sequence[str]], Any]


def run(
    name: str, schema: type[Train] | type[Evaluate], prepare: Prepare, job: Callable[[Any], Any], conf: Path
) -> None:
    """Runs ``job(prepare(config, overrides))`` under Hydra.

    ``prepare`` raises ``RequestError`` for what cannot be done and writes nothing; it is called for every job of a
    sweep before the first one runs. A wrong request ends with one line on stderr and status 2.
    """
    prepared: list[Any] = []
    try:
        sys.argv[1:] = register(name, schema, sys.argv[1:])
        asked = _arguments(sys.argv[1:])
        if asked.multirun and launched():
            raise ConfigError("-m does not go under torchrun; instead: python train.py -m distributed.processes=N ...")
        if not (asked.help or asked.hydra_help or asked.config_dir or asked.config_path or asked.config_name):
            for overrides in _jobs(asked.overrides, asked.multirun):
                config = _compose(name, schema, overrides, conf)
                if not (asked.cfg or asked.info or asked.shell_completion):
                    prepared = [prepare(config, overrides)]
            if asked.multirun:
                prepared.clear()
    except RequestError as error:
        _refuse(error)

    def main(config: Any) -> Any:
        try:
            overrides = HydraConfig.get().overrides.task
            return job(prepared.pop() if prepared else prepare(_typed(schema, config), overrides))
        except RequestError as error:
            _refuse(error)

    hydra.main(version_base=None, config_path=str(conf), config_name=name)(main)()


def _arguments(arguments: list[str]) -> Any:
    """The command line as Hydra reads it."""
    parser = get_args_parser()

    def fail(message: str) -> None:
        raise ConfigError(f"{message}; options are written key=value, see --help")

    parser.error = fail  # type: ignore[method-assign, assignment]
    return parser.parse_args(arguments)


def _refuse(error: Exception) -> None:
    if launched_first():
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


def register(name: str, schema: type[Any], arguments: list[str]) -> list[str]:
    """Tells Hydra the keys, our models and algorithms, and those that the command line names: timm's, or a file's.

    Returns the arguments with the slashes of such files written as bars: to Hydra a slash is a group in a group.
    """
    store = ConfigStore.instance()
    node = OmegaConf.structured(schema)
    if "trainer" in node:
        node.trainer = {}  # its keys are those of the option that is chosen; their types are checked with all others
    store.store(name=f"{name}_schema", node=node)
    if "algorithm" not in node:
        store.repo.pop("model", None)  # here model= is a value, not an option of a group
        return arguments
    models, algorithms = {"mlp", *list_models()}, set(list_algorithms())
    written = []
    for argument in arguments:
        key, _, values = argument.partition("=")
        if key == "model":
            models.update(value for value in values.split(",") if timm.is_model(value))
        elif key == "algorithm":
            algorithms.update(value for value in values.split(",") if ":" in value or "." in value)
            argument = argument.replace("/", "|")
        written.append(argument)
    for model in models:
        store.store(group="model", name=model, node={"name": model})
    for spec in algorithms:
        try:
            constants = dict.fromkeys(find_algorithm(spec).constants)
        except AlgorithmError as error:
            raise ConfigError(f"algorithm={spec}: {error}") from None
        store.store(group="algorithm", name=spec.replace("/", "|"), node={"name": spec, **constants})
    return written


def _jobs(arguments: list[str], sweep: bool) -> Iterator[list[str]]:
    """The overrides of every job of a sweep; of the one job, if it is none."""
    try:
        parsed = OverridesParser.create().parse_overrides(arguments)
        parts: list[list[str]] = []
        for override in parsed:
            line = str(override.input_line)
            if sweep and override.is_sweep_override():
                parts.append([f"{line.split('=')[0]}={value}" for value in override.sweep_string_iterator()])
            else:
                parts.append([line])
    except HydraException as error:
        raise ConfigError(_one_line(error)) from None
    return (list(job) for job in itertools.product(*parts))


def _compose(name: str, schema: type[Any], overrides: list[str], conf: Path) -> Any:
    try:
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(conf), version_base=None):
            config = hydra.compose(name, overrides)
        return _typed(schema, config)
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, AssertionError) as error:
        if isinstance(error, RequestError):
            raise
        if isinstance(error.__cause__, ValidationError) and error.__cause__.full_key:
            defaults = schema()
            defaults.data = defaults.data or Data()  # evaluate.py takes a checkpoint's own
            raise wrong_type(error.__cause__, defaults) from None
        raise ConfigError(_one_line(error)) from None


def _typed(schema: type[Any], config: Any) -> Any:
    if missing := OmegaConf.missing_keys(config):
        raise ConfigError(f"{', '.join(sorted(missing))}: ??? is no value; give one")
    try:
        checked = typed(schema, config)
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error)) from None
    check(checked)
    return checked


def _one_line(error: Exception) -> str:
    """Hydra's and OmegaConf's messages, the key in front, without their trailing hints for Python callers."""
    text = str(error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error)
    key = getattr(error.__cause__ or error, "full_key", None)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [
        line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type=", "Set the env"))
    ]
    line = " ".join(lines).partition(" Config search path:")[0].replace("is not in struct", "does not exist here")
    return f"{key}: {line}" if key and key not in line else line
