"""The command line: arguments, exit statuses, Ctrl-C and a closed pipe. `service.cli.run` does the work."""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

from model.errors import ModelError
from model.preprocessing.recipe import Crop
from service import __version__, log
from service.cli import config, preflight, serve
from service.cli.backend import Ask, CommandError
from service.cli.completion import PROGRAM, PrintCompletion
from service.cli.files import find
from service.cli.output import Embeddings, Lines, Table, npy_path
from service.cli.run import Source, answer, describe
from service.cli.terminal import Progress
from service.errors import SettingsError
from service.heads.store import NAME, NAMES_ARE
from service.jobs import Pooling
from service.registry.sources import ModelSource, Sources, few, settings_for
from service.settings import ADMIN_KEY, CLIENT_KEY, Settings

_AsWritten = argparse.RawDescriptionHelpFormatter
USAGE, FAILED, INTERRUPTED, PIPE_CLOSED = 2, 1, 130, 141

_EPILOG = """\
classify, embed, info and teach load the model of the VIM_* settings (or of --config's file) themselves, or ask a server
with --url. Of several models they use the default one, or that of --model. `serve --help` lists every setting.
FILE may be a folder: the images below it, sorted by path, without what is hidden.
Results go to stdout; progress (on a terminal) and errors go to stderr.

exit status: 0 all went well; 1 a file failed (the others are answered) or the model or server could not be used;
2 wrong usage or settings; 130 Ctrl-C
"""
_CLASSIFY = """\
Print the most likely classes of each image, best first, as a table. With --json, NDJSON: one object a line and file,
in order and as soon as it is known:
  {"file", "model": {"name", "fingerprint"}, "predictions": [{"index", "label", "score"}, ...]}
or, for a file that failed:
  {"file", "error": {"code", "message"}}
"""
_EMBED = """\
Write the embeddings of all images to OUT.npy (float32, N x D) and their names to OUT.names.txt (one a line, in the
order of the rows; a file that failed has neither), and print what was written and by which model. With --json that is
one object: {"out", "names", "shape", "dtype", "pooling", "normalized", "crop", "model", "failed"}, where "failed" is a
list of {"file", "error"}
"""
_TUNE = """\
Measure this machine with the model of the VIM_* settings: start-up, decoding by threads, forward passes by batch size,
and both at once. Print the settings to run it with, and why. Nothing else should run meanwhile. With --json one object,
which is also what `python -m tools.simulate_fleet --profile` takes.
"""
_TEACH = """\
Make a custom classification head from a folder with a folder of pictures for each class: five pictures or more of each.
Print how good it is by cross-validation, and the pictures that may be in the wrong folder; write NAME.safetensors. A
server uses it with ?head=NAME when the file is in its VIM_HEADS_DIR. With --url the server embeds the pictures, and
with a key of an administrator in VIM_ADMIN_KEY it also gets the head. With --json one object: {"head", "model",
"accuracy", "interval", "pictures", "folds", "classes", "unsure"}.
"""
_INFO = "Print what the model is and where it runs, as GET /info says it; with --json as one object."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status. Wrong usage raises SystemExit(2)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the terminal may not be able to encode a file's name
    parser = _parser(PROGRAM if Path(sys.argv[0]).name == PROGRAM else "python -m service")
    try:
        options, rest = parser.parse_known_args(arguments)
        if rest:
            parser.error(serve.unknown(rest))
        status: int = options.run(options)
        sys.stdout.flush()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return USAGE
    except (CommandError, ModelError) as error:
        print(error, file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit succeeds
        return PIPE_CLOSED
    except OSError as error:  # for example a full disk; files that cannot be read have errors of their own
        print(f"cannot write: {error}", file=sys.stderr)
        return FAILED
    return status


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Vision Mamba inference server, and the same answers without one",
        epilog=_EPILOG,
        formatter_class=_AsWritten,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        make=_parser,
        help="print the completion for this shell, and end; bash: source <(vim-server --print-completion bash)",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve.add(commands)
    _add_classify(commands)
    _add_embed(commands)
    info = commands.add_parser("info", help="what the model is and where it runs", description=_INFO)
    _add_source(info)
    info.set_defaults(run=_info, batch=None)
    _add_teach(commands)
    _add_tune(commands)
    return parser


def _add_classify(commands: Any) -> None:
    classify = commands.add_parser(
        "classify", help="the most likely classes of images", description=_CLASSIFY, formatter_class=_AsWritten
    )
    _add_source(classify)
    _add_files(classify)
    classify.add_argument("--top-k", type=_positive, default=5, metavar="K", help="classes for each image (default 5)")
    classify.set_defaults(run=_classify)


def _add_embed(commands: Any) -> None:
    embed = commands.add_parser(
        "embed", help="embeddings of images, as .npy", description=_EMBED, formatter_class=_AsWritten
    )
    _add_source(embed)
    _add_files(embed)
    embed.add_argument("--out", type=_out, default="embeddings.npy", help="where to (default embeddings.npy)")
    embed.add_argument(
        "--pooling",
        choices=get_args(Pooling),
        default="cls",
        help="cls (default): what the classifier head sees; mean: the mean of the patch tokens",
    )
    embed.add_argument("--no-normalize", action="store_true", help="as the model gives them, not scaled to unit length")
    embed.set_defaults(run=_embed)


def _add_teach(commands: Any) -> None:
    teach = commands.add_parser(
        "teach", help="make a custom head from folders of pictures", description=_TEACH, formatter_class=_AsWritten
    )
    teach.add_argument("folder", type=Path, metavar="FOLDER", help="a folder with a folder of pictures for each class")
    teach.add_argument("--name", type=_head_name, required=True, help=f"name of the head: {NAMES_ARE}")
    teach.add_argument("--out", type=Path, metavar="FILE", help="where to write it (default NAME.safetensors)")
    _add_source(teach)
    _add_batch(teach)
    teach.set_defaults(run=_teach)


def _add_tune(commands: Any) -> None:
    tune = commands.add_parser(
        "tune", help="measure this machine and recommend settings", description=_TUNE, formatter_class=_AsWritten
    )
    tune.add_argument("files", nargs="*", metavar="FILE", help="images like those that will come (default: made up)")
    tune.add_argument(
        "--wait-ms", type=_positive, default=1000, metavar="MS", help="longest wait for an answer (default 1000)"
    )
    tune.add_argument(
        "--seconds", type=_positive, default=10, metavar="S", help="for each measurement (default 10; there are three)"
    )
    tune.add_argument("--write", type=Path, metavar="FILE", help="the settings as an environment file")
    tune.add_argument("--json", action="store_true", help="for programs; see above")
    _add_model(tune)
    config.add(tune)
    tune.set_defaults(run=_tune)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", type=_url, help="ask the server there instead of loading the model")
    parser.add_argument(
        "--key", type=_key, help=f"API key of that server; others here can see it, better set {CLIENT_KEY}"
    )
    parser.add_argument("--json", action="store_true", help="for programs; see above")
    _add_model(parser)
    config.add(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    """Add --model, the name of a model. `serve --model` is another option: it says where the model is."""
    parser.add_argument(
        "--model",
        type=_name,
        metavar="NAME",
        help="name of the model, if VIM_MODELS, VIM_MODEL_REPOSITORY or the server has several (default the first)",
    )


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="an image, or a folder of images")
    parser.add_argument(
        "--crop",
        choices=get_args(Crop),
        default="center",
        help="what the model sees: the middle (default), the full image squashed, or the image padded to a square",
    )
    _add_batch(parser)


def _add_batch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch",
        type=_positive,
        metavar="N",
        help="most images in one forward pass (default VIM_MAX_BATCH); with --url: requests at once (default 16)",
    )


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not like http://host:8000")
    return text


