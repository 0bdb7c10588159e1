"""Perturbations whose norm is drawn for each sample: bit for bit the single norms' in one loop, and the draw the sample's own."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers.tables import every_row
from helpers.text import net, padded, sentences
from helpers.toy import CHANNELS, CLASSES, SIZE, Logits, robust, vit
from helpers.toy import images as toy_images
from torch.utils._python_dispatch import TorchDispatchMode

from robust_trainer.data.images import InputSpace
from robust_trainer.data.randomness import RowDraws
from robust_trainer.ledger.means import RunningMeans
from robust_trainer.losses.adversarial import INNER, needs_clean
from robust_trainer.losses.standard import make_objective
from robust_trainer.methods.recipe import Recipe
from robust_trainer.models.outputs import read_output
from robust_trainer.perturbations.inputs import EmbeddingAdapter, PixelAdapter
from robust_trainer.perturbations.norms import Ball, HybridBall, draw_in_l2
from robust_trainer.perturbations.pgd import NORM_CHOICES, Perturbation
from robust_trainer.problems import SINGLE_LABEL
from robust_trainer.selection.scores import make_score
from robust_trainer.step.inner import PROBE_STEPS, InnerMaximization, _own_guess
from robust_trainer.step.records import FirstForward, InnerResult, MicroBatch, placed, places
from robust_trainer.types import ForwardOutput, Progress

MEAN, STD = (0.3, 0.5, 0.6), (0.1, 0.5, 1.3)
FRONT = PixelAdapter("pixel_values", InputSpace(MEAN, STD))
EPS, EPS_L2 = 8 / 255, 0.5
HYBRID = Perturbation(
    EPS, steps=7, step_size=EPS / 5, norm="hybrid", scope="sample", inner_loss="ce", eps_l2=EPS_L2, step_size_l2=0.1
)
ATTACKS = {
    "pgd-7": HYBRID,
    "fgsm": replace(HYBRID, steps=1, step_size=None, step_size_l2=None),
    "uniform start": replace(HYBRID, random_start=True),
    "gaussian start, consistency": replace(HYBRID, random_start=True, start_std=0.01, inner_loss="ce+consistency"),
}
RECIPE = Recipe("test", make_score("loss"), make_objective("auto", {}, SINGLE_LABEL))
NOW = Progress(0.0, 1.0, global_step=5)
B = 13  # odd, so that vectorised kernels have a rest


def channels(values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype).view(1, -1, 1, 1)


def images(b=B, dtype=torch.float32):
    """A network and one micro-batch; some pixels on the edge of the range."""
    torch.manual_seed(1)
    model = Logits().to(dtype).eval()
    pixels = torch.rand(b, CHANNELS, SIZE, SIZE, dtype=dtype)
    pixels[:, :, :2] = pixels[:, :, :2].round()
    x = (pixels - channels(MEAN, dtype)) / channels(STD, dtype)
    return model, MicroBatch({"pixel_values": x}, torch.randint(CLASSES, (b,)), torch.randperm(1000)[:b]), pixels


def cut(batch, sizes):
    """The same samples as micro-batches."""
    parts = [batch.targets.split(sizes), batch.index.split(sizes)]
    inputs = {key: value.split(sizes) for key, value in batch.inputs.items()}
    one = SimpleNamespace(processes=1, rank=0)
    return placed(
        [MicroBatch({k: v[i] for k, v in inputs.items()}, parts[0][i], parts[1][i]) for i in range(len(sizes))], one, None
    )


def inner_of(attack, adapter=FRONT, keep=None, **kwargs):
    def read(outputs, batch):
        return read_output(outputs, batch.targets, batch.index, SINGLE_LABEL, "test")

    def first_forward(outputs, batches, progress):
        weights = torch.ones(sum(len(batch) for batch in batches)) if keep is None else keep
        parts = weights.split([len(batch) for batch in batches])
        return [FirstForward(part[None], output.logits, part[None], None) for part, output in zip(parts, outputs)]

    return InnerMaximization(RECIPE, attack, adapter, SINGLE_LABEL, read, first_forward, lambda t: t, **{"seed": 3, **kwargs})


def crafted_parts(attack, model, batches, adapter=FRONT, now=NOW, labelled=None, **kwargs):
    """What each micro-batch becomes."""
    results = inner_of(attack, adapter, **kwargs).perturb(lambda inputs: model(**inputs), batches, now, labelled)
    return [result.adversarial for result in results]


def craft(attack, model, batches, adapter=FRONT, now=NOW, labelled=None, **kwargs):
    """What the step's samples become, and which of them are in the l_2 ball."""
    batches = batches if isinstance(batches, list) else [batches]
    parts = crafted_parts(attack, model, batches, adapter, now, labelled, **kwargs)
    return torch.cat(parts), draw_in_l2(places(batches, "cpu"), 3, now.global_step)


