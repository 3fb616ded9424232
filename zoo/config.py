"""Reading configurations, with an error for every key that nothing would read."""

import ast
import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from mmengine.config import Config
from mmengine.registry import Registry, root
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, TestLoop, ValLoop
from timm.optim import get_optimizer_class, list_optimizers
from torch.utils.data import DataLoader

from ..heads.prompts import list_prompts, method
from .data.own import apply_own_data
from .errors import ConfigError
from .registry import register_all
from .signatures import accepted_arguments

# Read by the runner, the tools, or mmengine itself.
TOP_LEVEL = frozenset(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"} | {
    "activation_checkpointing",
    "cfg",
    "compile",
    "custom_imports",
    "efficient_conv_bn_eval",
    "find_unused_parameters",
    "gpu_ids",
    "load_strict",
    "model_wrapper_cfg",
    "own_data",
    "probing",
    "runner_type",
    "sync_bn",
    "tta_model",
    "tta_pipeline",
}
# Names that OpenMMLab's configurations give to values used elsewhere, used or not.
_CONVENTIONAL = frozenset(
    {
        "backend_args",
        "base_batch_size",
        "base_lr",
        "classes",
        "crop_size",
        "data_root",
        "dataset_type",
        "file_client_args",
        "image_size",
        "img_norm_cfg",
        "img_scale",
        "input_size",
        "interval",
        "log_interval",
        "max_epochs",
        "max_iters",
        "metainfo",
        "norm_cfg",
        "num_classes",
        "num_stages",
        "test_pipeline",
        "train_pipeline",
        "val_pipeline",
    }
)
# What the sections without a `type` may hold.
_SECTIONS: dict[str, frozenset[str]] = {
    "auto_scale_lr": frozenset({"enable", "base_batch_size"}),
    "randomness": frozenset({"seed", "diff_rank_seed", "deterministic"}),
    "probing": frozenset({"cached", "cache_dir", "dtype", "knn"}),
    "env_cfg": frozenset({"cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"}),
}
_LOADER = frozenset(inspect.signature(DataLoader.__init__).parameters) - {"self"} | {
    "batch_sampler",
    "num_batch_per_epoch",
    "disable_subprocess_warning",
}
# Consumed by whoever builds from the registry, before the constructor sees them.
_TAKEN_BY_BUILDER: dict[str, frozenset[str]] = {
    "hook": frozenset({"priority"}),
    "loop": frozenset({"by_epoch"}),
    "optim_wrapper": frozenset({"constructor", "optimizer", "paramwise_cfg"}),
    "parameter scheduler": frozenset({"convert_to_iter_based"}),
    "weight initializer": frozenset({"layer", "name", "override"}),
    "model": frozenset({"bg_cls_weight", "init_cfg", "requires_grad"}),
    "visualizer": frozenset({"name"}),
}
# Dictionaries whose `type` is not looked up in a registry.
_FREE = frozenset(
    {"clip_grad", "dcn", "dist_cfg", "meta", "metainfo", "mp_cfg", "nms", "upsample_cfg"}
)


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Reads a configuration with its ``_base_`` files, overrides values in it and checks all keys.

    What is checked: names at the top level, against what the runner reads and what the file itself
    uses; every ``type``, against the registries; the other keys beside a ``type``, against the
    arguments of that class; arguments of timm models, by building them without memory.

    Args:
        path: Python, YAML or JSON file.
        overrides: New values by dotted name, as ``{"optim_wrapper.optimizer.lr": 1e-3}``; items of
            lists go by number.

    Raises:
        ConfigError: If the file is missing or cannot be read, or a key or type is unknown; names
            it, and the nearest known spelling.
    """
    cfg = _read(Path(path))
    register_all(cfg.get("default_scope", "visattn"))
    read_names = _names_read_in(Path(path)) if Path(path).suffix == ".py" else set()
    _check_top_level(cfg, set(read_names))
    scope = cfg.get("default_scope", "visattn")
    # A new type first: the keys beside it belong to that one.
    for key in sorted(overrides or (), key=lambda key: not key.endswith(".type")):
        _check_override(cfg, key, scope)
        cfg.merge_from_dict({key: overrides[key]})
    if cfg.get("own_data"):
        _check_keys(cfg.own_data, "own_data", frozenset({"data_root", "classes"}))
        apply_own_data(cfg, **cfg.own_data)
    for where, section in cfg.items():
        if where in TOP_LEVEL:
            _check(section, where, scope)
    return cfg


def _read(path: Path) -> Config:
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(f"no configuration at {path}{nearest(path.name, siblings)}")
    try:
        return Config.fromfile(path)
    except (OSError, ImportError, SyntaxError, KeyError, TypeError, NameError) as error:
        raise ConfigError(f"cannot read configuration {path}: {error}") from error


def test_dataset(cfg: Config) -> dict[str, Any]:
    """The configuration of the test set, out of what may be wrapped around it."""
    dataset = cfg.test_dataloader.dataset
    while "pipeline" not in dataset and isinstance(dataset.get("dataset"), dict):
        dataset = dataset["dataset"]
    return dataset


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A question that names the nearest known spellings, or nothing where none is near."""
    matches = difflib.get_close_matches(name, list(known), count, cutoff=0.6)
    return f": did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def _check_top_level(cfg: Config, read_names: set[str]) -> None:
    for key in cfg:
        if key not in TOP_LEVEL | _CONVENTIONAL | read_names:
            raise ConfigError(
                f"unknown key {key!r} in {cfg.filename}: nothing reads it{nearest(key, TOP_LEVEL)}"
            )


