"""From the command line to a checked configuration: Hydra. Trains and evaluates nothing."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import timm
from hydra._internal.utils import get_args_parser
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

import optnet
from optnet.app import completion, sweep
from optnet.app.config import Evaluate, Train
from optnet.app.exits import exit_statuses
from optnet.app.guide import guide
from optnet.app.refusal import one_line, refused, wrong_type
from optnet.data import DataOptions
from optnet.errors import AlgorithmError, ConfigError, RequestError
from optnet.language.declaration import registered
from optnet.language.lookup import find_algorithm, list_algorithms
from optnet.networks.zoo import list_models
from optnet.options import check, expand_paths, one_of, settle_words, tables
from optnet.training.distributed import launched
from optnet.training.trainers import TRAINERS

Schema = type[Train] | type[Evaluate]
Prepare = Callable[[Sequence[tuple[Any, Sequence[str]]]], Sequence[Any]]

_PREPARED: list[Any] = []
"""The requests of this command that are prepared and not yet run; each has its ``config``."""


def choose(value: Any, table: Mapping[Any, Any], otherwise: Any) -> Any:
    """``${choose:VALUE,{WORD:RESULT,...},OTHERWISE}`` in a file of conf/: what a table has for a value."""
    return table.get(value, otherwise)


OmegaConf.register_new_resolver("choose", choose, replace=True)  # here: processes of a cluster only import this module

MODES = ("run", "multirun", "cfg", "info", "help", "hydra_help", "shell_completion")
"""Hydra's options of which a command can have one."""


def conf() -> Path:
    """The folder conf/: inside the package where a wheel was installed, else beside it in a checkout."""
    package = Path(optnet.__file__).parent
    return next(place for place in (package / "conf", package.parent / "conf") if (place / "train.yaml").is_file())


class _UsersConf(SearchPathPlugin):
    """Hydra looks for groups in the user's conf/ too: in the working directory, and beside the script that runs."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        places = (Path.cwd() / "conf", Path(sys.argv[0]).absolute().parent / "conf")
        for place in dict.fromkeys(place.resolve() for place in places if place.is_dir()):
            if place != conf().resolve():
                search_path.append(provider="user", path=f"file://{place}")


def run(name: str, schema: Schema, prepare: Prepare, job: sweep.Job) -> None:
    """Runs ``job(request, label)`` under Hydra, for each request of ``prepare(((config, overrides), ...))``.

    ``prepare`` raises ``RequestError`` for what cannot be done and writes nothing. It gets every job of a sweep at
    once, before the first one runs. A wrong request ends with one line on stderr and status 2.
    """
    Plugins.instance().register(_UsersConf)
    _PREPARED.clear()
    with exit_statuses():
        sys.argv[1:] = register(name, schema, sys.argv[1:])
        asked = _arguments(sys.argv[1:])
        if asked.multirun:
            sys.argv.append(_named_by_the_swept_keys(asked.overrides))
        if asked.multirun and launched():
            raise ConfigError("-m does not go under torchrun; instead: python train.py -m distributed.processes=N ...")
        if asked.help:
            print(guide(name, compose(name, schema, asked.overrides), options_of_groups()))
            return
        if asked.shell_completion:
            completion.check(asked.overrides)
        elif schema is Evaluate:
            _check_data(asked.overrides)
        if not (asked.hydra_help or asked.shell_completion):
            place = _place(asked)
            composed = [
                (compose(asked.config_name or name, schema, overrides, *place), overrides)
                for overrides in _jobs(asked.overrides, asked.multirun)
            ]
            if asked.multirun and _is_search(asked.overrides):
                _check_goal(config for config, _ in composed)
            if not (asked.cfg or asked.info):
                _PREPARED.extend(prepare(composed))

    def main(config: Any) -> float:
        def request() -> Any:
            chosen = typed(schema, config)
            return _prepared(chosen) or prepare([(chosen, HydraConfig.get().overrides.task)])[0]

        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return sweep.attempt(request, job)
        with exit_statuses():
            return job(request(), "").value

    status = 0
    try:
        with exit_statuses():
            hydra.main(version_base=None, config_path=str(conf()), config_name=name)(main)()
    finally:
        status = sweep.end()
    if status:
        sys.exit(status)


def _prepared(config: Any) -> Any:
    """The prepared request of a configuration, once. There is none in the process that a cluster runs a job in."""
    for request in _PREPARED:
        if request.config == config:
            _PREPARED.remove(request)
            return request
    return None


def _arguments(arguments: list[str]) -> Any:
    """The command line as Hydra reads it."""
    parser = get_args_parser()

    def fail(message: str) -> None:
        raise ConfigError(f"{message}; options are written key=value, see --help")

    parser.error = fail  # type: ignore[method-assign, assignment]
    asked = parser.parse_args(arguments)
    if asked.resolve and not asked.cfg:
        raise ConfigError("--resolve goes with --cfg job")
    modes = [f"--{mode.replace('_', '-')}" for mode in MODES if getattr(asked, mode)]
    if len(modes) > 1:
        raise ConfigError(f"{' and '.join(modes)} do not go together; give one of them")
    return asked


def register(name: str, schema: Schema, arguments: list[str]) -> list[str]:
    """Tells Hydra the keys, our models and algorithms, and those that the command line names: timm's, or a file's.

    Returns the arguments with the slashes of such files written as bars: to Hydra a slash is a group in a group.
    """
    store = ConfigStore.instance()
    node = OmegaConf.structured(schema)
    if "trainer" in node:
        node.data = DataOptions()  # what a group's option does not say is as the class has it
        node.algorithm = {}
        node.trainer = {}  # its keys are those of the option that is chosen; their types are checked with all others
    store.store(name=f"{name}_schema", node=node)
    if "algorithm" not in node:
        store.repo.pop("model", None)  # here model= is a value, not an option of a group
        return arguments
    for trainer, kind in TRAINERS.items():
        keys = OmegaConf.to_container(OmegaConf.structured(kind.options))
        store.store(group="schema", name=trainer, node=keys, package="trainer")
    models, algorithms = set(list_models()), set(list_algorithms())
    free = [table for table in tables(schema()) if table != "algorithm"]
    written = []
    for argument in arguments:
        key, _, values = argument.partition("=")
        if key.rpartition(".")[0] in free or (key in free and values.startswith("{")):
            argument = f"++{argument}"  # Hydra asks for it where a table gets a new key
        if key == "model":
            models.update(value for value in values.split(",") if timm.is_model(value))
        elif key == "algorithm":
            aliases = registered()
            algorithms.update(v for v in values.split(",") if ":" in v or "." in v or v in aliases)
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


def _named_by_the_swept_keys(arguments: Sequence[str]) -> str:
    """Keeps what is the same in every job of a sweep out of the names of the jobs' run folders."""
    fixed = [override.key_or_group for override in _parsed(arguments) if not override.is_sweep_override()]
    return f"hydra.job.config.override_dirname.exclude_keys=[{','.join(map(repr, fixed))}]"


