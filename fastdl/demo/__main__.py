"""`python -m fastdl.demo`: networks trained on real data with every part of fastdl, in about a minute."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fastdl import info, optim
from fastdl.demo import tasks
from fastdl.demo.report import Report, draw
from fastdl.demo.training import Result, activations, test, train

MLP_EPOCHS, CNN_EPOCHS = 12, 30


def _stage(report: Report, results: dict[str, Result], name: str, model: torch.nn.Module, *args, **kwargs) -> Result:  # type: ignore[no-untyped-def]
    with report.stage(name, kwargs["epochs"]) as progress:
        results[name] = train(model, *args, progress=progress, **kwargs)
    report.say(f"{name}: {results[name].accuracy:.1f} % in {results[name].seconds:.1f} s")
    return results[name]


def run(task: tasks.Task, report: Report, device: torch.device, seed: int, output: Path) -> dict[str, float]:
    """Run the story; print its tables, draw its picture, and return the accuracies by name."""
    begin = time.perf_counter()
    results: dict[str, Result] = {}
    common: dict[str, Any] = {"device": device, "seed": seed}

    def sgd(parameters):  # type: ignore[no-untyped-def]
        return optim.SGD(parameters, lr=0.05, momentum=0.9)

    def adam(parameters):  # type: ignore[no-untyped-def]
        return optim.AdamW(parameters, lr=4e-3, weight_decay=0.05)

    small = tasks.mlp(task, "normal", norm=False, std=0.01)
    _stage(report, results, "10 layers, Gaussian σ = 0.01", small, task, sgd, epochs=MLP_EPOCHS, **common)
    xavier = tasks.mlp(task, "xavier_uniform", norm=False)
    _stage(report, results, "10 layers, Xavier", xavier, task, sgd, epochs=MLP_EPOCHS, **common)
    normed = tasks.mlp(task, "normal", norm=True, std=0.01)
    _stage(report, results, "10 layers, Gaussian σ = 0.01 + batch norm", normed, task, sgd, epochs=MLP_EPOCHS, **common)
    cnn = tasks.cnn(task)
    ours = _stage(report, results, "CNN", cnn, task, adam, epochs=CNN_EPOCHS, augment=True, **common)
    many = test(cnn, task, device, views=9)
    twin: dict[str, Result] = {}
    with report.stage("the same CNN on torch alone", CNN_EPOCHS) as progress:
        twin["torch"] = train(
            tasks.cnn(task, "torch"), task, lambda p: torch.optim.AdamW(p, lr=4e-3, weight_decay=0.05),
            epochs=CNN_EPOCHS, augment=True, progress=progress, **common,
        )  # fmt: skip

    rows = [[name, f"{r.accuracy:.1f} %", f"{r.step_us:.0f}", f"{r.seconds:.1f} s"] for name, r in results.items()]
    rows.append(["CNN, nine crops averaged", f"{many:.1f} %", "", ""])
    title = f"{task.name}: {len(task.images)} images to train on, {len(task.test_images)} to test"
    report.table(title, ["network", "test accuracy", "µs per step", "training"], rows)
    rows = [["fastdl", f"{ours.step_us:.0f}", f"{ours.accuracy:.1f} %"],
            ["torch", f"{twin['torch'].step_us:.0f}", f"{twin['torch'].accuracy:.1f} %"]]  # fmt: skip
    report.table(f"The CNN on {device}", ["modules and optimizer", "µs per step", "test accuracy"], rows)
    paths = info.report().get("ops", {})
    report.table("The path that ran", ["part", "path"], [[name, str(path)] for name, path in paths.items()])

    layers = {
        "σ = 0.01": activations(small, task, device),
        "σ = 0.01 + batch norm": activations(normed, task, device),
    }
    draw(output, {name: r.losses for name, r in results.items()}, layers)
    report.say(f"\npicture: {output}   all of it: {time.perf_counter() - begin:.1f} s")
    names = dict(zip(("gaussian", "xavier", "norm", "cnn"), (r.accuracy for r in results.values())))
    return {**names, "crops": many, "torch": twin["torch"].accuracy}


def check(accuracy: dict[str, float]) -> list[str]:
    """Return the claims of the course that this run did not bear out."""
    claims = [
        (accuracy["norm"] - accuracy["gaussian"] >= 40, "batch norm must gain 40 points on the small Gaussian start"),
        (accuracy["xavier"] - accuracy["gaussian"] >= 40, "Xavier must gain 40 points on the small Gaussian start"),
        (accuracy["cnn"] >= 98.0, "the CNN must reach 98.0 %"),
        (accuracy["crops"] >= accuracy["cnn"] - 0.2, "nine crops must not lose 0.2 points against one"),
    ]
    return [f"{text}; got {accuracy}" for holds, text in claims if not holds]


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m fastdl.demo", description=__doc__)
    parser.add_argument("--dataset", metavar="PATH", help="an image folder (a subfolder per class) or .npz of your own")
    parser.add_argument("--course", action="store_true", help="the course's other claims, measured beside theory")
    parser.add_argument("--output", type=Path, help="where the picture goes (fastdl_demo.png, fastdl_course.png)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    report, device = Report(), torch.device(options.device)
    torch.manual_seed(options.seed)
    if device.type == "cpu":
        torch.set_num_threads(1)  # the networks are tiny: waking a second thread costs more than it does
    if options.course:
        from fastdl.demo import course

        return course.main(report, device, options.output or Path("fastdl_course.png"))
    output = options.output or Path("fastdl_demo.png")
    try:
        task = tasks.own(options.dataset, options.seed) if options.dataset else tasks.digits()
    except (OSError, ValueError, KeyError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    accuracy = run(task, report, device, options.seed, output)
    failed = [] if options.dataset else check(accuracy)
    for line in failed:
        print(f"FAILED: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
