"""Measures speed, memory and multiply-adds of models, or of kernels, poolings,
AgentSD or ROICtrl.

python tools/benchmark.py biformer_tiny --against timm/resnet50 timm/swin_tiny_patch4_window7_224
python tools/benchmark.py biformer_tiny --against biformer_tiny@reference
python tools/benchmark.py biformer_small --bench inference --device cuda --amp bf16 --compile
python tools/benchmark.py configs/detection/nat/CONFIG.py --shape 800 1333
python tools/benchmark.py kernels window_attention --case swin_tiny --forward
python tools/benchmark.py probing ep aim siglip --tokens 196 --dim 768
python tools/benchmark.py agentsd --unet sd15 --ratio 0.2 0.4
python tools/benchmark.py roictrl --instances 8 16 32
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from timm.utils import ParseKwargs

from visattn.heads.poolings import list_poolings
from visattn.tools._cli import run
from visattn.zoo.benchmark import agentsd, kernel_report, kernels, poolings, roictrl
from visattn.zoo.benchmark.cases import OPS, select_cases
from visattn.zoo.benchmark.models import BENCHES, benchmark_models, label_of
from visattn.zoo.benchmark.report import (
    append_rows,
    check_appendable,
    output_stem,
    plot,
    print_tables,
)
from visattn.zoo.benchmark.subject import AMP_DTYPES, Settings, split_name
from visattn.zoo.devices import pick_device
from visattn.zoo.errors import UserError
from visattn.zoo.models import is_config


def positive(text: str) -> int:
    """Reads an integer that is at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def size(text: str) -> tuple[int, int]:
    """Reads a height and width in pixels from ``224`` or ``224,320``."""
    sides = [positive(side) for side in text.replace("x", ",").split(",")]
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"must be SIDE or HEIGHT,WIDTH, got {text}")
    return sides[0], sides[-1]