def singles(attack):
    """The same attack in the l_inf ball and in the l_2 ball."""
    linf = replace(attack, norm="linf", eps_l2=9.0, step_size_l2=9.0)
    return linf, replace(linf, norm="l2", eps=attack.eps_l2, step_size=attack.step_size_l2)


# ---- one loop for both norms ------------------------------------------------------------------------------------------


@every_row("kept", ["all", "some"])
@every_row("name", ATTACKS)
def test_each_row_is_the_single_norm_bit_for_bit(name, kept):
    model, batch, _ = images()
    keep = None if kept == "all" else (torch.arange(B) % 3 > 0).float()
    got, second = craft(ATTACKS[name], model, batch, keep=keep)
    linf, l2 = (craft(one, model, batch, keep=keep)[0] for one in singles(ATTACKS[name]))
    assert 0 < second.sum() < B
    assert torch.equal(got[second], l2[second]) and torch.equal(got[~second], linf[~second])
    moved = torch.ones(B, dtype=torch.bool) if keep is None else keep > 0
    assert ((linf != l2).flatten(1).any(1) == moved).all()
    assert torch.equal(got[~moved], batch.inputs["pixel_values"][~moved])


@every_row("name", ATTACKS)
def test_both_are_the_two_attacks(name):
    model, batch, _ = images()
    got, _ = craft(replace(ATTACKS[name], norm="both"), model, cut(batch, [B]))
    assert torch.equal(got, torch.cat([craft(one, model, batch)[0] for one in singles(ATTACKS[name])]))


def test_both_of_micro_batches_and_of_one_perturbation_for_the_batch():
    model, batch, _ = images()
    parts = cut(batch, [4, 9])
    assert [len(x) for x in crafted_parts(replace(HYBRID, norm="both"), model, parts)] == [8, 18]
    shared = replace(HYBRID, norm="both", scope="batch")
    got, _ = craft(shared, model, batch)
    assert torch.equal(got, torch.cat([craft(one, model, batch)[0] for one in singles(shared)]))


@every_row("norm", ["hybrid", "both"])
@every_row("name", ATTACKS)
def test_radii_and_pixel_range(name, norm):
    model, batch, pixels = images(40)
    got, second = craft(replace(ATTACKS[name], norm=norm), model, batch)
    if norm == "both":
        pixels, second = torch.cat([pixels, pixels]), torch.arange(80) >= 40
    got = got * channels(STD) + channels(MEAN)
    assert got.min() >= -1e-6 and got.max() <= 1 + 1e-6
    moved = (got - pixels).flatten(1)
    assert moved[~second].abs().max() <= EPS + 1e-6 and moved[second].norm(dim=1).max() <= EPS_L2 + 1e-5
    assert moved[second].abs().max() > EPS + 0.01 and moved[~second].norm(dim=1).max() > EPS_L2 / 2  # neither is in the other ball


