import subprocess
import sys
import textwrap

import pytest
import torch

from visattn.kernels import use_impl
from visattn.zoo import env

OPTIONAL = ("mmengine", "mmcv", "mmdet", "mmseg", "diffusers", "natten", "numba", "triton")


def run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_parts_are_those_of_the_package():
    parts = {part.name: part for part in env.installed_parts()}
    assert list(parts["core"].packages) == ["torch", "torchvision", "timm", "numba"]
    assert "onedl-mmcv" in parts["openmm"].packages
    assert parts["core"].is_complete
    assert parts["core"].packages["torch"] == torch.__version__.split("+")[0]


@pytest.mark.parametrize("installed, listed", [(None, None), ("0.9", None), ("1.2", "1.2")])
def test_missing_and_outdated_packages_are_not_installed(monkeypatch, installed, listed):
    def version(name):
        if installed is None:
            raise env.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(env, "requires", lambda name: ['natten>=1.0; extra == "natten"'])
    monkeypatch.setattr(env, "version", version)
    part = next(part for part in env.installed_parts() if part.name == "natten")
    assert part.packages == {"natten": listed}
    assert part.is_complete == (listed is not None)
    assert part.remedy == 'pip install "visattn[natten]"'


@pytest.mark.parametrize("compiled", [True, False])
def test_mmcv_operators_are_the_compiled_ones_where_there_are_any(tmp_path, monkeypatch, compiled):
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv/__init__.py").write_text("raise RuntimeError('imported')")
    if compiled:
        (tmp_path / "mmcv/_ext.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mmcv", raising=False)
    assert ("compiled" in env.choices()["mmcv operators"]) == compiled


@pytest.mark.parametrize("bf16, dtype", [(True, "bfloat16"), (False, "float16")])
def test_mixed_precision_depends_on_the_gpu(monkeypatch, bf16, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **kwargs: bf16)
    assert env._amp_dtype(torch.device("cuda")).startswith(dtype)


def test_prints_choices_and_remedies():
    out = run(
        """
        from visattn.zoo import env
        env.requires = lambda name: ['surely-not-installed; extra == "export"']
        env.main()
        """
    )
    for word in ("device", "threads", "bilevel_routing_attention", "missing", "visattn[export]"):
        assert word in out


def test_a_core_installation_gets_plain_text():
    out = run(
        f"""
        import sys
        from importlib import util
        missing = {(*OPTIONAL, "rich")!r}
        sys.modules.update(dict.fromkeys(missing))
        find_spec = util.find_spec
        util.find_spec = lambda name, *args: None if name in missing else find_spec(name, *args)
        from visattn.zoo import env
        env.main()
        """
    )
    assert "none: mmcv is not installed" in out
    assert "│" not in out


def test_imports_nothing_optional():
    run(
        f"""
        import sys
        import timm
        before = set(sys.modules)
        from visattn.zoo import env
        env.choices(), env.installed_parts()
        imported = set({OPTIONAL!r}) & (set(sys.modules) - before)
        assert not imported, imported
        """
    )


def test_kernels_are_what_dispatch_takes():
    assert env.choices()["kernel window_attention"].startswith("cpu")
    with use_impl("reference"):
        assert env.choices()["kernel window_attention"].startswith("reference")