def models_parser() -> argparse.ArgumentParser:
    """The command line for models."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="timm's names, timm/NAME too, configurations of detectors and segmentors, and "
        "NAME@IMPL for one implementation of visattn's ops",
    )
    parser.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="MODEL",
        help="further models; speeds are given in multiples of the first of these",
    )
    parser.add_argument(
        "--bench",
        choices=("inference", "train", "both"),
        help="default: both, but inference where a configuration is given",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: the accelerator if any)")
    parser.add_argument(
        "--batch-size",
        type=positive,
        help="default: 1 where a configuration is given, 4 on the CPU, else 256",
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--img-size", type=size, metavar="SIDE[,SIDE]", help="height,width")
    shape.add_argument(
        "--shape",
        nargs=2,
        type=positive,
        metavar=("H", "W"),
        help="the same (default: the model's own; of detectors 800 1333, of segmentors 512 512)",
    )
    parser.add_argument(
        "--amp", choices=tuple(AMP_DTYPES), help="autocast (default: fp16 on CUDA, else none)"
    )
    parser.add_argument("--compile", action="store_true", help="through torch.compile")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--warmup", type=int, help="untimed steps (default: 2 on the CPU, else 10)")
    parser.add_argument(
        "--iters", type=positive, help="timed steps, at least (default: 10 on the CPU, else 40)"
    )
    parser.add_argument(
        "--min-time", type=float, default=4.0, help="seconds of timed steps, at least (default: 4)"
    )
    parser.add_argument("--rounds", type=positive, default=5, help="turns of all models")
    parser.add_argument("--threads", type=positive, help="threads on the CPU")
    parser.add_argument(
        "--model-kwargs", nargs="+", default={}, action=ParseKwargs, metavar="KEY=VALUE"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("work_dirs/benchmark"),
        metavar="FILE",
        help="FILE.csv and FILE.jsonl are appended to, FILE.png is drawn (default: %(default)s)",
    )
    return parser


def benchmark(argv: Sequence[str]) -> None:
    """Measures models; raises what goes wrong, after all others have been measured."""
    args = models_parser().parse_args(argv)
    device = pick_device(args.device)
    on_cpu = device.type == "cpu"
    if args.threads:
        torch.set_num_threads(args.threads)
    stem = output_stem(args.out)
    check_appendable(stem.with_name(stem.name + ".csv"))
    names = [*args.models, *args.against]
    is_dense = any(is_config(split_name(name)[0]) for name in names)
    bench = args.bench or ("inference" if is_dense else "both")
    settings = Settings(
        device=device,
        batch_size=args.batch_size or (1 if is_dense else 4 if on_cpu else 256),
        img_size=tuple(args.shape) if args.shape else args.img_size,
        amp=args.amp or ("fp16" if device.type == "cuda" else "none"),
        compile=args.compile,
        channels_last=args.channels_last,
        model_kwargs=args.model_kwargs,
    )
    warmup = args.warmup if args.warmup is not None else (2 if on_cpu else 10)
    rows = benchmark_models(
        names,
        settings,
        BENCHES if bench == "both" else ("infer" if bench == "inference" else "train",),
        warmup=warmup,
        iters=args.iters or (10 if on_cpu else 40),
        min_time=args.min_time,
        rounds=args.rounds,
        say=lambda message: print(message, file=sys.stderr),
    )
    print_tables(rows, label_of(args.against[0]) if args.against else None)
    written = append_rows(rows, stem)
    measured = any(row[f"{bench}_samples_per_sec"] for row in rows for bench in BENCHES)
    if measured:
        try:
            plot(rows, stem.with_name(stem.name + ".png"))
            written.append(stem.with_name(stem.name + ".png"))
        except UserError as error:
            print(f"no plot: {error}", file=sys.stderr)
    print(f"written to {', '.join(map(str, written))}")
    failed = [f"{row['model']}: {row['error']}" for row in rows if row["error"]]
    if failed:
        raise UserError("\n  ".join(["not all models could be measured", *failed]))


def kernels_parser() -> argparse.ArgumentParser:
    """The command line for kernels."""
    parser = argparse.ArgumentParser(
        prog="benchmark.py kernels",
        description="Measures each implementation of the ops, and what else computes them, at the "
        "shapes of the zoo's models. What gives a wrong result is not timed.",
    )
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"{', '.join(OPS)} (default: all)")
    parser.add_argument("--case", default="", metavar="TEXT", help="only cases named like this")
    parser.add_argument(
        "--impl",
        nargs="+",
        metavar="NAME",
        help="only these implementations and peers (default: all that can run)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--forward", action="store_true", help="only the forward pass")
    which.add_argument("--backward", action="store_true", help="only forward and backward pass")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: the accelerator if any)")
    parser.add_argument(
        "--dtype", choices=tuple(kernels.DTYPES), help="default: fp32 on the CPU, else fp16"
    )
    parser.add_argument("--batch-size", type=positive, help="default: 8 on the CPU, else 64")
    parser.add_argument("--rounds", type=positive, default=10, help="turns of all contestants")
    parser.add_argument(
        "--seconds",
        type=float,
        default=1.0,
        help="seconds of timed calls of each contestant; slower ones get one call (default: 1)",
    )
    parser.add_argument("--threads", type=positive, help="threads on the CPU")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("work_dirs/benchmark-kernels"),
        metavar="FILE",
        help="FILE.csv and FILE.jsonl are appended to, FILE.png is drawn (default: %(default)s)",
    )
    return parser


def benchmark_kernels(argv: Sequence[str]) -> None:
    """Measures kernels; raises if an implementation of ours gave a wrong result."""
    args = kernels_parser().parse_args(argv)
    cases = select_cases(args.ops, args.case)
    known = {name for case in cases for name in (*case.implementations, *case.peers)}
    for name in args.impl or ():
        if name not in known:
            raise UserError(f"no such contestant: {name}; there are {', '.join(sorted(known))}")
    device = pick_device(args.device)
    on_cpu = device.type == "cpu"
    if args.threads:
        torch.set_num_threads(args.threads)
    stem = output_stem(args.out)
    check_appendable(stem.with_name(stem.name + ".csv"), kernels.COLUMNS)
    settings = kernels.Settings(
        device=device,
        dtype=args.dtype or ("fp32" if on_cpu else "fp16"),
        batch_size=args.batch_size or (8 if on_cpu else 64),
        rounds=args.rounds,
        seconds=args.seconds,
    )
    passes = ("forward",) if args.forward else ("both",) if args.backward else kernels.PASSES
    rows = []
    for case in cases:
        measured = kernels.benchmark_kernels(
            [case],
            settings,
            passes,
            only=args.impl,
            say=lambda message: print(message, file=sys.stderr),
        )
        # At once: all cases together take long.
        written = append_rows(measured, stem, kernels.COLUMNS)
        rows += measured
    kernel_report.print_tables(rows)
    try:
        kernel_report.plot(rows, stem.with_name(stem.name + ".png"))
        written.append(stem.with_name(stem.name + ".png"))
    except UserError as error:
        print(f"no plot: {error}", file=sys.stderr)
    print(f"written to {', '.join(map(str, written))}")
    wrong = [
        f"{row['op']}, {row['case']}, {row['contestant']}: {row['error']}"
        for row in rows
        if row["kind"] == "visattn" and (row["error"] or "").startswith("wrong")
    ]
    if wrong:
        raise UserError("\n  ".join(["not all results are right", *wrong]))


def add_running_arguments(
    parser: argparse.ArgumentParser, out: str, rounds: int, seconds: float
) -> None:
    """Adds where, how long and into which file is measured, with these defaults."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: the accelerator if any)")
    parser.add_argument(
        "--rounds", type=positive, default=rounds, help="turns of all (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=seconds,
        help="seconds of timed steps of each, at least (default: %(default)s)",
    )
    parser.add_argument("--threads", type=positive, help="threads on the CPU")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(out),
        metavar="FILE",
        help="FILE.csv and FILE.jsonl are appended to (default: %(default)s)",
    )