def _names_read_in(path: Path) -> set[str]:
    """Names that a configuration file or its bases use to make other values."""
    text = path.read_text()
    names = set(re.findall(r"_base_\.(\w+)", text))
    tree = ast.parse(re.sub(r"\{\{.*?\}\}", "None", text))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            names.add(node.id)
        is_base = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_base_"
        if is_base:
            bases = ast.literal_eval(node.value)
            for base in [bases] if isinstance(bases, str) else bases:
                if (path.parent / base).is_file():
                    names |= _names_read_in(path.parent / base)
    return names


def _check_override(cfg: Config, key: str, scope: str) -> None:
    """Raises unless the key exists in the configuration or what it belongs to would read it."""
    node: Any = cfg._cfg_dict
    *parents, last = key.split(".")
    for depth, name in enumerate(parents):
        child = _child(node, name)
        if child is None:
            where = ".".join(parents[:depth])
            raise ConfigError(
                f"cannot override {key!r}: there is no {name!r}"
                f"{f' in {where}' if where else ''}{nearest(name, _keys(node))}"
            )
        node = child
    if last in _keys(node) or (not parents and last in TOP_LEVEL):
        return
    known = set(_keys(node)) | (TOP_LEVEL if not parents else set())
    if isinstance(node, dict) and parents:
        accepted = _accepted_by(node, ".".join(parents), scope)
        if accepted is None or last in accepted:
            return
        known |= accepted
    raise ConfigError(
        f"cannot override {key!r}: nothing reads {last!r} there{nearest(last, known)}"
    )


def _child(node: Any, name: str) -> Any:
    if isinstance(node, dict):
        return node.get(name)
    if isinstance(node, (list, tuple)) and name.isdigit() and int(name) < len(node):
        return node[int(name)]
    return None


def _keys(node: Any) -> list[str]:
    if isinstance(node, dict):
        return list(node)
    return [str(i) for i in range(len(node))] if isinstance(node, (list, tuple)) else []


