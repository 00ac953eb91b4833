"""`python -m tfbig list | doctor | predict | audit | privacy | ledger | launch | cache`: about all jobs, not one.

TensorFlow is imported only by the commands that compute; `list` and `--help` answer at once.
"""

from __future__ import annotations

import argparse
import ast
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from tfbig import __version__, resources
from tfbig.errors import report
from tfbig.pipelines._interrupts import Interruption, Interrupts
from tfbig.startup import import_tensorflow, open_streams, roomy

_EXAMPLES = """examples:
  python -m tfbig list
  python -m tfbig doctor
  python -m tfbig predict saved_models/photos picture.jpg more_pictures/
  python -m tfbig predict saved_models/photos/2 *.png --format jsonl
  python -m tfbig audit runs/NAME
  python -m tfbig privacy runs/NAME
  python -m tfbig ledger budgets.json
  python -m tfbig cache --clear
  python -m tfbig launch --workers 2 image_finetune --train.epochs 5

A job is a module: python -m tfbig.pipelines.NAME --help
"""

_AUDIT = """Send made-up examples (canaries) through the run's own gradient rule, once, and guess from its noisy
gradients which of them took part: too many right guesses contradict the epsilon of dp.json (Steinke, Nasr and
Jagielski 2023). Then compare the trained network's losses on training and test examples (membership inference).
A run without --dp has only the second. Trains nothing; writes audit.json and audit.html into RUN."""

_AUDIT_EPILOG = """exit codes: 0 consistent, 6 the claim is contradicted, 2 not a finished run, 3 its data or
dp.json is missing, damaged or changed, 4 its checkpoints are missing or damaged
"""

# The forms of --model.backbone. The names of some need TensorFlow: `list backbones` shows them.
_BACKBONE_FORMS = {
    "tfhub:PATH-OR-URL": "a TF Hub module: a folder, a .tar.gz, an http(s) or a Kaggle handle",
    "apps:NAME": "a model of keras.applications",
    "kerashub:PRESET-OR-PATH": "an image backbone of KerasHub (extra: models)",
    "keras:FILE": "a .keras file",
    "scratch:NAME": "a small network with fresh weights",
}


@roomy
def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What follows `python -m tfbig`; by default the process's own, and then it ends with the command.

    Returns:
        The exit code: 0, or that of the error (see tfbig.errors); 1 for one that nobody expected, 128 and its number
        for a signal.
    """
    open_streams()
    options = _parser().parse_args(arguments)
    shown = "%(name)s: %(message)s" if options.debug else "%(message)s"
    logging.basicConfig(level=logging.DEBUG if options.debug else logging.WARNING, format=shown)
    with Interrupts(until_exit=arguments is None) as interrupts:
        try:
            return _ended(options, interrupts)
        except KeyboardInterrupt as stop:
            interrupts.ignore()
            return 128 + (stop.args[0] if isinstance(stop, Interruption) else signal.SIGINT)


def _ended(options: argparse.Namespace, interrupts: Interrupts) -> int:
    """The exit code of a command that has ended, how it did being said; only a signal's exception leaves it."""
    try:
        exit_code = int(options.command(options) or 0)
        sys.stdout.flush()
        return exit_code
    except BrokenPipeError:
        # The reader (head, less) has seen enough; keep Python from failing on the flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # From any library, or a bug: a sentence, as the jobs give.
        interrupts.ignore()
        return report(error, debug=options.debug)


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show tracebacks and the whole log")
    parser = argparse.ArgumentParser(
        prog="python -m tfbig",
        description="From a pretrained network on a hub to a served model.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tfbig {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser(
        "list", parents=[shared], allow_abbrev=False, help="the jobs, recipes and backbones there are"
    )
    listing.add_argument(
        "what", nargs="?", choices=("pipelines", "recipes", "backbones"),
        help="only these; backbones names every one, which takes some seconds",
    )
    listing.set_defaults(command=_list)

    doctor = commands.add_parser(
        "doctor", parents=[shared], allow_abbrev=False, help="what this machine has, and what is wrong or missing"
    )
    doctor.set_defaults(command=_doctor)
    _add_predict(commands.add_parser(
        "predict", parents=[shared], allow_abbrev=False, help="an exported model's answers for files"
    ))
    _add_audit(commands.add_parser(
        "audit",
        parents=[shared],
        allow_abbrev=False,
        help="whether a run keeps its privacy promise, and whether its network gives its training examples away",
        description=_AUDIT,
        epilog=_AUDIT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ))
    _add_privacy(commands.add_parser(
        "privacy", parents=[shared], allow_abbrev=False, help="what a private run promises, and to whole users",
        description="Print the promise of a private run and what it does not cover, from its dp.json, and the figures "
        "that TF Privacy's compute_dp_sgd_privacy_statement would give for it.",
    ))
    ledger = commands.add_parser(
        "ledger", parents=[shared], allow_abbrev=False, help="what is spent of the privacy budgets in a ledger",
        description="Print what each dataset's runs have spent together, of its limit, and each run that was charged.",
    )
    ledger.add_argument("file", type=Path, metavar="FILE", help="what runs were given as --dp.ledger")
    ledger.set_defaults(command=_ledger)
    _add_launch(commands.add_parser(
        "launch", parents=[shared], allow_abbrev=False, help="a job in several processes of this machine",
        description="Run a job's command in several processes of this machine: with --tune a search for settings, "
        "whose trials the processes divide among them; otherwise one run, whose batches they divide, as several "
        "machines would (TF_CONFIG). The exit code and the last line of stdout are those of worker 0, the chief.",
    ))
    cache = commands.add_parser(
        "cache", parents=[shared], allow_abbrev=False, help="what runs share: features, digests of files",
        description="Features of frozen backbones (--adapt.mode head) and digests of files that were read, kept in the "
        "folder TFBIG_CACHE, by default in the user's cache folder, and at most TFBIG_CACHE_GB gigabytes of features. "
        "Readable by their owner alone: features tell of the pictures that they were computed from.",
    )
    cache.add_argument("--clear", action="store_true", help="remove them all; runs that use them go on")
    cache.set_defaults(command=_cache)
    return parser


