"""The loader's ring of pinned buffers: what the GPU gets is what was in them when they were handed out."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from orchestrator.data.cache import Cache
from orchestrator.data.loader import Loader, View, ring_memory
from tests.pictures import numbered_rows, write_cache
from trainables.augment import Augmentation


def test_the_buffers_are_pinned(gpu: torch.device) -> None:
    assert ring_memory(1000).is_pinned()


def test_a_buffer_is_not_filled_again_while_it_is_copied(gpu: torch.device, tmp_path: Path) -> None:
    """Each image has one value, so that a batch that was overwritten on its way tells."""
    count, size, batch = 200, 64, 8
    with closing(Cache(write_cache(tmp_path / "cache", numbered_rows(count, size=size)))) as cache:
        view = View("made", "", ("a", "b", "c"), size, batch, 0, cache.keys, cache.keys[:0], Augmentation())
        loader = Loader(cache, view, threads=4)
        for epoch in range(2):
            copies: list[torch.Tensor] = []
            expected: list[int] = []
            for handed_out in loader.train(epoch):
                torch.cuda._sleep(20_000_000)  # about 10 ms: the copies queue up behind it
                copies.append(handed_out.images.to(gpu, non_blocking=True))
                expected += [int(cache.image(int(sample))[0, 0, 0]) for sample in handed_out.samples]
            torch.cuda.synchronize()
            got = torch.cat(copies).cpu().numpy()
            np.testing.assert_array_equal(got.reshape(len(got), -1).min(1), expected)
            np.testing.assert_array_equal(got.reshape(len(got), -1).max(1), expected)
