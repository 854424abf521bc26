"""Train tiny models of real photographs: ``python -m demo.photos.train DATA TARGET [vlm|vision|generator|aggregator]``.

DATA has the Parquet files of ``demo.photos.collection``. TARGET gets the models, a record of how each was made,
``profile.yaml``, which names them for every command of mindseye, and photos to fit and to measure on. One process of
one thread; an unfinished run is resumed, from ``TARGET/work``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import yaml

from cluster.profile import load_profile
from cluster.session import session
from demo.photos.collection import Collection, collect, training_set, write_photos
from demo.recipe import Recipe, write_records
from demo.run import choose_weight
from demo.tokenizer import new_tokenizer
from demo.train_encoders import save_vision, save_vlm, train_vision, train_vlm
from demo.train_generator import save_pipeline, train_unet, train_vae
from pipelines.gallery import build_gallery
from pipelines.queries import build_queries
from pipelines.vocabulary import read_vocabulary
from retrieval.artifacts import MANIFEST, Gallery, QuerySet
from retrieval.datasets.recipe import load_recipe
from retrieval.folder import Folder
from retrieval.prompts import fill, templates
from training.trainer import train

MODELS = ("vlm", "vision", "generator", "aggregator")
BARE_NAME = 0.7
"""Share of the generator's texts that are a name alone, as queries by name are."""


RECIPES = {
    "vlm": Recipe("vlm", steps=1400, batch=128, learning_rate=2e-3, weight_decay=0.05, ema=0.99),
    "vision": Recipe("vision", steps=2200, batch=128, learning_rate=3e-3, weight_decay=0.03, ema=0.998),
    "vae": Recipe("vae", steps=1500, batch=16, learning_rate=2e-3, ema=0.998),
    # No average of the weights: over so few steps it lags too far behind them.
    "unet": Recipe("unet", steps=2000, batch=32, learning_rate=1.2e-3, warm_up=300),
    "unet_on": Recipe("unet_on", steps=700, batch=32, learning_rate=6e-4, ema=0.98, warm_up=50, seed=1),
}


@cache
def sentences() -> list[str]:
    """Return the prompt templates of captions: open_clip's, and those that CLIP's authors have for CIFAR-10."""
    return [*templates("simple"), *load_recipe("cifar10").sentences()]


def caption(name: str, rng: np.random.Generator) -> str:
    """Return the name in one of the templates."""
    return fill([sentences()[rng.integers(len(sentences()))]], name)[0]


def prompt(name: str, rng: np.random.Generator) -> str:
    """Return a text that the generator learns from."""
    return name if rng.random() < BARE_NAME else caption(name, rng)


@dataclass(frozen=True)
class Training:
    """One run of the script: where its photos are, where its models go, and how long each is trained."""

    data: Path
    target: Path
    recipes: Mapping[str, Recipe]

    @property
    def work(self) -> Path:
        return self.target / "work"

    @property
    def tokenizer(self) -> Path:
        return self.work / "tokenizer"

    def prepare(self) -> Collection:
        """Divide the photos, and write what all models share."""
        photos = collect(self.data)
        if not self.tokenizer.exists():
            names = sorted(set(photos.models.labels))
            new_tokenizer([*names, *fill(sentences(), "")]).save_pretrained(self.tokenizer)
        write_photos(photos.fitting, self.target / "fitting")
        write_photos(photos.unseen, self.target / "unseen")
        profile = yaml.safe_dump(PROFILE, sort_keys=False)
        (self.target / "profile.yaml").write_text(profile, encoding="utf-8")
        return photos

    def vlm(self, photos: Collection) -> None:
        data = training_set(photos.models)
        model, record = train_vlm(data, caption, self.tokenizer, self.work, self.recipes["vlm"], by_category=True)
        save_vlm(model, self.tokenizer, self.target / "vlm")
        write_records(self.target / "vlm.json", vlm=record)

    def vision(self, photos: Collection) -> None:
        model, record = train_vision(training_set(photos.models), self.work, self.recipes["vision"])
        save_vision(model, self.target / "vision")
        write_records(self.target / "vision.json", vision=record)

    def generator(self, photos: Collection) -> None:
        """Train the generator; what its first recipe has come to stays in ``generator-early``."""
        data = training_set(photos.models, mirrored=True)
        vae, vae_record = train_vae(data, self.work, self.recipes["vae"])
        stages = {"generator-early": self.recipes["unet"], "generator": self.recipes["unet_on"]}
        trained = train_unet(data, prompt, vae, self.tokenizer, self.work, list(stages.values()))
        records = {"vae": vae_record}
        for (folder, recipe), (denoiser, record) in zip(stages.items(), trained, strict=True):
            save_pipeline(vae, denoiser, self.tokenizer, self.target / folder)
            records[recipe.name] = record
        write_records(self.target / "generator.json", **records)

    def aggregator(self, address: str | None = None) -> float:
        """Train the aggregator as ``mindseye train`` does, on the fitting photos; choose λ of the mean on them, too."""
        profile = load_profile(self.target / "profile.yaml")
        place = Folder(self.target / "fitting")
        with session(address):
            gallery, queries = place / "gallery", place / "queries"
            if not gallery.exists(MANIFEST):
                build_gallery(str(self.target / "fitting/photos.parquet"), gallery.uri, profile)
            if not queries.exists(MANIFEST):
                build_queries(read_vocabulary(self.target / "fitting/names.txt"), queries.uri, profile)
            made, imagined = Gallery.open(gallery), QuerySet.open(queries)
            Folder(self.target / "aggregator").delete()
            train(made, imagined, self.target / "aggregator", profile, address=address, log=print)
            return choose_weight(made, imagined)


PROFILE = {
    "models": {
        "vlm": "local-dir:vlm",
        "vision": "local-dir:vision",
        "generator": {"uri": "./generator", "steps": 6, "guidance": 3.0, "batch": 32},
        "aggregator": "aggregator",
        "device": "cpu",
    },
    "embed": {"cpus": 1, "max_actors": 16, "batch": 128},
    "imagine": {"cpus": 1, "max_actors": 16, "batch": 4},
    "queries": {"images": 8, "templates": "simple"},
    "index": {"rows_per_shard": 1_000_000},
    "train": {"min_workers": 0, "max_workers": 0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the Parquet files")
    parser.add_argument("target", type=Path, help="folder of the models")
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], help="which to train; default: all")
    given = parser.parse_args()
    torch.set_num_threads(1)
    training = Training(given.data, given.target, RECIPES)
    photos = training.prepare()
    for name in given.models or MODELS:
        if name == "aggregator":
            print(f"λ of the mean = {training.aggregator()}", flush=True)
        else:
            getattr(training, name)(photos)


if __name__ == "__main__":
    main()