@pytest.mark.parametrize("random_start", [False, True])
def test_a_slow_loop_over_single_samples(random_start):
    """ERAT eq. 10 in float64 pixels, one sample at a time."""
    attack = replace(HYBRID, inner_loss="ce+consistency", random_start=random_start, start_std=0.01 if random_start else "uniform")
    model, batch, pixels = images(6, torch.float64)
    got, second = craft(attack, model, batch)
    assert 0 < second.sum() < 6
    draws = RowDraws(torch.arange(6), "random start", 3, NOW.global_step)
    begin = draws.normal(*pixels.shape[1:]).double() * 0.01 if random_start else torch.zeros_like(pixels)
    for i in range(6):

        def probabilities(image):
            return model(pixel_values=(image - channels(MEAN, torch.float64)) / channels(STD, torch.float64)).softmax(1)[0]

        clean = probabilities(pixels[i : i + 1]).detach()
        delta = (pixels[i] + begin[i]).clamp(0, 1) - pixels[i]
        for _ in range(7):
            delta = delta.detach().requires_grad_(True)
            p = probabilities(pixels[i : i + 1] + delta)
            loss = -p[batch.targets[i]].log() + sum((p[k] - clean[k]) ** 2 for k in range(CLASSES))
            (grad,) = torch.autograd.grad(loss, delta)
            if second[i]:
                delta = delta.detach() + 0.1 * grad / grad.pow(2).sum().sqrt()
                delta = delta * min(1.0, EPS_L2 / float(delta.pow(2).sum().sqrt()))
            else:
                delta = (delta.detach() + EPS / 5 * grad.sign()).clamp(-EPS, EPS)
            delta = (pixels[i] + delta).clamp(0, 1) - pixels[i]
        expected = pixels[i] + delta
        found = got[i] * channels(STD, torch.float64)[0] + channels(MEAN, torch.float64)[0]
        assert torch.allclose(found, expected, atol=1e-5) and (expected - pixels[i]).abs().max() > 0.01


def test_the_methods_of_the_ball_are_those_of_each_row():
    second = torch.tensor([True, False, True, True, False])
    linf, l2 = Ball("linf", 0.1), Ball("l2", 0.7)
    ball, x = HybridBall(linf, l2, second), torch.randn(5, 3, 4, 5)
    for one, mask in ((linf, ~second), (l2, second)):
        assert torch.equal(ball.direction(x)[mask], one.direction(x)[mask])
        assert torch.equal(ball.project(x)[mask], one.project(x)[mask])
        starts = [b.random_start(x, RowDraws(torch.arange(5), 4))[mask] for b in (ball, one)]
        assert torch.equal(*starts) and starts[0].abs().max() > 0


def test_step_sizes_follow_their_own_radius():
    assert (HYBRID.size, HYBRID.size_l2) == (EPS / 5, 0.1)
    assert replace(HYBRID, step_size_l2=None).size_l2 == 2.5 * EPS_L2 / 7
    assert ATTACKS["fgsm"].size_l2 == EPS_L2


# ---- the draw ---------------------------------------------------------------------------------------------------------


def test_the_draw_is_fair():
    index = torch.arange(20_000)
    draws = torch.stack([draw_in_l2(index, 3, step) for step in range(20)])
    assert draws.dtype == torch.bool
    # shares within 4.5 standard deviations of 1/2: of every step, of every sample's first bits, and of agreement between neighbours
    assert (draws.float().mean(1) - 0.5).abs().max() < 4.5 * 0.5 / 20_000**0.5
    agree = (draws[1:] == draws[:-1]).float().mean(1), (draws[:, 1:] == draws[:, :-1]).float().mean(1)
    assert all((share - 0.5).abs().max() < 4.5 * 0.5 / 20_000**0.5 for share in agree)
    seeds = torch.stack([draw_in_l2(index, seed, 4) for seed in range(4)]).float()
    assert ((seeds[1:] == seeds[:-1]).float().mean(1) - 0.5).abs().max() < 4.5 * 0.5 / 20_000**0.5
    often = draws.float().sum(0)  # Binomial(20, 1/2): variance 5
    assert abs(float(often.var()) - 5) < 0.25


