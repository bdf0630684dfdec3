"""`rmax train`: train a network that holds, by a certified or an adversarial method."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certify.models.registry import MODELS
from certify.registry import METHODS
from verifier.cli.data_run import ProgressLine
from verifier.cli.errors import BadInput, reading
from verifier.cli.question import check_device
from verifier.cli.startup import load_torch
from verifier.cli.verify import SEED

if TYPE_CHECKING:
    from certify.trainer import Told


def _listing() -> str:
    methods = [f"  {name:13s} {entry.summary}{f' ({entry.source})' if entry.source else ''}"
               for name, entry in METHODS.items()]
    models = [f"  {name:13s} {entry.summary}" for name, entry in MODELS.items()]
    return "\n".join(["\b", "Methods (source)", *methods, "", "\b", "Models", *models])


@click.command(epilog=f"""{_listing()}

\b
Examples
  rmax train --method ibp --data digits --model mlp --eps 0.05
  rmax train --method crown-ibp --data mnist --data-dir data --model wk-small --eps 0.1 --out out/crown-ibp
  rmax train --method sabr --data mnist --data-dir data --eps 0.1 --set method.shrink=0.4 --set epochs=30
  rmax train config.yaml --out out/run --resume
  torchrun --nproc-per-node 2 -m verifier.cli train --method ibp --data mnist --device cuda --out out/run