def _parsed(arguments: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    found = []
    for argument in arguments:
        try:
            found.append(parser.parse_override(argument))
        except HydraException as error:
            why = one_line(error).partition(" See http")[0]
            why = "" if "NoViableAlt" in why or "missing EQUAL" in why else f" ({why})"
            raise ConfigError(
                f"{argument!r} cannot be read{why}; write key=value, and a value with other signs in quotes, like "
                "'name=\"a b\"'"
            ) from None
    return found


def keys(overrides: Sequence[str]) -> list[str]:
    """The keys that overrides state, like ``data.size``."""
    return [override.partition("=")[0].lstrip("+~") for override in overrides]


def _jobs(arguments: list[str], multirun: bool) -> Iterator[list[str]]:
    """The overrides of every job of a sweep; of the one job, if it is none.

    A search, by a sweeper other than Hydra's own, draws its jobs as it likes. Then each value is in one job here, and
    an interval has the values of its two ends.
    """
    parts: list[list[str]] = []
    for override in _parsed(arguments):
        line = str(override.input_line)
        if not (multirun and override.is_sweep_override()):
            parts.append([line])
            continue
        ends = override.value()
        values = (ends.start, ends.end) if isinstance(ends, IntervalSweep) else override.sweep_string_iterator()
        parts.append([f"{line.split('=')[0]}={value}" for value in values])
    if multirun and _is_search(arguments):
        longest = max(map(len, parts), default=1)
        return ([part[min(number, len(part) - 1)] for part in parts] for number in range(longest))
    return (list(job) for job in itertools.product(*parts))


def _is_search(arguments: Sequence[str]) -> bool:
    """Whether a sweep is a search: a sweeper other than Hydra's own draws its jobs, by the value that each returns."""
    return any(
        (override.key_or_group == "hydra/sweeper" and override.value() != "basic")
        or (override.is_sweep_override() and isinstance(override.value(), IntervalSweep))
        for override in _parsed(arguments)
    )


def _check_goal(configs: Iterable[Any]) -> None:
    """Raises:
    ConfigError: a job of a search has no value to optimise.
    """
    if any(isinstance(config, Train) and not config.data.validation for config in configs):
        raise ConfigError(
            "a search optimises the validation accuracy, and data.validation=0 leaves none; give data.validation=0.1"
        )


def _check_data(arguments: Sequence[str]) -> None:
    """Raises:
    ConfigError: an option of the data is given and no data.
    """
    keys = [override.key_or_group for override in _parsed(arguments)]
    options = [key for key in keys if key.startswith("data.")]
    if options and "data" not in keys:
        raise ConfigError(f"{options[0]} needs data=, like data=folder data.root=images")


def _place(asked: Any) -> tuple[Path, list[str]]:
    """The folder of the first configuration, and the folders besides, as --config-path and --config-dir say.

    Raises:
        ConfigError: one of them is no folder.
    """
    for key in ("config_path", "config_dir"):
        given = getattr(asked, key)
        if given and "://" not in given and not Path(given).is_dir():
            raise ConfigError(f"--{key.replace('_', '-')} {given}: there is no such folder")
    first = Path(asked.config_path).absolute() if asked.config_path else conf()
    return first, [f"file://{Path(asked.config_dir).absolute()}"] if asked.config_dir else []


def compose(
    name: str, schema: Schema, overrides: Sequence[str], place: Path | None = None, besides: Sequence[str] = ()
) -> Any:
    """The configuration of these overrides, checked.

    Args:
        place: the folder of the configuration ``name``; by default conf/.
        besides: further places where Hydra looks for groups.

    Raises:
        ConfigError: a key or a value is wrong.
    """
    for override in _parsed(overrides):
        if override.is_delete() and override.key_or_group not in _groups(schema):
            raise ConfigError(f"~{override.key_or_group}: a key cannot be left out; give it a value")
    try:
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(place or conf()), version_base=None):
            more = [f"hydra.searchpath=[{','.join(map(repr, besides))}]"] if besides else []
            return typed(schema, hydra.compose(name, [*overrides, *more]))
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, AssertionError, OSError) as error:
        if isinstance(error, RequestError):
            raise
        raise refused(error, _defaults(schema), overrides, _groups(schema)) from None


