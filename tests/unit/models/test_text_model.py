"""A language model of this machine: loaded without pickles and foreign code, asked as an assistant is."""

from __future__ import annotations

import asyncio
import copy
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import Run
from errors import refused
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from retrieval.assistant.describe import described
from retrieval.datasets.description_file import Description, read_csv
from retrieval.models.text_model import TextModel

CHAINS = {"[UNK]": "something round and small", "<answer>": "five sharp points on a flag"}
"""What the model says after a token: words that follow one another, then the end."""


def write_text_model(folder: Path, *, chat: bool) -> Path:
    """A Llama whose next word depends on the last one alone: the embeddings are apart, and no layer adds to them."""
    words = ["[UNK]", "<answer>", "</s>", "again", *dict.fromkeys(" ".join(CHAINS.values()).split())]
    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="</s>", additional_special_tokens=["<answer>"]
    )
    if chat:
        fast.chat_template = "{{ messages[0]['content'] }} <answer>"
    width = 16
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=4096,
        eos_token_id=ids["</s>"],
        bos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    head = torch.zeros(len(words), width)
    head[ids["again"], ids["again"]] = 1
    for start, said in CHAINS.items():
        chain = [start, *said.split(), "</s>"]
        for word, following in pairwise(chain):
            head[ids[following], ids[word]] = 1
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(len(words), width))
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.copy_(head)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("chat", "text"), [(True, CHAINS["<answer>"]), (False, CHAINS["[UNK]"])])
def test_it_describes_and_counts_its_tokens(tmp_path: Path, chat: bool, text: str) -> None:
    model = TextModel.load(f"local-dir:{write_text_model(tmp_path / 'model', chat=chat)}", device="cpu")
    assert asyncio.run(described(model.talk(), "red star", 1, [])) == [text]
    assert (model.spent.calls, model.spent.failed) == (1, 0)
    assert model.spent.tokens_in > 100
    assert model.spent.tokens_out == len(text.split()) + 1


def test_an_answer_that_nobody_waits_for_ends(tmp_path: Path) -> None:
    """The model would say one word to the end, and the loop ends when its thread has."""
    model = TextModel.load(f"local-dir:{write_text_model(tmp_path / 'model', chat=False)}", device="cpu")
    asked = model.complete("describe", [{"role": "user", "content": "again"}], max_tokens=1_000)
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(asked, 0.1))
    assert model.spent.tokens_out < 1_000


def test_pickled_weights_and_code_of_a_repository_are_refused(tmp_path: Path) -> None:
    pickled = write_text_model(tmp_path / "pickled", chat=True)
    torch.save(LlamaForCausalLM.from_pretrained(pickled).state_dict(), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    foreign = write_text_model(tmp_path / "foreign", chat=True)
    mark = tmp_path / "mark"
    config = json.loads((foreign / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    (foreign / "config.json").write_text(json.dumps(config))
    (foreign / "own.py").write_text(f"open({str(mark)!r}, 'w')\n")
    for folder in (pickled, foreign, tmp_path / "none"):
        with refused("not-loadable", "describer"):
            TextModel.load(f"local-dir:{folder}", device="cpu")
    assert not mark.exists()


def test_the_command_takes_the_describer_of_the_profile(
    run: Run, tmp_path: Path, profile_settings: dict[str, Any]
) -> None:
    """It goes before an assistant, which nothing is sent to then; its folder is relative to the profile's."""
    write_text_model(tmp_path / "model", chat=True)
    settings = copy.deepcopy(profile_settings)
    settings["models"]["describer"] = "local-dir:model"
    settings["models"]["assistant"] = {"url": "http://127.0.0.1:9/v1", "model": "nobody"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(settings))
    said = run("dataset", "describe", "cifar10", tmp_path / "d.csv", "--profile", tmp_path / "own.yaml")
    assert said.code == 0, said.err
    assert "10 classes, 1 descriptions each: 10 were missing, 1 were made, 9 more were rejected" in said.out
    first, second, *_ = read_csv(tmp_path / "d.csv")
    text, model = CHAINS["<answer>"], f"local-dir:{tmp_path}/model"
    assert first == Description("airplane", text, "made", "", "airplane", model, "1")
    assert (second.status, second.problem) == ("rejected", "is the description of airplane as well")