def _add_audit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run, private or not")
    parser.add_argument(
        "--canaries", type=_whole(20), default=300, metavar="INT",
        help="made-up examples, at least 20; more can prove a larger epsilon (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=_whole(0), default=0, metavar="INT",
        help="draws the canaries, who takes part, and the noise (default: %(default)s)",
    )
    parser.add_argument(
        "--steps", type=_whole(1), metavar="INT",
        help="look at the run's first steps only, against what they claim (default: all)",
    )
    parser.set_defaults(command=_audit)


def _add_launch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tune", action="store_true", help="a search; its space is the job's tune.space")
    parser.add_argument(
        "--workers", type=_whole(1, 1024), default=2, metavar="INT",
        help="processes; each gets a GPU where there are some",
    )
    parser.add_argument("job", metavar="JOB", help="a job's name, as in python -m tfbig.pipelines.NAME, or a module")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help="the job's own flags")
    parser.set_defaults(command=_launch)


def _launch(options: argparse.Namespace) -> int:
    from tfbig import launch
    from tfbig.pipelines._processes import devices_of_workers, job_module

    if options.tune:
        from tfbig.pipelines._search_workers import launch_search

        print(launch_search(options.job, options.words, options.workers))
        return 0
    command = [sys.executable, "-m", job_module(options.job), *options.words]
    return launch.run(launch.over_workers(command, devices_of_workers(options.workers)))