def probing_parser() -> argparse.ArgumentParser:
    """The command line for poolings."""
    parser = argparse.ArgumentParser(
        prog="benchmark.py probing",
        description="Measures poolings of frozen tokens, forward and in training, beside timm's "
        "AttentionPoolLatent.",
    )
    parser.add_argument(
        "poolings",
        nargs="*",
        metavar="POOLING",
        help=f"{', '.join(list_poolings())} (default: all but cls)",
    )
    parser.add_argument("--tokens", type=positive, default=196, help="of an image (default: 196)")
    parser.add_argument("--dim", type=positive, default=768, help="width (default: 768)")
    parser.add_argument("--batch-size", type=positive, default=64, help="default: 64")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--forward", action="store_true", help="only the forward pass")
    which.add_argument("--training", action="store_true", help="only training steps")
    parser.add_argument(
        "--dtype", choices=tuple(kernels.DTYPES), default="fp32", help="default: fp32"
    )
    add_running_arguments(parser, "work_dirs/benchmark-probing", 5, 2.0)
    return parser


def benchmark_probing(argv: Sequence[str]) -> None:
    """Measures poolings; raises what goes wrong."""
    args = probing_parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    stem = output_stem(args.out)
    check_appendable(stem.with_name(stem.name + ".csv"), poolings.COLUMNS)
    rows = poolings.benchmark_poolings(
        args.poolings or [name for name in list_poolings() if name != "cls"],
        pick_device(args.device),
        args.tokens,
        args.dim,
        args.batch_size,
        ("forward",) if args.forward else ("training",) if args.training else poolings.PASSES,
        args.rounds,
        args.seconds,
        kernels.DTYPES[args.dtype],
        say=lambda message: print(message, file=sys.stderr),
    )
    poolings.print_tables(rows)
    written = append_rows(rows, stem, poolings.COLUMNS)
    print(f"written to {', '.join(map(str, written))}")