def options_of_groups() -> dict[str, list[str]]:
    """The options of every group, those of the user's conf/ among them."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf()), version_base=None):
        loader = GlobalHydra.instance().config_loader()
        groups = [group for group in loader.list_groups("") if group not in ("hydra", "schema")]
        return {group: sorted(loader.get_group_options(group)) for group in groups}


def _defaults(schema: Schema) -> Any:
    """The configuration without overrides."""
    defaults = schema()
    defaults.data = defaults.data or DataOptions()  # evaluate.py takes a checkpoint's own
    return defaults


def _groups(schema: Schema) -> list[str]:
    return [place.name for place in conf().iterdir() if place.is_dir()] if schema is Train else ["data"]


def typed(schema: Schema, config: Any) -> Any:
    """A composed configuration as checked dataclasses, its trainer's options among them.

    Raises:
        ConfigError: a key or a value is wrong.
    """
    if missing := OmegaConf.missing_keys(config):
        raise ConfigError(f"{', '.join(sorted(missing))}: ??? is no value; give one")
    try:
        checked = _objects(schema, config)
    except OmegaConfBaseException as error:
        raise refused(error, _defaults(schema), groups=_groups(schema)) from None
    expand_paths(checked)
    settle_words(checked)
    check(checked)
    return checked


def _objects(schema: Schema, content: Any) -> Any:
    """Raises:
    ConfigError: there is no such trainer, or a value is of the wrong type. OmegaConfBaseException: an unknown key.
    """
    base = OmegaConf.structured(schema)
    if "trainer" in base:
        name = OmegaConf.select(content, "trainer.name")
        one_of("trainer.name", name, TRAINERS)
        base.trainer = OmegaConf.structured(TRAINERS[name].options)
    try:
        plain = OmegaConf.to_container(content)  # merged as it is, a key that was added with + would pass
        return OmegaConf.to_object(OmegaConf.merge(base, plain))
    except ValidationError as error:
        raise wrong_type(error, OmegaConf.to_object(base)) from None