def _whole(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, got {text!r}")
        return int(text)

    return read


def _audit(options: argparse.Namespace) -> None:
    from tfbig.pipelines._audit import audit, print_audit

    # Not those below, which speak of a run that goes on.
    logging.getLogger("tfbig.pipelines").setLevel(logging.INFO)
    content = audit(options.run, num_canaries=options.canaries, seed=options.seed, num_steps=options.steps)
    print_audit(content)


def _add_privacy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a private run")
    parser.add_argument(
        "--max_examples_per_user", type=_whole(1), metavar="INT",
        help="training examples that one person has at most: gives the figures for a whole person too",
    )
    parser.set_defaults(command=_privacy)


def _privacy(options: argparse.Namespace) -> None:
    from tfbig.pipelines._privacy import print_privacy

    print_privacy(options.run, max_examples_per_user=options.max_examples_per_user)


def _ledger(options: argparse.Namespace) -> None:
    from tfbig.pipelines._privacy import print_ledger

    print_ledger(options.file)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("export", type=Path, metavar="EXPORT", help="a version's folder, or its parent for the newest")
    parser.add_argument(
        "files", nargs="+", metavar="FILE",
        help="a picture, a folder of pictures, a pattern; for a model of numbers or texts a CSV file",
    )
    parser.add_argument("--signature", help="the function to call (default: serving_default)")
    parser.add_argument("--batch_size", type=int, default=32, help="examples at once (default: %(default)s)")
    parser.add_argument(
        "--format", choices=("table", "csv", "jsonl"), help="default: table on a terminal, csv otherwise"
    )
    parser.set_defaults(command=_predict)


def _predict(options: argparse.Namespace) -> None:
    import_tensorflow(show_log=options.debug)
    from tfbig.serving.predict import predict

    predict(
        options.export,
        options.files,
        signature=options.signature,
        batch_size=options.batch_size,
        output_format=options.format,
    )


def _cache(options: argparse.Namespace) -> None:
    from tfbig.data import known_files
    from tfbig.errors import EnvironmentFault
    from tfbig.training.feature_cache import from_environment

    cache = from_environment()
    entries, num_lists = cache.entries(), 0
    num_bytes = cache.clear() if options.clear else sum(entry.num_bytes for entry in entries)
    for entry in () if options.clear else entries:
        used = datetime.fromtimestamp(entry.used).isoformat(" ", "minutes")
        size = f"{' x '.join(map(str, entry.shape))} {entry.dtype}".strip()
        print(f"{used}  {entry.num_bytes / 1e6:10.1f} MB  {size:24}  {entry.about}")
    for path in known_files.entries(cache.folder):
        status = path.stat()
        num_bytes, num_lists = num_bytes + status.st_size, num_lists + 1
        if not options.clear:
            used = datetime.fromtimestamp(status.st_mtime).isoformat(" ", "minutes")
            print(f"{used}  {status.st_size / 1e6:10.1f} MB  digests of {known_files.num_files(path)} files")
            continue
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise EnvironmentFault(f"{path} cannot be removed ({error.strerror}); mend its permissions.") from error
    end = "removed" if options.clear else f"of at most {cache.limit_bytes / 1e9:g} GB"
    print(f"{cache.folder}: {len(entries) + num_lists} entries, {num_bytes / 1e6:.1f} MB {end}")


def _doctor(options: argparse.Namespace) -> None:
    from tfbig import doctor

    doctor.examine()


def _list(options: argparse.Namespace) -> None:
    wanted = (options.what,) if options.what else ("pipelines", "recipes", "backbones")
    if "pipelines" in wanted:
        _print_names("Pipelines: python -m tfbig.pipelines.NAME", _pipelines())
    if "recipes" in wanted:
        recipes = {name: _first_comment(path) for name, path in resources.recipe_paths().items()}
        _print_names("Recipes: --config NAME", recipes)
    if "backbones" in wanted:
        _print_names("Backbones: --model.backbone FORM:NAME", _all_backbones() if options.what else _backbones())


def _print_names(title: str, names: dict[str, str]) -> None:
    print(title)
    width = max(map(len, names), default=0)
    for name, text in names.items():
        print(f"  {name:{width}}  {text}".rstrip())
    if not names:
        print("  (none)")
    print()


def _pipelines() -> dict[str, str]:
    """Module name -> first line of its docstring, of those that can be run, without importing them."""
    found = {}
    for path in sorted(Path(__file__).with_name("pipelines").glob("[!_]*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        guards = [ast.unparse(statement.test) for statement in module.body if isinstance(statement, ast.If)]
        if "__name__ == '__main__'" in guards:
            found[path.stem] = (ast.get_docstring(module) or "").partition("\n")[0]
    return found


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")


def _backbones() -> dict[str, str]:
    bundled = {f"bundled:{name}": "comes with tfbig" for name in resources.bundled_backbones()}
    return bundled | _BACKBONE_FORMS


def _all_backbones() -> dict[str, str]:
    import_tensorflow()
    from tfbig.networks import backbones

    return {f"{kind}:{name}": "" for kind, names in backbones.names().items() for name in names}


if __name__ == "__main__":
    sys.exit(main())
