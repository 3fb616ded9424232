"""The metafiles and the tables made from them."""

import re

import pytest
import yaml

from visattn.zoo import results
from visattn.zoo.errors import UserError

DOCUMENTS = sorted(
    f"docs/{path.name}"
    for path in (results.ROOT / "docs").glob("*.md")
    if "<!-- /results -->" in path.read_text()
)
README = "# Zoo\n<!-- results:Family -->\nstale\n<!-- /results -->\nend\n"


def content(**changes):
    return {
        "Collections": [{"Name": "Family"}],
        "Models": [
            {
                "Name": "recipe",
                "Model": "test_vit",
                "In Collection": "Family",
                "Config": "configs/recipe.py",
                "Metadata": {"Parameters": 371_240, "FLOPs": 38_100_000},
                "Weights": "none",
                "Results": [
                    {
                        "Task": "Image Classification",
                        "Dataset": "ImageNet-1k",
                        "Metrics": {"Top 1 Accuracy": 12.5},
                        "Source": "paper",
                    }
                ],
            }
            | changes
        ],
    }


@pytest.fixture
def repository(tmp_path):
    """Makes a repository with one metafile."""

    def make(**changes):
        configs = tmp_path / "configs"
        configs.mkdir()
        (configs / "recipe.py").write_text("")
        (configs / "metafile.yml").write_text(yaml.safe_dump(content(**changes)))
        (tmp_path / "README.md").write_text(README)
        return tmp_path

    return make


def run(root, *arguments):
    return results.main(["--root", str(root), *map(str, arguments)])


def test_the_metafiles_of_the_package_are_right():
    read = results.read_results()
    assert {"biformer_tiny", "biformer_small", "biformer_base", "biformer_stl"} <= {
        result.model for result in read
    }
    assert results.validate(read) == []


def test_write_fills_the_markers_and_check_then_passes(repository, capsys):
    root = repository()
    readme = root / "README.md"
    assert run(root, "--check", readme) == 2
    assert "out of date" in capsys.readouterr().err and readme.read_text() == README
    assert run(root, "--write", readme) == 0
    text = readme.read_text()
    assert "| `test_vit` | 0.37 M | 0.04 | ImageNet-1k | 12.5 | paper |" in text
    assert "stale" not in text and text.startswith("# Zoo\n") and text.endswith("-->\nend\n")
    assert run(root, "--check", readme) == 0
    assert run(root, "--write", readme) == 0
    assert readme.read_text() == text


def test_links_lead_from_the_folder_of_the_file(repository):
    root = repository()
    (root / "docs").mkdir()
    (root / "docs" / "families.md").write_text(README)
    for path in (root / "README.md", root / "docs" / "families.md"):
        assert run(root, "--write", path) == 0
        (link,) = re.findall(r"\[config\]\((.+?)\)", path.read_text())
        assert (path.parent / link).resolve() == root / "configs" / "recipe.py"


@pytest.mark.parametrize("name", ["README.md", *DOCUMENTS])
def test_tables_of_the_documentation_are_up_to_date(name):
    path = results.ROOT / name
    text = path.read_text()
    assert results.render(text, results.read_results(), folder=path.parent) == text


def test_metrics_that_only_some_have_are_left_blank(repository):
    first, *_ = results.read_results(repository())
    second = first._replace(metrics={"mIoU": 40.1}, source="measured")
    lines = results.table([first, second]).splitlines()
    assert "| 12.5 |  | paper |" in lines[2]
    assert "|  | 40.1 | measured |" in lines[3]


def test_heads_and_remarks_are_shown_where_there_are_any(repository):
    first, *_ = results.read_results(repository())
    assert "Head" not in results.table([first])
    detector = first._replace(head="Mask R-CNN 1x", remark="run again")
    lines = results.table([first, detector]).splitlines()
    assert lines[0].startswith("| Model | Head | Parameters |")
    assert lines[2].startswith("| `test_vit` |  | 0.37 M |")
    assert lines[3].startswith("| `test_vit` | Mask R-CNN 1x | 0.37 M |")
    assert "| paper: run again |" in lines[3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Config": "configs/gone.py"}, "there is no config configs/gone.py"),
        ({"Model": "test_vitt"}, "test_vitt: there is no such model"),
        ({"Metadata": {"Parameters": 7}}, "has 371240 parameters, not 7"),
        ({"In Collection": "Other"}, "in no collection 'Other'"),
        ({"Results": [{"Task": "x"}]}, "lacks 'Dataset'"),
        (
            {"Results": [{"Task": "x", "Dataset": "y", "Metrics": {}, "Source": "hearsay"}]},
            "must be one of paper, log, measured; got 'hearsay'",
        ),
    ],
)
def test_wrong_metafiles_are_refused(repository, capsys, changes, message):
    root = repository(**changes)
    assert run(root, "--write", root / "README.md") == 2
    assert message in capsys.readouterr().err
    assert (root / "README.md").read_text() == README


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- results:Famili -->\n<!-- /results -->\n", "names no collection; there are: Family"),
        ("nothing here", "no table to fill"),
    ],
)
def test_markers_that_cannot_be_filled(repository, text, message):
    with pytest.raises(UserError, match=message):
        results.render(text, results.read_results(repository()))


def test_tables_of_benchmarks(repository):
    root = repository()
    (root / "kernels.csv").write_text(
        "op,case,pass,contestant,p50_ms\n"
        "pool,small,forward,cpu,2.0\npool,small,forward,floor,1.0\npool,small,forward,eager,5.0\n"
        "pool,large,forward,cpu,20.0\npool,large,forward,floor,8.0\npool,large,forward,flex,\n"
        "pool,large,both,cpu,60\npool,large,both,eager,150\n"
    )
    (root / "models.csv").write_text(
        "model,infer_samples_per_sec,train_samples_per_sec,infer_p20_ms,infer_p50_ms,infer_p80_ms,"
        "infer_peak_mib,train_peak_mib\nours,30,8,1,2,3,10.4,20\ntheirs,20,10,4,5,6,30,40\n"
    )
    text = (
        "<!-- kernels:kernels.csv -->\n<!-- /results -->\n"
        "<!-- models:models.csv -->\n<!-- /results -->\n"
    )
    filled = results.render(text, [], root)
    assert "| `pool`, 2 shapes | **ours** | 2 – 20 ms | 60 ms |" in filled
    assert "|  | floor | 0.4 – 0.5 x | – |" in filled
    assert "|  | eager | 2.5 x | 2.5 x |" in filled
    assert "flex" not in filled
    assert "| `ours` | 30.0 (1.50 x) | 8.0 (0.80 x) | 1 / 2 / 3 | 10 | 20 |" in filled
    assert results.render(filled, [], root) == filled


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        ("a,b\n1,2\n", "is no result of tools/benchmark.py"),
        ("op,case,pass,contestant,p50_ms\npool,small,forward,eager,2\n", "measured without 'cpu'"),
        (
            "op,case,pass,contestant,p50_ms\n" + 2 * "pool,small,forward,cpu,2\n",
            "pool at 'small' was measured more than once",
        ),
    ],
)
def test_benchmarks_that_cannot_be_shown(tmp_path, content, message):
    if content is not None:
        (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        results.render("<!-- kernels:rows.csv -->\n<!-- /results -->\n", [], tmp_path)


def test_broken_yaml_names_the_file(tmp_path):
    path = tmp_path / "metafile.yml"
    path.write_text("a: [")
    with pytest.raises(UserError, match="metafile.yml is no YAML"):
        results.read_metafile(path)
