"""Augmentations against slow loops and closed forms."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.nn import functional as F

from expunge.core.errors import UsageError
from expunge.data.augment import AUGMENTS, RandomResizedCrop, crop_flip, make_augment, random_resized_crop, resize


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 16, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, 8, 10), dtype=torch.uint8, generator=generator(9))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_flip_equals_a_loop_over_samples(dtype):
    raw = pictures().to(dtype)
    out = crop_flip(3)(raw, generator(1))
    twin = generator(1)
    shifts = torch.randint(7, (2, 16), generator=twin)
    flips = torch.rand(16, generator=twin) < 0.5
    assert flips.any()
    assert not flips.all()
    for i in range(16):
        padded = F.pad(raw[i], [3, 3, 3, 3])
        top, left = shifts[:, i].tolist()
        expected = padded[:, top : top + 8, left : left + 10]
        assert torch.equal(out[i], expected.flip(2) if flips[i] else expected)
    assert out.dtype == dtype


def test_whole_frame_crop_is_the_identity_and_flip_mirrors():
    raw = pictures()[:, :, :, :8]
    same = random_resized_crop(8, scale=(1, 1), ratio=(1, 1), flip=0)
    assert torch.equal(same(raw, generator()), raw)
    mirrored = random_resized_crop(8, scale=(1, 1), ratio=(1, 1), flip=1)
    assert torch.equal(mirrored(raw, generator()), raw.flip(3))


def test_whole_frame_enlargement_equals_resize():
    raw = pictures()[:, :, :, :8].float()
    enlarged = random_resized_crop(24, scale=(1, 1), ratio=(1, 1), flip=0, frame=24)(raw, generator())
    torch.testing.assert_close(enlarged, resize(24)(raw, generator()), atol=1e-2, rtol=1e-4)


def test_boxes_lie_in_the_frame_and_fill_the_asked_range():
    top, left, tall, wide = RandomResizedCrop(8).boxes(4000, (224, 224), generator(2))
    assert bool((top >= 0).all())
    assert bool((left >= 0).all())
    assert bool((top + tall <= 224).all())
    assert bool((left + wide <= 224).all())
    share = tall * wide / 224**2
    assert 0.07 < float(share.min()) < 0.1
    assert float(share.max()) > 0.95
    assert float((wide / tall).min()) > 0.74
    assert float((wide / tall).max()) < 1.35


def test_impossible_shapes_fall_back_to_the_central_box():
    top, left, tall, wide = RandomResizedCrop(8, scale=(1, 1)).boxes(5, (10, 100), generator())
    assert tall.unique().tolist() == [10]
    assert wide.unique().tolist() == [13]
    assert left.unique().tolist() == [43]
    assert top.unique().tolist() == [0]


@pytest.mark.parametrize("name", [name for name in AUGMENTS if name != "none"])
def test_registered_augmentations(name):
    augment = make_augment(name)
    raw = pictures()
    out = augment(raw, generator(3))
    assert out.dtype == raw.dtype
    assert len(out) == len(raw)
    assert torch.equal(out, pickle.loads(pickle.dumps(augment))(raw, generator(3)))
    assert not torch.equal(out, augment(raw, generator(4)))
    with pytest.raises(UsageError, match=r"\(C, H, W\)"):
        augment(torch.zeros(4, 7), generator())


def test_names_and_bounds():
    assert make_augment("none") is None
    with pytest.raises(UsageError, match="did you mean `crop-flip`"):
        make_augment("crop-flop")
    with pytest.raises(UsageError, match="padding"):
        crop_flip(-1)
    with pytest.raises(UsageError, match="scale"):
        random_resized_crop(8, scale=(0.5, 2))
    with pytest.raises(UsageError, match="at least 1"):
        resize(0)


def test_resize_matches_pillow():
    import numpy as np
    from PIL import Image

    raw = torch.randint(0, 256, (1, 1, 20, 20), dtype=torch.uint8, generator=generator(5))
    for size in (7, 45):
        expected = Image.fromarray(raw[0, 0].numpy()).resize((size, size), Image.Resampling.BILINEAR)
        ours = resize(size)(raw, generator())[0, 0].numpy().astype(int)
        assert np.abs(ours - np.asarray(expected).astype(int)).max() <= 1
