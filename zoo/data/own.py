"""A user's own data in place of a recipe's: its folder and its classes, each said once."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config

from ..errors import ConfigError

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
_EVALUATORS = ("val_evaluator", "test_evaluator")


def apply_own_data(
    cfg: Config, data_root: str | None = None, classes: Sequence[str] | None = None
) -> Config:
    """Puts a folder and classes wherever a configuration names its own, in place.

    A configuration on top of a recipe says so with
    ``own_data = dict(data_root="my_data/", classes=("cat", "dog"))``.

    Args:
        cfg: Configuration of any task.
        data_root: Folder in place of the recipe's, with the same files and folders in it.
        classes: Names in place of the recipe's; the number of classes of the heads follows.

    Returns:
        The same configuration.

    Raises:
        ConfigError: If ``classes`` are not names, or the model tells things and stuff apart.
    """
    if data_root is not None:
        old = _common_root(cfg)
        for key in (*_LOADERS, *_EVALUATORS):
            if cfg.get(key) is not None:
                cfg[key] = _moved(cfg[key], old, str(data_root))
    if classes is not None:
        _set_classes(cfg, classes)
    return cfg


def _is_under(path: str, folder: str) -> bool:
    path, folder = os.path.normpath(path), os.path.normpath(folder)
    return path == folder or path.startswith(folder + os.sep)


def _moved(node: Any, old: str, new: str) -> Any:
    """The node with paths below one folder below another."""
    if isinstance(node, dict):
        return type(node)({key: _moved(value, old, new) for key, value in node.items()})
    if isinstance(node, (list, tuple)):
        return type(node)(_moved(item, old, new) for item in node)
    if isinstance(node, str) and _is_under(node, old):
        tail = os.path.relpath(node, old)
        moved = new if tail == os.curdir else os.path.join(new, tail)
        return os.path.join(moved, "") if node.endswith("/") else moved
    return node


def _set_classes(cfg: Config, classes: Sequence[str]) -> None:
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise ConfigError(f"classes must be names, as ('cat', 'dog'); got {classes!r}")
    if any(node["num_stuff_classes"] for node in _nodes(cfg.model, "num_stuff_classes")):
        raise ConfigError(
            "classes cannot say which are things and which stuff: give num_things_classes, "
            "num_stuff_classes and the data sets' metainfo instead"
        )
    if cfg.model.get("type") == "ReIdentifier":
        raise ConfigError(
            "re-identification has no classes: give data_root, and how many identities train as "
            "model.num_classes"
        )
    count = len(classes)
    for key in ("num_classes", "num_things_classes"):
        for node in _nodes(cfg.model, key):
            node[key] = count
    for node in _nodes(cfg.model, "class_weight"):
        weights = node["class_weight"]
        if isinstance(weights, (list, tuple)) and len(weights) not in (count, count + 1):
            if len(set(weights[:-1])) > 1:
                raise ConfigError(
                    f"class_weight has {len(weights)} weights of its own for {count} classes: give "
                    "it anew"
                )
            # All classes alike, and then what is none of them.
            node["class_weight"] = [weights[0]] * count + [weights[-1]]
    if cfg.model.get("type") == "ImageClassifier":
        cfg.model.backbone.num_classes = count
    for key in _LOADERS:
        for dataset in _nodes(cfg.get(key), "data_root"):
            if dataset.get("type") != "ImageFolder":
                dataset["metainfo"] = {"classes": tuple(classes)}
            else:
                dataset["classes"] = list(classes)


def _nodes(node: Any, key: str) -> Iterator[Any]:
    """All dictionaries at any depth that have a key."""
    if isinstance(node, dict):
        if node.get(key) is not None:
            yield node
        for value in node.values():
            yield from _nodes(value, key)
    elif isinstance(node, (list, tuple)):
        for item in node:
            yield from _nodes(item, key)


def _common_root(cfg: Config) -> str:
    """The folder that all data sets are in."""
    roots = []
    for section in _LOADERS:
        for node in _nodes(cfg.get(section), "data_root"):
            root = node["data_root"]
            roots += [root] if isinstance(root, str) else root
    try:
        return os.path.commonpath(roots)
    except ValueError as error:
        raise ConfigError(
            f"own_data.data_root replaces the folder that all data sets are in, and {roots} are in "
            "none: give each data set its data_root"
        ) from error
