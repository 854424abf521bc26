"""The text tower against open_clip's own forward: equal vectors, no work on padding, and no slower in batches."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
from torch import nn
from torch.nn import functional

from retrieval.models.attention import SelfAttention, keep_order
from retrieval.models.text_tower import TEXTS_AT_ONCE, CausalTower, text_tower_of

CONTEXT, WORDS = 24, 60
END = WORDS - 1
VISION = {"image_size": 32, "patch_size": 16, "layers": 2, "width": 48, "head_width": 16}
TEXT = {"context_length": CONTEXT, "vocab_size": WORDS, "width": 32, "heads": 2, "layers": 3, "eos_id": END}


def model_of(kind: type = open_clip.CLIP, **text: Any) -> Any:
    torch.manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        model = kind(embed_dim=16, vision_cfg=VISION, text_cfg=TEXT | text)
    for parameter in model.parameters():  # biases and projections start at nought
        nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


def coca() -> Any:
    decoder = {"context_length": CONTEXT, "vocab_size": WORDS, "width": 32, "heads": 2, "layers": 1}
    return open_clip.CoCa(16, decoder, TEXT | {"embed_cls": True, "output_tokens": True}, VISION).eval()


def token_ids(lengths: list[int], padding: int = 0) -> torch.Tensor:
    """Random words from a start to an end, and padding."""
    generator = torch.Generator().manual_seed(1)
    tokens_BT = torch.full((len(lengths), CONTEXT), padding)
    for row, length in zip(tokens_BT, lengths, strict=True):
        row[: length - 1] = torch.randint(1, END, (length - 1,), generator=generator)
        row[length - 1] = END
    return tokens_BT


CAUSAL: dict[str, Callable[[], Any]] = {
    "CLIP": model_of,
    "pooled at a given token": lambda: model_of(pool_type="eos"),
    "tower of its own": lambda: model_of(open_clip.CustomTextCLIP),
    "with a linear projection": lambda: model_of(open_clip.CustomTextCLIP, proj_bias=True),
    "without a projection": lambda: model_of(proj_type="none"),
    "blocks of open_clip's own attention": lambda: model_of(qk_norm=True),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "sees what follows": lambda: model_of(no_causal_mask=True),
    "SigLIP": lambda: model_of(open_clip.CustomTextCLIP, no_causal_mask=True, pool_type="last"),
    "causal, pooled at the last token": lambda: model_of(pool_type="last"),
    "causal, pooled at the first token": lambda: model_of(open_clip.CustomTextCLIP, pool_type="first"),
    "CoCa": coca,
}
LENGTHS = [5, 2, CONTEXT, 9, 9, 3]


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padding", [0, END])
@pytest.mark.parametrize("name", CAUSAL)
def test_causal_towers_make_the_librarys_vectors(name: str, padding: int, dtype: torch.dtype) -> None:
    tokens_BT = token_ids([length for length in LENGTHS for _ in range(TEXTS_AT_ONCE // 4)], padding)
    theirs = CAUSAL[name]()
    expected = functional.normalize(theirs.encode_text(tokens_BT))
    ours = copy.deepcopy(theirs).to(dtype)
    keep_order(ours)
    tower = text_tower_of(ours)
    assert isinstance(tower, CausalTower)
    found = functional.normalize(tower(tokens_BT).float())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.06)
    alone = torch.cat([functional.normalize(tower(one[None]).float()) for one in tokens_BT[:12]])
    torch.testing.assert_close(found[:12], alone, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.06)


@torch.inference_mode()
@pytest.mark.parametrize("name", OTHERS)
def test_other_towers_are_the_librarys_own(name: str) -> None:
    tokens_BT = token_ids(LENGTHS)
    theirs = OTHERS[name]()
    expected = theirs.encode_text(tokens_BT)
    ours = copy.deepcopy(theirs)
    keep_order(ours)
    tower = text_tower_of(ours)
    assert not isinstance(tower, CausalTower)
    torch.testing.assert_close(tower(tokens_BT), expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_only_tokens_up_to_the_longest_end_are_computed() -> None:
    model = model_of()
    seen: list[tuple[int, ...]] = []
    model.transformer.register_forward_pre_hook(lambda _, arguments: seen.append(tuple(arguments[0].shape[:2])))
    tower = text_tower_of(model)
    tower(token_ids([5, 3, 7]))
    assert seen == [(3, 7)]
    seen.clear()
    tower(token_ids([CONTEXT if i % 2 else 4 for i in range(2 * TEXTS_AT_ONCE)]))
    assert seen == [(TEXTS_AT_ONCE, 4), (TEXTS_AT_ONCE, CONTEXT)]


@torch.inference_mode()
@pytest.mark.parametrize("masked", ["none", "one for all", "one for each"])
def test_attention_is_pytorchs(masked: str) -> None:
    B, T, heads = 3, 7, 4
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(32, heads, batch_first=True).eval().requires_grad_(False)
    nn.init.normal_(theirs.in_proj_bias)
    ours = copy.deepcopy(theirs)
    keep_order(ours)
    assert type(ours) is SelfAttention
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    causal = torch.full((T, T), float("-inf")).triu(1)
    each = causal.repeat(B * heads, 1, 1)
    each[:heads, :, 2:5] += torch.randn(T, 3)
    mask = {"none": None, "one for all": causal, "one for each": each}[masked]
    x_BTW = torch.randn(B, T, 32)
    expected, _ = theirs(x_BTW, x_BTW, x_BTW, need_weights=False, attn_mask=mask)
    found, weights = ours(x_BTW, x_BTW, x_BTW, need_weights=False, attn_mask=mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert weights is None


@torch.inference_mode()
def test_attention_that_is_none_of_ours_stays_pytorchs() -> None:
    apart = nn.MultiheadAttention(32, 4, kdim=16, vdim=16, batch_first=True)
    last = nn.MultiheadAttention(32, 4)
    biased = nn.MultiheadAttention(32, 4, batch_first=True, add_bias_kv=True)
    plain = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    keep_order(nn.ModuleList([apart, last, biased, plain]))
    assert [type(each) for each in (apart, last, biased)] == 3 * [nn.MultiheadAttention]
    x_BTW, y_BTW = torch.randn(2, 3, 5, 32)
    _, weights = plain(x_BTW, x_BTW, x_BTW)
    assert weights is not None
    assert weights.shape == (3, 5, 5)
    found, _ = plain(x_BTW, y_BTW, y_BTW, need_weights=False)
    expected, _ = nn.MultiheadAttention.forward(plain, x_BTW, y_BTW, y_BTW, need_weights=False)
    torch.testing.assert_close(found, expected)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_costs_no_more_than_its_texts_one_by_one(dtype: torch.dtype) -> None:
    T, width = 77, 512
    block = open_clip.transformer.ResidualAttentionBlock(width, 8).eval().requires_grad_(False).to(dtype)
    keep_order(block)
    mask = torch.full((T, T), float("-inf"), dtype=dtype).triu(1)
    x_BTW = torch.randn(16, T, width, dtype=dtype)

    def cpu_seconds(batches: list[torch.Tensor]) -> float:
        """The least of three rounds, of this thread alone: what else the machine does costs wall-clock time."""
        rounds = []
        for _ in range(3):
            started = time.thread_time()
            for batch in batches:
                block(batch, attn_mask=mask)
            rounds.append(time.thread_time() - started)
        return min(rounds)

    alone = cpu_seconds([*x_BTW.split(1)])
    assert cpu_seconds([x_BTW]) <= 1.5 * alone