def _check(node: Any, where: str, scope: str) -> None:
    """Checks types and keys of a section, and of all below it."""
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            _check(item, f"{where}.{index}", scope)
    if not isinstance(node, dict) or where.rpartition(".")[2] in _FREE:
        return
    scope = node.get("_scope_", scope)
    if scope not in ("visattn", "mmengine", "mmdet", "mmseg"):
        return
    if node.get("type") in ("AlbumentationsTransform", "Albu"):
        for index, item in enumerate(node.get("transforms") or ()):
            _check_albumentations(item, f"{where}.transforms.{index}")
        node = {key: value for key, value in node.items() if key != "transforms"}
    if node.get("constructor") in ("TimmOptimWrapperConstructor", "ProbeOptimWrapperConstructor"):
        _check_timm_optimizer(node["optimizer"], f"{where}.optimizer")
        node = {key: value for key, value in node.items() if key != "optimizer"}
    elif "model_name" in node:
        _check_timm_model(node, where, scope)
        return
    _check_keys(node, where, _accepted_by(node, where, scope))
    for key, value in node.items():
        if key != "type":
            _check(value, f"{where}.{key}", scope)


def _check_keys(node: dict[str, Any], where: str, accepted: frozenset[str] | None) -> None:
    for key in node if accepted is not None else ():
        if key not in accepted:
            owner = f"{_name(node['type'])} ({where})" if "type" in node else where
            raise ConfigError(f"unknown key {key!r} of {owner}{nearest(key, accepted)}")


def _accepted_by(node: dict[str, Any], where: str, scope: str) -> frozenset[str] | None:
    """Keys that a dictionary may have, or None if any."""
    if where == "optim_wrapper.optimizer" and node.get("type") in list_optimizers():
        return _accepted_by_timm_optimizer(node["type"])
    if where == "model.prompts" and scope == "visattn":
        return _accepted_by_prompts(node.get("type"), where)
    if "type" in node:
        return _accepted_by_type(node["type"], where, scope)
    if where in _SECTIONS:
        return _SECTIONS[where]
    if where in ("train_dataloader", "val_dataloader", "test_dataloader"):
        return _LOADER
    defaults = {
        "train_cfg": EpochBasedTrainLoop if node.get("by_epoch", True) else IterBasedTrainLoop,
        "val_cfg": ValLoop,
        "test_cfg": TestLoop,
    }
    if where in defaults:
        return accepted_arguments(defaults[where]) - {"runner", "dataloader"} | {"by_epoch"}
    if where == "optim_wrapper":
        return _accepted_by_type("OptimWrapper", where, scope)
    if where == "model.data_preprocessor" and scope == "visattn":
        return _accepted_by_type("ImagePreprocessor", where, scope)
    return None


def _accepted_by_prompts(name: Any, where: str) -> frozenset[str]:
    if name not in list_prompts():
        raise ConfigError(
            f"unknown type {name!r} ({where}){nearest(str(name), list_prompts())} "
            f"There are {', '.join(list_prompts())}"
        )
    return accepted_arguments(method(name)) - {"attachment"} | {"type"}


def _accepted_by_type(name: Any, where: str, scope: str) -> frozenset[str] | None:
    accepted = {"type", "_scope_"}
    for kind, target in _candidates(name, where, scope):
        names = accepted_arguments(target)
        if names is None:
            return None
        accepted |= names | _TAKEN_BY_BUILDER.get(kind, frozenset())
    return frozenset(accepted)


def _candidates(name: Any, where: str, scope: str) -> list[tuple[str, Callable[..., Any]]]:
    """Everything that a ``type`` may mean: pairs of the registry's name and the class."""
    if not isinstance(name, str):
        return [(kind, name) for kind in _TAKEN_BY_BUILDER]
    prefix, _, bare = name.rpartition(".")
    found, known = [], set()
    for registry in _registries():
        for level in _levels(registry, prefix if prefix in ("mmdet", "mmseg") else scope):
            known |= set(level.module_dict)
            if bare in level.module_dict:
                found.append((registry.name, level.module_dict[bare]))
                break
    if not found:
        found = [("", target) for target in _unregistered(name)]
    if not found and where.startswith("model.") and name.islower():
        # Not a class: modules choose between their own variants by such names.
        return [("", lambda **kwargs: kwargs)]
    if not found and bare.lower().endswith("8bit"):
        raise ConfigError(
            f"{name} ({where}) is an optimiser of bitsandbytes, which is not installed: "
            "pip install bitsandbytes, or use one without 8bit"
        )
    if not found:
        raise ConfigError(
            f"unknown type {name!r} ({where}){nearest(bare, known)} "
            f"Looked in the registries of mmengine and {scope}"
        )
    return found