@every_row("attack", ["hybrid", "started"])
def test_draws_belong_to_the_place_in_the_step_and_to_the_step(attack):
    """However a step is cut into micro-batches and over processes."""
    attack = HYBRID if attack == "hybrid" else replace(HYBRID, random_start=True)
    model, batch, _ = images(40)
    whole, second = craft(attack, model.double(), double(batch))
    for sizes in ([10, 30], [7, 7, 26]):
        got, same = craft(attack, model, cut(double(batch), sizes))
        assert torch.equal(same, second) and torch.allclose(got, whole, atol=1e-5)
    for rank in (0, 1):  # two micro-batches of each of two processes
        mine = [cut(double(batch), [8] * 5)[part] for part in (rank, 2 + rank)]
        mine = placed(mine, SimpleNamespace(processes=2, rank=rank), None)
        rows = places(mine, "cpu")
        assert rows.tolist() == [*range(8 * rank, 8 * rank + 8), *range(16 + 8 * rank, 24 + 8 * rank)]
        got, same = craft(attack, model, mine)
        assert torch.equal(same, second[rows]) and torch.allclose(got, whole[rows], atol=1e-5)
    steps = torch.stack([craft(HYBRID, model, double(batch), now=replace(NOW, global_step=s))[1] for s in (5, 6, 7)])
    assert torch.equal(steps[0], second) and 8 < (steps[0] != steps[1]).sum() < 32 and not torch.equal(steps[1], steps[2])


def double(batch):
    return MicroBatch({k: v.double() for k, v in batch.inputs.items()}, batch.targets, batch.index)


# ---- losses, labels ---------------------------------------------------------------------------------------------------


def looked(name, clean, adversarial, y):
    own = make_objective("auto", {}, SINGLE_LABEL)
    return INNER[name](ForwardOutput(adversarial, y), y.expand(clean.shape[:2]), clean, own, own)


@every_row("m", [1, 2])
def test_consistency_equals_the_loop(m):
    """ERAT eq. 6; the clean side is constant."""
    clean, adversarial = torch.randn(2, m, 5, 4, dtype=torch.float64) * 3
    y = torch.randint(4, (5,))
    p, q = clean.softmax(-1).tolist(), adversarial.softmax(-1).tolist()
    slow = torch.tensor([[sum((a - b) ** 2 for a, b in zip(p[k][i], q[k][i])) for i in range(5)] for k in range(m)]).double()
    entropy = -torch.tensor([[q[k][i][y[i]] for i in range(5)] for k in range(m)]).double().log()
    assert torch.allclose(looked("consistency", clean, adversarial, y), slow, atol=1e-6)
    assert torch.allclose(looked("ce+consistency", clean, adversarial, y), slow + entropy, atol=1e-6)
    leaf = clean.clone().requires_grad_(True)
    for name in ("consistency", "ce+consistency"):
        assert needs_clean(name)
        assert torch.autograd.gradcheck(lambda z, name=name: looked(name, clean, z, y), adversarial.clone().requires_grad_(True))
        assert not looked(name, leaf, adversarial, y).requires_grad
        with pytest.raises(ValueError, match=f"inner_loss='{name.replace('+', '[+]')}' compares with the clean logits"):
            INNER[name](ForwardOutput(adversarial, y), y.expand(m, 5), None, RECIPE.objective, RECIPE.objective)


@every_row("dtype", [torch.float32, torch.bfloat16])
def test_consistency_is_finite_for_extreme_logits(dtype):
    clean = torch.tensor([[[800.0, -800, 0], [0, 800, 800], [0, 0, 0]]], dtype=dtype)
    leaf = (-clean).requires_grad_(True)
    losses = looked("consistency", clean, leaf, torch.zeros(3, dtype=torch.long))
    (grad,) = torch.autograd.grad(losses.sum(), leaf)
    assert losses.dtype == torch.float32 and losses.tolist()[0] == pytest.approx([2.0, 1.5, 0.0]) and torch.isfinite(grad).all()