\b
eps is in the units of the inputs (pixels in [0, 1]); normalisation is a part of the network. A YAML file holds the same
names as --set; flags override it. What is not said comes from a recipe of the method and data set, and stands in
OUT/settings.yaml. OUT also holds log.csv, curves.png, card.json, model.onnx and checkpoints: a run that was killed goes
on with --resume and ends with the same weights.""")
@click.argument("config", metavar="[CONFIG.yaml]", required=False)
@click.option("--method", type=click.Choice(tuple(METHODS)), metavar="M", help="One of those listed below [ibp].")
@click.option("--data", metavar="NAME|FILE.npz", help="digits, mnist, fashion-mnist, cifar10, or a file with x and y "
              "[digits].")
@click.option("--model", type=click.Choice(tuple(MODELS)), metavar="M", help="One of those listed below [mlp].")
@click.option("--eps", type=float, metavar="E", help="The radius that is to hold, in input units [0.05].")
@click.option("--norm", type=click.Choice(["inf", "2"]), help="How the radius is measured [inf].")
@click.option("--epochs", type=float, metavar="N", help="Passes over the training set; may be a fraction.")
@click.option("--batch-size", type=click.IntRange(1), metavar="N")
@click.option("--lr", type=float, metavar="L", help="The learning rate.")
@click.option("--set", "others", multiple=True, metavar="KEY=VALUE", help="Any other setting; may be repeated.")
@click.option("--data-dir", metavar="D", help="Where the files of a named data set lie.")
@click.option("--download", is_flag=True, help="Fetch what is missing there from its publisher.")
@click.option("--out", metavar="DIR", help="Folder of the run [out/train/METHOD-MODEL-DATA-eps].")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--seed", type=SEED, help="Of everything random [0].")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where to compute [cpu].")
@click.option("--json", "json_out", is_flag=True, help="Print the card as JSON on stdout, nothing else.")
def command(config: str | None, others: tuple[str, ...], data_dir: str | None, download: bool,
            out: str | None, resume: bool, device: str | None, json_out: bool, **flags: Any) -> None:
    """Train a network that provably holds, or withstands attacks."""
    from certify.settings import parsed, read_settings, resolve
    given: dict[str, Any] = {}
    stored: dict[str, Any] = {}
    if config is not None:
        with reading(config):
            given = read_settings(config)
    overriding: dict[str, Any] = {}
    for other in others:
        key, equals, value = other.partition("=")
        if not equals:
            raise BadInput(f"--set {other}: expected KEY=VALUE")
        try:
            overriding[key.strip()] = parsed(value)
        except ValueError as error:
            raise BadInput(f"--set {key}: {error}") from error
    overriding |= {key: value for key, value in flags.items() if value is not None}
    if resume and out is None:
        raise BadInput("--resume goes on with a run that --out names")
    load_torch()
    if resume and out is not None:
        from certify.training import stored_settings
        with reading(out):
            stored = stored_settings(Path(out))
    check_device(device)
    try:
        settings = resolve(stored, given, overriding)
    except (ValueError, TypeError) as error:
        raise BadInput(f"{config}: {error}" if config and not overriding else str(error)) from error
    folder = Path(out) if out else Path("out") / "train" / "-".join(
        [settings.method, settings.model, Path(settings.data).stem, f"{settings.eps:g}"])
    line = _Line(quiet=json_out)
    from bounds.graph import UnsupportedOperator
    from certify.data.registry import load
    from certify.trainer import Diverged
    from certify.training import train
    from verifier.out_of_memory import is_out_of_memory
    try:
        data = load(settings.data, data_dir, download=download)
        if not json_out and is_first():
            from certify.data.dataset import describe
            click.echo(describe(data), err=True)
            click.echo(f"method {settings.method}  model {settings.model}  eps {settings.eps:g} in l_{settings.norm}, "
                       f"in units of the inputs  epochs {settings.epochs:g}  seed {settings.seed}  -> {folder}",
                       err=True)
        trained = train(settings, data=data, out=folder, resume=resume, device=device, tell=line)
    except KeyboardInterrupt:
        line.end()
        raise BadInput(f"interrupted; go on with --out {folder} --resume") from None
    except Diverged as error:
        line.end()
        raise BadInput(str(error)) from error
    except (ValueError, OSError, UnsupportedOperator) as error:
        line.end()
        raise BadInput(" ".join(str(error).split())) from error
    except (RuntimeError, MemoryError) as error:
        line.end()
        if not is_out_of_memory(error):
            raise
        raise BadInput(f"not enough memory ({' '.join(str(error).split())})") from error
    line.end()
    if not is_first():
        return
    if json_out:
        click.echo(json.dumps(trained.card))
        return
    click.echo(sentence(trained.card))
    if trained.later:
        worth = trained.card["cascade"]
        click.echo(f"cascade of {1 + len(trained.later)}  clean {100 * worth['clean']:.2f} %  certified by the stage "
                   f"that answers {100 * worth['stage_certified']:.2f} % (the figure of arXiv:1805.12514, no bound of "
                   f"the cascade)  answered by {' + '.join(map(str, worth['answered']))} of "
                   f"{trained.card['test']['examples']}")
    click.echo(f"{(folder / 'stage1' if trained.later else folder) / 'model.onnx'}"
               f"{''.join(f', stage{k + 2}' for k in range(len(trained.later)))}")


def is_first() -> bool:
    """Whether this process speaks, of those that torchrun started."""
    import os
    return os.environ.get("RANK", "0") == "0"


def sentence(card: dict[str, Any]) -> str:
    """The result in one line for people."""
    test = card["test"]
    shares = [f"{name} {100 * value:.2f} %" for name, value in test.items() if name not in ("examples", "eps", "norm")]
    return f"{'  '.join(shares)}  ({test['examples']} test examples, l_{test['norm']} eps {test['eps']:g}, epoch " \
           f"{card['chosen_epoch']}, {card['seconds']:.0f} s)"


class _Line(ProgressLine):
    """Progress on stderr with the time left."""

    def __init__(self, *, quiet: bool) -> None:
        super().__init__()
        self.quiet = quiet

    def __call__(self, told: Told) -> None:
        if self.quiet:
            return
        if not self.is_due:
            return
        if told.doing:
            self.tell(f"epoch {told.epoch:.1f}/{told.epochs:g}  {told.doing}")
            return
        means = told.means()
        shares = "".join(f"  {name} {100 * means[name]:.1f} %" for name in ("accuracy", "certified") if name in means)
        left = f"  left {told.left_s:.0f} s" if told.left_s < math.inf else ""
        self.tell(f"epoch {told.epoch:.1f}/{told.epochs:g}  eps {told.eps:.4g}  loss {means.get('loss', 0):.4g}"
                  f"{shares}{left}")