def _key(text: str) -> str:
    if not text.isascii() or not text.isprintable():
        raise argparse.ArgumentTypeError("an API key is printable ASCII")
    return text


def _name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must be the name of a model")
    return text


def _head_name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"must be {NAMES_ARE}")
    return text


def _out(text: str) -> Path:
    try:
        return npy_path(text)
    except CommandError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _classify(options: argparse.Namespace) -> int:
    files = find(options.files)
    progress = Progress(len(files))
    write = _writer(progress)
    sink = Lines(write) if options.json else Table([file.name for file in files], write)
    ask = Ask("classify", top_k=options.top_k, crop=options.crop)
    return _run(answer(_source(options), files, ask, sink, progress), progress)


def _embed(options: argparse.Namespace) -> int:
    files = find(options.files)
    progress = Progress(len(files))
    ask = Ask("embed", pooling=options.pooling, normalize=not options.no_normalize, crop=options.crop)
    sink = Embeddings(options.out, ask, _writer(progress), as_json=options.json)
    return _run(answer(_source(options), files, ask, sink, progress), progress)


def _info(options: argparse.Namespace) -> int:
    progress = Progress(0)
    return _run(describe(_source(options), _writer(progress), progress, as_json=options.json), progress)


def _teach(options: argparse.Namespace) -> int:
    from service.cli.teach.command import TeachOptions, teach

    progress = Progress(0)
    out = options.out or Path(f"{options.name}.safetensors")
    chosen = TeachOptions(options.folder, options.name, out, options.json)
    return _run(teach(_source(options), chosen, _writer(progress), progress), progress)


def _tune(options: argparse.Namespace) -> int:
    from service.cli.tune.command import TuneOptions, tune

    settings = _settings(options)
    progress = Progress(0)
    chosen = TuneOptions(options.files, options.wait_ms / 1000, options.seconds, options.write, options.json)
    return _run(tune(settings, chosen, _writer(progress), progress), progress)


def _source(options: argparse.Namespace) -> Source:
    """With --url the server has its own settings, and those of the environment are not read."""
    if options.url is not None:
        key, admin_key = (_key(os.environ.get(name, "")) for name in (CLIENT_KEY, ADMIN_KEY))
        return Source(options.url, None, options.batch, options.key or key or admin_key, options.model, admin_key)
    return Source(None, _settings(options), options.batch)


def _settings(options: argparse.Namespace) -> Settings:
    """The settings of a command that loads a model: of several models the named one, or the default one."""
    settings = config.load(options.config)
    log.configure(settings.log_level if "log_level" in settings.model_fields_set else "warning")
    preflight.check_models(settings)
    return settings_for(settings, _chosen(Sources.of(settings), options.model))


def _chosen(sources: Sources, name: str | None) -> ModelSource:
    if name not in (None, *(names := sources.names())):
        raise CommandError(f"--model: there is no model {name!r}; the settings have {few(names)}")
    return sources.find(name or sources.default)


def _run(work: Coroutine[Any, Any, int], progress: Progress) -> int:
    try:
        return asyncio.run(work)
    except CommandError as error:
        progress.note(str(error))
        return FAILED
    finally:
        progress.clear()


def _writer(progress: Progress) -> Callable[[str], None]:
    def write(line: str) -> None:
        progress.clear()
        print(line, flush=True)

    return write
