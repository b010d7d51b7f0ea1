"""Streams: when it decides, who answers in between, what that costs, and what it loses on a clip of real images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clips import camera_clip

from pertinence import PertinenceError, PertinenceForImageClassification, StreamDispatcher


@pytest.fixture(scope="module")
def model(tiny_experts) -> PertinenceForImageClassification:
    return PertinenceForImageClassification.from_experts(tiny_experts, 0.6)


@pytest.fixture(scope="module")
def clip(images) -> list[torch.Tensor]:
    """Six scenes of five frames each; images of the scenes need one expert and two."""
    return [image for image in images(6, 48, seed=1) for _ in range(5)]


def test_between_decisions_the_expert_that_answered_goes_on_alone(model, clip):
    stream = StreamDispatcher(model, interval=3)
    answers = list(stream(clip))
    assert [answer.dispatched for answer in answers] == [index % 3 == 0 for index in range(len(clip))]
    decided = None
    for frame, answer in zip(clip, answers, strict=True):
        if answer.dispatched:
            decided = model(frame[None])
            expected, gmacs = decided.logits[0], decided.gmacs.item()
        else:
            expert = decided.expert_indices.item()
            expected, gmacs = model.experts[expert](frame[None])[0][0], model.config.experts[expert]["gmacs"]
        assert answer.expert_index == decided.expert_indices.item()
        assert answer.gmacs == pytest.approx(gmacs)
        torch.testing.assert_close(answer.logits, expected)
    assert {answer.expert_index for answer in answers} == {0, 1}
    assert (stream.frames, stream.dispatches) == (30, 10)
    assert stream.gmacs == pytest.approx(np.mean([answer.gmacs for answer in answers]))
    assert "10 decisions on 30 frames (33.3 %)" in repr(stream)


def test_a_model_that_answers_in_tuples_is_streamed_as_any(model, clip):
    expected = [answer.expert_index for answer in StreamDispatcher(model, interval=3)(clip)]
    model.config.return_dict = False
    try:
        assert [answer.expert_index for answer in StreamDispatcher(model, interval=3)(clip)] == expected
    finally:
        model.config.return_dict = True


def test_neither_stem_nor_earlier_experts_run_between_decisions(model, clip, monkeypatch):
    hard = next(frame for frame in clip if model(frame[None]).expert_indices.item() == 1)
    stream = StreamDispatcher(model, interval=10)
    stream.update(hard)
    monkeypatch.setattr(model.experts[0], "run", lambda *_: pytest.fail("the first expert ran"))
    assert stream.update(hard).expert_index == 1


def test_a_scene_is_decided_on_once(model, clip):
    stream = StreamDispatcher(model, scene_change=0.02)
    answers = list(stream(clip))
    assert [answer.dispatched for answer in answers] == [index % 5 == 0 for index in range(len(clip))]
    assert {answer.change for answer in answers if not answer.dispatched} == {0.0}


def test_interval_and_scene_work_together(model, clip):
    answers = list(StreamDispatcher(model, interval=3, scene_change=0.02)(clip))
    assert [answer.dispatched for answer in answers] == [index % 5 in (0, 3) for index in range(len(clip))]


def test_change_is_a_fifth_pixels_and_four_fifths_histogram(model):
    black, grey = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.full((3, 8, 8), 51, dtype=torch.uint8)
    half = black.clone()
    half[:, :4] = 51
    moved = half.flip(1)
    stream = StreamDispatcher(model, scene_change=1.0)
    changes = [answer.change for answer in stream([black, grey, half])]
    assert changes == [None, pytest.approx(0.2 * 0.2 + 0.8), pytest.approx(0.2 * 0.1 + 0.8 * 0.5)]
    stream.reset()
    assert [answer.change for answer in stream([half, moved])] == [None, pytest.approx(0.2 * 0.2)]  # the same colours


def test_another_size_is_another_scene(model, images):
    stream = StreamDispatcher(model, scene_change=0.5)
    answers = list(stream([images(1, 48)[0], images(1, 40)[0]]))
    assert [answer.dispatched for answer in answers] == [True, True]


def test_frames_come_and_go_one_by_one(model, clip):
    taken = []
    answers = StreamDispatcher(model, interval=2)(taken.append(frame) or frame for frame in clip)
    next(answers)
    next(answers)
    assert len(taken) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give `interval`, `scene_change` or both"),
        ({"interval": 0}, "at least 1, got 0"),
        ({"interval": 1.5}, "whole number"),
        ({"scene_change": 1.5}, "between 0 and 1"),
        ({"interval": 2, "operating_point": "free"}, "no operating point 'free'"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(model, options, words):
    with pytest.raises(PertinenceError, match=words):
        StreamDispatcher(model, **options)


def test_on_a_real_clip_it_costs_less_and_loses_little(zoo):
    """Camera motion over CIFAR-10's images, against a decision on every frame."""
    folders = [zoo / "cifar10" / name for name in ("resnet8", "resnet20")]
    model = PertinenceForImageClassification.from_experts(folders, 0.9, trust_remote_code=True)
    frames, labels = camera_clip(zoo, scenes=40, frames=10, seed=0)
    out = model(frames)
    every_frame = (out.logits.argmax(1) == labels).float().mean().item()
    stream = StreamDispatcher(model, scene_change=0.2)
    right = [answer.logits.argmax().item() == label for answer, label in zip(stream(frames), labels, strict=True)]
    assert stream.dispatches < 0.3 * len(frames)
    assert stream.gmacs < out.gmacs.mean().item()
    assert np.mean(right) > every_frame - 0.03