def agentsd_parser() -> argparse.ArgumentParser:
    """The command line for AgentSD."""
    parser = argparse.ArgumentParser(
        prog="benchmark.py agentsd",
        description="Measures a UNet of Stable Diffusion with AgentSD and without; weights are "
        "random.",
    )
    parser.add_argument("--unet", default="sd15", help=f"{', '.join(agentsd.UNETS)}")
    parser.add_argument(
        "--ratio", nargs="+", type=float, default=[0.4], help="shares of tokens that are merged"
    )
    parser.add_argument("--batch-size", type=positive, default=2, help="latents (default: 2)")
    parser.add_argument("--latents", type=positive, help="side (default: the UNet's own)")
    parser.add_argument(
        "--dtype", choices=tuple(kernels.DTYPES), help="default: fp32 on the CPU, else fp16"
    )
    add_running_arguments(parser, "work_dirs/benchmark-agentsd", 3, 0.0)
    return parser


def benchmark_agentsd(argv: Sequence[str]) -> None:
    """Measures AgentSD; raises what goes wrong."""
    args = agentsd_parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    stem = output_stem(args.out)
    check_appendable(stem.with_name(stem.name + ".csv"), agentsd.COLUMNS)
    rows = agentsd.benchmark_agentsd(
        args.unet,
        device,
        args.ratio,
        args.batch_size,
        args.latents,
        args.rounds,
        args.seconds,
        kernels.DTYPES[args.dtype or ("fp32" if device.type == "cpu" else "fp16")],
        say=lambda message: print(message, file=sys.stderr),
    )
    agentsd.print_tables(rows)
    written = append_rows(rows, stem, agentsd.COLUMNS)
    print(f"written to {', '.join(map(str, written))}")


def roictrl_parser() -> argparse.ArgumentParser:
    """The command line for ROICtrl."""
    parser = argparse.ArgumentParser(
        prog="benchmark.py roictrl",
        description="Measures time and memory of ROICtrl in a UNet of Stable Diffusion's shape "
        "beside masked attention and the prompt alone.",
    )
    parser.add_argument(
        "--instances", nargs="+", type=positive, default=[8, 16, 24, 32], metavar="N"
    )
    parser.add_argument("--unet", choices=tuple(agentsd.UNETS), default="sd15-small")
    parser.add_argument("--latents", type=positive, help="side (default: the UNet's own)")
    parser.add_argument("--batch-size", type=positive, default=1, help="default: 1")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--inference", action="store_true", help="only inference")
    which.add_argument("--training", action="store_true", help="only training steps")
    parser.add_argument(
        "--dtype", choices=tuple(kernels.DTYPES), default="fp32", help="default: fp32"
    )
    add_running_arguments(parser, "work_dirs/benchmark-roictrl", 3, 2.0)
    return parser


def benchmark_roictrl(argv: Sequence[str]) -> None:
    """Measures ROICtrl; raises what goes wrong."""
    args = roictrl_parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    stem = output_stem(args.out)
    check_appendable(stem.with_name(stem.name + ".csv"), roictrl.COLUMNS)
    measured = roictrl.benchmark_roictrl(
        args.instances,
        pick_device(args.device),
        args.unet,
        args.latents,
        args.batch_size,
        ("inference",) if args.inference else ("training",) if args.training else roictrl.PASSES,
        args.rounds,
        args.seconds,
        kernels.DTYPES[args.dtype],
        say=lambda message: print(message, file=sys.stderr),
    )
    rows = []
    for some in measured:
        written = append_rows(some, stem, roictrl.COLUMNS)  # At once: all of them take long.
        rows += some
    roictrl.print_tables(rows)
    print(f"written to {', '.join(map(str, written))}")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "models": benchmark,
    "kernels": benchmark_kernels,
    "probing": benchmark_probing,
    "agentsd": benchmark_agentsd,
    "roictrl": benchmark_roictrl,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command, that for models unless the first word names another."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = COMMANDS[argv.pop(0)] if argv and argv[0] in COMMANDS else benchmark
    return run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
