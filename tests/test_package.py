"""What the package promises before anything optional is there."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import timm
from setuptools import find_packages

import visattn
from visattn.backbones._registry import register_model

ROOT = Path(visattn.__file__).parent
OPTIONAL = (
    "mmengine", "mmcv", "mmdet", "mmseg", "diffusers", "natten", "numba", "triton", "sklearn",
    "skimage", "albumentations", "matplotlib", "rich", "transformers",
)  # fmt: skip
FAMILIES = (
    "biformer_tiny", "nat_mini", "vitrpb_small", "agent_deit_tiny", "agent_pvt_tiny",
    "agent_swin_tiny", "agent_cswin_tiny", "elaresnet18_t", "elamobilenetv2_100_b",
    "dcal_deit_tiny_patch16",
)  # fmt: skip


def run(code, cwd):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=cwd, capture_output=True, text=True
    )


def test_cold_import_needs_nothing_optional(tmp_path):
    """A fresh interpreter where all are absent still creates, runs and trains every family."""
    result = run(
        f"""
        import sys
        from importlib.machinery import PathFinder

        class Finder(PathFinder):
            @classmethod
            def find_spec(cls, name, *args):
                absent = name.partition(".")[0] in {OPTIONAL!r}
                return None if absent else super().find_spec(name, *args)

        sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
        import timm, torch, visattn
        for name in {FAMILIES!r}:
            model = timm.create_model(name, num_classes=3)
            optimizer = torch.optim.SGD(model.parameters(), 0.01)
            logits = model(torch.rand(2, 3, 64, 64))
            logits = logits[0] if isinstance(logits, tuple) else logits
            torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
            optimizer.step()
            assert model.eval()(torch.rand(1, 3, 64, 64)).isfinite().all(), name
        """,
        tmp_path,
    )
    assert result.returncode == 0, result.stderr


def test_operators_are_registered_once_in_the_repository():
    """There the folder `kernels` is on the path, and other packages look for one of that name."""
    result = run("import kernels, mmengine.model, visattn.kernels as ours; ours.use_impl", ROOT)
    assert result.returncode == 0, result.stderr


def test_import_loads_nothing_optional(tmp_path):
    result = run(
        f"""
        import sys, timm
        before = set(sys.modules)
        import visattn
        print([name for name in {OPTIONAL!r} if name in set(sys.modules) - before])
        """,
        tmp_path,
    )
    assert result.stdout.strip() == "[]", result.stderr


def test_every_package_is_installed():
    """The repository root is the package, so setuptools cannot discover what is in it."""
    listed = set(
        re.findall(
            r'"(visattn[\w.]*)"', (ROOT / "pyproject.toml").read_text().split("packages = ")[1]
        )
    )
    found = {f"visattn.{p}" for p in find_packages(str(ROOT)) if not p.startswith("tests")}
    assert found <= listed


@pytest.mark.parametrize("name", ["resnet50", "biformer_tiny"])
def test_registering_a_taken_name_raises(name):
    def entry_point(pretrained=False, **kwargs):
        raise AssertionError("never called")

    entry_point.__name__ = name
    owner = timm.model_entrypoint(name)
    with pytest.raises(ValueError, match=f"'{name}' is already registered"):
        register_model(entry_point)
    assert timm.model_entrypoint(name) is owner


def test_registering_under_a_module_name_of_timm_raises():
    def visattn_test_model(pretrained=False, **kwargs):
        raise AssertionError("never called")

    visattn_test_model.__module__ = "visattn.backbones.resnet"
    with pytest.raises(ValueError, match="timm already has a module 'resnet'"):
        register_model(visattn_test_model)
    assert not timm.is_model("visattn_test_model")
