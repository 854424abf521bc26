"""The aggregator against a plain version of itself, its checkpoint layout, masks and starting weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from errors import refused
from torch import Tensor

from retrieval.aggregator import Aggregator, mean_pool

DIM = 16


def random_aggregator(heads: int = 1, layers: int = 2, seed: int = 0) -> Aggregator:
    """Evaluation mode, all parameters random (biases and λ too) and large enough to make attention uneven."""
    torch.manual_seed(seed)
    model = Aggregator(DIM, heads, layers).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def features(batch: int = 3, images: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(batch, images, DIM, generator=generator), dim=2)


def plain(model: Aggregator, images_KD: Tensor) -> Tensor:
    """One set without mask: torch's attention over the whole sequence, the class row alone replaced."""
    sequence = torch.cat([images_KD.mean(0, keepdim=True), images_KD])
    for layer in model.layers:
        attention = torch.nn.MultiheadAttention(DIM, model.heads).eval()
        attention.load_state_dict(layer.state_dict())
        attended, _ = attention(sequence, sequence, sequence)
        sequence = torch.cat([attended[:1], sequence[1:]])
    return sequence[0] / sequence[0].norm()


def plain_one_head(state: dict[str, Tensor], images_KD: np.ndarray) -> np.ndarray:
    """One head without torch's attention: softmax by hand, from a checkpoint of the authors' layout."""
    cls = images_KD.mean(axis=0)
    for layer in range(2):
        w, b, wo, bo = (
            state[f"self_attn.layers.{layer}.{name}"].numpy()
            for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        )
        rows = np.vstack([cls, images_KD])
        q = w[:DIM] @ cls + b[:DIM]
        k = rows @ w[DIM : 2 * DIM].T + b[DIM : 2 * DIM]
        v = rows @ w[2 * DIM :].T + b[2 * DIM :]
        share = np.exp(k @ q / np.sqrt(DIM))
        cls = wo @ (share / share.sum() @ v) + bo
    return cls / np.linalg.norm(cls)


def reference_checkpoint(model: Aggregator, prefix: str = "") -> dict[str, Tensor]:
    """What the authors' training would have saved for these weights."""
    state = {
        f"{prefix}self_attn.{name}": tensor for name, tensor in model.state_dict().items() if name.startswith("layers.")
    }
    state[f"{prefix}lamda"] = model.lamda.detach().reshape(1)
    state[f"{prefix}attn_layer.in_proj_weight"] = torch.ones(3)
    return state


@pytest.mark.parametrize("heads", [1, 4])
def test_equals_attention_over_the_whole_sequence(heads: int) -> None:
    model = random_aggregator(heads)
    sets = features()
    expected = torch.stack([plain(model, one) for one in sets])
    with torch.no_grad():
        torch.testing.assert_close(model(sets), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("heads", [1, 4])
def test_masked_images_do_not_exist(heads: int) -> None:
    model = random_aggregator(heads)
    sets = features()
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 1], [0, 0, 0, 1, 0]]).bool()
    sets[~mask] = torch.nan
    expected = torch.stack([plain(model, one[here]) for one, here in zip(sets, mask, strict=True)])
    with torch.no_grad():
        torch.testing.assert_close(model(sets, mask), expected, atol=1e-5, rtol=0)


def test_equals_numpy_for_the_checkpoint_layout() -> None:
    model = random_aggregator()
    state = reference_checkpoint(model)
    for one in features():
        with torch.no_grad():
            np.testing.assert_allclose(model(one[None])[0], plain_one_head(state, one.numpy()), atol=1e-5)


def test_output_is_unit_norm_and_independent_of_image_order() -> None:
    model = random_aggregator(heads=4)
    sets = features(4, 7)
    with torch.no_grad():
        torch.testing.assert_close(model(sets).norm(dim=1), torch.ones(4))
        torch.testing.assert_close(model(sets[:, torch.randperm(7)]), model(sets), atol=1e-6, rtol=0)


def test_one_image_is_enough() -> None:
    assert random_aggregator()(features(2, 1)).shape == (2, DIM)


def test_fresh_weights_are_numerically_sound_without_residual() -> None:
    """Four projections with std 0.02 shrink the class row a lot; its direction must survive in float32."""
    torch.manual_seed(0)
    for dim in (4, 192, 1024):
        model = Aggregator(dim).eval()
        sets = torch.nn.functional.normalize(torch.randn(2, 8, dim), dim=2)
        vector = model(sets)
        torch.testing.assert_close(vector.norm(dim=1), torch.ones(2))
        doubled = model.double()(sets.double()).float()
        torch.testing.assert_close(vector, doubled, atol=1e-4, rtol=0)


