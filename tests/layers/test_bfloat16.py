import torch

from bifusion_hf.layers import bfloat16


def test_the_slowdown_of_bfloat16_is_that_of_the_clock(monkeypatch):
    class Clock:
        """A second for a product of float32, seven for one of bfloat16; the first round is slower."""

        now, readings = 0.0, 0

        def perf_counter(self):
            self.readings += 1
            if self.readings % 2 == 0:
                self.now += (7 if self.readings % 4 == 0 else 1) * (10 if self.readings <= 4 else 1)
            return self.now

    def ones(*size, dtype):
        dtypes.append(dtype)
        return make(*size, dtype=dtype)

    dtypes, make = [], torch.ones
    monkeypatch.setattr(torch, "ones", ones)
    monkeypatch.setattr(bfloat16, "time", Clock())
    assert bfloat16.bfloat16_slowdown(size=8) == 7
    assert dtypes == [torch.float32, torch.bfloat16] * 4
