import pytest
import torch

from bifusion_hf.layers import bfloat16


def test_the_slowdown_of_bfloat16_is_that_of_the_clock(monkeypatch):
    class Clock:
        """A second for a product of float32, seven for one of bfloat16; the first round is slow."""

        now, readings = 0.0, 0

        def perf_counter(self):
            self.readings += 1
            if self.readings % 2 == 0:
                this_round = (self.readings - 1) // 4
                self.now += (7 if self.readings % 4 == 0 else 1) * (10, 2, 3, 4)[this_round]
            return self.now

    def ones(*size, dtype):
        dtypes.append(dtype)
        return make(*size, dtype=dtype)

    dtypes, make = [], torch.ones
    monkeypatch.setattr(torch, "ones", ones)
    monkeypatch.setattr(bfloat16, "time", Clock())
    assert bfloat16.bfloat16_slowdown(size=8) == 7
    assert dtypes == [torch.float32, torch.bfloat16] * 4


@pytest.mark.parametrize("ratio", [2.99, 3.0, 41.6])
def test_bfloat16_is_warned_of_where_it_takes_three_times_as_long(monkeypatch, ratio):
    monkeypatch.setattr(bfloat16, "bfloat16_slowdown", lambda: ratio)
    said = f"a: on this CPU a product of bfloat16 matrices takes {ratio:.0f} times as long as one of float32; b"
    assert bfloat16.slow_bfloat16_warning("a", "b") == (said if ratio >= 3 else "")