def test_starting_weights() -> None:
    torch.manual_seed(0)
    model = Aggregator(256)
    for layer in model.layers:
        assert isinstance(layer, torch.nn.MultiheadAttention)
        query, key, value = layer.in_proj_weight.chunk(3)
        assert torch.equal(query, key)
        assert not torch.equal(query, value)
        for weight in (query, value, layer.out_proj.weight):
            assert weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert not layer.in_proj_bias.any()
        assert not layer.out_proj.bias.any()
    state = model.state_dict()
    assert not torch.equal(state["layers.0.in_proj_weight"], state["layers.1.in_proj_weight"])
    assert model.fusion_weight == 0.5


def test_identity_start_is_near_the_mean() -> None:
    model = Aggregator(DIM, init="identity").eval()
    sets = features()
    assert torch.nn.functional.cosine_similarity(model(sets), mean_pool(sets)).min() > 0.95
    with refused("unknown", "init"):
        Aggregator(DIM, init="zeros")  # type: ignore[arg-type]


def test_gradients_reach_all_weights_and_lambda() -> None:
    model = Aggregator(DIM, dropout=0.0)
    weight = torch.sigmoid(model.lamda)
    (weight * model(features())[:, 0].sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert float(model.lamda.grad or 0) != 0


def test_dropout_acts_in_training_alone() -> None:
    model = Aggregator(DIM, dropout=0.5)
    one = features(1)
    assert not torch.equal(model(one), model(one))
    model.eval()
    assert torch.equal(model(one), model(one))


def test_attention_adds_up_to_one_over_the_present_images() -> None:
    model = random_aggregator(heads=4)
    mask = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    weights = model.attention(features(), mask)
    assert weights.shape == (3, 5)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3))
    assert not weights[~mask].any()
    assert (weights[mask] > 0).all()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_reference_checkpoint_gives_the_same_output(prefix: str) -> None:
    model = random_aggregator()
    loaded = Aggregator.from_reference(reference_checkpoint(model, prefix))
    sets = features()
    assert not loaded.training
    assert len(loaded.layers) == 2
    assert loaded.dim == DIM
    assert torch.equal(loaded(sets), model(sets))
    assert loaded.fusion_weight == model.fusion_weight


def test_reference_checkpoint_that_does_not_fit_is_refused_by_name() -> None:
    state = reference_checkpoint(random_aggregator(), "module.")
    missing = {key: value for key, value in state.items() if "layers.1.out_proj.bias" not in key}
    wrong = {**state, "module.self_attn.layers.1.in_proj_weight": torch.ones(24, 8)}
    for content, facts in (
        (missing, ["missing ['layers.1.out_proj.bias']"]),
        ({**state, "module.head.weight": torch.ones(2)}, ["unknown ['head.weight']"]),
        (wrong, ["layers.1.in_proj_weight", "(24, 8)", "(48, 16)"]),
        ({"weight": torch.ones(2)}, ["['weight']"]),
    ):
        with refused("wrong-weights", "weights") as error:
            Aggregator.from_reference(content)
        assert all(fact in str(error.value) for fact in facts), error.value


def test_bytes_and_config_restore_it() -> None:
    model = random_aggregator(heads=4, layers=3)
    copy = Aggregator.from_bytes(model.to_bytes(), model.config)
    assert torch.equal(copy(features()), model(features()))
    assert not copy.training
    for changed in ({"layers": 4}, {"dim": 32}):
        with refused("wrong-weights", "weights"):
            Aggregator.from_bytes(model.to_bytes(), model.config | changed)
    with refused("damaged", "weights"):
        Aggregator.from_bytes(model.to_bytes()[:100], model.config)


def test_inputs_that_do_not_fit_are_refused() -> None:
    model = random_aggregator()
    with refused("wrong-shape", "features") as error:
        model(features()[:, :, :8])
    assert "(B, K, 16), got (3, 5, 8)" in str(error.value)
    with refused("empty", "features") as error:
        model(features(2, 2), torch.tensor([[True, False], [False, False]]))
    assert "[1]" in str(error.value)
    with refused("wrong-shape", "mask"):
        model(features(), torch.ones(3, 5))
    with refused("empty", "features"):
        model(features(2, 0))


@pytest.mark.parametrize(
    ("shape", "field"),
    [({"dim": 10, "heads": 4}, "heads"), ({"dim": 0}, "dim"), ({"dim": 8, "layers": 0}, "layers")],
)
def test_a_network_that_cannot_be_is_refused(shape: dict[str, int], field: str) -> None:
    with refused("out-of-range", field):
        Aggregator(**shape)


def test_mean_pool_is_the_unit_mean_of_the_present_images() -> None:
    sets = features(2, 3)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    expected = torch.stack([sets[0].mean(0), sets[1][[0, 2]].mean(0)])
    torch.testing.assert_close(mean_pool(sets, mask), torch.nn.functional.normalize(expected, dim=1))