def test_without_a_label_a_zero_start_goes_nowhere():
    model, batch, _ = images()
    got, _ = craft(replace(HYBRID, inner_loss="consistency"), model, batch)
    assert torch.equal(got, batch.inputs["pixel_values"])
    got, _ = craft(replace(HYBRID, inner_loss="ce+consistency"), model, batch)
    assert (got != batch.inputs["pixel_values"]).flatten(1).any(1).all()


@every_row("inner_loss", ["ce", "ce+consistency", "objective"])
@every_row("norm", NORM_CHOICES)
def test_unlabelled_samples_are_attacked_on_the_models_own_label(norm, inner_loss):
    model, batch, _ = images()
    attack = replace(HYBRID, norm=norm, inner_loss=inner_loss)
    labelled = torch.arange(B) % 3 == 0
    own = model(**batch.inputs).argmax(1)
    other = (batch.targets + 1) % CLASSES
    results = [
        craft(attack, model, replace(batch, targets=targets), labelled=mask)[0]
        for targets, mask in (
            (batch.targets, [labelled[None]]),
            (torch.where(labelled, batch.targets, other), [labelled[None]]),
            (torch.where(labelled, batch.targets, own), None),
            (batch.targets, None),
        )
    ]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert not torch.equal(results[0], results[3])


def test_peers_guess_each_for_itself():
    logits = torch.tensor([[[0.0, 1, 2], [3, 1, 2]], [[5.0, 1, 2], [0, 1, 2]]])
    labelled = torch.tensor([[True, False], [False, False]])
    assert _own_guess(torch.tensor([[1, 1], [1, 1]]), logits, labelled).tolist() == [[1, 0], [0, 2]]
    mixed = _own_guess(torch.full((2, 2, 3), 1 / 3), logits, labelled)
    assert mixed[0, 0].tolist() == pytest.approx([1 / 3] * 3) and mixed[1].tolist() == [[1, 0, 0], [0, 0, 1]]


# ---- the probe --------------------------------------------------------------------------------------------------------


@every_row("size", [80, 30])
@every_row("norm", ["hybrid", "both"])
def test_the_probe_is_a_strong_attack_of_the_same_balls(norm, size):
    model, batch, _ = images(size)
    attack, count = replace(HYBRID, norm=norm, steps=1), min(size, 64)
    crafted, _ = craft(attack, model, batch)
    batch.targets[:count] = labels = model(pixel_values=crafted[:count]).argmax(1)  # so that the step's own are all right
    labelled = torch.ones(1, size, dtype=torch.bool)
    seen, means = [], RunningMeans()

    def forward(inputs):
        seen.append(inputs["pixel_values"].detach())
        return model(**inputs)

    inner_of(attack).probe(forward, [batch], [InnerResult(crafted, None)], NOW, means, [labelled])
    strong = replace(attack, norm="linf" if norm == "both" else norm, steps=PROBE_STEPS, step_size=EPS / 4, step_size_l2=EPS_L2 / 4)
    moved, _ = craft(strong, model, MicroBatch({"pixel_values": batch.inputs["pixel_values"][:count]}, labels, batch.index[:count]))
    assert torch.equal(seen[0], crafted[:count]) and torch.equal(seen[-1], moved)
    found = means.take(lambda t: t)
    assert found["fgsm_accuracy"] == 1.0
    assert found["pgd_accuracy"] == pytest.approx(float((model(pixel_values=moved).argmax(1) == labels).float().mean()))


