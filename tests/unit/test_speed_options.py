"""Options of speed: the numbers stay, the names of weights stay, and nothing is compiled twice."""

import pytest
import torch
from torch._dynamo.utils import counters

from generations.batch import Batch
from generations.config import load_config
from generations.decoding import caption_tokens
from generations.errors import UserError
from generations.image_generator.generator import GeneratorSize, ImageGenerator
from generations.modeling import ModelSize, UnifiedTransformer, compile_layers
from generations.objectives import xe_t2i_loss
from generations.objectives.causal import word_states
from generations.objectives.replay import drawn_and_greedy
from generations.objectives.sequence import sample_captions
from generations.pipelines.painting import decode_pixels
from generations.runtime import Precision
from generations.vocabulary import EOS

CPU = torch.device("cpu")
SIZE = ModelSize(16, 2, 24, 1, 1, 2, 1100, 0.0, grid_size=3, feature_size=6, clusters=9)


TEXT = torch.randint(104, 1100, (4, 7), generator=torch.Generator().manual_seed(1))
TEXT[1:3, 5:] = 0
BATCH = Batch(
    list("abcd"),
    list("abcd"),
    TEXT,
    TEXT,
    torch.ones(4, dtype=torch.long),
    torch.arange(36).reshape(4, 9) % 9,
    None,
    torch.zeros(4, 5, 25, dtype=torch.long),
)


def model() -> UnifiedTransformer:
    torch.manual_seed(0)
    network = UnifiedTransformer(SIZE)
    for parameter in network.parameters():
        if parameter.dim() > 1 and parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():  # a batch of one caption is compiled by itself: no caption ends
        network.classifier.predictions.bias[EOS] = -1e4
    return network


@pytest.fixture(scope="module")
def compiled_once():
    torch.compiler.reset()
    counters.clear()
    network = model()
    # without code generation, which takes long and is not ours
    assert compile_layers(network, "1", CPU, backend="aot_eager")
    yield network
    torch.compiler.reset()


@pytest.fixture
def compiled(compiled_once):
    yield compiled_once.train()
    compiled_once.causal = False
    compiled_once.zero_grad()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_compiled_layers_keep_numbers_and_names(compiled):
    plain = model()
    assert list(compiled.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(compiled.state_dict(), strict=True)
    batch = BATCH
    losses = [xe_t2i_loss(network, batch, torch.tensor([0, 3])) for network in (plain, compiled)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1], losses[0])
    for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    assert graphs() > 0
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():  # its type is read in a layer
        ours, theirs = (
            net.encode_vision(features=torch.ones(4, 9, 6)) for net in (compiled, plain)
        )
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.slow
def test_other_lengths_and_masks_compile_nothing_new(compiled):
    def step(cells: int, length: int) -> None:
        xe_t2i_loss(compiled, BATCH, torch.arange(cells)).backward()
        vision = compiled.encode_vision(features=torch.rand(3, 9, 6))
        sample_captions(compiled, vision, length)[1].sum().backward()
        for compiled.causal in (True, False):
            caption_tokens(compiled.eval(), torch.rand(4, 9, 6), text_length=length)
            compiled.train()
        ids = torch.randint(104, 1000, (3, 2, length + 1))
        word_states(compiled, compiled.encode_vision(features=torch.rand(3, 9, 6)), ids, length)

    step(3, 6)  # sizes that are equal here are taken to be equal always: 7 positions, 8 a head
    known = graphs()
    for cells, length in ((1, 5), (9, 12)):
        step(cells, length)
    assert graphs() == known


@pytest.mark.slow
def test_compiled_layers_write_the_same_causal_captions(compiled):
    plain, features = model().eval(), torch.randn(4, 9, 6)
    plain.causal = compiled.causal = True
    found = [
        caption_tokens(network.eval(), features, text_length=6) for network in (plain, compiled)
    ]
    assert torch.equal(*found)


def test_drawing_for_replay_goes_around_compiled_layers(compiled, monkeypatch):
    plain = model()
    found = []
    for network in (plain, compiled):
        for module in network.modules():  # compiled dropout would draw other numbers
            if isinstance(module, torch.nn.Dropout):
                monkeypatch.setattr(module, "p", 0.3)
        torch.manual_seed(2)
        vision = torch.randn(3, 9, 16)
        ids, logprobs, _ = drawn_and_greedy(network, vision, vision[:0], 6)
        logprobs.sum().backward()
        found.append((ids, logprobs.detach(), network.classifier.predictions.bias.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_cpu_does_not_compile_by_itself():
    assert not compile_layers(model(), "auto", CPU)
    assert not compile_layers(model(), "0", CPU)


def test_channels_last_paints_the_same_pictures():
    torch.manual_seed(0)
    generator = ImageGenerator(GeneratorSize(6, 2, 16, 8, 8, 16)).eval()
    features = torch.randn(3, 4, 6)
    with torch.no_grad():
        wanted = decode_pixels(generator, features)
        found = decode_pixels(generator.to(memory_format=torch.channels_last), features)
    assert (found.int() - wanted.int()).abs().max() <= 1
    assert wanted.float().std() > 0


def test_a_cpu_computes_in_float32_unless_told():
    assert Precision().autocast_dtype(CPU) is None
    assert Precision(cpu_half=True).autocast_dtype(CPU) == torch.bfloat16


@pytest.mark.parametrize(
    ("key", "value"),
    [("compile", "yes"), ("channels_last", "2"), ("cpu_bf16", "2"), ("tf32", "-1"),
     ("prefetch_factor", "0")],
)  # fmt: skip
def test_values_that_mean_nothing_are_refused(key, value):
    with pytest.raises(UserError, match=key):
        load_config(overrides=(key, value))
