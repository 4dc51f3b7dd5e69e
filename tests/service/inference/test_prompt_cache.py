"""The mapping of prompts in memory: bounded in bytes, least recently used out first, pins."""

from __future__ import annotations

import numpy as np
import pytest

from service.inference.prompt_cache import LinearClassifier, PromptCache, PromptKey, ReadyPrompt

CLASSES, WIDTH = 4, 8
SIZE = 2 * CLASSES * WIDTH * 4 + CLASSES * 4  # bytes of a prompt's matrices and bias


def key(name: str) -> PromptKey:
    return PromptKey("default", name, "hash", "fingerprint")


def ready(classes: int = CLASSES) -> ReadyPrompt:
    answers = LinearClassifier(
        np.zeros((classes, WIDTH), np.float32), np.zeros(classes, np.float32)
    )
    names = tuple(str(i) for i in range(classes))
    texts = ("a photo of a", "p:1", "default")
    return ReadyPrompt(None, names, answers, None, *texts)  # type: ignore[arg-type]


@pytest.fixture
def prompts() -> PromptCache:
    return PromptCache(3 * SIZE, ticks=iter(range(1000)).__next__)


def names(prompts: PromptCache) -> str:
    return "".join(k for k in "abcde" if prompts.used_at(key(k)) is not None)


def test_the_least_recently_used_makes_room(prompts: PromptCache) -> None:
    for name in "abc":
        prompts.put(key(name), ready())
    assert prompts.get(key("a")) is not None
    prompts.put(key("d"), ready())
    assert names(prompts) == "acd"
    assert prompts.get(key("b")) is None
    assert (prompts.hits, prompts.misses, prompts.evictions) == (1, 1, 1)
    assert prompts.residency().bytes == 3 * SIZE


def test_pinned_prompts_stay(prompts: PromptCache) -> None:
    prompts.pin(frozenset("ab"))
    for name in "abcde":
        prompts.put(key(name), ready())
    assert names(prompts) == "abe"
    assert prompts.residency().pinned == 2
    prompts.pin(frozenset())
    prompts.put(key("c"), ready())
    assert names(prompts) == "bce"


def test_the_newest_stays_even_if_it_is_too_large(prompts: PromptCache) -> None:
    prompts.put(key("a"), ready())
    prompts.put(key("b"), ready(40 * CLASSES))
    assert names(prompts) == "b"
    prompts.put(key("c"), ready())
    assert names(prompts) == "c"
    assert prompts.residency().bytes == SIZE


def test_a_prompt_put_twice_counts_once(prompts: PromptCache) -> None:
    for _ in range(5):
        prompts.put(key("a"), ready())
    assert prompts.residency().bytes == SIZE


def test_a_deleted_prompt_is_forgotten_with_all_its_files(prompts: PromptCache) -> None:
    prompts.put(key("a"), ready())
    prompts.put(PromptKey("default", "a", "other", None), ready())
    prompts.put(key("b"), ready())
    prompts.discard("a")
    assert names(prompts) == "b"
    assert prompts.residency().prompts == 1


def test_probabilities_are_those_of_a_softmax() -> None:
    rng = np.random.default_rng(0)
    answers = LinearClassifier(
        (50 * rng.standard_normal((5, WIDTH))).astype(np.float32),
        rng.standard_normal(5).astype(np.float32),
    )
    images = rng.standard_normal((7, WIDTH)).astype(np.float32)
    logits = (images.astype(np.float64) @ answers.weights.T + answers.bias) / 1.7
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    found = answers.probabilities(images, 1.7)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
