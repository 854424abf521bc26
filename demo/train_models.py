"""Rebuild the demo's models from nothing: ``python -m demo.train_models [generator|vision|vlm|aggregator ...]``.

Two processes of one thread each: the generator in one, the two encoders in the other; then the aggregator, on Ray.
What was trained stays in ``demo/work`` and an unfinished run is resumed from there. Weights and records end in
``demo/models``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from demo.grammar import every_training_text, prompt, web_caption
from demo.recipe import write_records
from demo.tokenizer import new_tokenizer
from demo.training_data import rendered

HERE = Path(__file__).parent
WORK, MODELS = HERE / "work", HERE / "models"
TOKENIZER = WORK / "tokenizer"
STOCK_PICTURES, PHOTOS = 40, 100
"""Rendered training images per category."""


def build_generator() -> None:
    from demo.train_generator import save_pipeline, train_decoder, train_unet, train_vae

    stock = rendered(WORK, "models", "stock", STOCK_PICTURES)
    vae, vae_record = train_vae(stock, WORK)
    decoder_record = train_decoder(stock, vae, WORK)
    [(denoiser, unet_record)] = train_unet(stock, prompt, vae, TOKENIZER, WORK)
    save_pipeline(vae, denoiser, TOKENIZER, MODELS / "generator")
    write_records(MODELS / "generator.json", vae=vae_record, decoder=decoder_record, unet=unet_record)


def build_vision() -> None:
    from demo.train_encoders import save_vision, train_vision

    model, record = train_vision(rendered(WORK, "models", "photo", PHOTOS), WORK)
    save_vision(model, MODELS / "vision")
    write_records(MODELS / "vision.json", vision=record)


def build_vlm() -> None:
    from demo.train_encoders import save_vlm, train_vlm

    model, record = train_vlm(rendered(WORK, "models", "photo", PHOTOS), web_caption, TOKENIZER, WORK)
    save_vlm(model, TOKENIZER, MODELS / "vlm")
    write_records(MODELS / "vlm.json", vlm=record)


def build_aggregator() -> None:
    from demo.train_aggregator import build

    build(WORK / "aggregator", MODELS / "aggregator")


BUILDERS = {"generator": build_generator, "vision": build_vision, "vlm": build_vlm, "aggregator": build_aggregator}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="*", choices=[*BUILDERS, []], help="which to train, in this process; default: all"
    )
    chosen = parser.parse_args().models
    MODELS.mkdir(exist_ok=True)
    if not TOKENIZER.exists():
        new_tokenizer(every_training_text()).save_pretrained(TOKENIZER)
    if chosen:
        torch.set_num_threads(1)
        for name in chosen:
            BUILDERS[name]()
        return
    print("rendering the training images", flush=True)
    rendered(WORK, "models", "stock", STOCK_PICTURES)
    rendered(WORK, "models", "photo", PHOTOS)
    halves = (["generator"], ["vision", "vlm"])
    running = [subprocess.Popen([sys.executable, "-m", "demo.train_models", *half]) for half in halves]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit("a model could not be trained, see above; the same command resumes where it stopped")
    build_aggregator()


if __name__ == "__main__":
    main()