def _registries() -> Iterator[Registry]:
    yield from {id(r): r for r in vars(root).values() if isinstance(r, Registry)}.values()


def _levels(registry: Registry, scope: str) -> Iterator[Registry]:
    """Registries in which a name is looked up: the scope's, then the root."""
    if scope in registry.children:
        registry.children[scope].import_from_location()
        yield registry.children[scope]
    yield registry


def _unregistered(name: str) -> Iterator[Callable[..., Any]]:
    """What mmdet and mmengine find without a registry: RoI operators, full dotted names."""
    import importlib
    import sys

    module, _, attribute = name.rpartition(".")
    if module:
        try:
            yield getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError):
            return
    elif "mmcv.ops" in sys.modules and hasattr(sys.modules["mmcv.ops"], name):
        yield getattr(sys.modules["mmcv.ops"], name)


def _name(type_: Any) -> str:
    return type_ if isinstance(type_, str) else getattr(type_, "__name__", str(type_))


def _check_timm_model(node: dict[str, Any], where: str, scope: str) -> None:
    """Builds a timm model on the meta device, where it takes no memory, to check its arguments."""
    name = node["model_name"]
    if not timm.is_model(name):
        raise ConfigError(
            f"unknown model {name!r} ({where}.model_name){nearest(name, timm.list_models())}"
        )
    wrapper: frozenset[str] = frozenset({"type", "model_name"})
    if "type" in node:
        for _, target in _candidates(node["type"], where, scope):
            wrapper |= set(inspect.signature(target).parameters)
    ours = {"pretrained", "checkpoint_path", "model_name", *wrapper}
    kwargs = {key: value for key, value in node.items() if key not in ours}
    try:
        with torch.device("meta"):
            timm.create_model(name, **kwargs)
    except TypeError as error:
        match = re.search(
            r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)
        )
        if match is None:
            raise ConfigError(f"cannot build {where} ({name}): {error}") from error
        module = inspect.getmodule(timm.model_entrypoint(name))
        known = accepted_arguments(getattr(module, match[1], object)) or frozenset()
        raise ConfigError(
            f"unknown key {match[2]!r} of {name} ({where}){nearest(match[2], known | wrapper)}"
        ) from error
    except (RuntimeError, ValueError, AssertionError) as error:
        # Some constructors compute with values, which the meta device has none of.
        if "meta" not in str(error):
            raise ConfigError(f"cannot build {where} ({name}): {error}") from error


def _check_timm_optimizer(node: dict[str, Any], where: str) -> None:
    name = str(node.get("type"))
    if name.lower() not in list_optimizers():
        raise ConfigError(f"unknown optimizer {name!r} ({where}){nearest(name, list_optimizers())}")
    if "lr" not in node:
        raise ConfigError(f"{where} has no 'lr'")
    _check_keys(node, where, _accepted_by_timm_optimizer(name))


def _accepted_by_timm_optimizer(name: str) -> frozenset[str] | None:
    accepted = accepted_arguments(get_optimizer_class(name, bind_defaults=False))
    return None if accepted is None else accepted - {"params"} | {"type"}


def _check_albumentations(node: dict[str, Any], where: str) -> None:
    import albumentations

    target = getattr(albumentations, str(node.get("type")), None)
    if target is None:
        raise ConfigError(
            f"unknown type {node.get('type')!r} ({where}): albumentations has none"
            f"{nearest(str(node.get('type')), dir(albumentations))}"
        )
    accepted = accepted_arguments(target)
    _check_keys(node, where, None if accepted is None else accepted | {"type"})
    for index, item in enumerate(node.get("transforms") or ()):
        _check_albumentations(item, f"{where}.transforms.{index}")