# ---- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("random_start", [False, True])
def test_each_sentence_has_the_balls_of_its_norm(random_start):
    model = net("bert").eval()
    inputs = padded(sentences(9))
    batch = MicroBatch(inputs, inputs.pop("labels"), torch.arange(9))
    front = EmbeddingAdapter.of([model])
    attack = replace(HYBRID, eps=0.4, step_size=0.1, eps_l2=0.6, step_size_l2=0.2, steps=3, random_start=random_start)
    got, second = craft(attack, model, batch, front)
    linf, l2 = (craft(one, model, batch, front)[0] for one in singles(attack))
    assert 0 < second.sum() < 9
    assert torch.equal(got[second], l2[second]) and torch.equal(got[~second], linf[~second])
    assert got[second].norm(dim=-1).max() <= 0.6 * front.unit + 1e-6
    assert got[~second].abs().max() <= 0.4 * front.unit / front.width**0.5 + 1e-6
    assert (got[inputs["attention_mask"] == 0] == 0).all() and got[inputs["attention_mask"] == 1].abs().sum(-1).min() > 0
    pair, _ = craft(replace(attack, norm="both"), model, batch, front)
    assert torch.equal(pair, torch.cat([linf, l2]))


# ---- errors -----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match=r"^norm='hybrid' draws a ball for each sample, got scope='batch': set scope='sample'.*$"):
        Perturbation(EPS, norm="hybrid")
    with pytest.raises(ValueError, match=r"^norm='both' has no ball: choose one of linf, l2, l1\.$"):
        Ball("both", 1.0)
    assert Perturbation(EPS, norm="both").scope == "batch"


class Ops(TorchDispatchMode):
    """The names of the operators that ran."""

    def __enter__(self):
        self.names = set()
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("front", ["pixels", "words"])
def test_nothing_waits_for_the_device(front):
    """No operator whose result's size or value the host must know."""
    waiting = {"aten.index", "aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.is_nonzero", "aten.equal"}
    if front == "pixels":
        where, (_, batch, _) = FRONT, images()
    else:
        model = net("bert")
        inputs = padded(sentences(6))
        where, batch = EmbeddingAdapter.of([model]), MicroBatch(inputs, inputs.pop("labels"), torch.arange(6))
    count = len(batch.targets)
    inner, keep = inner_of(replace(HYBRID, random_start=True), where), torch.ones(count)
    with Ops() as ops:
        rows = places([batch], "cpu")
        second = draw_in_l2(rows, 3, NOW.global_step)
        x, space = where.join([batch], "hybrid", second)
        ball = inner.attack.ball(space, second)
        delta = inner.attack.start(x, space, ball, RowDraws(rows, "random start"))
        inner.attack.apply(x, inner.attack.step(x, delta, torch.ones_like(x), keep, space, ball, lambda t: t), space)
    assert "aten.where" in ops.names and not ops.names & waiting
    with Ops() as ops:
        float(second[0])
        x[keep > 0]
    assert "aten._local_scalar_dense" in ops.names and ("aten.nonzero" in ops.names or "aten.index" in ops.names)


# ---- in training ------------------------------------------------------------------------------------------------------


def test_training_is_the_same_however_the_step_is_cut(tmp_path):
    """Four micro-batches of 4 take the same steps as one batch of 16, and single norms take others."""
    ends = {}
    for name, size, micro, norm in (("whole", 16, 1, "hybrid"), ("cut", 4, 4, "hybrid"), ("linf", 16, 1, "linf")):
        trainer = robust(
            tmp_path, vit(), toy_images(32), method="pgd-at", norm=norm, eps=0.05, steps=2, random_start=False, num_train_epochs=1,
            per_device_train_batch_size=size, gradient_accumulation_steps=micro, learning_rate=1e-3,
        )  # fmt: skip
        trainer.train()
        ends[name] = torch.tensor([row["grad_norm"] for row in trainer.state.log_history if "loss" in row])
    assert len(ends["whole"]) == 2 and torch.allclose(ends["whole"], ends["cut"], rtol=2e-4)
    assert not torch.allclose(ends["whole"], ends["linf"], rtol=1e-2)
